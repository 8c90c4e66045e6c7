"""What a sweep answers: the best of each group, Pareto fronts, histograms, rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from watos_jax.sweeps.axes import GRID, Range
from watos_jax.sweeps.checks import as_list, choices
from watos_jax.sweeps.metrics import METRICS

ROWS: Final = ("none", "feasible", "all")
"""Which rows a sweep may keep besides its answers."""
GROUPS: Final = ("wafer", "technology", "model", *GRID)
"""Columns by which answers may be kept apart, besides axes of the model."""
MOST_KEPT: Final = 100_000
"""Most of the best points of a group."""


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


def _names(name: str, given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(as_list(name, given))
    if not all(isinstance(entry, str) for entry in names) or len(set(names)) != len(names):
        raise ValueError(f"{name} is {names!r}: it must hold names, each once")
    return names
