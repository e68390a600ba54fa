"""The texts of a chat: which there are, which may be changed, and how changed ones are put back.

Fixed, whatever the strategy: system and developer prompts, the newest user turn, everything up to the last `cache_control`
mark, a last assistant message (with which the client prefills the answer), tool calls with their ids and arguments, and every
part that is not text. Data in the newest user turn may be written in fewer characters (`data_blocks`). The formats are
OpenAI's chat messages, Anthropic's `tool_result` blocks and the Responses API's `function_call_output` items; everything else
in a message is passed through.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from policies.compression.data_blocks import data_spans, without_data
from policies.values import value_class

Message = Mapping[str, Any]
JsonPath = tuple[str | int, ...]


class Origin(StrEnum):
    """Who wrote a text. Lossy strategies shorten them in the order tool, assistant, user."""

    MEMORY = "memory"
    TOOL = "tool"
    ASSISTANT = "assistant"
    USER = "user"
    PROMPT = "prompt"


@value_class
class Segment:
    """One text of a chat. `place` is the path of keys and indexes to it; `label` is its name in back-references.

    `exact` marks what a tool read from a source or configuration file, because an agent that edits the file quotes these
    bytes. `holds_data` marks a text that is fixed as the newest user turn, but has data between its words.
    """

    place: JsonPath
    text: str
    origin: Origin
    label: str
    fixed: bool
    exact: bool = False
    holds_data: bool = False


@value_class
class _Call:
    name: str
    arguments: str


_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
_MEMORY_TAG = re.compile(r"\s*<(memor(?:y|ies)|memory[_-]context)>.*</\1>\s*\Z", re.DOTALL | re.IGNORECASE)
_SOURCE_FILE = re.compile(
    r"\.(?:py|pyi|js|jsx|mjs|cjs|ts|tsx|vue|svelte|java|kt|scala|go|rs|c|h|cc|cpp|hpp|cs|rb|php|swift|sh|bash|sql|lua|r|pl"
    r"|html?|xml|svg|css|scss|less|json5?|jsonc|ya?ml|toml|ini|cfg|conf|env|tf|proto|gradle|ipynb|diff|patch)\b",
    re.IGNORECASE,
)
_LABEL_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def segments_of(messages: Sequence[Message]) -> list[Segment]:
    """All texts of the chat in order, with whether they may be changed."""
    calls: dict[str, _Call] = {}  # filled in order, because some servers number the calls of each turn from 0
    cached = _cached_prefix_end(messages)
    turn = _newest_turn(messages)
    last = len(messages) - 1
    segments = []
    for index, message in enumerate(messages):
        calls.update(_calls_in(message))
        is_prefill = index == last and message.get("role") == "assistant"
        for path, text, call_id in _texts(index, message):
            origin = _origin(message, text, call_id)
            is_newest_turn = index in turn and origin is Origin.USER
            is_cached = bool(cached) and path[: len(cached)] <= cached
            fixed = origin is Origin.PROMPT or is_newest_turn or is_prefill or is_cached
            holds_data = is_newest_turn and not is_cached and bool(data_spans(text))
            call = calls.get(call_id or "")
            exact = call is not None and _reads_file(call)
            segments.append(Segment(path, text, origin, _label(index, call), fixed, exact, holds_data))
    return segments


def has_cache_marks(messages: Sequence[Message]) -> bool:
    """Whether the client marks what to cache: nothing after the marks is cached, and nothing before them may change."""
    return bool(_cached_prefix_end(messages))


def instruction_of(messages: Sequence[Message]) -> str:
    """The question: the newest user turn without the data in it, or "" if there is none."""
    turn = _newest_turn(messages)
    texts = [text for index in sorted(turn) for _, text, call_id in _texts(index, messages[index]) if call_id is None]
    return "\n".join(map(without_data, texts))


def call_texts(messages: Sequence[Message]) -> list[tuple[int, str]]:
    """The arguments of every tool call with the index of their message; ids in them are still in use."""
    texts = []
    for index, message in enumerate(messages):
        texts += [(index, call.arguments) for _, call in _calls_in(message)]
    return texts


def with_texts(messages: Sequence[Message], changes: Mapping[JsonPath, str]) -> list[dict[str, Any]]:
    """The chat with the texts at these places replaced. The given messages are not modified."""
    result = [dict(message) for message in messages]
    for path, text in changes.items():
        index = path[0]
        assert isinstance(index, int)  # noqa: S101  (places come from `segments_of`)
        result[index] = _replaced(result[index], path[1:], text)
    return result


def _replaced(value: Any, path: JsonPath, text: str) -> Any:
    if not path:
        return text
    copy: Any = dict(value) if isinstance(value, Mapping) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], text)
    return copy


def _texts(index: int, message: Message) -> Iterator[tuple[JsonPath, str, str | None]]:
    """Place, text and, for a tool result, the id of its call."""
    if message.get("type") == "function_call_output":
        if isinstance(message.get("output"), str):
            yield (index, "output"), message["output"], str(message.get("call_id"))
        return
    call_id = str(message.get("tool_call_id")) if message.get("role") in ("tool", "function") else None
    yield from _content_texts((index, "content"), message.get("content"), call_id)


def _content_texts(path: JsonPath, content: Any, call_id: str | None) -> Iterator[tuple[JsonPath, str, str | None]]:
    if isinstance(content, str):
        yield path, content, call_id
    if not isinstance(content, list):
        return
    for number, part in enumerate(content):
        if not isinstance(part, Mapping):
            continue
        if part.get("type") in _TEXT_TYPES and isinstance(part.get("text"), str):
            yield (*path, number, "text"), part["text"], call_id
        elif part.get("type") == "tool_result":
            yield from _content_texts((*path, number, "content"), part.get("content"), str(part.get("tool_use_id")))


def _origin(message: Message, text: str, call_id: str | None) -> Origin:
    if is_memory(message, text):
        return Origin.MEMORY
    if call_id is not None:
        return Origin.TOOL
    role = message.get("role")
    if role == "assistant":
        return Origin.ASSISTANT
    return Origin.USER if role == "user" else Origin.PROMPT


def is_memory(message: Message, text: str) -> bool:
    """Whether the message's name marks it as memory (`memory`, `memory_profile`), or a user's text is wholly in a memory tag."""
    name = message.get("name")
    if (
        isinstance(name, str)
        and re.match(r"memory(?![a-z])|memories\b", name.lower())
        and message.get("role") != "tool"
    ):
        return True
    return message.get("role") == "user" and text.lstrip()[:7].lower() == "<memory" and bool(_MEMORY_TAG.match(text))


def _newest_turn(messages: Sequence[Message]) -> frozenset[int]:
    """The indexes of the last user message with text and of the user messages directly before it."""
    turn: set[int] = set()
    for index in range(len(messages) - 1, -1, -1):
        if _is_user_text(index, messages[index]):
            turn.add(index)
        elif turn:
            break
    return frozenset(turn)


def _is_user_text(index: int, message: Message) -> bool:
    if message.get("role") != "user":
        return False
    return any(call_id is None and not is_memory(message, text) for _, text, call_id in _texts(index, message))


def _cached_prefix_end(messages: Sequence[Message]) -> JsonPath:
    """The place of the last `cache_control` mark; () if there is none. Everything up to it is the cached prefix."""
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if "cache_control" in message:
            return (index,)
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        for number in range(len(parts) - 1, -1, -1):
            if _has_cache_mark(parts[number]):
                return (index, "content", number)
    return ()


def _has_cache_mark(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    inner = part.get("content")
    return "cache_control" in part or (isinstance(inner, list) and any(_has_cache_mark(each) for each in inner))


def _calls_in(message: Message) -> Iterator[tuple[str, _Call]]:
    if message.get("type") == "function_call":
        yield str(message.get("call_id")), _Call(str(message.get("name")), _as_text(message.get("arguments")))
    tool_calls = message.get("tool_calls")
    for call in tool_calls if isinstance(tool_calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield str(call.get("id")), _Call(str(function.get("name")), _as_text(function.get("arguments")))
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and part.get("type") == "tool_use":
            yield str(part.get("id")), _Call(str(part.get("name")), _as_text(part.get("input")))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _reads_file(call: _Call) -> bool:
    return "://" not in call.arguments and bool(_SOURCE_FILE.search(call.arguments[:4000]))


def _label(index: int, call: _Call | None) -> str:
    """Names go into markers, even inside JSON strings, so only a few harmless characters are kept."""
    name = _LABEL_UNSAFE.sub("", call.name)[:40] if call else ""
    return f"message {index + 1} ({name})" if name else f"message {index + 1}"
