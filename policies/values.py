"""What a value is here: compared by its fields, and never changed once it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value_class(made: type[T]) -> type[T]:
    """A dataclass that mypy takes for frozen, and Python does not.

    A frozen one sets each of its fields through `object.__setattr__`, which takes four times as long, and a call makes dozens. That
    nothing changes them is what mypy checks (tests/policies/test_values.py shows that it does).
    """
    return dataclass(slots=True, unsafe_hash=True)(made)
