"""Converts an OpenAI chat request to the classifier's input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from policies.classify.instruction import clip
from policies.classify.schema import SCHEMA_CHARS
from policies.classify.step import StepText

# More tools say nothing new about the step, and a message with more parts than this is data.
TOOLS_MAX = 64
PARTS_MAX = 32
MESSAGES_SEARCHED = 200


def step_text_from_chat(body: Mapping[str, Any], step: str | None, workflow: str | None) -> StepText:
    """Read the system prompt, the last user message, the tools' names and the response format.

    Bounded work: a part of each text (`clip`), `TOOLS_MAX` tools, `PARTS_MAX` parts. Fields of a wrong type count as missing,
    because it is the upstream's job to refuse a malformed request.
    """
    messages = body.get("messages")
    message_list: Sequence[Any] = messages if isinstance(messages, list) else ()
    return StepText(
        step=step,
        workflow=workflow,
        system=_system(message_list[:MESSAGES_SEARCHED]),
        prompt=_last_user(message_list),
        tools=tuple(_tool_names(body)),
        response_format=_response_format(body.get("response_format")),
    )


def _system(messages: Sequence[Any]) -> str | None:
    texts = [_text(message.get("content")) for message in messages if _role(message) in ("system", "developer")]
    return clip("\n\n".join(texts[:4])) if texts else None


def _last_user(messages: Sequence[Any]) -> str:
    for message in reversed(messages[-MESSAGES_SEARCHED:]):
        if _role(message) == "user":
            return _text(message.get("content"))
    return ""


def _role(message: Any) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return clip(content)
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") for part in content[:PARTS_MAX] if isinstance(part, Mapping))
    return clip("\n".join(clip(part) for part in parts if isinstance(part, str)))


def _tool_names(body: Mapping[str, Any]) -> Iterable[str]:
    tools = body.get("tools") or body.get("functions")
    for tool in tools[:TOOLS_MAX] if isinstance(tools, list) else ():
        if not isinstance(tool, Mapping):
            continue
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else tool.get("name")
        if isinstance(name, str):
            yield name


def _response_format(response_format: Any) -> str | None:
    if not isinstance(response_format, Mapping):
        return None
    schema = response_format.get("json_schema")
    if isinstance(schema, Mapping) and isinstance(schema.get("schema"), Mapping):
        # A schema that is too large is truncated and then no longer parses, so it counts as "some JSON".
        return json.dumps(schema["schema"], separators=(",", ":"), ensure_ascii=False, default=str)[:SCHEMA_CHARS]
    kind = response_format.get("type")
    return kind if isinstance(kind, str) and kind != "text" else None
