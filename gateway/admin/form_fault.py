"""Faults of a form, each with the field next to which the page shows it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from gateway.endpoints.api.application import as_gateway_error, faults_of


@dataclass(frozen=True, slots=True)
class FormFault:
    """`fields` maps the form's inputs to their faults; `message` has the faults of no input."""

    fields: Mapping[str, str]
    message: str
    status: int


def form_fault(error: Exception, request_id: str, fields: Container[str]) -> FormFault:
    """Assign the faults that the control API reports to the inputs of the form: `limits.usd` belongs to the input `usd`."""
    gateway_error = as_gateway_error(error, request_id)
    if isinstance(error, ValidationError):
        faults = faults_of(error)
    else:
        param = gateway_error.param or ""
        faults = [(param, gateway_error.message.removeprefix(f"{param}: "))]
    field_faults: dict[str, str] = {}
    general_faults: list[str] = []
    for path, message in faults:
        field = next((part for part in path.split(".") if part in fields), "")
        if field:
            field_faults.setdefault(field, message)
        else:
            general_faults.append((f"{path}: {message}" if path else message).rstrip(".") + ".")
    return FormFault(field_faults, " ".join(general_faults), gateway_error.status)
