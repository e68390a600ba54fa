"""Input that scripts give the command line by mistake: each mistake is reported in a sentence and changes nothing."""

from __future__ import annotations

import pytest

from tests.acceptance.command_line import Cli
from tests.farebox_process import FareboxProcess, tagged

FINITE = "farebox: A number must be finite, not inf or nan.\n"


def test_values_that_json_cannot_carry_are_refused_and_change_nothing(
    cli_and_gateway: tuple[Cli, FareboxProcess],
) -> None:
    """An infinite limit was sent as null, which removed the run's own limit."""
    farebox, gateway = cli_and_gateway
    assert gateway.chat("hi", tagged("w", "r-1", "s"), max_tokens=5).status == 200
    assert farebox("runs", "budget", "r-1", "--tokens", "500").code == 0
    assert farebox("runs", "budget", "r-1", "--usd", "inf").err == FINITE
    assert farebox("runs", "show", "r-1", "--json").json()["tokens"]["limit"] == 500
    assert "less than or equal to 9007199254740991" in farebox("runs", "budget", "r-1", "--tokens", "9" * 20).err
    assert farebox("runs", "show", "\udcff").err == "farebox: An argument is not valid UTF-8.\n"
    assert farebox("classify", "\udcff").err == "farebox: An argument is not valid UTF-8.\n"


@pytest.mark.parametrize(
    ("declared", "fault"),
    [
        ("budget: {usd: .inf}", "A number must be finite, not inf or nan."),
        ("1: 2", "1: is not a field."),
        ("2026-11-22: 2", "The keys of a mapping must be text."),
        ("steps: [\n", "w.yaml:2:1: expected the node content, but found '<stream end>'."),
    ],
)
def test_invalid_declaration_is_refused_with_its_fault(cli: Cli, declared: str, fault: str) -> None:
    (cli.folder / "w.yaml").write_text(declared)
    output = cli("workflows", "put", "w", "w.yaml")
    assert (output.code, output.err) == (1, f"farebox: {fault}\n")


def test_unusable_url_is_reported_with_its_reason(cli_and_gateway: tuple[Cli, FareboxProcess]) -> None:
    farebox, gateway = cli_and_gateway
    assert farebox("runs", "list", "--url", "127.0.0.1:4000").err.endswith("must begin with http:// or https://.\n")
    output = farebox("runs", "list", "--url", gateway.url.replace("http:", "https:"))
    assert "SSL" in output.err
    assert "not permitted" not in output.err


def test_piped_tables_end_and_note_truncation_on_stderr(cli_and_gateway: tuple[Cli, FareboxProcess]) -> None:
    farebox, gateway = cli_and_gateway
    for number in (1, 2):
        assert gateway.chat("hi", tagged("w", f"r-{number}", "s"), max_tokens=5).status == 200
    assert "r-2" in farebox("top").out
    assert farebox("runs", "list").err == ""
    cut = farebox("runs", "list", "--limit", "1")
    assert ("r-1" in cut.out, cut.err) == (False, "There are more than these; --limit shows more.\n")
    for number in range(3, 102):
        assert gateway.chat("hi", tagged("w", f"r-{number}", "s"), max_tokens=5).status == 200
    assert farebox("top").err == "There are more than these; `farebox runs list --limit` shows more.\n"
    assert "there are orchestration, budgets, compression" in farebox("settings", "list", "--category", "x").err


def test_unknown_name_to_explain_is_reported_in_a_sentence(cli: Cli) -> None:
    """Longer than the name of a file can be, and the name of a check that a folder has, too."""
    (cli.folder / "ledger").mkdir()
    assert "Whether the ledger can be reached" in cli("explain", "ledger").out
    output = cli("explain", "a" * 300)
    assert (output.code, output.err.count("\n"), "There is no code" in output.err) == (1, 1, True)
