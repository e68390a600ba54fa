"""Structural compression, case by case: what is removed, and what has to stay."""

import json

import pytest

from policies.compression import Aggressiveness
from policies.compression.json_text import looks_like_json, minified, tabulated
from policies.compression.markup import without_noise
from policies.compression.structural import compress_structure
from policies.compression.text_kind import TextKind, kind_of

LOW, MEDIUM, HIGH = Aggressiveness


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ('{\n  "a": 1,\n  "b": [1, 2]\n}', '{"a":1,"b":[1,2]}'),
        (
            '{"price": 0.00005, "big": 12345678901234567890, "exp": 1E+2}',
            '{"price":0.00005,"big":12345678901234567890,"exp":1E+2}',
        ),
        ('{"a": 1, "a": 2}', '{"a":1,"a":2}'),
        ('["two  blanks", "a: b", "c, d", "tab\\t"]', '["two  blanks","a: b","c, d","tab\\t"]'),
        ('["quote \\" : \\" ", "back\\\\", "x"]', '["quote \\" : \\" ","back\\\\","x"]'),
        ('["caf\\u00e9 \\ud83d\\ude00 \\u4e2d"]', '["café 😀 中"]'),
        (
            '["\\u0000 \\u001b \\u0022 \\u005c \\ud800 \\u2028 \\\\u00e9"]',
            '["\\u0000 \\u001b \\u0022 \\u005c \\ud800 \\u2028 \\\\u00e9"]',
        ),
    ],
)
def test_json_is_minified_without_changing_a_value(original: str, expected: str) -> None:
    assert minified(original) == expected
    assert json.loads(expected) == json.loads(original)
    assert compress_structure(original, LOW) == expected


@pytest.mark.parametrize(
    "text", ["", "{", "{]", "[1,]", '{"a": NaN}', "{'a': 1}", "[" * 100_000 + "]" * 100_000, '"text"', "12"]
)
def test_text_that_is_not_a_json_document_is_not_recognised_as_json(text: str) -> None:
    assert not looks_like_json(text)


def test_uniform_records_become_a_table_only_at_high_aggressiveness() -> None:
    rows = [{"id": number, "price": number + 0.10, "unit": "EUR", "tags": ["x"]} for number in range(4)]
    records = json.dumps(rows)
    assert json.loads(compress_structure(records, MEDIUM)) == rows
    table = json.loads(compress_structure(records, HIGH))
    assert table["every"] == {"unit": "EUR"}
    assert table["columns"] == ["id", "price", "tags"]
    rebuilt = [{**table["every"], **dict(zip(table["columns"], row, strict=True))} for row in table["rows"]]
    assert rebuilt == rows


@pytest.mark.parametrize(
    "text",
    [
        '[{"a":1,"b":2},{"a":1,"b":2}]',  # two records are no table
        '[{"a":1,"b":2},{"b":2,"a":1},{"a":1,"c":2}]',  # different keys
        '[{"a":1,"a":2,"b":1},{"a":1,"a":2,"b":1},{"a":1,"a":2,"b":1}]',  # a repeated key would be lost
        '["\\u0000float:1","\\u0000float:2"]',  # the prefix that marks numbers internally
        '{"columns":["a"],"rows":[{"a":1,"b":1},{"a":1,"b":2},{"a":1,"b":3}]}',  # a table already
    ],
)
def test_json_that_cannot_be_tabulated_without_loss_is_unchanged(text: str) -> None:
    assert tabulated(text) == text


def test_tabulated_numbers_keep_their_digits() -> None:
    text = '[{"price":0.00005,"name":"x1"},{"price":1.10,"name":"x2"},{"price":5e-7,"name":"x3"}]'
    assert tabulated(text) == '{"columns":["price","name"],"rows":[[0.00005,"x1"],[1.10,"x2"],[5e-7,"x3"]]}'


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ("a  \nb\t\n\n\n\nc\n", "a\nb\n\nc"),
        ("| name   | price |\n|:-------|------:|\n| tea    |  2.50 |", "|name|price|\n|:-|-:|\n|tea|2.50|"),
        (
            "NAME          READY     AGE\npod-1         1/1       3d\npod-2         0/1       5m",
            "NAME  READY  AGE\npod-1  1/1  3d\npod-2  0/1  5m",
        ),
        ("Title\n==============================\ntext", "Title\n====\ntext"),
        ("\x1b[1;31mfailed\x1b[0m in \x1b]0;title\x07job", "failed in job"),
        ("load 5%\rload 50%\rload 100%\ndone", "load 100%\ndone"),
        ("line one\r\nline two\r\n", "line one\nline two"),
        (
            "waiting for the lock to be released\n" * 5 + "done",
            "waiting for the lock to be released\n[… the line above 5 times in all …]\ndone",
        ),
        (
            "get 10% [=>  ] 1 MB\nget 55% [===> ] 5 MB\nget 90% [====>] 9 MB\nok",
            "get 10% [=>  ] 1 MB\nget 90% [====>] 9 MB\nok",
        ),
    ],
)
def test_text_padding_and_repetition_are_removed(original: str, expected: str) -> None:
    assert compress_structure(original, MEDIUM) == expected


def test_log_names_each_date_once_and_merges_lines_differing_only_in_time() -> None:
    log = "".join(f"2026-11-22 10:00:0{second} INFO waiting for the lock on table orders\n" for second in range(5))
    log += "2026-11-22 10:00:07 ERROR gave up\n2026-11-23 00:00:01 INFO started\n"
    assert compress_structure(log, MEDIUM).split("\n") == [
        "2026-11-22 10:00:00 INFO waiting for the lock on table orders",
        "[… the line above 5 times until 2026-11-22 10:00:04 …]",
        "10:00:07 ERROR gave up",
        "2026-11-23 00:00:01 INFO started",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "def run(order):\n    x  =  1   \n\n\n\n    return order\n\n\n\nclass A:\n    pass\n",
        "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n context   \n-old\n+new\n",
        "#include <stdio.h>\n\n\n\nint main() {\n    return 0;   \n}\n",
    ],
)
def test_code_stays_byte_for_byte(text: str) -> None:
    assert kind_of(text) is TextKind.CODE
    assert all(compress_structure(text, aggressiveness) == text for aggressiveness in Aggressiveness)


def test_fenced_code_is_unchanged_and_fenced_json_is_minified() -> None:
    text = 'Look:   here\n\n\n```python\nx   =   1   \n\n\n\ny = 2\n```\n\n\n\n```json\n{\n  "a": 1\n}\n```\nend   '
    assert (
        compress_structure(text, MEDIUM)
        == 'Look:  here\n```python\nx   =   1   \n\n\n\ny = 2\n```\n\n```json\n{"a":1}\n```\nend'
    )


def test_unclosed_fence_protects_the_rest_of_the_text() -> None:
    text = "intro\n```\ncode   with   blanks   \n\n\n\nmore"
    assert compress_structure(text, HIGH) == text


def test_exact_text_is_unchanged_even_at_high_aggressiveness() -> None:
    text = '{\n  "version": "1.0"\n}\n'
    assert compress_structure(text, HIGH, exact=True) == text


def test_base64_is_replaced_and_long_paths_stay() -> None:
    encoded = "QUJDRGVmZ2hpamts" * 60
    assert compress_structure(f"logo: {encoded} end", MEDIUM) == "logo: [… 960 characters of base64 left out …] end"
    assert json.loads(compress_structure(json.dumps({"logo": encoded, "n": 1}), MEDIUM)) == {
        "logo": "[… 960 characters of base64 left out …]",
        "n": 1,
    }
    path = "/deep/Folder1" * 60
    assert compress_structure(f"see {path} end", MEDIUM) == f"see {path} end"


PAGE = """<!doctype html>
<html><head><style>p {color: red}</style><script>var a = "<p>no</p>";</script></head>
<body class="x y" data-id="7"><!-- hidden -->
  <p style="margin: 0" id="intro">Price:&nbsp;<b class="v">12</b> <i>EUR</i></p>
  <a href="/next" onclick="go()">Next</a>
</body></html>"""


def test_html_loses_styles_scripts_comments_and_presentation_attributes() -> None:
    compressed = compress_structure(PAGE, MEDIUM)
    assert '<p id="intro">Price: <b>12</b> <i>EUR</i></p>' in compressed
    assert '<a href="/next">Next</a>' in compressed
    for noise in ("color", "var a", "hidden", "class", "data-id", "onclick", "&nbsp;"):
        assert noise not in compressed


@pytest.mark.parametrize("aggressiveness", [Aggressiveness.MEDIUM, Aggressiveness.HIGH])
def test_fenced_code_in_html_is_unchanged(aggressiveness: Aggressiveness) -> None:
    code = "```html\n<div class='x'><!-- note --><p>Price: 12</p></div>\n```"
    page = f"<div style='color: red'><!-- badges --><p>Shop</p></div>\n{code}\n<p style='x'>End</p>"
    shorter = compress_structure(page, aggressiveness)
    assert code in shorter
    assert "badges" not in shorter
    assert "style" not in shorter
    assert compress_structure(shorter, aggressiveness) == shorter


def test_html_becomes_text_with_links_at_high_aggressiveness() -> None:
    compressed = compress_structure(PAGE, HIGH)
    assert "Price: 12 EUR" in compressed
    assert "(/next) Next" in compressed
    assert "<p" not in compressed


def test_whitespace_inside_pre_is_kept() -> None:
    page = "<div><pre>\nif x:\n        run()\n</pre></div>"
    assert without_noise(page, keep_tags=True) == page


@pytest.mark.parametrize(
    "page", ["<div><!-- open", "<div><script>x", "<div " + "a='" * 9, "<!<!-- -->-- x -->", "<div>" + "<!" * 9]
)
def test_noise_removal_of_malformed_html_is_idempotent(page: str) -> None:
    once = without_noise(page, keep_tags=True)
    assert without_noise(once, keep_tags=True) == once
