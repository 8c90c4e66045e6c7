"""What a sweep covers: a declared space, from Python or from one TOML file.

A space is a product: wafers x technologies x models x axes x strategies. An axis is a list or a range of values of one
quantity of the wafer (`die.core.clock`) or of the model (`model.sequence_length`). Points have fixed numbers, so that
a part of the space means the same in every process; none is stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import jax
import numpy as np

from watos_jax import presets
from watos_jax.hardware import Technology, Wafer
from watos_jax.model import Transformer
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy
from watos_jax.sweeps.axes import GRID, check_axis, values_of
from watos_jax.sweeps.checks import as_list, as_table

Record = TypeVar("Record")
FIDELITIES: Final = ("roofline", "predictor")
"""Operator models that a sweep may use."""


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
        axes = {name: values_of(f"axes.{name}", values) for name, values in as_table("axes", self.axes).items()}
        for name, values in axes.items():
            check_axis(name, values, next(iter(wafers.values())), next(iter(models.values())))
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


def sample_count(name: str, wafer: Wafer) -> int:
    """Wafers that a record stands for: the common length of the quantities that are arrays, 1 where none is."""
    sizes = {np.shape(leaf) for leaf in jax.tree.leaves(wafer)} - {()}
    if len(sizes) > 1 or any(len(size) != 1 for size in sizes):
        raise ValueError(f"wafers.{name} has quantities of shapes {sorted(sizes)}: it must have one length")
    count = sizes.pop()[0] if sizes else 1
    for grid in GRID:
        if np.unique(np.asarray(getattr(wafer, grid))).size != 1:
            raise ValueError(f"wafers.{name}.{grid} takes several values: stacked wafers must have one die grid")
    return int(count)


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
