"""Small pictures in SVG, drawn on the server: bullets of budgets and lines of days. Colours are the style sheet's."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from gateway.admin.formatting import count, money

_WIDTH, _HEIGHT = 100.0, 10.0
_ARIA_HIDDEN = Markup('aria-hidden="true"')


def bullet_chart(
    settled: float,
    reserved: float,
    limit: float | None,
    soft_limit: float | None = None,
    *,
    unit: str = "tokens",
    is_decorative: bool = False,
) -> Markup:
    """Settled and reserved on a track as long as the limit (or as what is used, if that is more); a mark at `soft_limit`.

    `unit`: tokens, usd or requests. `is_decorative`: the figures stand beside it as text, so that screen readers skip it.
    """
    label = (
        _ARIA_HIDDEN
        if is_decorative
        else Markup('role="img" aria-label="{}"').format(_aria_text(settled, reserved, limit, unit))
    )
    if limit is None:
        return Markup(f'<span class="bullet none" {label}></span>')  # noqa: S704 - the label is escaped
    scale = max(limit, settled + reserved, 1e-12)
    settled_end, taken_end, limit_position = (value / scale * _WIDTH for value in (settled, settled + reserved, limit))
    state = "over" if settled + reserved > limit else "full" if settled + reserved >= limit else "within"
    marks = [limit_position] if limit_position < _WIDTH else []
    if soft_limit is not None and 0 < soft_limit < limit:
        marks.append(soft_limit / scale * _WIDTH)
    bars = [
        _rect("track", 0, _WIDTH),
        _rect("settled", 0, settled_end),
        _rect("reserved", settled_end, taken_end - settled_end),
        *(_rect("mark", at - 0.4, 0.8) for at in marks),
    ]
    return _bullet_svg(state, label, bars)


def share_bar(share: float) -> Markup:
    """A plain bar for a share from 0 to 1."""
    length = min(1.0, max(0.0, share)) * _WIDTH
    return _bullet_svg("", _ARIA_HIDDEN, [_rect("track", 0, _WIDTH), _rect("settled", 0, length)])


def sparkline(values: Sequence[float], label: str) -> Markup:
    """One column per value: days with nothing are gaps, not slopes."""
    highest = max(values, default=0) or 1
    step = _WIDTH / max(1, len(values))
    columns = Markup("").join(
        Markup('<rect class="column" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>').format(
            at * step + step * 0.15,
            30 - max(0.0, value) / highest * 29,
            step * 0.7,
            max(0.0, value) / highest * 29,
        )
        for at, value in enumerate(values)
        if value > 0
    )
    return Markup(
        '<svg class="sparkline" viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="floor" x="0" y="29.5" width="100" height="0.5"/>{}</svg>'
    ).format(label, columns)


def line_chart(values: Sequence[float], highest: float, label: str) -> Markup:
    """A line through values from 0 to `highest`, evenly spaced, oldest first."""
    step = _WIDTH / max(1, len(values) - 1)
    points = " ".join(
        f"{at * step:.2f},{29 - min(highest, max(0.0, value)) / highest * 28:.2f}" for at, value in enumerate(values)
    )
    return Markup(
        '<svg class="line" viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="floor" x="0" y="29.5" width="100" height="0.5"/><polyline points="{}"/></svg>'
    ).format(label, points)


def _bullet_svg(state: str, label: Markup, bars: Sequence[str]) -> Markup:
    """Mark as safe: this text has only numbers and our own words, and escaping it would take most of the time of a table."""
    start = f'<svg class="bullet {state}" viewBox="0 0 100 10" preserveAspectRatio="none" {label}>'
    return Markup(f"{start}{''.join(bars)}</svg>")  # noqa: S704 - as said, and the label is escaped


def _rect(name: str, start: float, length: float) -> str:
    return f'<rect class="{name}" x="{start:.2f}" y="0" width="{max(0.0, length):.2f}" height="{_HEIGHT:.0f}"/>'


def _aria_text(settled: float, reserved: float, limit: float | None, unit: str) -> str:
    shown = money if unit == "usd" else count
    most = "no limit" if limit is None else f"of {shown(limit)}{'' if unit == 'usd' else f' {unit}'}"
    return f"{shown(settled)} settled, {shown(reserved)} reserved, {most}"
