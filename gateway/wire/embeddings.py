"""OpenAI's embeddings: turns texts or token ids into vectors."""

from __future__ import annotations

from typing import Final, Literal

from gateway.errors import BadRequest
from gateway.upstream.port import ProtocolName
from gateway.wire.body import parse_object, text
from gateway.wire.buffered import BufferedProtocol, refuse_stream, texts_in
from gateway.wire.protocol import Request

# The API accepts 2,048 texts, and 8,192 token ids for one text. Other servers accept more of both.
INPUTS_MAX: Final = 100_000


class EmbeddingsProtocol(BufferedProtocol):
    name: ProtocolName = "embeddings"
    counted_as: Literal["embeddings"] = "embeddings"
    answer_field: Final = "data"

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = text(body, "model")
        inputs = texts_in(body, "input", INPUTS_MAX)
        # In Python a bool is an int, but it is not a token id. Objects hold image parts.
        if not all(isinstance(item, str | int | list | dict) and not isinstance(item, bool) for item in inputs):
            raise BadRequest.field("input", "must be a text, a list of texts, or token ids")
        refuse_stream(body)
        return Request(body=body, model=model, has_output=False, metadata=body.get("metadata"))
