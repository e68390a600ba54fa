"""Figures and addresses as the admin pages write them."""

from __future__ import annotations

from gateway.admin.figures import money, path_of, percent, plain


def test_figures_have_their_sign_and_their_thousands() -> None:
    assert (money(-1_234.5), money(-0.05), money(-1e-9)) == ("-$1,234.50", "-$0.05", "-<$0.000001")
    assert (percent(109.85), percent(0.8)) == ("10,985 %", "80 %")


def test_amounts_in_forms_have_no_exponent() -> None:
    assert (plain(0.05), plain(1e-9), plain(20_000), plain(None)) == ("0.05", "0.000000001", "20000", "")


def test_names_that_a_path_cannot_carry_go_into_the_query() -> None:
    assert path_of("runs", "a/b:c@d") == "/admin/runs/a/b:c@d"
    assert path_of("runs", "a//b") == "/admin/runs?name=a%2F%2Fb"
    assert path_of("runs", "../x", project="p") == "/admin/runs?project=p&name=..%2Fx"
