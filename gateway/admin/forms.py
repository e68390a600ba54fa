"""What people type into forms: numbers, and faults, each with the field next to which the page shows it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from gateway.endpoints.api.application import as_gateway_error, faults_of
from gateway.errors import BadRequest


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
        faults = [
            (where, message if where else message[:1].upper() + message[1:]) for where, message in faults_of(error)
        ]
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


def parse_integer(name: str, text: str) -> int:
    """12,345 or 12345. Raises `BadRequest` with the field's name."""
    try:
        return int(text.replace(",", "").strip())
    except ValueError:
        raise BadRequest.field(name, f"must be a whole number; given {text[:40]!r}") from None


def parse_decimal(name: str, text: str) -> float:
    """Raises `BadRequest` with the field's name; ranges are the API's business."""
    try:
        return float(text.strip())
    except ValueError:
        raise BadRequest.field(name, f"must be a number; given {text[:40]!r}") from None
