"""Splitting texts and leaving pieces out: the pieces are the whole text, and what remains is readable and parses."""

import ast
import inspect
import json
import types
from typing import Any

import pytest

import policies.compression.chat
import policies.compression.segments
import policies.compression.structural
from policies.compression.cutting import CutConstraints, shorten_to_share, shorten_to_tokens
from policies.compression.json_pieces import json_pieces
from policies.compression.markers import digest, is_receipted, reference, sign_receipt, unsigned_receipt
from policies.compression.pieces import text_pieces
from policies.compression.policy import Strategy
from policies.compression.text_kind import TextKind, kind_of

PROSE = """# Storage

The disk array holds 48 drives of 8 TB each. Two of them are spare. It was installed in
Hamburg by the company Nordlicht, which also services it every spring and
every autumn. The contract number is NL-2291.

## Network

Switch sw-17 connects the racks. It has 96 ports, of which 12 are free.
Its firmware is version 7.3.1, and nobody has updated it since the fire.
"""
LOG = "\n".join(
    [
        f"2026-11-22 10:{minute:02d}:00 INFO job-{minute} copied {minute * 7} files to the archive"
        for minute in range(40)
    ]
    + ["Traceback (most recent call last):", '  File "copy.py", line 3, in run', "OSError: disk full"]
    + [f"2026-11-22 10:{minute:02d}:30 INFO job-{minute} cleaned its folder" for minute in range(40, 50)]
)
TABLE = "city,people,area\n" + "\n".join(f"city-{row},{row * 1000},{row + 7}" for row in range(60))
NO_NEED = CutConstraints(frozenset(), frozenset(), frozenset(), 0.0, "")


def need(**overrides: Any) -> CutConstraints:
    values: dict[str, Any] = {
        "live_ids": frozenset(),
        "listed_ids": frozenset(),
        "referenced_lines": frozenset(),
        "min_quality": 0.0,
        "instruction": "",
    }
    return CutConstraints(**(values | overrides))


@pytest.mark.parametrize(
    "text", [PROSE, LOG, TABLE, "", "one", "a. b. c.\n\n\n", "x" * 5000, "word " * 2000, "```\ncode\n```\nend"]
)
@pytest.mark.parametrize("kind", [TextKind.PROSE, TextKind.LOG, TextKind.TABLE, TextKind.CODE])
def test_pieces_concatenate_to_the_original_text(text: str, kind: TextKind) -> None:
    pieces = text_pieces(text, kind)
    assert "".join(pieces.units) == text
    assert len(pieces.contexts) == len(pieces.units)


def test_sentences_span_lines_and_headings_stay_with_the_first_sentence() -> None:
    units = [" ".join(unit.split()) for unit in text_pieces(PROSE, TextKind.PROSE).units]
    assert "# Storage The disk array holds 48 drives of 8 TB each." in units
    assert (
        "It was installed in Hamburg by the company Nordlicht, which also services it every spring and every autumn."
        in units
    )


def test_traceback_and_its_error_are_one_piece() -> None:
    units = text_pieces(LOG, TextKind.LOG).units
    assert sum("Traceback" in unit and "disk full" in unit for unit in units) == 1


@pytest.mark.parametrize("strategy", [Strategy.TRUNCATE, Strategy.EXTRACTIVE])
@pytest.mark.parametrize("text", [PROSE, LOG, TABLE])
def test_cut_text_marks_omissions_and_keeps_the_rest_verbatim(text: str, strategy: Strategy) -> None:
    cut = shorten_to_share(text, 0.5, strategy, NO_NEED)
    assert cut is not None
    assert len(cut) < 0.7 * len(text)
    assert is_receipted(cut)
    assert " left out · " in cut
    sources = text_pieces(text, kind_of(text)).units
    for part in text_pieces(cut.replace("[…]", ""), TextKind.LOG).units:
        if "left out" not in part and part.strip():
            assert any(part.strip() in source or source.strip() in part for source in sources)


def test_truncation_drops_the_middle_and_extraction_what_is_not_asked_for() -> None:
    truncated = shorten_to_share(LOG, 0.4, Strategy.TRUNCATE, NO_NEED) or ""
    assert "job-0 " in truncated
    assert "job-49 " in truncated
    assert "job-22 " not in truncated
    extracted = (
        shorten_to_share(LOG, 0.4, Strategy.EXTRACTIVE, need(instruction="How many files did job-22 copy?")) or ""
    )
    assert "job-22 copied 154 files" in extracted
    assert "disk full" in extracted


def test_cut_table_keeps_its_header() -> None:
    cut = shorten_to_share(TABLE, 0.2, Strategy.EXTRACTIVE, need(instruction="area of city-41")) or ""
    assert cut.startswith("city,people,area\n")
    assert "city-41,41000,48" in cut


def test_live_ids_and_referenced_lines_are_kept() -> None:
    constraints = need(live_ids=frozenset({"job-20"}), referenced_lines=frozenset({25, 26}))
    cut = shorten_to_share(LOG, 0.2, Strategy.TRUNCATE, constraints) or ""
    assert "job-20 copied" in cut
    assert "job-25 copied" in cut
    assert "job-26 copied" in cut
    assert "job-22 copied" not in cut


@pytest.mark.parametrize("strategy", [Strategy.TRUNCATE, Strategy.EXTRACTIVE])
@pytest.mark.parametrize("tokens_max", [200, 400, 600, 800, 1000])
def test_text_is_cut_to_its_token_target_despite_uneven_token_density(strategy: Strategy, tokens_max: int) -> None:
    """The text is cut by characters first, which is far off where one half has many more tokens than the other."""
    text = LOG + "\n" + "\n".join(f"2026-11-22 11:{row:02d}:00 INFO {'long words ' * 12}" for row in range(40))

    def count(part: str) -> int:
        return sum(1 if line.endswith("long words ") else 12 for line in part.splitlines())

    cut = shorten_to_tokens(text, tokens_max / count(text), 0.1, strategy, NO_NEED, tokens_max, count) or text
    assert tokens_max * 0.7 <= count(cut) <= tokens_max or len(cut) <= 0.15 * len(text)


def test_text_is_cut_as_far_as_the_minimum_quality_allows() -> None:
    constraints = need(min_quality=0.7)
    sizes = [
        len(shorten_to_tokens(LOG, 0.2, 0.1, Strategy.TRUNCATE, constraints, most, len) or LOG)
        for most in (2500, 2000, 1500, 10)
    ]
    assert sizes == sorted(sizes, reverse=True), "a lower target never keeps more"
    stepped = shorten_to_share(LOG, 0.2, Strategy.TRUNCATE, constraints) or LOG
    assert sizes[-1] < len(stepped)
    assert shorten_to_tokens(LOG, 0.2, 0.1, Strategy.TRUNCATE, need(min_quality=1.0), 10, len) is None
    assert shorten_to_tokens("one", 0.2, 0.1, Strategy.TRUNCATE, NO_NEED, 0, len) is None


def test_higher_minimum_quality_cuts_less_or_not_at_all() -> None:
    lengths = [
        len(shorten_to_share(LOG, 0.2, Strategy.TRUNCATE, need(min_quality=floor)) or LOG)
        for floor in (0.0, 0.5, 0.7, 1.0)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[2] < len(LOG)
    assert shorten_to_share(LOG, 0.2, Strategy.TRUNCATE, need(min_quality=1.0)) is None


RECORDS = {
    "status": "ok",
    "items": [{"id": f"ord-{number}", "total": number * 1.10, "note": 'said "yes" \\ n'} for number in range(60)],
    "index": {f"key-{number}": {"page": number, "title": f"Title {number}"} for number in range(40)},
    "text": "First sentence of many. " * 5 + "The needle is 4711. " + "Another sentence follows here. " * 30,
}


@pytest.mark.parametrize("strategy", [Strategy.TRUNCATE, Strategy.EXTRACTIVE])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_cut_json_is_valid_and_keeps_only_original_entries(strategy: Strategy, share: float) -> None:
    cut = shorten_to_share(json.dumps(RECORDS), share, strategy, NO_NEED)
    assert cut is not None
    assert is_receipted(cut)
    value = json.loads(cut)
    assert value["status"] == "ok"
    assert all(item in RECORDS["items"] for item in value["items"] if not isinstance(item, str))
    assert any("left out" in item for item in value["items"] if isinstance(item, str)) or len(value["items"]) == 60
    entries = {key: entry for key, entry in value["index"].items() if not key.startswith("[…")}
    assert entries.items() <= RECORDS["index"].items()  # type: ignore[attr-defined]


def test_extraction_keeps_json_records_entries_and_passages_asked_for() -> None:
    asked = need(instruction="What is the total of ord-33, the page of key-17, and the needle?")
    cut = shorten_to_share(json.dumps(RECORDS), 0.3, Strategy.EXTRACTIVE, asked) or ""
    value = json.loads(cut)
    assert RECORDS["items"][33] in value["items"]  # type: ignore[index]
    assert value["index"]["key-17"] == {"page": 17, "title": "Title 17"}
    assert "4711" in value["text"]


@pytest.mark.parametrize(
    "text", ["[]", "{}", "[1]", '{"a":' * 400 + "1" + "}" * 400, "[" * 300 + "]" * 300, '["' + "\\ud800" * 200 + '"]']
)
def test_unusual_json_is_split_and_rendered_unchanged(text: str) -> None:
    pieces = json_pieces(text)
    assert pieces.render(frozenset(range(len(pieces.units)))) == text


@pytest.mark.parametrize(
    "module", [policies.compression.chat, policies.compression.segments, policies.compression.structural]
)
@pytest.mark.parametrize("strategy", [Strategy.TRUNCATE, Strategy.EXTRACTIVE])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_cut_code_still_parses(module: types.ModuleType, strategy: Strategy, share: float) -> None:
    source = inspect.getsource(module)
    assert kind_of(source) is TextKind.CODE
    cut = shorten_to_share(source, share, strategy, NO_NEED)
    assert cut is not None
    ast.parse(cut)
    assert "# [… " in cut


def test_omission_marker_uses_the_comment_syntax_of_the_language() -> None:
    script = "".join(f"function run{number}() {{\n  return {number};\n}}\n\n" for number in range(30))
    assert "\n// [… " in (shorten_to_share(script, 0.5, Strategy.TRUNCATE, NO_NEED) or "")


def test_receipt_is_valid_only_for_its_own_text() -> None:
    text = sign_receipt(f"first line\n{unsigned_receipt('3 of 9 passages left out')}\nlast line")
    assert is_receipted(text)
    assert not is_receipted(text.replace("first", "other"))
    assert not is_receipted("first line\n[… 3 of 9 passages left out · 3fa9 …]\nlast line")
    assert not is_receipted("[… 3 of 9 passages left out · 0000 …]\n" * 1000)


def test_reference_names_line_count_source_and_digest() -> None:
    assert reference(12, "message 3 (read)", "first") == f"[… 12 lines as in message 3 (read) · {digest('first')} …]"
