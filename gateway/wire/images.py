"""OpenAI's image generation: priced per image, or by the tokens of the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from gateway.upstream.port import ProtocolName
from gateway.wire.body import parse_object, text, whole_number
from gateway.wire.buffered import BufferedProtocol, refuse_stream
from gateway.wire.choices import details_of
from gateway.wire.protocol import Request, token_count
from policies.pricing import Usage

IMAGES_MAX: Final = 10
PROMPT_CHARACTERS_MAX: Final = 100_000
# GPT Image: output tokens per image by quality and shape, as documented.
_TOKENS: Final[Mapping[str, tuple[int, int, int]]] = {  # square, portrait, landscape
    "low": (272, 408, 400),
    "medium": (1_056, 1_584, 1_568),
    "high": (4_160, 6_240, 6_208),
}
_SHAPES: Final = {"1024x1024": 0, "1024x1536": 1, "1536x1024": 2}


class ImagesProtocol(BufferedProtocol):
    name: ProtocolName = "images"
    counted_as: Literal["completions"] = "completions"  # `prompt` is counted in the same way
    answer_field: Final = "data"

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = text(body, "model")
        text(body, "prompt", PROMPT_CHARACTERS_MAX)
        images = whole_number(body, "n", 1, IMAGES_MAX) or 1
        refuse_stream(body)
        return Request(
            body=body,
            model=model,
            has_output=False,
            metadata=body.get("metadata"),
            images=images,
            media_tokens=images * _tokens_each(body),
        )

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """The number of images, and the tokens if the model reports them. None if the answer has neither."""
        data = answer.get("data")
        images = len(data) if isinstance(data, list) else 0
        usage = details_of(answer, "usage")
        prompt = token_count(usage.get("input_tokens", usage.get("prompt_tokens"))) or 0
        output = token_count(usage.get("output_tokens", usage.get("completion_tokens"))) or 0
        if images + prompt + output == 0:
            return None
        return Usage(input_tokens=prompt, output_tokens=output, images=images)


def _tokens_each(body: Mapping[str, Any]) -> int:
    """The upper bound of tokens per image: the most expensive for `auto`, and for values that the table does not list."""
    quality, size = body.get("quality"), body.get("size")
    rows = [_TOKENS[quality]] if isinstance(quality, str) and quality in _TOKENS else list(_TOKENS.values())
    shape = _SHAPES.get(size) if isinstance(size, str) else None
    return max(max(row) if shape is None else row[shape] for row in rows)
