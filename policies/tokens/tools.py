"""The TypeScript that OpenAI's models see in place of the tools' JSON, and what it costs.

OpenAI renders function schemas into a namespace. The rendering for GPT-3.5 was worked out by github.com/hmarr/openai-chat-tokens,
the later one is that of github.com/openai/harmony; both were checked against the usage that the API reported:

    namespace functions {

    // the function's description
    type name = (_: {
    // the parameter's description
    city: string,
    unit?: "celsius" | "fahrenheit", // default: celsius
    }) => any;

    } // namespace functions
"""

from collections.abc import Mapping, Sequence
from typing import Any

from policies.tokens.counting import Counting, Family
from policies.tokens.json_text import as_list, as_object, as_text, compact_json
from policies.tokens.prompt import CountText

# deeper schemas are rendered as JSON, which is longer: this bounds the recursion, and keeps the count a bound
_DEPTH_MAX = 24
# beyond it, `$ref`s stay names: two references per level would double the text with each level
_EXPANDED_CHARACTERS_MAX = 200_000

# Not seen in recorded requests, so they may not be rendered; counted, because the bound must hold if they are.
_CONSTRAINTS = ("format", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "examples")

_NAMESPACE = 9
_CHAT_GPT_5 = 82  # GPT-5's instructions for calling functions; absent in /v1/responses
_RESPONSES_GPT_4 = 3


def functions_in(tools: Any) -> list[Mapping[str, Any]]:
    """The function objects of a `tools` array (chat or Responses) or a legacy `functions` array; other tools are left out.

    A custom tool counts as a function: it has a name and a description, but no parameters.
    """
    return [
        as_object(tool.get("function") or tool.get("custom") or tool)
        for tool in as_list(tools)
        if isinstance(tool, dict)
    ]


def chat_tool_tokens(functions: Sequence[Mapping[str, Any]], counting: Counting, count: CountText) -> int:
    """Tokens that the functions add to a chat request (4 less if it has a system message)."""
    tokens = count(render_functions(functions, counting.family)) + _NAMESPACE
    if counting.family is not Family.GPT_5:
        return tokens
    return tokens + _CHAT_GPT_5 - _undescribed(functions)


def responses_tool_tokens(functions: Sequence[Mapping[str, Any]], counting: Counting, count: CountText) -> int:
    """Tokens that the functions add to a `/v1/responses` request."""
    tokens = count(render_functions(functions, counting.family))
    if counting.family is Family.GPT_5:
        return tokens + _NAMESPACE - _undescribed(functions)
    return tokens + _RESPONSES_GPT_4


def render_functions(functions: Sequence[Mapping[str, Any]], family: Family) -> str:
    """The namespace as the family's models see it."""
    lines = ["namespace functions {", ""]
    for function in functions:
        lines += _TypeScriptRenderer(as_object(function.get("parameters")), family).function_lines(function)
        lines.append("")
    lines.append("} // namespace functions")
    return "\n".join(lines)


def _grammar(function: Mapping[str, Any]) -> list[str]:
    """The grammar of a custom tool's input. Not recorded either, and counted for the same reason as `_CONSTRAINTS`."""
    form = as_object(function.get("format"))
    return [compact_json(form)] if form.get("type") == "grammar" else []


def _undescribed(functions: Sequence[Mapping[str, Any]]) -> int:
    # GPT-5 reports one token less when the first function has no comment above it.
    return 0 if functions and functions[0].get("description") else 1


class _TypeScriptRenderer:
    """Renders one function's schema as TypeScript. Keeps the root that references point into, and the length so far."""

    def __init__(self, root: Mapping[str, Any], family: Family) -> None:
        self._root, self._gpt_5, self._characters = root, family is Family.GPT_5, 0

    def function_lines(self, function: Mapping[str, Any]) -> list[str]:
        description, name = function.get("description"), as_text(function.get("name"))
        lines = self._described(as_text(description)) if description else []
        if not as_object(self._root.get("properties")):
            return [*lines, f"type {name} = () => any;", *_grammar(function)]
        properties = self._property_lines(self._root, 0)
        if not _has_comment(self._root, _DEPTH_MAX):
            # Without any comments, models see the function on one line.
            inner = " ".join(part.strip() for line in properties for part in line.split("\n")).rstrip(",")
            return [*lines, f"type {name} = (_: {{ {inner} }}) => any;"]
        return [*lines, *self._opening(name), *properties, "}) => any;"]

    def _described(self, description: str) -> list[str]:
        if self._gpt_5:
            return [f"// {line}" for line in description.split("\n")]
        # For GPT-4's models, docstrings are sent without indentation.
        return ["// " + "\n".join(line.strip() for line in description.strip().split("\n"))]

    def _opening(self, name: str) -> list[str]:
        comments = _comments(self._root)
        if not comments:
            return [f"type {name} = (_: {{"]
        return [f"type {name} = (_: {comments[0]}", *comments[1:], "{"]

    def _property_lines(self, schema: Mapping[str, Any], depth: int) -> list[str]:
        required = frozenset(name for name in as_list(schema.get("required")) if isinstance(name, str))
        lines = []
        for name, parameter in as_object(schema.get("properties")).items():
            spec = as_object(parameter)
            lines += _comments(spec)
            lines.append(f"{name}{'' if name in required else '?'}: {self._type(spec, depth)},{_remarks(spec)}")
        self._characters += sum(map(len, lines))
        return lines

    def _type(self, spec: Mapping[str, Any], depth: int) -> str:
        if depth > _DEPTH_MAX:
            return compact_json(spec)
        if "$ref" in spec:
            return self._reference(as_text(spec["$ref"]), depth)
        if "const" in spec:
            return compact_json(spec["const"])
        if as_list(spec.get("enum")):
            return " | ".join(compact_json(value) for value in spec["enum"])
        for word in ("anyOf", "oneOf", "allOf"):
            if as_list(spec.get(word)):
                return " | ".join(self._option(as_object(option), depth + 1) for option in spec[word])
        return self._plain_type(spec, spec.get("type"), depth)

    def _option(self, spec: Mapping[str, Any], depth: int) -> str:
        remark = f" // {as_text(spec['description'])}" if spec.get("description") else ""
        return self._type(spec, depth) + remark

    def _reference(self, pointer: str, depth: int) -> str:
        if self._characters > _EXPANDED_CHARACTERS_MAX:
            return pointer
        self._characters += len(pointer)
        target: Any = self._root
        for key in pointer.removeprefix("#").strip("/").split("/"):
            target = as_object(target).get(key)
        text = self._type(as_object(target), depth + 1)
        self._characters += len(text)
        return text

    def _plain_type(self, spec: Mapping[str, Any], kind: Any, depth: int) -> str:
        if isinstance(kind, list):
            kinds = dict.fromkeys(type_name for type_name in kind if isinstance(type_name, str))
            return " | ".join(self._plain_type(spec, type_name, depth) for type_name in kinds)
        if kind == "array":
            return self._type(as_object(spec.get("items")), depth + 1) + "[]"
        if kind == "object":
            if not as_object(spec.get("properties")):
                return "object"
            return "\n".join(["{", *self._property_lines(spec, depth + 1), "}"])
        return "number" if kind == "integer" else kind if isinstance(kind, str) else "any"


def _remarks(spec: Mapping[str, Any]) -> str:
    default = f" // default: {compact_json(spec['default'])}" if "default" in spec else ""
    return default + "".join(f" // {word}: {compact_json(spec[word])}" for word in _CONSTRAINTS if word in spec)


def _comments(spec: Mapping[str, Any]) -> list[str]:
    title, description = spec.get("title"), spec.get("description")
    lines = [f"// {as_text(title)}", "//"] if title else []
    return [*lines, f"// {as_text(description)}"] if description else lines


def _has_comment(spec: Mapping[str, Any], depth: int) -> bool:
    if spec.get("description") or spec.get("title") or "default" in spec:
        return True
    children = [*as_object(spec.get("properties")).values(), spec.get("items"), *as_list(spec.get("anyOf"))]
    return depth > 0 and any(_has_comment(child, depth - 1) for child in children if isinstance(child, dict))
