"""Local search for many draws of a wafer's constants at once, each from the designs of a pool.

A step is that of `climb` for one case: all lattice points around with the strategy of the point, then all strategies of
the die grid on the best of them. Points of all draws are estimated together, each under the constants of its draw.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.hardware import Wafer
from watos_jax.search import lattice
from watos_jax.search.candidates import Candidates, take
from watos_jax.search.climb import Climber, Standing
from watos_jax.search.descend import Point, Score, Shared, score

BATCH: Final = 64
"""Draws that are searched at once: one shape, so one compilation."""
ROUND: Final = 64
"""Designs that a pool is filled up to a multiple of, so that pools share compilations."""
POINTS: Final = 1024
"""Points on one device at once."""
DRAWS_AT_ONCE: Final = 8
"""On one device, each with all designs of a pool."""


class Outcome(NamedTuple):
    """Every design of a pool under every draw.

    Attributes:
        rates: steps per second (joule, dollar), whether the design fits or not, shape (draws, designs).
        excess: log(use / allowance) of the worst limit, likewise.
    """

    rates: Float[np.ndarray, "draws designs"]
    excess: Float[np.ndarray, "draws designs"]

    @property
    def fitting(self) -> Float[np.ndarray, "draws designs"]:
        """Rates, 0 where a design does not fit."""
        return np.where(self.excess <= ROUNDING, self.rates, 0.0)


class _Pool(NamedTuple):
    # what all draws have in common
    shared: Shared
    points: Point


class _Under(NamedTuple):
    # what all points have in common: wafers of shape (draws,)
    shared: Shared
    wafers: Wafer


class _Drawn(NamedTuple):
    # a point under the constants of one draw
    number: Int[Array | np.ndarray, "..."]
    point: Point


def _with(shared: Shared, wafer: Wafer) -> Shared:
    return shared._replace(budget=eqx.tree_at(lambda b: b.wafer, shared.budget, wafer))


def _pool_scores(pool: _Pool, wafer: Wafer) -> Score:
    return jax.vmap(lambda point: score(_with(pool.shared, wafer), point))(pool.points)


def _drawn_score(under: _Under, drawn: _Drawn) -> Score:
    wafer = jax.tree.map(lambda leaf: leaf[drawn.number], under.wafers)
    return score(_with(under.shared, wafer), drawn.point)


def outcomes(table: Candidates, pool: Sequence[Standing], drawn: Wafer) -> Outcome:
    """Estimate every design of a pool under every draw.

    Args:
        table: candidates of the designs.
        pool: designs, at least one.
        drawn: wafers of shape (draws,).
    """
    padded = [*pool, *(pool[0] for _ in range(-len(pool) % ROUND))]
    knobs = lattice.values_at(table.shared.budget, np.array([one.knobs for one in padded]))
    points = take(table.every, np.array([one.rows[0] for one in padded]))._replace(knobs=knobs)
    blocks = range(0, len(padded), ROUND)
    parts = [
        map_chunks(
            _pool_scores,
            _Pool(table.shared, take(points, np.arange(start, start + ROUND))),
            drawn,
            chunk=DRAWS_AT_ONCE,
            chunks_per_call=4,
        )
        for start in blocks
    ]
    value, excess, _ = (np.concatenate(part, axis=1)[:, : len(pool)] for part in zip(*parts, strict=True))
    return Outcome(1.0 / value, excess)


class Redesigner:
    """Local search under draws.

    Args:
        table: candidates of every draw.
    """

    def __init__(self, table: Candidates):
        self.table, self.climber, self.evaluations = table, Climber([table]), 0

    def best(self, drawn: Wafer, starts: Sequence[Sequence[Standing]]) -> list[Standing]:
        """The best local optimum of every draw, by that draw's constants.

        Args:
            drawn: wafers of shape (draws,), at most `BATCH`.
            starts: designs from which each draw's search starts, at least one each.
        """
        rows = np.minimum(np.arange(BATCH), len(starts) - 1)
        under = _Under(self.table.shared, jax.tree.map(lambda leaf: np.asarray(leaf)[rows], drawn))
        numbers = np.repeat(np.arange(len(starts)), [len(some) for some in starts])
        standings = self._chosen(under, numbers, [one for some in starts for one in some])
        active = np.arange(len(numbers))
        while len(active):
            moved = self._stepped(under, numbers[active], [standings[i] for i in active])
            better = [new.rank < standings[i].rank for i, new in zip(active, moved, strict=True)]
            for i, new, is_better in zip(active, moved, better, strict=True):
                standings[i] = new if is_better else standings[i]
            active = active[np.array(better, bool)]
        own = [[standings[i] for i in np.flatnonzero(numbers == number)] for number in range(len(starts))]
        return [min(some, key=lambda one: one.rank) for some in own]

    def _stepped(self, under: _Under, numbers: np.ndarray, standings: list[Standing]) -> list[Standing]:
        # the best lattice point around each with its strategy, then the best strategies there
        around = [self.climber.around(one) for one in standings]
        points = [self.climber.points(one, 0, index) for one, index in zip(standings, around, strict=True)]
        best = self._best_of_each(under, numbers, points)
        moved = [one._replace(knobs=index[row]) for one, index, (row, *_) in zip(standings, around, best, strict=True)]
        return self._chosen(under, numbers, moved)

    def _chosen(self, under: _Under, numbers: np.ndarray, standings: list[Standing]) -> list[Standing]:
        # each with the best strategy of its die grid
        rows = [self.climber.rows(0, one.place) for one in standings]
        points = [
            take(self.table.every, own)._replace(
                knobs=np.repeat(lattice.values_at(self.climber.budget, one.knobs)[None], len(own), axis=0)
            )
            for one, own in zip(standings, rows, strict=True)
        ]
        best = self._best_of_each(under, numbers, points)
        return [
            Standing(one.place, one.knobs, (int(own[row]),), (1.0 / value,), 1.0 / value, excess)
            for one, own, (row, value, excess) in zip(standings, rows, best, strict=True)
        ]

    def _best_of_each(self, under: _Under, numbers: np.ndarray, points: list[Point]) -> list[tuple[int, float, float]]:
        # row, value and excess of the best of every search's points
        counts = [len(some.knobs) for some in points]
        every = jax.tree.map(lambda *parts: np.concatenate(parts), *points)
        drawn = _Drawn(np.repeat(numbers, counts).astype(np.int32), every)
        self.evaluations += sum(counts)
        found = map_chunks(_drawn_score, under, drawn, chunk=POINTS)
        ends = np.cumsum(counts)[:-1]
        best = []
        for value, excess in zip(np.split(found.value, ends), np.split(found.excess, ends), strict=True):
            row = int(np.lexsort((value, np.maximum(excess - ROUNDING, 0.0)))[0])
            best.append((row, float(value[row]), float(excess[row])))
        return best
