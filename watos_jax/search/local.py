"""What the certificate bounds where every stage lives in its own memory: the times of `estimate`, replayed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.search.bounds import SLACK, Tangent, exact_times, tangent
from watos_jax.search.boxes import Boxes
from watos_jax.search.certificate import Problem
from watos_jax.search.descend import Point, Shared

CHUNK: Final = 512
"""Points per chunk of `batch.map_chunks`."""
CHUNKS_PER_CALL: Final = 8
"""Chunks per call: one shape, hence one compilation, for few points and many."""


class Touch(NamedTuple):
    """A tangent: see `bounds.Tangent`."""

    weights: Float[Array | np.ndarray, "*points reciprocals"]
    stacks: Float[Array | np.ndarray, "*points"]


@dataclass(frozen=True)
class Local(Problem):
    """Every stage in its own memory, the schedule replayed: the times of `estimate`."""

    shared: Shared

    def touch(self, points: Point) -> Touch:
        """Tangents and the stacks that memory needs."""
        touched: Touch = self._at(points, lambda found: Touch(found.weights, found.stacks))
        return touched

    def settle(self, points: Point) -> tuple[np.ndarray, np.ndarray]:
        """Times by the hard model; where the mean power is exceeded, only a smaller design can fit."""
        found = self._at(points)
        fits = found.excess <= ROUNDING
        times = np.full(len(fits), np.inf)
        if fits.any():
            strategies, touched = jax.tree.map(lambda leaf: leaf[fits], (points.candidate.strategy, found))
            times[fits] = exact_times(strategies, touched)
        return times, fits

    def bound(self, touched: Touch, boxes: Boxes) -> np.ndarray:
        """The highest tangent at the upper corner; infinite where memory needs more stacks than there are."""
        strategies, tangents, size = touched.weights.shape
        flat = touched.weights.reshape(-1, size) @ boxes.least.T
        bound = flat.reshape(strategies, tangents, -1).max(axis=1)
        return np.where(touched.stacks[:, :1] <= boxes.stacks * (1.0 + SLACK), bound, np.inf)

    def _at(self, points: Point, kept: Callable[[Tangent], Any] = lambda found: found) -> Any:
        return map_chunks(tangent, self.shared, points, chunk=CHUNK, chunks_per_call=CHUNKS_PER_CALL, kept=kept)
