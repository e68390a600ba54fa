"""Reranking, in the format that Cohere, Jina, vLLM and LiteLLM share: a query and documents in, a ranking out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from gateway.errors import BadRequest
from gateway.upstream.port import ProtocolName
from gateway.wire.body import missing_or, parse_object, text, whole_number
from gateway.wire.buffered import BufferedProtocol, input_usage, refuse_stream, texts_in
from gateway.wire.choices import details_of
from gateway.wire.protocol import Request, token_count
from policies.pricing import Usage

DOCUMENTS_MAX: Final = 10_000
QUERY_CHARACTERS_MAX: Final = 1_000_000
# Cohere's price is per query with up to 100 documents. A document of more than 500 tokens (query included) is split,
# and each piece counts as a document.
_DOCUMENTS_PER_QUERY: Final = 100
_TOKENS_PER_PIECE: Final = 500


class RerankProtocol(BufferedProtocol):
    name: ProtocolName = "rerank"
    counted_as: Literal["embeddings"] = "embeddings"  # `query` and `documents` are counted in the same way
    answer_field: Final = "results"

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = text(body, "model")
        query = text(body, "query", QUERY_CHARACTERS_MAX)
        documents = body.get("documents")
        if not isinstance(documents, list):
            raise missing_or("documents", documents, "must be a list")
        query_tokens = _tokens_at_most(query)
        pieces = sum(_pieces(item, query_tokens) for item in texts_in(body, "documents", DOCUMENTS_MAX))
        whole_number(body, "top_n", 1)
        refuse_stream(body)
        return Request(
            body=body,
            model=model,
            has_output=False,
            metadata=body.get("metadata"),
            queries=-(-pieces // _DOCUMENTS_PER_QUERY),
            # Others bill by tokens and read the query again for each document; the prompt's count includes it once.
            media_tokens=query_tokens * (len(documents) - 1),
        )

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """Search units from providers that bill those (Cohere), otherwise tokens (Jina, Voyage, vLLM)."""
        meta = details_of(answer, "meta")
        billed = details_of(meta, "billed_units")
        queries = token_count(billed.get("search_units"))
        if queries:
            return Usage(queries=queries)
        tokens = token_count(details_of(meta, "tokens").get("input_tokens")) or token_count(billed.get("total_tokens"))
        return Usage(input_tokens=tokens) if tokens else input_usage(answer.get("usage"))


def _pieces(document: Any, query_tokens: int) -> int:
    if not isinstance(document, str | dict):
        raise BadRequest.field("documents", "must be texts, or objects with a text")
    value = document if isinstance(document, str) else document.get("text")
    tokens = _tokens_at_most(value) if isinstance(value, str) else 0
    return max(1, -(-tokens // max(1, _TOKENS_PER_PIECE - query_tokens)))


def _tokens_at_most(content: str) -> int:
    """An upper bound without a tokenizer: natural text has at least two bytes per token (English four, Chinese three)."""
    return -(-len(content.encode("utf-8", "surrogatepass")) // 2)
