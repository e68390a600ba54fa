"""All protocols, by the path of their endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.wire.chat import ChatProtocol
from gateway.wire.completions import CompletionsProtocol
from gateway.wire.embeddings import EmbeddingsProtocol
from gateway.wire.images import ImagesProtocol
from gateway.wire.messages import MessagesProtocol
from gateway.wire.moderations import ModerationsProtocol
from gateway.wire.protocol import WireProtocol
from gateway.wire.rerank import RerankProtocol
from gateway.wire.responses import ResponsesProtocol
from gateway.wire.speech import SpeechProtocol
from gateway.wire.transcriptions import TranscriptionsProtocol

MESSAGES: Final = MessagesProtocol()

_BY_ENDPOINT: Final[Mapping[str, WireProtocol]] = {
    "/chat/completions": ChatProtocol(),
    "/completions": CompletionsProtocol(),
    "/responses": ResponsesProtocol(),
    "/messages": MESSAGES,
    "/embeddings": EmbeddingsProtocol(),
    "/moderations": ModerationsProtocol(),
    "/rerank": RerankProtocol(),
    "/images/generations": ImagesProtocol(),
    "/audio/speech": SpeechProtocol(),
    "/audio/transcriptions": TranscriptionsProtocol(),
}
# Clients differ in whether their base URL ends with the version, so both forms are served.
PROTOCOLS: Final[Mapping[str, WireProtocol]] = {
    prefix + path: protocol for path, protocol in _BY_ENDPOINT.items() for prefix in ("/v1", "")
}
# Answered here without calling a model, by `MESSAGES.parse_count` and `MESSAGES.count_answer`.
COUNT_TOKENS_PATHS: Final = frozenset({"/v1/messages/count_tokens", "/messages/count_tokens"})
