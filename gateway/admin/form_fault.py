"""What was wrong with a form, and the field beside which the page says so."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from gateway.endpoints.api.application import told


@dataclass(frozen=True, slots=True)
class FormFault:
    """`field` is the name of an input of the form; empty if the fault is not about one of them."""

    field: str
    message: str
    status: int


def form_fault(error: Exception, request_id: str, fields: Container[str]) -> FormFault:
    """The fault of a form with these fields, of which an error of the control API may name one: `limits.usd` is about `usd`."""
    found = told(error, request_id)
    field = next((part for part in (found.param or "").split(".") if part in fields), "")
    message = found.message
    for prefix in (f"{found.param}: ", "body: "):
        message = message.removeprefix(prefix)
    return FormFault(field, message if field else found.message.removeprefix("body: "), found.status)
