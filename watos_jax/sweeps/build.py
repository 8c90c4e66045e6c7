"""From a declared space to its points: the cells, the strategies of each, and the tables that they refer to."""

from collections import Counter
from dataclasses import replace
from itertools import product

import jax
import numpy as np

from watos_jax.hardware import Wafer
from watos_jax.model import Transformer
from watos_jax.network.contention import Network
from watos_jax.network.geometry import Geometry
from watos_jax.network.layout import fits, layout_of, padded
from watos_jax.search.space import Options, StrategySpace, strategies
from watos_jax.strategy import Strategy, violation
from watos_jax.sweeps.axes import GRID, leaf_names, replaced
from watos_jax.sweeps.keep import GROUPS, Keep
from watos_jax.sweeps.points import Cell, Plan
from watos_jax.sweeps.space import Space, sample_count


def build(space: Space, keep: Keep | None = None) -> Plan:
    """List the cells of a space and the strategies of each.

    Args:
        space: what is covered.
        keep: what is answered; the ten fastest points where None.

    Raises:
        ValueError: a name in `keep.per` makes no group, or no strategy is legal anywhere.
    """
    keep = keep or Keep()
    model_axes = [name for name in space.axes if name.startswith("model.")]
    for name in keep.per:
        if name not in (*GROUPS, *model_axes):
            raise ValueError(f"keep.per is {name!r}: it must be one of {', '.join(GROUPS)} or an axis of the model")
    builder = _Builder(space)
    for wafer, technology in product(space.wafers, space.technologies or ("",)):
        builder.add(wafer, technology, model_axes)
    if not builder.cells:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in builder.pruned.most_common())
        raise ValueError(f"no strategy is legal on any die grid of the space: {reasons}")
    return builder.plan(keep)


class _Builder:
    # cells in order, with the tables that they refer to

    def __init__(self, space: Space):
        self.space = space
        self.cells: list[Cell] = []
        self.wafers: list[np.ndarray] = []
        self.models: dict[tuple[str, tuple[float, ...]], tuple[int, Transformer]] = {}
        self.tables: dict[tuple[float, float, int], int] = {}
        self.found: list[list[tuple[Strategy, Geometry]] | StrategySpace] = []
        self.grids: list[Wafer] = []
        self.pruned: Counter[str] = Counter()
        self.num_wafers = 0
        self.num_points = 0
        axes = space.axes
        for name in space.models:
            model_axes = [axis for axis in axes if axis.startswith("model.")]
            for varied in product(*(axes[axis] for axis in model_axes)):
                model = space.models[name]
                for axis, value in zip(model_axes, varied, strict=True):
                    model = replaced(model, axis.removeprefix("model."), float(value))
                self.models[name, tuple(map(float, varied))] = (len(self.models), model)

    def add(self, wafer: str, technology: str, model_axes: list[str]) -> None:
        record, axes = self.space.wafers[wafer], self.space.axes
        if technology:
            record = replace(record, technology=self.space.technologies[technology])
        samples = sample_count(wafer, record)
        names = leaf_names(record)
        leaves = [np.broadcast_to(np.asarray(leaf, np.float64), samples) for leaf in jax.tree.leaves(record)]
        knobs = [name for name in axes if name not in GRID and name not in model_axes]
        sizes = (samples, *(len(axes[name]) for name in knobs))
        hardware = int(np.prod(sizes, dtype=object)) if self.space.samples is None else self.space.samples
        own = (np.ravel(record.die_rows)[:1], np.ravel(record.die_cols)[:1])
        for rows, cols in product(axes.get("die_rows", own[0]), axes.get("die_cols", own[1])):
            block = np.stack(leaves, axis=1)
            block[:, names.index("die_rows")], block[:, names.index("die_cols")] = rows, cols
            self.wafers.append(block)
            for (model, varied), (model_row, _) in self.models.items():
                table = self._table(record, float(rows), float(cols), model, varied)
                if table is None:
                    continue
                count = len(self.found[table])
                self.cells.append(
                    Cell(
                        wafer, technology, model, varied, float(rows), float(cols), record.packing,
                        self.num_wafers, model_row, table, sizes, hardware, count, self.num_points,
                    )
                )  # fmt: skip
                self.num_points += hardware * count
            self.num_wafers += samples

    def _table(self, wafer: Wafer, rows: float, cols: float, name: str, varied: tuple[float, ...]) -> int | None:
        number, model = self.models[name, varied]
        key = (rows, cols, number)
        if key not in self.tables:
            grid = jax.tree.map(lambda leaf: float(np.ravel(leaf)[0]), replace(wafer, die_rows=rows, die_cols=cols))
            found = self._enumerate(grid, model)
            self.tables[key] = -1 if found is None else len(self.found)
            if found is not None:
                self.found.append(found)
                self.grids.append(grid)
        return None if self.tables[key] < 0 else self.tables[key]

    def _enumerate(self, grid: Wafer, model: Transformer) -> StrategySpace | list[tuple[Strategy, Geometry]] | None:
        if isinstance(self.space.strategies, Options):
            try:
                space = strategies(grid, model, self.space.strategies)
            except ValueError as error:
                self.pruned[str(error)] += 1
                return None
            self.pruned.update(space.pruned)
            return space
        legal = []
        for strategy in self.space.strategies:
            reason = violation(model, strategy) or fits(grid, strategy)
            if reason is not None:
                self.pruned[reason] += 1
            else:
                legal.append((strategy, Geometry.of(strategy)))
        return legal or None

    def plan(self, keep: Keep) -> Plan:
        # one padded number of stages, so that one compilation serves every table
        stages = max(
            found.layouts.max_stages if isinstance(found, StrategySpace) else padded(max(g.pipeline for _, g in found))
            for found in self.found
        )
        tables = []
        for grid, found in zip(self.grids, self.found, strict=True):
            if not isinstance(found, StrategySpace):
                rows = [layout_of(Network.of(grid), geometry, max_stages=stages) for _, geometry in found]
                stacked = jax.tree.map(lambda *leaves: np.array(leaves, np.float64), *(s for s, _ in found))
                found = StrategySpace(
                    stacked, jax.tree.map(lambda *leaves: np.stack(leaves), *rows), np.arange(len(found))
                )
            tables.append(replace(found, layouts=jax.tree.map(lambda leaf: _padded(leaf, stages), found.layouts)))
        models = jax.tree.map(lambda *leaves: np.array(leaves, np.float64), *(m for _, m in self.models.values()))
        return Plan(
            self.space,
            keep,
            tuple(self.cells),
            np.concatenate(self.wafers),
            models,
            tuple(tables),
            dict(self.pruned),
        )


def _padded(leaf: np.ndarray, stages: int) -> np.ndarray:
    # only the leaves by stage have three axes
    if leaf.ndim < 3 or leaf.shape[1] == stages:
        return leaf
    return np.pad(leaf, ((0, 0), (0, stages - leaf.shape[1]), (0, 0)))
