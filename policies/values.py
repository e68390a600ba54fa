"""Value objects: compared by their fields, and not changed after they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value_class(cls: type[T]) -> type[T]:
    """A dataclass that is frozen for mypy, but not at run time.

    A frozen dataclass sets each field through `object.__setattr__`, which takes four times as long, and a call makes dozens
    of values. mypy ensures that nothing changes them (tests/policies/test_values.py shows that it does).
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
