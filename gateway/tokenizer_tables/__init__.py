"""The two tables of OpenAI's tokenizers, shipped with the package: tiktoken would fetch them at its first use.

Where `toktok-rs` is installed (the extra `fast`), it counts in tiktoken's place: the same tables compiled in, the same
counts (tests/gateway/test_tokenizer_parity.py), in a tenth of the time.

The files are OpenAI's own (`o200k_base.tiktoken`, `cl100k_base.tiktoken`), compressed; what they unpack to is checked
against the digests that tiktoken itself pins, so that a damaged install fails at start and not in the bill.
"""

from __future__ import annotations

import binascii
import gzip
import hashlib
import io
from importlib import resources
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tiktoken

try:
    # To count one text without a pool of threads has no name in its public part; the version is pinned.
    from toktok import _encoding as fast_encoding
except ImportError:
    fast_encoding = None

_SHA256 = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}

# How a text is split before its pieces are merged; the same patterns as in tiktoken's own definitions.
_PATTERNS = {
    "o200k_base": "|".join(
        (
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
    "cl100k_base": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
        r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
}


class Counter(Protocol):
    def count(self, text: str) -> int:
        """Tokens of a text without lone surrogates. May raise whatever the engine does."""


class TiktokenCounter:
    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding

    def count(self, text: str) -> int:
        return len(self._encoding.encode_ordinary(text))


class ToktokCounter:
    """tiktoken repairs lone surrogates; this engine refuses them."""

    def __init__(self, name: str) -> None:
        assert fast_encoding is not None  # noqa: S101 - whoever makes one has looked
        self._count = fast_encoding(name).count

    def count(self, text: str) -> int:
        try:
            tokens: int = self._count(text)
        except UnicodeEncodeError:
            tokens = self._count(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return tokens


def build_counter(name: str) -> Counter:
    """The fastest that is installed, built as `build_encoding` says."""
    return TiktokenCounter(build_encoding(name)) if fast_encoding is None else ToktokCounter(name)


def build_encoding(name: str) -> tiktoken.Encoding:
    """The encoding (`o200k_base` or `cl100k_base`), built from its shipped table without touching the network.

    Takes 0.3 s (cl100k: 0.15 s) of CPU and holds the GIL for about half of that, so call it in a thread and at start.
    It has no special tokens: they are counted as the ordinary text that a client's `<|endoftext|>` is. Raises
    `ValueError` when the table is not the one that it should be, `KeyError` for another name.
    """
    import tiktoken  # where the other engine counts, this one's 5 MB are not needed

    packed = resources.files(__package__).joinpath(f"{name}.tiktoken.gz").read_bytes()
    table = gzip.decompress(packed)
    if hashlib.sha256(table).hexdigest() != _SHA256[name]:
        raise ValueError(f"the tokenizer table {name} is damaged: reinstall farebox")
    ranks = _ranks(table)
    encoding = tiktoken.Encoding(name, pat_str=_PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
    # tiktoken keeps a copy of its own outside Python and needs ours for decoding only: 25 MB that nothing reads again.
    ranks.clear()
    return encoding


def _ranks(table: bytes) -> dict[bytes, int]:
    # Line by line: splitting the whole file at once would leave the process 30 MB larger.
    ranks = {}
    for line in io.BytesIO(table):
        token, _, rank = line.partition(b" ")
        ranks[binascii.a2b_base64(token)] = int(rank)
    return ranks
