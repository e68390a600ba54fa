"""Compression: fewer tokens for the same content of a chat.

There is one file per strategy (structural, template, truncate, extractive, semantic). `chat` combines them, `scoring`
measures what is kept, and `roi` computes whether it pays. `docs/compression.md` explains what each does and how well.
"""

from policies.compression.chat import compress_chat, semantic_requests, text_tokens
from policies.compression.memory import MEMORY_TOKENS_MAX
from policies.compression.policy import Aggressiveness, Compressed, CompressionPolicy, Strategy
from policies.compression.roi import Roi, compression_roi
from policies.compression.scoring import quality
from policies.compression.segments import has_cache_marks
from policies.compression.semantic import SemanticRequest, semantic_key, semantic_request

__all__ = [
    "MEMORY_TOKENS_MAX",
    "Aggressiveness",
    "Compressed",
    "CompressionPolicy",
    "Roi",
    "SemanticRequest",
    "Strategy",
    "compress_chat",
    "compression_roi",
    "has_cache_marks",
    "quality",
    "semantic_key",
    "semantic_request",
    "semantic_requests",
    "text_tokens",
]
