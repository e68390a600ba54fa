"""The accelerated tokenizer must count exactly as tiktoken does, which is the oracle."""

from __future__ import annotations

import unicodedata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gateway.tokenizer_tables as tables

pytestmark = pytest.mark.skipif(
    find_spec("toktok") is None, reason="needs the extra [fast]: toktok-rs is not installed"
)

ENCODINGS = ("o200k_base", "cl100k_base")
ROOT = Path(__file__).parents[2]
_WORDS = st.sampled_from(
    ["the", "'ll", "Zürich", "日本語", "おめでとう", "🧑‍🚀", "ß", "x1y22z333", "\r\n", "\n\n", "\t", "  ", "{\"a\":", "<|endoftext|>",
     "\u200b", "e\u0301", "नमस्ते", "don't", "HTTPServer2", "\ud83d", "١٢٣", "ﬁ", "\xa0", "====", "//", "0x7f"]
)  # fmt: skip
_TEXTS = st.one_of(st.text(max_size=400), st.lists(_WORDS, max_size=60).map("".join), st.lists(_WORDS).map(" ".join))


@pytest.fixture(scope="module", params=ENCODINGS)
def engines(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return tables.ToktokCounter(request.param), tables.TiktokenCounter(tables.build_encoding(request.param))


def _is_assigned(text: str) -> bool:
    """The engines have different versions of Unicode, so they split text differently at the newest characters (U+323B0)."""
    return all(unicodedata.category(character) != "Cn" for character in text)


@settings(max_examples=400, deadline=None)
@given(text=_TEXTS.filter(_is_assigned))
def test_any_text_has_the_same_count(engines: tuple[Any, Any], text: str) -> None:
    fast, oracle = engines
    assert fast.count(text) == oracle.count(text)


def test_files_of_this_repository_have_the_same_counts(engines: tuple[Any, Any]) -> None:
    fast, oracle = engines
    files = [*ROOT.glob("docs/*.md"), *ROOT.glob("gateway/*.py"), ROOT / "bench/compression/histories.json"]
    texts = [file.read_text()[:16_384] for file in files]
    assert [fast.count(text) for text in texts] == [oracle.count(text) for text in texts]
