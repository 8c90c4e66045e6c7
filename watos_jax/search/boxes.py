"""Boxes of the hardware lattice, and what no design in one is better than.

In a box no point has more stacks, SRAM, D2D bandwidth or clock than the box's upper corner, nor more cores than fit
beside what its lower corner holds, in the largest dies: the reciprocal resources u of that corner (`bounds`) are below
those of every design in the box. Boxes do not depend on the strategy, so all strategies of a die grid share them.
"""

from itertools import product
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from watos_jax.batch import map_chunks
from watos_jax.energy import peak_power_per_die
from watos_jax.fabrication import fabrication_ratios
from watos_jax.hardware import Budget
from watos_jax.search import lattice
from watos_jax.search.bounds import EXPONENTS, SLACK, Reciprocals, reciprocals
from watos_jax.search.lattice import NAMES, from_array
from watos_jax.units import Scalar

AXES: Final = ("core_rows", "sram_bytes_per_core", "dram_stacks", "d2d_bandwidth", "clock")
"""Knobs that span a box; columns of cores and the size of the die follow from them."""
COVER: Final = (1, 1, 8, 6, 3)
"""Parts along `AXES` that the whole lattice is cut into before any strategy is bounded."""
_COLUMN: Final = {name: number for number, name in enumerate(NAMES)}
_AXES: Final = np.array([_COLUMN[name] for name in AXES])
_DIE: Final = np.array([_COLUMN["die_width"], _COLUMN["die_height"]])

Corners = Int[np.ndarray, "boxes axes"]
Indices = Int[np.ndarray, " boxes"]


def room(budget: Budget, place: tuple[Float[Array, "4"], Float[Array, " knobs"]]) -> Scalar:
    """Most cores of a die that fit beside all else that a lattice point holds, by bisection; 0 where nothing fits.

    Args:
        budget: limits and technology.
        place: (rows of dies, columns, horizontal and vertical sides with memory), and knobs, whose cores are ignored.
    """

    def halve(_: Array, ends: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = ends
        middle = jnp.ceil(0.5 * (low + high))
        there = _fits(budget, place, middle)
        return jnp.where(there, middle, low), jnp.where(there, high, middle - 1.0)

    most = jnp.floor(budget.high.core_rows * budget.high.core_cols)
    return jax.lax.fori_loop(0, 20, halve, (jnp.zeros_like(most), most))[0]


def has_room(budget: Budget, place: tuple[Float[Array, "4"], Float[Array, " knobs"]]) -> Bool[Array, ""]:
    """Whether `room` is above 0: whether one core fits."""
    return _fits(budget, place, jnp.ones(()))


def holds(budget: Budget, place: tuple[Float[Array, "4"], Float[Array, " knobs"]]) -> Bool[Array, ""]:
    """Whether all cores of the knobs fit."""
    return _fits(budget, place, place[1][_COLUMN["core_rows"]] * place[1][_COLUMN["core_cols"]])


def _fits(budget: Budget, place: tuple[Float[Array, "4"], Float[Array, " knobs"]], cores: Scalar) -> Bool[Array, ""]:
    (die_rows, die_cols, *sides), knobs = place
    shape = knobs.at[_COLUMN["core_rows"]].set(cores).at[_COLUMN["core_cols"]].set(1.0)
    wafer = budget.build(from_array(shape), die_rows, die_cols, tuple(sides))
    density = peak_power_per_die(wafer) / (wafer.die.width * wafer.die.height * wafer.power_density_limit)
    return jnp.max(jnp.stack([density, *fabrication_ratios(wafer).values()])) <= 1.0 + SLACK


class Boxes(NamedTuple):
    """Boxes of the lattice, each on one die grid with memory at given edges; those that hold no design are left out.

    Attributes:
        grid: row of its (rows, columns, horizontal, vertical sides), shape (boxes,).
        low: lowest index along `AXES`, shape (boxes, axes).
        high: highest index, likewise.
        columns: highest index of columns of cores, shape (boxes,).
        least: u below that of every design in the box, shape (boxes, reciprocals).
        stacks: most DRAM stacks, shape (boxes,).
        knobs: knobs whose u is near `least`; of a box of one point its design with most columns, shape (boxes, knobs).
    """

    grid: Int[np.ndarray, " boxes"]
    low: Corners
    high: Corners
    columns: Indices
    least: Reciprocals
    stacks: Float[np.ndarray, " boxes"]
    knobs: Float[np.ndarray, "boxes knobs"]


class Grids:
    """What the boxes of several die grids have in common: which sizes of dies fit each, and the lattice's values."""

    def __init__(self, budget: Budget, grids: Float[np.ndarray, "grids 4"]):
        self.budget, self.grids = budget, grids
        self.sizes = lattice.counts(budget)
        self.points = 0
        """(box, die) pairs looked at."""
        self._dies = self._largest_dies()

    def cover(self) -> Boxes:
        """Boxes that make up the whole lattice of every grid, `COVER` parts along each axis.

        Stacks, links, clock and cores share edges, area and power density of a die, so a design has little of one
        where it has much of another. One box of all would be bounded by a design that has the most of each.
        """
        parts = [_parts(self._axis(name), number) for name, number in zip(AXES, COVER, strict=True)]
        ends = np.array(list(product(*parts))).reshape(-1, len(AXES), 2)
        grid = np.repeat(np.arange(len(self.grids)), len(ends))
        low, high = (np.tile(ends[..., side], (len(self.grids), 1)) for side in (0, 1))
        return self.boxes(grid, low, high)

    def boxes(self, grid: Indices, low: Corners, high: Corners, columns: Indices | None = None) -> Boxes:
        """Boxes from their grids and ends; as many columns of cores as there are where no end is given."""
        index = np.zeros((len(low), len(NAMES)), int)
        index[:, _AXES] = low
        lowest = lattice.values_at(self.budget, index)
        index[:, _AXES] = high
        knobs = lattice.values_at(self.budget, index)
        cores, knobs[:, _DIE] = self._most_cores(grid, low)
        rows, cols = (self._axis(name) for name in ("core_rows", "core_cols"))
        columns = np.full(len(low), len(cols) - 1) if columns is None else columns
        column = np.searchsorted(cols, np.floor(cores[:, None] / rows + 1e-9), side="right") - 1
        column = np.minimum(column, columns[:, None])
        within = (rows >= lowest[:, [_COLUMN["core_rows"]]]) & (rows <= knobs[:, [_COLUMN["core_rows"]]])
        column = np.where(within & (column >= 0), cols[np.maximum(column, 0)], 0.0)
        total = column * rows
        most = np.where(column > 0.0, rows, 0.0).max(axis=1), column.max(axis=1), total.max(axis=1)
        kept = most[2] > 0.0
        at = total.argmax(axis=1)
        knobs[:, _COLUMN["core_rows"]], knobs[:, _COLUMN["core_cols"]] = rows[at], column[np.arange(len(at)), at]
        # rows and columns at their most, each alone, but no more cores than fit
        ends = knobs[kept].copy()
        ends[:, _COLUMN["core_rows"]], ends[:, _COLUMN["core_cols"]] = (one[kept] for one in most[:2])
        alone = -EXPONENTS[:, :2]
        least = reciprocals(ends) * np.where(
            (alone[:, 0] > 0.0) & (alone[:, 1] > 0.0),
            ((most[0] * most[1] / np.maximum(most[2], 1.0))[kept, None]) ** alone[:, 0],
            1.0,
        )
        stacks = ends[:, _COLUMN["dram_stacks"]]
        return Boxes(grid[kept], low[kept], high[kept], columns[kept], least, stacks, knobs[kept])

    def split(self, boxes: Boxes) -> Boxes:
        """Halve every box along the axis that loosens its bound most; one of a single point stays."""
        first, step = (lattice.to_array(side)[_AXES] for side in (self.budget.low, self.budget.step))
        spread = np.log((first + boxes.high * step) / (first + boxes.low * step)) * _LOOSENESS
        axis, every = spread.argmax(axis=1), np.arange(len(boxes.low))
        middle = (boxes.low[every, axis] + boxes.high[every, axis]) // 2
        below, above = boxes.high.copy(), boxes.low.copy()
        below[every, axis], above[every, axis] = middle, middle + 1
        low, high = np.concatenate([boxes.low, above]), np.concatenate([below, boxes.high])
        return self.boxes(np.tile(boxes.grid, 2), low, high, np.tile(boxes.columns, 2))

    def narrowed(self, boxes: Boxes) -> Boxes:
        """Boxes of one point without the design that `knobs` holds: with fewer columns of cores."""
        cols = self._axis("core_cols")
        own = np.searchsorted(cols, boxes.knobs[:, _COLUMN["core_cols"]] - 1e-9)
        return self.boxes(boxes.grid, boxes.low, boxes.high, own - 1)

    def in_smallest_dies(self, boxes: Boxes) -> Float[np.ndarray, "boxes knobs"]:
        """The same knobs in the smallest die that holds them, which leaks least."""
        size = self._die_sizes()
        size = size[np.argsort(size.prod(axis=1), kind="stable")]
        knobs = np.repeat(boxes.knobs, len(size), axis=0)
        knobs[:, _DIE] = np.tile(size, (len(boxes.knobs), 1))
        self.points += len(knobs)
        places = self.grids[np.repeat(boxes.grid, len(size))], knobs
        fits = map_chunks(holds, self.budget, places).reshape(len(boxes.knobs), -1)
        found = boxes.knobs.copy()
        found[:, _DIE] = size[fits.argmax(axis=1)]
        return np.where(fits.any(axis=1, keepdims=True), found, boxes.knobs)

    def _axis(self, name: str) -> np.ndarray:
        index = np.zeros((self.sizes[_COLUMN[name]], len(NAMES)), int)
        index[:, _COLUMN[name]] = np.arange(len(index))
        return lattice.values_at(self.budget, index)[:, _COLUMN[name]]

    def _die_sizes(self) -> np.ndarray:
        # every (width, height), shape (sizes, 2), heights fastest
        return np.array(list(product(self._axis("die_width"), self._axis("die_height"))))

    def _room(self, grid: np.ndarray, knobs: np.ndarray) -> np.ndarray:
        self.points += len(knobs)
        return map_chunks(room, self.budget, (self.grids[grid], knobs), chunks_per_call=1)

    def _largest_dies(self) -> list[np.ndarray]:
        # of each grid the (width, height) beside which no other is larger both ways, with the least of all else
        width, height = (self._axis(name) for name in ("die_width", "die_height"))
        size = self._die_sizes()
        knobs = np.repeat(lattice.values_at(self.budget, np.zeros((1, len(NAMES)), int)), len(size), axis=0)
        knobs[:, _DIE] = size
        count = len(self.grids)
        places = np.repeat(self.grids, len(size), axis=0), np.tile(knobs, (count, 1))
        self.points += len(places[0])
        fits = map_chunks(has_room, self.budget, places)
        found = []
        for there in fits.reshape(count, len(width), len(height)):
            tallest = np.where(there.any(axis=1), len(height) - 1 - there[:, ::-1].argmax(axis=1), -1)
            # a narrower die must be taller than all wider ones
            wider = np.concatenate([np.maximum.accumulate(tallest[::-1])[::-1][1:], [-1]])
            kept = np.flatnonzero(tallest > wider)
            found.append(np.stack([width[kept], height[tallest[kept]]], axis=1))
        return found

    def _most_cores(self, grid: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # cores that fit beside the lower corner of each box in the best die, and that die
        keys, inverse = np.unique(np.column_stack([grid, low[:, 1:]]), axis=0, return_inverse=True)
        index = np.zeros((len(keys), len(NAMES)), int)
        index[:, _AXES[1:]] = keys[:, 1:]
        dies = [self._dies[number] for number in keys[:, 0]]
        owner = np.repeat(np.arange(len(keys)), [len(sizes) for sizes in dies])
        knobs = lattice.values_at(self.budget, index)[owner]
        cores, die = np.zeros(len(keys)), np.ones((len(keys), 2))
        if len(owner):
            knobs[:, _DIE] = np.concatenate(dies)
            fitting = self._room(keys[owner, 0], knobs)
            order = np.lexsort((fitting, owner))
            last = order[np.searchsorted(owner[order], np.unique(owner), side="right") - 1]
            cores[owner[last]], die[owner[last]] = fitting[last], knobs[last][:, _DIE]
        return cores[inverse], die[inverse]


def _parts(values: np.ndarray, number: int) -> list[tuple[int, int]]:
    # first and last index of parts that reach equally far in logarithms, which is how they loosen a bound
    last = max(float(np.log(values[-1] / values[0])), 1e-9)
    part = np.minimum(np.floor(number * np.log(values / values[0]) / last), number - 1)
    first = np.flatnonzero(np.diff(part, prepend=-1.0))
    return list(zip(first.tolist(), [*(first[1:] - 1).tolist(), len(values) - 1], strict=True))


_LOOSENESS: Final = np.array([0.05, 0.05, 1.0, 0.4, 1.5])
# how much wider logarithms along AXES loosen a bound, roughly; it decides the order of splits, nothing else
