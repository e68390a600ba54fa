"""OpenAI's legacy completions: one prompt or several, each continued by the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from gateway.errors import BadRequest, GatewayError
from gateway.upstream.port import ProtocolName
from gateway.wire.body import boolean, parse_object, text, whole_number
from gateway.wire.chat_assembly import merge_chunks, merge_ends
from gateway.wire.choices import ChoiceRelay, request_stream, usage_of, wants_usage
from gateway.wire.events import index_of
from gateway.wire.openai_errors import error_body
from gateway.wire.protocol import OutputCounter, Request, joined_texts
from policies.pricing import Usage

CHOICES_MAX: Final = 128
PROMPTS_MAX: Final = 2_048
# The default that the API documents, and that vLLM and SGLang use. Without it here, a budget would put its own, much larger
# cap into the request, and answers would get longer and more expensive than without a budget.
OUTPUT_TOKENS_DEFAULT: Final = 16


class CompletionsProtocol:
    name: ProtocolName = "completions"
    counted_as: Literal["completions"] = "completions"
    answer_field: Final = "choices"
    streams = True
    is_binary = False

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = text(body, "model")
        prompts = _prompts(body.get("prompt"))
        answers = whole_number(body, "n", 1, CHOICES_MAX) or 1
        drafts = whole_number(body, "best_of", 1, CHOICES_MAX) or 1
        cap = whole_number(body, "max_tokens", 0)
        return Request(
            body=body,
            model=model,
            stream=boolean(body, "stream"),
            choices=prompts * max(answers, drafts),  # discarded drafts are billed as well
            output_tokens_max=OUTPUT_TOKENS_DEFAULT if cap is None else cap,
            is_cap_assumed=cap is None,
            output_tokens_min_useful=0,
            wants_usage=wants_usage(body),
            metadata=body.get("metadata"),
        )

    def upstream_body(self, request: Request, output_tokens: int | None, stream: bool) -> dict[str, Any]:
        body = dict(request.body)
        if output_tokens is not None:
            requested_max = request.output_tokens_max
            body["max_tokens"] = output_tokens if requested_max is None else min(output_tokens, requested_max)
        if stream:
            request_stream(body)
        return body

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return usage_of(answer.get("usage"))

    def output_text(self, answer: Mapping[str, Any]) -> str:
        return joined_texts(answer.get("choices"), _text_of)

    def relay(self, request: Request, counter: OutputCounter) -> CompletionRelay:
        return CompletionRelay(request, counter)

    def assemble(self, pieces: bytes) -> dict[str, Any]:
        return merge_chunks(pieces, "text_completion", _merge_choice)

    def error_body(self, error: GatewayError) -> bytes:
        return error_body(error)


class CompletionRelay(ChoiceRelay):
    def __init__(self, request: Request, counter: OutputCounter) -> None:
        answers = request.body.get("n") or 1
        super().__init__(request, counter, _prompts(request.body.get("prompt")) * answers)

    def _text_of_choice(self, choice: Mapping[str, Any]) -> str:
        return _text_of(choice)

    def _blank_head(self) -> dict[str, Any]:
        return {"id": "cmpl-farebox", "object": "text_completion", "created": 0, "model": self._request.model}

    def _length_finish(self, index: int) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": "length"}


def _prompts(prompt: Any) -> int:
    """The number of prompts: a text, token ids, a list of texts, or a list of lists of token ids. None starts a new document."""
    if prompt is None or isinstance(prompt, str):
        return 1
    if isinstance(prompt, list) and prompt:
        if len(prompt) > PROMPTS_MAX and not isinstance(prompt[0], int):
            raise BadRequest.field("prompt", f"has {len(prompt)} entries, more than {PROMPTS_MAX}")
        for kind, count in ((int, 1), (str, len(prompt)), (list, len(prompt))):
            if all(isinstance(item, kind) and not isinstance(item, bool) for item in prompt):
                return count
    raise BadRequest.field("prompt", "must be a text, a list of texts, a list of token ids, or a list of such lists")


def _text_of(choice: Mapping[str, Any]) -> str:
    written = choice.get("text")
    return written if isinstance(written, str) else ""


def _merge_choice(choices: dict[int, dict[str, Any]], choice: dict[str, Any]) -> None:
    index = index_of(choice)
    merged = choices.setdefault(index, {"index": index, "text": "", "logprobs": None, "finish_reason": None})
    merged["text"] += _text_of(choice)
    merge_ends(merged, choice)
