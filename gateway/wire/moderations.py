"""OpenAI's moderations: texts and images in, categories out. They are free of charge."""

from __future__ import annotations

from typing import Final, Literal

from gateway.upstream.port import ProtocolName
from gateway.wire.body import parse_object, text
from gateway.wire.buffered import BufferedProtocol, refuse_stream, texts_in
from gateway.wire.protocol import Request

INPUTS_MAX: Final = 10_000
# The API's default for requests that name no model.
MODEL_DEFAULT: Final = "omni-moderation-latest"


class ModerationsProtocol(BufferedProtocol):
    name: ProtocolName = "moderations"
    counted_as: Literal["embeddings"] = "embeddings"  # its `input` is counted in the same way
    answer_field: Final = "results"

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = MODEL_DEFAULT if body.get("model") is None else text(body, "model")
        texts_in(body, "input", INPUTS_MAX)
        refuse_stream(body)
        return Request(body=body, model=model, has_output=False, metadata=body.get("metadata"))
