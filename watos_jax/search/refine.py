"""Refinement of a design: memory shared between stages, stages placed on the mesh, hardware solved again for both.

1. Bound: no hardware of the budget with any strategy is faster than the pooled relaxation, whose least time branch and
   bound finds over strategies and boxes of the lattice (`pooled`, `certificate`).
2. From the certified design, and from the hardware and strategy of least relaxed time: settle recomputation and memory
   by GCMR and place the stages, for the incumbent's and rival strategies on its wafer, and for lattice points around
   its hardware; take the best; again until neither hardware nor schedule changes.

Rivals and lattice points are ranked with neighbours as helpers; the first `PLACED` of each are solved exactly and
placed, and compared by the replayed schedule with real distances, in double precision. The second step is a local
search: what it finds is a design, how far it may be from the best the first step says.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from watos_jax.batch import map_chunks
from watos_jax.energy import peak_power_per_die
from watos_jax.estimate import ROUNDING
from watos_jax.fabrication import fabrication_ratios
from watos_jax.hardware import Knobs, Wafer
from watos_jax.search import lattice
from watos_jax.search.candidates import take
from watos_jax.search.central import settled, step_times
from watos_jax.search.certificate import Certificate, certify
from watos_jax.search.descend import Point, Shared
from watos_jax.search.placed import Placed, placed
from watos_jax.search.pooled import pooled, without_levels
from watos_jax.units import Scalar

PLACED: Final = 3
"""Rivals, and lattice points, that are solved exactly and placed in every round."""
CHUNK: Final = 128
"""Points estimated at once, each at every level of recomputation."""


@dataclass(frozen=True)
class Refined:
    """A design with memory shared and stages placed, and a bound of all such designs.

    Attributes:
        wafer: the hardware.
        knobs: its lattice values.
        sides: (horizontal, vertical) die edges that carry memory.
        placed: the schedule: a level per stage, order of the stages, bytes shipped; by the closed form of the pipeline.
        step_time: s, with the schedule replayed and shipping over real distances.
        bound: the proof of the pooled relaxation; its value is the least relaxed time known.
        rounds: rounds of the local search.
        wall_time: s.
    """

    wafer: Wafer
    knobs: Knobs
    sides: tuple[int, int]
    placed: Placed
    step_time: float
    bound: Certificate
    rounds: int
    wall_time: float

    @property
    def gap(self) -> float:
        """Step time over the lower bound, minus 1."""
        return self.step_time / self.bound.lower_bound - 1.0


def refine(
    shared: Shared,
    every: Point,
    certified: Point,
    *,
    gap: float,
    time_limit: float,
    progress: Callable[[float], None] = lambda gap: None,
) -> Refined:
    """Refine a design until neither its hardware nor its schedule changes, and bound what can be reached.

    Args:
        shared: budget, model, layouts; the objective is the step time.
        every: all candidates, with any knobs that are near a good design of their grid.
        certified: the design, one candidate with knobs.
        gap: at which the bound of the relaxation is tight enough, see `certify`.
        time_limit: s for the bound.
        progress: called with the gap proven so far.
    """
    started = time.perf_counter()
    with jax.enable_x64(True):
        problem, base = pooled(shared, every)
        incumbent = without_levels(certified)
        bound, relaxed = certify(problem, base, incumbent, gap=gap, time_limit=time_limit, progress=progress)
        local = _Local(shared, base)
        found = [local.run(start) for start in [incumbent] + [relaxed] * (relaxed is not incumbent)]
        best = min((one for one in found if one is not None), key=lambda one: one.step_time, default=None)
    if best is None:
        raise ValueError("certified is a design that does not fit: it must be one that does")
    wafer, knobs, sides = _built(shared, best.point)
    elapsed = time.perf_counter() - started
    return Refined(wafer, knobs, sides, best.placed, best.step_time, bound, local.rounds, elapsed)


@dataclass(frozen=True)
class _Solved:
    # one candidate with its knobs, and its schedule
    point: Point
    placed: Placed
    step_time: float


class _Local:
    def __init__(self, shared: Shared, every: Point):
        self.shared, self.every, self.rounds = shared, every, 0
        self.solved: dict[bytes, _Solved | None] = {}

    def run(self, start: Point) -> _Solved | None:
        best = self._solve(start)
        while best is not None:
            self.rounds += 1
            tried = [self._solve(point) for point in self._rivals(best) + self._around(best)]
            better = min((one for one in tried if one is not None), key=lambda one: one.step_time, default=best)
            if better.step_time >= best.step_time * (1.0 - ROUNDING):
                break
            best = better
        return best

    def _rivals(self, best: _Solved) -> list[Point]:
        # the strategies of its grid on its hardware
        same = [np.asarray(self.every.candidate[i]) == best.point.candidate[i] for i in range(4)]
        rows = np.flatnonzero(np.all(same, axis=0))
        return self._first(take(self.every, rows)._replace(knobs=np.repeat(best.point.knobs, len(rows), axis=0)))

    def _around(self, best: _Solved) -> list[Point]:
        # lattice points around its hardware, for its strategy
        budget = self.shared.budget
        index = lattice.moves(budget, lattice.nearest(budget, np.asarray(best.point.knobs[0])))
        points = take(best.point, np.zeros(len(index), int))._replace(knobs=lattice.values_at(budget, index))
        fits = map_chunks(_can_be_made, self.shared, points, chunk=2048, chunks_per_call=1)
        return self._first(take(points, np.flatnonzero(fits)))

    def _first(self, points: Point) -> list[Point]:
        times = map_chunks(_ranked, self.shared, points, chunk=CHUNK, chunks_per_call=1)
        order = np.argsort(times, kind="stable")[:PLACED]
        return [take(points, np.array([row])) for row in order if np.isfinite(times[row])]

    def _solve(self, point: Point) -> _Solved | None:
        key = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(point)]).tobytes()
        if key not in self.solved:
            self.solved[key] = self._exact(point)
        return self.solved[key]

    def _exact(self, point: Point) -> _Solved | None:
        wafer, _, _ = _built(self.shared, point)
        layout = jax.tree.map(lambda leaf: leaf[int(point.candidate.geometry[0])], self.shared.layouts)
        strategy = jax.tree.map(lambda leaf: float(leaf[0]), point.candidate.strategy)
        model, best = self.shared.model, None
        for one in settled(wafer, model, strategy, layout):
            found = placed(wafer, model, one.strategy, one.sent, one.room)
            margins = [margin for name, margin in found.estimate.margins.items() if name != "memory"]
            seconds = float(found.exact_step_time())
            if min(map(float, margins)) >= -ROUNDING and (best is None or seconds < best.step_time):
                best = _Solved(point, found, seconds)
        return best


def _built(shared: Shared, point: Point) -> tuple[Wafer, Knobs, tuple[int, int]]:
    candidate = jax.tree.map(lambda leaf: float(leaf[0]), point.candidate)
    knobs = jax.tree.map(float, lattice.from_array(np.asarray(point.knobs[0], float)))
    sides = candidate.horizontal_sides, candidate.vertical_sides
    wafer = shared.budget.build(knobs, candidate.die_rows, candidate.die_cols, sides)
    return wafer, knobs, (int(sides[0]), int(sides[1]))


def _wafer(shared: Shared, point: Point) -> Wafer:
    candidate = point.candidate
    sides = candidate.horizontal_sides, candidate.vertical_sides
    return shared.budget.build(lattice.from_array(point.knobs), candidate.die_rows, candidate.die_cols, sides)


def _can_be_made(shared: Shared, point: Point) -> Bool[Array, ""]:
    wafer = _wafer(shared, point)
    density = peak_power_per_die(wafer) / (wafer.die.width * wafer.die.height * wafer.power_density_limit)
    return jnp.max(jnp.stack([density, *fabrication_ratios(wafer).values()])) <= 1.0 + ROUNDING


def _ranked(shared: Shared, point: Point) -> Scalar:
    layout = jax.tree.map(lambda leaf: leaf[point.candidate.geometry], shared.layouts)
    return step_times(_wafer(shared, point), shared.model, point.candidate.strategy, layout)[-1]
