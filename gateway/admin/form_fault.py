"""What was wrong with a form, and the fields beside which the page says so."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from gateway.endpoints.api.application import faults_of, told


@dataclass(frozen=True, slots=True)
class FormFault:
    """`fields` has the faults by the names of the form's inputs; `message` is what is about none of them."""

    fields: Mapping[str, str]
    message: str
    status: int


def form_fault(error: Exception, request_id: str, fields: Container[str]) -> FormFault:
    """The faults of a form with these fields, which an error of the control API may name: `limits.usd` is about `usd`."""
    found = told(error, request_id)
    param = found.param or ""
    faults = (
        faults_of(error) if isinstance(error, ValidationError) else [(param, found.message.removeprefix(f"{param}: "))]
    )
    beside: dict[str, str] = {}
    above: list[str] = []
    for where, message in faults:
        field = next((part for part in where.split(".") if part in fields), "")
        if field:
            beside.setdefault(field, message)
        else:
            above.append((f"{where}: {message}" if where else message).rstrip(".") + ".")
    return FormFault(beside, " ".join(above), found.status)
