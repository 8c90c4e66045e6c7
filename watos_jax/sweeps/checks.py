"""Checks of what a declaration holds: each refusal is one sentence with field, value and rule."""

import difflib
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

MOST_VALUES: Final = 1_000_000
"""Most values of one axis."""


def as_list(name: str, given: Any) -> list[Any]:
    """The entries of a list."""
    if not isinstance(given, list | tuple | np.ndarray):
        raise ValueError(f"{name} is {given!r}: it must be a list")
    return list(given)


def as_table(name: str, given: Any) -> dict[str, Any]:
    """The entries of a table."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} is {given!r}: it must be a table")
    return dict(given)


def check_keys(prefix: str, table: Mapping[str, Any], known: list[str]) -> None:
    """Refuse a key that is not known."""
    for key in table:
        if key not in known:
            raise ValueError(f"{prefix}{key} is not known: {choices(key, known)}")


def choices(given: str, known: list[str]) -> str:
    """What a name could have been."""
    near = difflib.get_close_matches(given, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}it must be one of {', '.join(known)}"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    kinds = int | float | np.integer | np.floating
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def at_most(name: str, count: int) -> int:
    """The number of values, if an axis may have as many."""
    if count > MOST_VALUES:
        raise ValueError(f"{name} has {count} values: it must have at most {MOST_VALUES}")
    return count
