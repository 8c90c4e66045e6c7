"""From relaxed designs to the best lattice point around them.

The hard model on every lattice point around the best relaxed designs, then local search (`climb`) along one, two or
three knobs. All strategies of the grid are tried on the hardware that results, and the best is descended and rounded
again, until neither hardware nor strategy changes.
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from watos_jax.batch import map_chunks
from watos_jax.search import lattice
from watos_jax.search.candidates import take
from watos_jax.search.climb import Climber, Standing, place_of
from watos_jax.search.descend import ROUNDS, STEPS, descend

DESCENDED_AT_ONCE: Final = 128
"""Designs that are descended at once on one device; two devices share them evenly."""
ROUNDED: Final = 24
"""Relaxed designs that are rounded."""
REFINED: Final = 6
"""Rounded designs from which local search starts."""


class Descended(NamedTuple):
    """Relaxed designs.

    Attributes:
        rows: of the candidates, shape (designs,).
        knobs: of each, shape (designs, knobs).
        values: their relaxed objectives; infinite where they do not fit.
    """

    rows: Int[np.ndarray, " designs"]
    knobs: Float[np.ndarray, "designs knobs"]
    values: Float[np.ndarray, " designs"]


def descended(
    climber: Climber, rows: Int[np.ndarray, " designs"], knobs: Float[np.ndarray, "designs knobs"]
) -> Descended:
    """Descend from several designs.

    Args:
        climber: of one case; it counts what is evaluated.
        rows: of the case's candidates.
        knobs: where each starts.
    """
    table = climber.cases[0]
    climber.evaluations += len(rows) * ROUNDS * STEPS
    points = take(table.every, rows)._replace(knobs=knobs)
    found, result = map_chunks(descend, table.shared, points, chunk=DESCENDED_AT_ONCE, chunks_per_call=1)
    return Descended(rows, found, np.where(result.excess < 0.01, result.value, np.inf))


def rounded(climber: Climber, designs: Descended) -> Standing:
    """The best lattice point that is found; it need not fit where none is found that does.

    Args:
        climber: of one case.
        designs: relaxed designs of it.
    """
    best = np.argsort(designs.values, kind="stable")[:ROUNDED]
    found = _refined(climber, _around(climber, designs.rows[best], designs.knobs[best])[:REFINED])
    while True:
        # the best strategy for the hardware, the best hardware for the strategy, until neither changes
        rival = climber.choose(found.place, found.knobs)
        if rival.rank >= found.rank:
            return found
        again = _descended_again(climber, rival)
        found = _refined(climber, [rival, *_around(climber, again.rows, again.knobs)[:1]])


def _descended_again(climber: Climber, standing: Standing) -> Descended:
    # from its knobs, and from all first guesses of its grid
    table, (row,) = climber.cases[0], standing.rows
    starts = [lattice.values_at(climber.budget, standing.knobs)[None], table.guesses[table.group[row]]]
    return descended(climber, np.full(sum(map(len, starts)), row), np.concatenate(starts))


def _around(climber: Climber, rows: np.ndarray, relaxed: np.ndarray) -> list[Standing]:
    # of each relaxed design the best lattice point within one step; best first
    every, budget = climber.cases[0].every, climber.budget
    boxes = [lattice.inside(budget, lattice.box(lattice.nearest(budget, knobs))) for knobs in relaxed]
    sets = [(place_of(every, row), (row,), box) for row, box in zip(rows.tolist(), boxes, strict=True)]
    return sorted(climber.among(sets), key=lambda one: one.rank)


def _refined(climber: Climber, starts: list[Standing]) -> Standing:
    return min((climber.climb(start, fixed=True) for start in starts), key=lambda one: one.rank)
