"""What a sweep covers and what it keeps: a declared space, from Python or from one TOML file.

A space is a product: wafers x technologies x models x axes x strategies. An axis is a list or a range of values of one
quantity of the wafer (`die.core.clock`) or of the model (`model.sequence_length`). Points have fixed numbers, so that
a part of the space means the same in every process; none is stored.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from typing import Any, Final, TypeVar

import jax
import numpy as np

from watos_jax import presets
from watos_jax.hardware import Technology, Wafer
from watos_jax.model import Transformer
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy
from watos_jax.sweeps.checks import as_list, as_table, at_most, check_keys, choices, is_number
from watos_jax.sweeps.metrics import METRICS

Record = TypeVar("Record")
FIDELITIES: Final = ("roofline", "predictor")
"""Operator models that a sweep may use."""
ROWS: Final = ("none", "feasible", "all")
"""Which rows a sweep may keep besides its answers."""
GROUPS: Final = ("wafer", "technology", "model", "die_rows", "die_cols")
"""Columns by which answers may be kept apart, besides axes of the model."""
MOST_KEPT: Final = 100_000
"""Most of the best points of a group."""
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


@dataclass(frozen=True)
class Histogram:
    """A count of feasible points by one metric.

    Attributes:
        of: name of the metric.
        low: lower bound of the first bin; smaller values count there too.
        high: upper bound of the last bin; larger values count there too.
        num: bins.
        log: whether the bounds have equal ratios instead of equal differences.
    """

    of: Any
    low: Any
    high: Any
    num: Any = 64
    log: bool = True

    @property
    def edges(self) -> np.ndarray:
        """Bounds of the bins, float64, shape (num + 1,)."""
        return Range(
            self.low, self.high, num=self.num + 1 if isinstance(self.num, int) else self.num, log=self.log
        ).values("keep.histogram")


@dataclass(frozen=True)
class Keep:
    """What a sweep answers. Infeasible points (a margin below 0 by more than rounding) are counted and never an answer.

    Attributes:
        top: how many of the best points to keep of each group; 0 for none.
        by: metric that `top` ranks by, in its better direction.
        pareto: two or more metrics, each in its better direction; empty for no front. Of equal points the first
            is kept.
        histogram: counts of one metric, or None.
        per: columns that make groups, of `GROUPS` and the axes of the model; one group where empty.
        rows: "none", "feasible" or "all": rows kept besides the answers.
        columns: metrics of each row.
    """

    top: Any = 10
    by: Any = "tokens_per_second"
    pareto: Any = ()
    histogram: Histogram | None = None
    per: Any = ()
    rows: Any = "none"
    columns: Any = ("step_time", "tokens_per_second", "power", "memory", "margin", "binding")

    def __post_init__(self) -> None:
        for name in ("pareto", "per", "columns"):
            object.__setattr__(self, name, _names(f"keep.{name}", getattr(self, name)))
        if isinstance(self.top, bool) or not isinstance(self.top, int) or not 0 <= self.top <= MOST_KEPT:
            raise ValueError(f"keep.top is {self.top!r}: it must be a whole number from 0 to {MOST_KEPT}")
        if self.rows not in ROWS:
            raise ValueError(f"keep.rows is {self.rows!r}: it must be one of {', '.join(ROWS)}")
        ranked: dict[str, Sequence[str]] = {"by": (self.by,), "pareto": self.pareto}
        if self.histogram is not None:
            ranked["histogram.of"] = (self.histogram.of,)
            self.histogram.edges  # noqa: B018  (its check)
        for field_name, metrics in {**ranked, "columns": self.columns}.items():
            for metric in metrics:
                if not isinstance(metric, str):
                    raise ValueError(f"keep.{field_name} is {metric!r}: it must be the name of a metric")
                if metric not in METRICS:
                    raise ValueError(f"keep.{field_name} is {metric!r}: {choices(metric, list(METRICS))}")
        for field_name, metrics in ranked.items():
            for metric in metrics:
                if METRICS[metric].is_code:
                    raise ValueError(f"keep.{field_name} is {metric!r}: it must be a quantity, not a name")
        if len(self.pareto) == 1:
            raise ValueError(f"keep.pareto is {self.pareto[0]!r}: it must name at least two metrics")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that is computed, each once: the columns, then what answers need."""
        of = () if self.histogram is None else (self.histogram.of,)
        return tuple(dict.fromkeys((*self.columns, self.by, *self.pareto, *of, "margin")))


@dataclass(frozen=True)
class Space:
    """A declared space of designs.

    Attributes:
        wafers: names of presets or records; a record whose quantities are arrays of one length stands for that many
            wafers (column `sample`).
        models: names of presets or records.
        technologies: names of presets or records put in place of each wafer's own; empty keeps its own.
        axes: values by name of the quantity: `die.core.clock` of the wafer, `model.sequence_length` of the model.
        strategies: what may be chosen, enumerated on every die grid, or a list of strategies; those that do not fit
            a die grid or a model are left out there.
        samples: so many random hardware points of each wafer, technology, model and die grid in place of all of
            them, drawn with replacement; all where None.
        seed: of the random points.
        precision: 32 or 64 bits.
        fidelity: operator model, "roofline" or "predictor"; the mapper is for answers, not for sweeps.

    A mapping in place of a list of records gives them names.
    """

    wafers: Any
    models: Any
    technologies: Any = ()
    axes: Any = field(default_factory=dict)
    strategies: Any = field(default_factory=Options)
    samples: Any = None
    seed: Any = 0
    precision: Any = 32
    fidelity: Any = "roofline"

    def __post_init__(self) -> None:
        wafers = _records("wafers", self.wafers, Wafer, presets.wafers.get)
        models = _records("models", self.models, Transformer, presets.models.get)
        technologies = _records("technologies", self.technologies, Technology, presets.technologies.get)
        for name, entries in (("wafers", wafers), ("models", models)):
            if not entries:
                raise ValueError(f"{name} is empty: it must name at least one")
        for name, wafer in wafers.items():
            sample_count(name, wafer)
        axes = {name: _values(f"axes.{name}", values) for name, values in as_table("axes", self.axes).items()}
        for name, values in axes.items():
            _check_axis(name, values, next(iter(wafers.values())), next(iter(models.values())))
        if self.precision not in (32, 64):
            raise ValueError(f"precision is {self.precision!r}: it must be 32 or 64")
        if self.fidelity not in FIDELITIES:
            raise ValueError(f"fidelity is {self.fidelity!r}: it must be one of {', '.join(FIDELITIES)}")
        if self.samples is not None and (not isinstance(self.samples, int) or not 1 <= self.samples < 2**62):
            raise ValueError(f"samples is {self.samples!r}: it must be a whole number, at least 1")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed!r}: it must be a whole number from 0 to 2**32 - 1")
        for key, value in {"wafers": wafers, "models": models, "technologies": technologies, "axes": axes}.items():
            object.__setattr__(self, key, value)
        if not isinstance(self.strategies, Options):
            object.__setattr__(self, "strategies", _strategies(self.strategies))

    def description(self, keep: Keep) -> dict[str, Any]:
        """The space, what is kept and the library's version as plain data: two sweeps are equal where these are."""
        if isinstance(self.strategies, Options):
            chosen: Any = {item.name: getattr(self.strategies, item.name) for item in fields(Options)}
        else:
            chosen = [_plain(strategy) for strategy in self.strategies]
        described = {
            "version": version("watos_jax"),
            "precision": self.precision,
            "fidelity": self.fidelity,
            "samples": self.samples,
            "seed": self.seed,
            "wafers": {name: {**_plain(wafer), "packing": wafer.packing} for name, wafer in self.wafers.items()},
            "technologies": {name: _plain(technology) for name, technology in self.technologies.items()},
            "models": {name: _plain(model) for name, model in self.models.items()},
            "axes": {name: _numbers(values) for name, values in self.axes.items()},
            "strategies": chosen,
            "keep": {item.name: getattr(keep, item.name) for item in fields(Keep)}
            | {"histogram": None if keep.histogram is None else vars(keep.histogram)},
        }
        return dict(json.loads(json.dumps(described, default=float)))


def digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description, hexadecimal."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def leaf_names(record: Any) -> list[str]:
    """Dotted names of the leaves of a record, in the order in which JAX flattens it."""
    paths, _ = jax.tree_util.tree_flatten_with_path(record)
    return [".".join(str(getattr(key, "name", key)) for key in path) for path, _ in paths]


def sample_count(name: str, wafer: Wafer) -> int:
    """Wafers that a record stands for: the common length of the quantities that are arrays, 1 where none is."""
    sizes = {np.shape(leaf) for leaf in jax.tree.leaves(wafer)} - {()}
    if len(sizes) > 1 or any(len(size) != 1 for size in sizes):
        raise ValueError(f"wafers.{name} has quantities of shapes {sorted(sizes)}: it must have one length")
    count = sizes.pop()[0] if sizes else 1
    for grid in ("die_rows", "die_cols"):
        if np.unique(np.asarray(getattr(wafer, grid))).size != 1:
            raise ValueError(f"wafers.{name}.{grid} takes several values: stacked wafers must have one die grid")
    return int(count)


def replaced(record: Any, name: str, value: float) -> Any:
    """A record with one quantity replaced, checks included; `name` is dotted."""
    head, _, rest = name.partition(".")
    part = replaced(getattr(record, head), rest, value) if rest else float(value)
    return replace(record, **{head: part})


def _records(kind: str, given: Any, record: type[Record], find: Any) -> dict[str, Record]:
    # names, records, a list or a mapping of them, as a mapping by name
    if isinstance(given, str | record):
        given = (given,)
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        entries = as_list(kind, given)
        pairs = [(entry if isinstance(entry, str) else f"{kind[:-1]}-{i}", entry) for i, entry in enumerate(entries)]
    found: dict[str, Record] = {}
    for name, entry in pairs:
        value = find(entry) if isinstance(entry, str) else entry
        if not isinstance(value, record):
            raise ValueError(f"{kind} holds {entry!r}: it must hold names of presets or {record.__name__} records")
        if name in found:
            raise ValueError(f"{kind} holds {name!r} twice: it must hold each once")
        found[name] = value
    return found


def _values(name: str, given: Any) -> np.ndarray:
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


def _check_axis(name: str, values: np.ndarray, wafer: Wafer, model: Transformer) -> None:
    is_model = name.startswith("model.")
    owner, leaf = (model, name.removeprefix("model.")) if is_model else (wafer, name)
    names = leaf_names(owner)
    if leaf not in names:
        known = [f"model.{entry}" if is_model else entry for entry in names]
        raise ValueError(f"axes.{name} is no quantity of a {'model' if is_model else 'wafer'}: {choices(name, known)}")
    if leaf in ("die_rows", "die_cols") and values.max() > MOST_DIES:
        raise ValueError(f"axes.{name} holds {values.max():g}: it must hold at most {MOST_DIES}")
    whole = is_model or leaf in GROUPS  # these are checked one by one, for every value makes its own list of strategies
    try:
        for value in values if whole else (values.min(), values.max()):
            replaced(jax.tree.map(lambda x: float(np.ravel(x)[0]), owner), leaf, value)
    except ValueError as error:
        raise ValueError(f"axes.{name}: {error}") from None


def _strategies(given: Sequence[Strategy]) -> tuple[Strategy, ...]:
    if isinstance(given, Strategy):
        given = (given,)
    if not given:
        raise ValueError("strategies is empty: it must hold at least one")
    for strategy in given:
        if not isinstance(strategy, Strategy):
            raise ValueError(f"strategies holds {strategy!r}: it must hold Strategy records, or be Options")
        if any(np.ndim(leaf) for leaf in jax.tree.leaves(strategy)):
            raise ValueError("strategies holds arrays: it must hold one number per field")
    return tuple(given)


def _plain(record: Any) -> dict[str, Any]:
    return {name: _numbers(leaf) for name, leaf in zip(leaf_names(record), jax.tree.leaves(record), strict=True)}


def _numbers(values: Any) -> Any:
    # short arrays as they are, long ones by their digest
    array = np.asarray(values, dtype=np.float64)
    if array.size <= 64:
        return array.tolist()
    return {"count": array.size, "sha256": hashlib.sha256(array.astype("<f8").tobytes()).hexdigest()}


def _names(name: str, given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(as_list(name, given))
    if not all(isinstance(entry, str) for entry in names) or len(set(names)) != len(names):
        raise ValueError(f"{name} is {names!r}: it must hold names, each once")
    return names
