"""Axes of a space: which quantities of a wafer or a model there are, and the values that one takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import jax
import numpy as np

from watos_jax.hardware import Wafer
from watos_jax.model import Transformer
from watos_jax.sweeps.checks import as_list, at_most, check_keys, choices, is_number

GRID: Final = ("die_rows", "die_cols")
"""Axes that change the die grid, and with it the strategies."""
MOST_DIES: Final = 1000
"""Most rows or columns of dies of an axis: every strategy that tiles them is enumerated."""


@dataclass(frozen=True)
class Range:
    """Evenly spaced values of one axis.

    Attributes:
        low: first value.
        high: last value.
        num: how many values, both ends included.
        step: spacing instead of `num`; the last value is the largest that is at most `high`.
        log: whether ratios are equal instead of differences; with `num` only.
    """

    low: Any
    high: Any
    num: Any = None
    step: Any = None
    log: bool = False

    def values(self, name: str = "range") -> np.ndarray:
        """The values, float64.

        Args:
            name: of the axis, for messages.

        Raises:
            ValueError: a field is out of range.
        """
        for key in ("low", "high"):
            if not is_number(getattr(self, key)):
                raise ValueError(f"{name}.{key} is {getattr(self, key)!r}: it must be a finite number")
        if self.high < self.low:
            raise ValueError(f"{name}.high is {self.high:g}: it must be at least low ({self.low:g})")
        if (self.num is None) == (self.step is None):
            raise ValueError(f"{name} has num {self.num} and step {self.step}: it must have one of the two")
        if self.step is not None:
            if self.log:
                raise ValueError(f"{name}.log is true: it needs num, not step")
            if not is_number(self.step) or self.step <= 0:
                raise ValueError(f"{name}.step is {self.step!r}: it must be a number above 0")
            num = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return float(self.low) + np.arange(at_most(name, num)) * float(self.step)
        if isinstance(self.num, bool) or not isinstance(self.num, int) or self.num < 1:
            raise ValueError(f"{name}.num is {self.num!r}: it must be a whole number, at least 1")
        if self.log and self.low <= 0:
            raise ValueError(f"{name}.low is {self.low:g}: it must be above 0 where log is true")
        spaced = np.geomspace if self.log else np.linspace
        return spaced(float(self.low), float(self.high), at_most(name, self.num))


def leaf_names(record: Any) -> list[str]:
    """Dotted names of the leaves of a record, in the order in which JAX flattens it."""
    paths, _ = jax.tree_util.tree_flatten_with_path(record)
    return [".".join(str(getattr(key, "name", key)) for key in path) for path, _ in paths]


def replaced(record: Any, name: str, value: float) -> Any:
    """A record with one quantity replaced, checks included; `name` is dotted."""
    head, _, rest = name.partition(".")
    part = replaced(getattr(record, head), rest, value) if rest else float(value)
    return replace(record, **{head: part})


def values_of(name: str, given: Any) -> np.ndarray:
    """The values of one axis, float64.

    Args:
        name: of the axis, for messages.
        given: a number, a list of numbers, a `Range` or a mapping with its fields.

    Raises:
        ValueError: a value is no finite number, or there twice; a field of the range is out of range.
    """
    if isinstance(given, Mapping):
        check_keys(f"{name}.", given, [item.name for item in fields(Range)])
        for key in ("low", "high"):
            if key not in given:
                raise ValueError(f"{name}.{key} is missing: it must be given")
        given = Range(**given)
    if isinstance(given, Range):
        return given.values(name)
    if isinstance(given, str):
        raise ValueError(f"{name} is {given!r}: it must be a number, a list of them, or a range")
    values = [given] if is_number(given) else as_list(name, given)
    for value in values:
        if not is_number(value):
            raise ValueError(f"{name} holds {value!r}: it must hold finite numbers")
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{name} has {len(values)} values, {len(set(values))} different: it must hold each once")
    return np.array([float(value) for value in values[: at_most(name, len(values))]])


def check_axis(name: str, values: np.ndarray, wafer: Wafer, model: Transformer) -> None:
    """Refuse an axis that is no quantity of a wafer or model, or holds a value that its record refuses."""
    is_model = name.startswith("model.")
    owner, leaf = (model, name.removeprefix("model.")) if is_model else (wafer, name)
    names = leaf_names(owner)
    if leaf not in names:
        known = [f"model.{entry}" if is_model else entry for entry in names]
        raise ValueError(f"axes.{name} is no quantity of a {'model' if is_model else 'wafer'}: {choices(name, known)}")
    if leaf in GRID and values.max() > MOST_DIES:
        raise ValueError(f"axes.{name} holds {values.max():g}: it must hold at most {MOST_DIES}")
    whole = is_model or leaf in GRID  # these are checked one by one, for every value makes its own list of strategies
    try:
        for value in values if whole else (values.min(), values.max()):
            replaced(jax.tree.map(lambda x: float(np.ravel(x)[0]), owner), leaf, value)
    except ValueError as error:
        raise ValueError(f"axes.{name}: {error}") from None
