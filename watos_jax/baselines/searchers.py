"""Searches that know nothing of wafers, to judge ours by: exhaustive, random, coordinate descent, numeric gradient.

Each is `search(run, seed)`: it asks `run` for merits until it is over, and `run.trace` has what was found; so do
`search.genetic` and any optimiser that asks for a function of integers. All see the same designs and the same
evaluations, and whoever begins somewhere may begin at `GeneSpace.starts`.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from watos_jax.search import lattice
from watos_jax.search.genes import Genes
from watos_jax.search.run import Run

Searcher = Callable[[Run, int], None]
"""`search(run, seed)`."""
BLOCK: Final = 4096
"""Designs that exhaustive and random search ask for at once."""
CHAINS: Final = 8
"""Coordinate descents at once, from the best of `DRAWN` starts."""
DRAWN: Final = 256
CLIMBERS: Final = 32
"""Numeric gradients at once, from the best of as many starts."""
STEPS: Final = 80
"""Steps of a numeric gradient."""
DIFFERENCE: Final = 1e-3
"""Of a logarithm, from which a slope is taken: far above the rounding of single precision, far below a step."""
RATE: Final = (0.15, 0.005)
"""Length of a step in the logarithm of a knob, first and last."""
PENALTY: Final = (5.0, 500.0)
"""Weight of the squared excess over a limit, first and last."""


def exhaustive(run: Run, seed: int = 0) -> None:
    """Every lattice point of every candidate, in order, until there is none left; the seed does nothing."""
    sizes = run.space.sizes[-len(lattice.NAMES) :]
    points, start = int(np.prod(sizes)), 0
    while not run.is_over() and start < points * len(run.space.candidates):
        stop = min(start + BLOCK, points * len(run.space.candidates))
        row, point = np.divmod(np.arange(start, stop), points)
        run.merits(run.space.designs(row, np.stack(np.unravel_index(point, sizes), axis=1)))
        start = stop


def random(run: Run, seed: int) -> None:
    """Designs drawn uniformly, and in turn random candidates at a first guess of their knobs."""
    source = np.random.default_rng(seed)
    while not run.is_over():
        run.merits(np.concatenate([run.space.draw(source, BLOCK // 2), run.space.starts(source, BLOCK // 2)]))


def coordinate_descent(run: Run, seed: int) -> None:
    """Along one gene after the other to its best value, all values tried, until none improves; then from elsewhere."""
    source = np.random.default_rng(seed)
    while not run.is_over():
        at, merits = _best_starts(run, source, CHAINS)
        active = np.ones(len(at), bool)
        while active.any() and not run.is_over():
            before = merits.copy()
            for gene in source.permutation(len(run.space.sizes)):
                rows, size = np.flatnonzero(active), run.space.sizes[gene]
                line = np.repeat(at[rows], size, axis=0)
                line[:, gene] = np.tile(np.arange(size), len(rows))
                line = run.space.repaired(line)[1]
                found = run.merits(line).reshape(len(rows), size)
                best = found.argmin(axis=1)
                better = found[np.arange(len(rows)), best] < merits[rows]
                chosen = np.arange(len(rows)) * size + best
                at[rows[better]] = line[chosen[better]]
                merits[rows[better]] = found.min(axis=1)[better]
            active &= merits < before


def numeric_gradient(run: Run, seed: int) -> None:
    """Descend the knobs by finite differences at a fixed strategy, as DeepFlow does, round, and begin elsewhere.

    The slope is a forward difference of the hard model in the logarithms of the knobs, one estimate each; steps are
    normalised by the root mean square of past slopes, with a penalty on what exceeds a limit that grows. After every
    step the nearest lattice point, and the one below in every knob, are evaluated as designs.

    Reference: Ardalani et al., DeepFlow, arXiv 2211.03309.
    """
    source, budget = np.random.default_rng(seed), run.space.candidates.shared.budget
    low, high = np.log(lattice.to_array(budget.low)), np.log(lattice.to_array(budget.high))
    knobs = len(lattice.NAMES)
    while not run.is_over():
        start, _ = _best_starts(run, source, CLIMBERS)
        rows = run.space.repaired(start)[0]
        logs = np.log(run.space.knobs(start))
        mean, square = np.zeros_like(logs), np.zeros_like(logs)
        for number in range(STEPS):
            if run.is_over():
                return
            progress = number / (STEPS - 1)
            weight, rate = (first ** (1 - progress) * last**progress for first, last in (PENALTY, RATE))
            shifted = logs[:, None] + DIFFERENCE * np.eye(knobs + 1, knobs, -1)
            found = _penalised(run, np.repeat(rows, knobs + 1), np.exp(shifted.reshape(-1, knobs)), weight)
            values = found.reshape(len(rows), knobs + 1)
            slope = (values[:, 1:] - values[:, :1]) / DIFFERENCE
            mean, square = 0.8 * mean + 0.2 * slope, 0.95 * square + 0.05 * slope**2
            unbiased = mean / (1 - 0.8 ** (number + 1)), square / (1 - 0.95 ** (number + 1))
            logs = np.clip(logs - rate * unbiased[0] / np.sqrt(unbiased[1] + 1e-12), low, high)
            run.merits(_rounded(run, rows, np.exp(logs)))


def _best_starts(run: Run, source: np.random.Generator, count: int) -> tuple[Genes, Float[np.ndarray, " count"]]:
    drawn = run.space.starts(source, DRAWN)
    merits = run.merits(drawn)
    best = np.argsort(merits, kind="stable")[:count]
    return drawn[best], merits[best]


def _penalised(
    run: Run, rows: Int[np.ndarray, " points"], knobs: Float[np.ndarray, "points knobs"], weight: float
) -> Float[np.ndarray, " points"]:
    # float64, for the difference is small
    found = run.scores(rows, knobs)
    return np.log(found.value.astype(float)) + weight * np.maximum(found.excess.astype(float), 0.0) ** 2


def _rounded(run: Run, rows: Int[np.ndarray, " points"], knobs: Float[np.ndarray, "points knobs"]) -> Genes:
    budget = run.space.candidates.shared.budget
    below = np.floor((knobs - lattice.to_array(budget.low)) / lattice.to_array(budget.step) + 1e-6).astype(int)
    index = np.concatenate([lattice.nearest(budget, knobs), np.clip(below, 0, lattice.counts(budget) - 1)])
    return run.space.designs(np.tile(rows, 2), index)


SEARCHERS: Final[dict[str, Searcher]] = {
    "exhaustive": exhaustive,
    "random": random,
    "coordinate descent": coordinate_descent,
    "numeric gradient": numeric_gradient,
}
"""Searches by name."""
