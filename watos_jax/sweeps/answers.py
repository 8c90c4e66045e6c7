"""From the outcomes of parts, in any order, to the answers of a sweep."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from watos_jax.sweeps.columns import Rows, expanded
from watos_jax.sweeps.merge import best, front, joined
from watos_jax.sweeps.metrics import METRICS
from watos_jax.sweeps.points import Cell, Plan, Point
from watos_jax.sweeps.run import Outcome

MERGED: Final = 4096
"""Rows that are collected before they are merged."""


@dataclass(frozen=True)
class Sweep:
    """The answers of a sweep; every table is a dictionary of columns of equal length.

    Attributes:
        plan: what was covered; `plan.columns` has the units.
        top: the best points of each group, best first; infeasible points are never among them.
        pareto: the points of each group that none dominates, by the first metric; empty where not asked.
        histogram: feasible points per group and bin: the group's columns, `low`, `high` and `count`.
        rows: the rows kept besides, where they were not written to a folder; otherwise empty.
        feasible: points that exceed no limit.
        evaluated: all points.
        path: folder of the results, if any.
    """

    plan: Plan
    top: Rows
    pareto: Rows
    histogram: Rows
    rows: Rows
    feasible: int
    evaluated: int
    path: Path | None = None

    def point(self, index: int | np.integer) -> Point:
        """Wafer, model, strategy and layout of the point with this `index`."""
        return self.plan.point(int(index))


class Answers:
    """Merges outcomes; the result depends on which parts there are, not on their order.

    Attributes:
        plan: the sweep.
        feasible: feasible points so far.
        evaluated: points so far.
        best: best value so far of the metric that `keep.by` names; None before the first.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.feasible = 0
        self.evaluated = 0
        self.best: float | None = None
        keys = [self._key(cell) for cell in plan.cells]
        self._groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self._group_of = [self._groups[key] for key in keys]
        bins = 0 if plan.keep.histogram is None else plan.keep.histogram.num
        self._histogram = np.zeros((len(self._groups), bins), np.int64)
        self._top: list[Rows] = []
        self._front: list[Rows] = []
        self._rows: list[tuple[int, Rows]] = []

    def add(self, outcome: Outcome, *, hold_rows: bool = False) -> None:
        """Take in one part.

        Args:
            outcome: of the part.
            hold_rows: whether its rows stay in memory.
        """
        self.feasible += outcome.feasible
        self.evaluated += outcome.evaluated
        group = self._group_of[outcome.part.cell]
        self._histogram[group] += outcome.histogram
        for held, rows in ((self._top, outcome.best), (self._front, outcome.front)):
            held.append(rows | {"group": np.full(len(rows["index"]), group)})
        if len(outcome.best["index"]):
            value = float(outcome.best[self.plan.keep.by][0])
            better = max if METRICS[self.plan.keep.by].larger_is_better else min
            self.best = value if self.best is None else better(self.best, value)
        if hold_rows and outcome.rows is not None:
            self._rows.append((outcome.part.number, outcome.rows))
        for held, merge in ((self._top, self._best), (self._front, self._undominated)):
            if sum(len(rows["index"]) for rows in held) > MERGED and len(held) > 1:
                held[:] = [merge(joined(held))]

    def finish(self, path: Path | None = None) -> Sweep:
        """The answers of the parts taken in.

        Args:
            path: folder where they are written, for the record.
        """
        rows = [rows for _, rows in sorted(self._rows, key=lambda pair: pair[0])]
        return Sweep(
            self.plan,
            self._shown(self._best(joined(self._top))),
            self._shown(self._undominated(joined(self._front))),
            self._bins(),
            self._shown(joined(rows)) if rows else {},
            self.feasible,
            self.evaluated,
            path,
        )

    def _key(self, cell: Cell) -> tuple[str | float, ...]:
        varied = dict(zip(self.plan.model_axes, cell.varied, strict=True))
        return tuple(varied[name] if name in varied else getattr(cell, name) for name in self.plan.keep.per)

    def _best(self, rows: Rows) -> Rows:
        keep = self.plan.keep
        return best(rows, keep.by, keep.top, rows["group"])

    def _undominated(self, rows: Rows) -> Rows:
        if not self.plan.keep.pareto:
            return rows
        return front(rows, self.plan.keep.pareto, rows["group"])

    def _shown(self, rows: Rows) -> Rows:
        shown = {column.name: rows[column.name] for column in self.plan.columns if column.name in rows}
        return expanded(self.plan.columns, shown)

    def _bins(self) -> Rows:
        histogram = self.plan.keep.histogram
        if histogram is None:
            return {}
        edges, count = histogram.edges, len(self._groups)
        keys = list(self._groups)
        columns: Rows = {}
        for place, name in enumerate(self.plan.keep.per):
            values = [key[place] for key in keys]
            kind = object if isinstance(values[0], str) else float
            columns[name] = np.repeat(np.array(values, dtype=kind), histogram.num)
        return columns | {
            "low": np.tile(edges[:-1], count),
            "high": np.tile(edges[1:], count),
            "count": self._histogram.ravel(),
        }
