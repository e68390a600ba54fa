"""Figures and addresses as the admin pages write them."""

from __future__ import annotations

from gateway.admin.formatting import input_text, money, page_path, percent


def test_figures_have_their_sign_and_their_thousands() -> None:
    assert (money(-1_234.5), money(-0.05), money(-1e-9)) == ("-$1,234.50", "-$0.05", "-<$0.000001")
    assert (percent(109.85), percent(0.8)) == ("10,985 %", "80 %")


def test_amounts_in_forms_have_no_exponent() -> None:
    assert (input_text(0.05), input_text(1e-9), input_text(20_000), input_text(None)) == (
        "0.05",
        "0.000000001",
        "20000",
        "",
    )


def test_names_that_a_path_cannot_carry_go_into_the_query() -> None:
    assert page_path("runs", "a/b:c@d") == "/admin/runs/a/b:c@d"
    assert page_path("runs", "a//b") == "/admin/runs?name=a%2F%2Fb"
    assert page_path("runs", "../x", project="p") == "/admin/runs?project=p&name=..%2Fx"
