"""Figures and addresses as the admin pages write them."""

from __future__ import annotations

from gateway.admin.formatting import input_text, money, page_path, percent


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
