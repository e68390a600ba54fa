"""Figures and addresses as the admin pages write them."""

from __future__ import annotations

from gateway.admin.formatting import decision_facts, input_text, money, page_path, percent


def test_money_and_percent_show_sign_and_thousands_separators() -> None:
    assert (money(-1_234.5), money(-0.05), money(-1e-9)) == ("-$1,234.50", "-$0.05", "-<$0.000001")
    assert (percent(109.85), percent(0.8)) == ("10,985 %", "80 %")


def test_form_amounts_have_no_exponent() -> None:
    assert (input_text(0.05), input_text(1e-9), input_text(20_000), input_text(None)) == (
        "0.05",
        "0.000000001",
        "20000",
        "",
    )


def test_names_unsafe_in_a_path_are_put_into_the_query() -> None:
    assert page_path("runs", "a/b:c@d") == "/admin/runs/a/b:c@d"
    assert page_path("runs", "a//b") == "/admin/runs?name=a%2F%2Fb"
    assert page_path("runs", "../x", project="p") == "/admin/runs?project=p&name=..%2Fx"


def test_decision_names_its_budget_and_dollars_in_peoples_terms() -> None:
    refused = {
        "rung": "clamp",
        "result": "does not fit",
        "why": "too_large",
        "account": "workflow/a@b@day:1795910400000",
    }
    money_facts = {"unit": "nano_usd", "needed": 1_217_500, "remaining": -291_550}
    assert list(decision_facts(refused | money_facts)) == [
        ("rung", "clamp"),
        ("result", "does not fit"),
        ("why", "too large"),
        ("budget", "workflow/a@b, day"),
        ("needed", "$0.00122"),
        ("remaining", "-$0.000292"),
    ]
    token_facts = {"account": "run/r-1", "unit": "tokens", "needed": 12_000, "remaining": 0}
    assert list(decision_facts(token_facts)) == [
        ("budget", "run/r-1"),
        ("needed", "12,000 tokens"),
        ("remaining", "0 tokens"),
    ]
    assert list(decision_facts({"rung": "route", "models": ["a", "b"], "why": ""})) == [
        ("rung", "route"),
        ("models", "a, b"),
    ]
