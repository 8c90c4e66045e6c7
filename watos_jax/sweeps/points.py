"""From a number to a design: how the points of a space are counted, cut into parts, and shown as rows.

A cell is one wafer, technology, model and die grid: what decides which strategies there are. Its points are counted
with the strategy fastest, then the axes in their order, the first slowest. A part is a run of hardware points of one
cell with all their strategies: what is computed, written and repeated as a whole.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import jax
import numpy as np

from watos_jax.hardware import Wafer
from watos_jax.model import Transformer
from watos_jax.search.space import StrategySpace
from watos_jax.strategy import RECOMPUTE_LEVELS, SCHEDULES, TENSOR_COLLECTIVES, Layout, Strategy
from watos_jax.sweeps.axes import GRID, leaf_names
from watos_jax.sweeps.columns import Column, Rows, unit_of
from watos_jax.sweeps.description import description, digest
from watos_jax.sweeps.digits import decode
from watos_jax.sweeps.keep import Keep
from watos_jax.sweeps.metrics import MARGINS, METRICS
from watos_jax.sweeps.space import Space

ANSWER_POINTS: Final = 2**22
"""Points of a part where only answers are kept."""
ROW_POINTS: Final = 2**18
"""Points of a part where rows are kept."""
CODES: Final = {"schedule": SCHEDULES, "recompute": RECOMPUTE_LEVELS, "tensor_collective": TENSOR_COLLECTIVES}
"""Fields of a strategy that are codes, with the names that rows carry."""
ALWAYS: Final = ("tensor_rows", "tensor_cols", "pipeline_parallel", "data_parallel", "micro_batch_size", "recompute")
"""Fields of a strategy that every row carries; others where they vary."""


class Cell(NamedTuple):
    """One wafer, technology, model and die grid.

    Attributes:
        wafer: name.
        technology: name; empty where the wafer has its own.
        model: name.
        varied: values of the axes of the model, in their order.
        die_rows: rows of dies.
        die_cols: columns of dies.
        packing: how dies are fitted.
        template: first row of the table of wafers.
        model_row: row of the table of models.
        table: number of the table of strategies.
        sizes: values of the sample and of each axis of the wafer.
        hardware: hardware points.
        strategies: strategies of each.
        first: number of the first point.
    """

    wafer: str
    technology: str
    model: str
    varied: tuple[float, ...]
    die_rows: float
    die_cols: float
    packing: str
    template: int
    model_row: int
    table: int
    sizes: tuple[int, ...]
    hardware: int
    strategies: int
    first: int


class Part(NamedTuple):
    """A run of hardware points of one cell.

    Attributes:
        number: of the part.
        cell: number of the cell.
        first: first hardware point.
        size: hardware points.
    """

    number: int
    cell: int
    first: int
    size: int


class Point(NamedTuple):
    """One design of a space; `wj.estimate(*point[:3], layout=point.layout)` repeats it alone."""

    wafer: Wafer
    model: Transformer
    strategy: Strategy
    layout: Layout


@dataclass(frozen=True)
class Plan:
    """A space with its cells, tables and parts, ready to run.

    Attributes:
        space: what is covered.
        keep: what is answered.
        cells: in order of their points.
        wafers: quantities of every wafer in the order of its leaves, shape (wafers, leaves).
        models: models, leaves of shape (models,).
        tables: strategies of each table.
        pruned: candidate strategies left out, by reason.
    """

    space: Space
    keep: Keep
    cells: tuple[Cell, ...]
    wafers: np.ndarray
    models: Transformer
    tables: tuple[StrategySpace, ...]
    pruned: dict[str, int]

    def __len__(self) -> int:
        last = self.cells[-1]
        return last.first + last.hardware * last.strategies

    @cached_property
    def description(self) -> dict[str, Any]:
        """Space, kept answers and version as plain data."""
        return description(self.space, self.keep)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return digest(self.description)

    @property
    def seed(self) -> int | None:
        """Seed of random points; None where all are taken in their order."""
        return None if self.space.samples is None else int(self.space.seed)

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of the wafer that do not change the die grid."""
        return tuple(n for n in self.space.axes if n not in GRID and not n.startswith("model."))

    @property
    def model_axes(self) -> tuple[str, ...]:
        """Axes of the model."""
        return tuple(name for name in self.space.axes if name.startswith("model."))

    @property
    def part_points(self) -> int:
        """Aimed points of a part."""
        return ANSWER_POINTS if self.keep.rows == "none" else ROW_POINTS

    def _per_part(self, cell: Cell) -> int:
        return max(1, min(cell.hardware, self.part_points // cell.strategies))

    @cached_property
    def _first_parts(self) -> list[int]:
        firsts = [0]
        for cell in self.cells:
            firsts.append(firsts[-1] + -(-cell.hardware // self._per_part(cell)))
        return firsts

    @property
    def num_parts(self) -> int:
        """Parts of the whole space."""
        return self._first_parts[-1]

    def part(self, number: int) -> Part:
        """One part by its number."""
        index = bisect_right(self._first_parts, number) - 1
        cell = self.cells[index]
        size = self._per_part(cell)
        first = (number - self._first_parts[index]) * size
        return Part(number, index, first, min(size, cell.hardware - first))

    def most_tiles(self, shape: tuple[int, int], packing: str) -> int:
        """Most tiles of any part of the cells that share a packing and a shape of tile."""
        return max(
            -(-self._per_part(cell) // shape[0]) * -(-cell.strategies // shape[1])
            for cell in self.cells
            if cell.packing == packing
        )

    def base(self, cell: Cell, first: int) -> np.ndarray:
        """Digits of a hardware point, or its two 32-bit halves where points are random."""
        if self.space.samples is not None:
            return np.array([first & 0xFFFFFFFF, first >> 32], np.uint32)
        digits = []
        for size in reversed(cell.sizes):
            first, digit = divmod(first, size)
            digits.append(digit)
        return np.array(digits[::-1], np.int32)

    def point(self, index: int) -> Point:
        """The design with one number.

        Raises:
            ValueError: the number is outside the space.
        """
        if not 0 <= index < len(self):
            raise ValueError(f"index is {index}: it must be from 0 to {len(self) - 1}")
        cell = self.cells[bisect_right([cell.first for cell in self.cells], index) - 1]
        hardware, number = divmod(index - cell.first, cell.strategies)
        digits = [int(d) for d in decode(np, self.base(cell, hardware), np.zeros((), np.int32), cell.sizes, self.seed)]
        leaves = self.wafers[cell.template + digits[0]].copy()
        for position, digit, name in zip(self.positions, digits[1:], self.axes, strict=True):
            leaves[position] = self.space.axes[name][digit]
        structure = jax.tree.structure(replace(next(iter(self.space.wafers.values())), packing=cell.packing))
        wafer = jax.tree.unflatten(structure, [float(leaf) for leaf in leaves])
        model = jax.tree.map(lambda leaf: float(leaf[cell.model_row]), self.models)
        table = self.tables[cell.table]
        return Point(wafer, model, table.strategy(number), table.layout(number))

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Place of each axis among the leaves of a wafer."""
        names = leaf_names(next(iter(self.space.wafers.values())))
        return tuple(names.index(name) for name in self.axes)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the rows, in order."""
        text = {
            "wafer": list(self.space.wafers),
            "technology": sorted({cell.technology for cell in self.cells}),
            "model": list(self.space.models),
        }
        found = [Column("index", "1")]
        found += [Column(name, "", np.array(values, dtype=object)) for name, values in text.items()]
        found += [Column("die_rows", "1"), Column("die_cols", "1")]
        if any(cell.sizes[0] > 1 for cell in self.cells):
            found.append(Column("sample", "1"))
        found += [Column(name, unit_of(name)) for name in self.model_axes]
        found += [Column(name, unit_of(name), self.space.axes[name]) for name in self.axes]
        for name in self.strategy_fields:
            found.append(Column(name, "", np.array(CODES[name], dtype=object)) if name in CODES else Column(name, "1"))
        for name in self.keep.metrics:
            names = np.array((*MARGINS, "other"), dtype=object) if METRICS[name].is_code else None
            found.append(Column(name, "" if METRICS[name].is_code else METRICS[name].unit, names))
        return tuple(found)

    @cached_property
    def strategy_fields(self) -> tuple[str, ...]:
        """Fields of the strategy that rows carry."""

        def varies(name: str) -> bool:
            ends = [(np.min(v), np.max(v)) for v in (getattr(table.strategies, name) for table in self.tables)]
            return bool(min(low for low, _ in ends) != max(high for _, high in ends))

        return tuple(name for name in Strategy.__dataclass_fields__ if name in ALWAYS or varies(name))

    @cached_property
    def _fields(self) -> list[dict[str, np.ndarray]]:
        return [
            {name: np.asarray(getattr(table.strategies, name)).astype(np.int32) for name in self.strategy_fields}
            for table in self.tables
        ]

    def rows(self, part: Part, hardware: np.ndarray, strategy: np.ndarray, metrics: Rows) -> Rows:
        """Columns of points of a part, codes where a column has values.

        Args:
            part: the part.
            hardware: hardware point of each, counted from the part's first, int32.
            strategy: number of the strategy of each, int32.
            metrics: values by name.
        """
        cell = self.cells[part.cell]
        count = len(hardware)
        index = (cell.first + part.first * cell.strategies) + hardware.astype(np.int64) * cell.strategies + strategy
        few = count < part.size  # decode each point once: each row, or each hardware point
        offsets = hardware if few else np.arange(part.size, dtype=np.int32)
        digits = decode(np, self.base(cell, part.first), offsets, cell.sizes, self.seed)
        digits = [digit.astype(np.int32) if few else digit.astype(np.int32)[hardware] for digit in digits]
        names = {column.name: column.values for column in self.columns}
        found: Rows = {"index": index}
        for name in ("wafer", "technology", "model"):
            code = list(names[name]).index(getattr(cell, name))  # type: ignore[arg-type]
            found[name] = np.full(count, code, np.int32)
        found["die_rows"] = np.full(count, cell.die_rows, np.int32)
        found["die_cols"] = np.full(count, cell.die_cols, np.int32)
        if "sample" in names:
            found["sample"] = digits[0]
        for name, value in zip(self.model_axes, cell.varied, strict=True):
            found[name] = np.full(count, value)
        for name, digit in zip(self.axes, digits[1:], strict=True):
            found[name] = digit
        for name, values in self._fields[cell.table].items():
            found[name] = values[strategy]
        for name in self.keep.metrics:
            values = metrics[name]
            found[name] = values.astype(np.int32) if METRICS[name].is_code else values
        return found
