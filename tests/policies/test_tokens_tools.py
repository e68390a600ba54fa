"""The TypeScript that tools are rendered to, which no schema can make unboundedly long or slow."""

from typing import Any

import pytest

from policies.tokens import Family
from policies.tokens.tools import functions_in, render_functions


def rendered(parameters: Any, description: str = "", family: Family = Family.GPT_4) -> str:
    text = render_functions([{"name": "f", "description": description, "parameters": parameters}], family)
    return text.removeprefix("namespace functions {\n\n").removesuffix("\n\n} // namespace functions")


def schema(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (None, "type f = () => any;"),
        (schema(), "type f = () => any;"),
        (schema("a", a={"type": "integer"}), "type f = (_: { a: number }) => any;"),
        (schema(a={"type": "string", "enum": ["x", "y"]}), 'type f = (_: { a?: "x" | "y" }) => any;'),
        (schema("a", a={"type": "array", "items": {"type": "string"}}), "type f = (_: { a: string[] }) => any;"),
        (schema("a", a={"type": ["string", "null"]}), "type f = (_: { a: string | null }) => any;"),
        (schema("a", a={"const": 3}), "type f = (_: { a: 3 }) => any;"),
        (schema("a", a={"type": "object"}), "type f = (_: { a: object }) => any;"),
        (schema("a", a={}), "type f = (_: { a: any }) => any;"),
        (schema("a", a="malformed"), "type f = (_: { a: any }) => any;"),
        (
            schema("a", a={"type": "string", "description": "the a"}, b={"type": "boolean", "default": True}),
            "type f = (_: {\n// the a\na: string,\nb?: boolean, // default: true\n}) => any;",
        ),
        (
            schema("a", a={"type": "string", "title": "A"}),
            "type f = (_: {\n// A\n//\na: string,\n}) => any;",
        ),
        (
            {**schema("a", a={"type": "string"}), "description": "all of it"},
            "type f = (_: // all of it\n{\na: string,\n}) => any;",
        ),
        (
            schema("o", o={**schema("x", x={"type": "number", "description": "inner"})}),
            "type f = (_: {\no: {\n// inner\nx: number,\n},\n}) => any;",
        ),
        (
            {**schema("p", p={"$ref": "#/$defs/P"}), "$defs": {"P": {"type": "string"}}},
            "type f = (_: { p: string }) => any;",
        ),
    ],
)
def test_function_schema_is_rendered_as_typescript(parameters: Any, expected: str) -> None:
    assert rendered(parameters) == expected


def test_custom_tool_is_rendered_with_its_description_and_grammar() -> None:
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /a+/"}}
    chat = {"type": "custom", "custom": {"name": "f", "description": "the f", "format": grammar}}
    responses = {"type": "custom", "name": "f", "description": "the f", "format": grammar}
    [text] = {render_functions(functions_in([tool]), Family.GPT_5) for tool in (chat, responses)}
    assert "// the f\ntype f = () => any;" in text
    assert '"start: /a+/"' in text


def test_description_is_dedented_for_gpt_4_and_commented_for_gpt_5() -> None:
    description = "First.\n\n    Second.\n    "
    assert rendered(None, description) == "// First.\n\nSecond.\ntype f = () => any;"
    assert rendered(None, description, Family.GPT_5) == ("// First.\n// \n//     Second.\n//     \ntype f = () => any;")


def _doubling(reference: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": reference, "b": reference}}


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({**_doubling({"$ref": "#"})}, id="schema referring to itself twice"),
        pytest.param(
            {**schema(a={"$ref": "#/d"}), "d": {"anyOf": [{"$ref": "#/d"}] * 50}}, id="options referring to themselves"
        ),
        pytest.param(
            {**schema(**{f"p{i}": {"$ref": "#/d"} for i in range(2_000)}), "d": {"enum": ["x" * 50_000]}},
            id="many references to a long text",
        ),
        pytest.param(
            {**schema(a={"$ref": "#/d/0"}), "d": {str(i): _doubling({"$ref": f"#/d/{i + 1}"}) for i in range(40)}},
            id="chain of references doubling at each level",
        ),
    ],
)
def test_references_render_to_bounded_text(parameters: Any) -> None:
    assert len(rendered(parameters)) < 2_000_000
