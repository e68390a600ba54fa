"""Checks of answers: what counts as a fault."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.answer_checks import (
    Answer,
    complete,
    from_source,
    matches_schema,
    names_a_choice,
    names_a_verdict,
    not_empty,
    parsed_json,
    schema_fault,
    shorter_than_source,
)

INVOICE = {
    "type": "object",
    "properties": {
        "number": {"type": "string"},
        "total": {"type": "number"},
        "paid": {"type": "boolean"},
        "lines": {"type": "array", "items": {"type": "object", "required": ["sku"]}},
        "currency": {"enum": ["EUR", "USD"]},
        "note": {"type": ["string", "null"]},
        "kind": {"const": "invoice"},
        "due": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "party": {"$ref": "#/$defs/party"},
    },
    "required": ["number", "total"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"number": "7", "total": 1}, None),
        ({"number": "7", "total": 1.5, "paid": True, "lines": [{"sku": 1}], "currency": "EUR"}, None),
        ({"number": "7", "total": 1, "note": None, "due": None, "kind": "invoice", "party": 3}, None),
        ([], "answer is not of type object"),
        ({"number": "7"}, "answer lacks total"),
        ({"number": 7, "total": 1}, "answer.number is not of type string"),
        ({"number": "7", "total": True}, "answer.total is not of type number"),
        ({"number": "7", "total": 1, "paid": 1}, "answer.paid is not of type boolean"),
        ({"number": "7", "total": 1, "lines": [{"sku": 1}, {}]}, "answer.lines[1] lacks sku"),
        ({"number": "7", "total": 1, "currency": "GBP"}, "answer.currency is none of the allowed values"),
        ({"number": "7", "total": 1, "note": 3}, "answer.note is not of type string or null"),
        ({"number": "7", "total": 1, "kind": "bill"}, "answer.kind is not the one allowed value"),
        ({"number": "7", "total": 1, "due": 3}, "answer.due is none of what may stand there"),
        ({"number": "7", "total": 1, "vat": 3}, "answer has vat, which the schema does not"),
    ],
)
def test_schema_fault_names_where_a_value_violates_its_schema(value: object, fault: str | None) -> None:
    assert schema_fault(value, INVOICE) == fault
    assert matches_schema(Answer(json.dumps(value), schema=INVOICE)) == fault


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (1.0, "integer", True),
        (1.5, "integer", False),
        (False, "integer", False),
        (None, "null", True),
        (0, "null", False),
        ("x", "uuid", True),
    ],
)
def test_value_is_checked_against_its_json_schema_type(value: object, kind: str, fits: bool) -> None:
    assert (schema_fault(value, {"type": kind}) is None) is fits


@pytest.mark.parametrize("schema", [{"enum": 5}, {"required": 1, "properties": []}, {"items": 1}, {"anyOf": 3}])
def test_malformed_schema_reports_no_fault(schema: dict[str, Any]) -> None:
    assert schema_fault({"a": [1]}, schema) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("[1]", [1]), (' ```json\n{"a": 1}\n``` ', {"a": 1}), ("```\n[]\n```", []), ('"``` x"', "``` x")],
)
def test_json_is_parsed_with_or_without_a_code_fence(text: str, value: object) -> None:
    assert parsed_json(text) == value


@pytest.mark.parametrize("text", ["", "```", "``````", "```json", "{", "[" * 100_000, "```" + "\n" * 100_000 + "x"])
def test_answer_that_is_not_json_is_a_fault(text: str) -> None:
    fault = matches_schema(Answer(text, wants_json=True))
    assert fault is not None
    assert fault.startswith("the answer is not JSON")


@pytest.mark.parametrize(
    ("check", "answer", "fault"),
    [
        (not_empty, Answer("x"), None),
        (not_empty, Answer(" \n"), "is empty"),
        (complete, Answer("x"), None),
        (complete, Answer("x", finish_reason="length"), "cut off at its output limit"),
        (complete, Answer("x", finish_reason="content_filter"), "content filter"),
        (matches_schema, Answer("no JSON, and none was asked for"), None),
        (shorter_than_source, Answer("short", source="s" * 1000), None),
        (shorter_than_source, Answer("l" * 1000, source="s" * 999), "has 1000 characters"),
        (shorter_than_source, Answer("longer than its source", source="tiny"), None),
        (names_a_verdict, Answer('{"valid": false}'), None),
        (names_a_verdict, Answer('{"result": {"grade": "pass"}}'), None),
        (names_a_verdict, Answer('{"score": 7}'), None),
        (names_a_verdict, Answer('{"thoughts": "long ones"}'), "answer's JSON"),
        (names_a_verdict, Answer("The claim is correct."), None),
        (names_a_verdict, Answer("7/10"), None),
        (names_a_verdict, Answer("It depends on many things."), "no verdict"),
        (names_a_choice, Answer("Billing", choices=("billing", "support")), None),
        (names_a_choice, Answer("It is a billing matter.", choices=("billing", "support")), None),
        (names_a_choice, Answer("billings", choices=("billing", "support")), "none of the 2 choices"),
        (names_a_choice, Answer("C++", choices=("C++", "C")), None),
        (names_a_choice, Answer("yes"), None),
        (names_a_choice, Answer("word " * 41), "more than 40 words"),
        (names_a_choice, Answer("word " * 41, wants_json=True), None),
        (from_source, Answer('{"name": "Ada Lovelace"}', source="By Ada\n Lovelace, 1843"), None),
        (from_source, Answer('["Bob", "Eve"]', source="By Ada Lovelace"), "only 0 of 2 items"),
        (from_source, Answer("- keep me\n- and me", source="Keep me. Drop this. And me."), None),
        (from_source, Answer("- invented\n- made up\n- keep", source="keep"), "only 1 of 3"),
        (from_source, Answer("[true, false, 1.5]", source="x"), None),
        (from_source, Answer("whatever"), None),
    ],
)
def test_check_reports_the_expected_fault(check: Any, answer: Answer, fault: str | None) -> None:
    reported = check(answer)
    assert (reported is None) if fault is None else fault in reported


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # the machine may be busy
@given(st.text() | values.map(json.dumps), st.text(max_size=50), values)
def test_any_answer_is_checked_without_error(text: str, source: str, schema: object) -> None:
    answer = Answer(text, source=source, wants_json=True, schema=schema if isinstance(schema, dict) else None)
    for check in (not_empty, complete, matches_schema, shorter_than_source, names_a_verdict, names_a_choice):
        fault = check(answer)
        assert fault is None or fault
    assert from_source(answer) is None or source
