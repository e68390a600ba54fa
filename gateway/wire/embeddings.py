"""OpenAI's embeddings: texts, or token ids, into vectors."""

from __future__ import annotations

from typing import Final, Literal

from gateway.errors import BadRequest
from gateway.upstream.port import ProtocolName
from gateway.wire.body import parse_object, text
from gateway.wire.protocol import Request
from gateway.wire.whole import WholeAnswer, refuse_stream, texts_in

# The API takes 2,048 texts; one text as token ids may have 8,192 of them. Other servers take more of both.
INPUTS_MAX: Final = 100_000


class EmbeddingsProtocol(WholeAnswer):
    name: ProtocolName = "embeddings"
    counted_as: Literal["embeddings"] = "embeddings"

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = text(body, "model")
        inputs = texts_in(body, "input", INPUTS_MAX)
        # bool is an int in Python, and no token id; parts of images stand in objects.
        if not all(isinstance(item, str | int | list | dict) and not isinstance(item, bool) for item in inputs):
            raise BadRequest.field("input", "must be a text, a list of texts, or token ids")
        refuse_stream(body)
        return Request(body=body, model=model, has_output=False, metadata=body.get("metadata"))
