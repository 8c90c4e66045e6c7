"""Every discrete choice of a co-design: die grids, the die edges that carry memory, strategies that tile the grid.

Neglected: on a square window, grids of more rows than columns, which are the same wafers turned by 90 degrees with a
serpentine that runs the other way.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Final

import jax
import numpy as np

from watos_jax.hardware import Budget, System, Tier
from watos_jax.model import Transformer
from watos_jax.search import lattice
from watos_jax.search.descend import Candidate, Point, Shared
from watos_jax.search.objective import STEP_TIME, Objective
from watos_jax.search.space import Options, StrategySpace, strategies
from watos_jax.strategy import Layout

OPTIONS: Final = Options(least_use=0.9)
"""Strategies that co-design chooses from: those that occupy at least 90 % of the dies."""


ROWS: Final = 16384
"""Least rows of the table of layouts: models of the presets on their budgets have at most as many."""


class Infeasible(ValueError):
    """No design of the budget fits; the message names the limit, the excess and the least change."""


@dataclass(frozen=True)
class Candidates:
    """All (die grid, memory edges, strategy) of a budget and a model.

    Attributes:
        shared: budget, model, objective and the table of layouts.
        every: all candidates, each at the middle guess of its grid, shape (n,).
        group: die grid and memory edges that each belongs to, shape (n,); candidates of a group are neighbours.
        guesses: first guesses of the knobs of each group, off the lattice.
        pruned: candidate geometries ruled out, by reason.
    """

    shared: Shared
    every: Point
    group: np.ndarray
    guesses: list[np.ndarray]
    pruned: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.group)


def candidates(
    model: Transformer,
    budget: Budget,
    *,
    options: Options = OPTIONS,
    objective: Objective = STEP_TIME,
    listed: Callable[..., StrategySpace] = strategies,
) -> Candidates:
    """Enumerate the candidates.

    Args:
        model: the transformer.
        budget: the wafer to fill.
        options: what strategies may choose from.
        objective: what a search over them makes small.
        listed: what lists the strategies of a die grid, with the arguments of `strategies`.

    Raises:
        Infeasible: no die grid can hold the model; the message counts the reasons.
    """
    pruned: Counter[str] = Counter()
    spaces, blocks, guesses, offset = [], [], [], 0
    for rows, cols in _grids(budget):
        space = _space(model, budget, options, rows, cols, pruned, listed)
        if space is None:
            continue
        spaces.append(space)
        for sides in budget.memory_sides:
            found = lattice.first_guesses(budget, rows, cols, sides)
            if not len(found):
                pruned["memory leaves no room for a die"] += 1
                continue
            blocks.append(_points(space, (rows, cols), sides, found[len(found) // 2], offset))
            guesses.append(found)
        offset += len(space.layouts.pipeline_volume)
    if not blocks:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in pruned.items())
        raise Infeasible(f"no die grid of the budget can hold the model: {reasons}")
    layouts = jax.tree.map(lambda *parts: np.concatenate(parts), *(space.layouts for space in spaces))
    return Candidates(
        shared=Shared(budget, model, objective, _padded(layouts)),
        every=jax.tree.map(lambda *parts: np.concatenate(parts), *blocks),
        group=np.concatenate([np.full(len(block.knobs), number) for number, block in enumerate(blocks)]),
        guesses=guesses,
        pruned=dict(pruned),
    )


def take(points: Point, rows: np.ndarray) -> Point:
    """Rows of stacked points."""
    return jax.tree.map(lambda leaf: leaf[rows], points)


def _grids(budget: Budget) -> list[tuple[int, int]]:
    # a square window: a grid and its transpose differ only in the direction of the serpentine
    square = float(budget.wafer.window_width) == float(budget.wafer.window_height)
    ranges = [range(low, high + 1) for low, high in (budget.die_rows, budget.die_cols)]
    return [(rows, cols) for rows, cols in product(*ranges) if not square or rows <= cols]


def _space(
    model: Transformer,
    budget: Budget,
    options: Options,
    rows: int,
    cols: int,
    pruned: Counter[str],
    listed: Callable[..., StrategySpace],
) -> StrategySpace | None:
    template = budget.wafer.system
    mesh = Tier(rows=rows, cols=cols, link=budget.wafer.d2d)
    system = System(die=template.die, tiers=(mesh,), technology=template.technology)
    try:
        space = listed(system, model, options, max_stages=options.max_pipeline)
    except ValueError:
        pruned["no strategy uses enough of the grid's dies"] += 1
        return None
    pruned.update(space.pruned)
    return space


def _points(
    space: StrategySpace, grid: tuple[int, int], sides: tuple[int, int], knobs: np.ndarray, offset: int
) -> Point:
    count = len(space)
    ones = np.ones(count)
    geometry = (space.geometry + offset).astype(np.int32)
    candidate = Candidate(ones * grid[0], ones * grid[1], ones * sides[0], ones * sides[1], space.strategies, geometry)
    return Point(candidate, np.repeat(knobs[None], count, axis=0))


def _padded(layouts: Layout) -> Layout:
    # so many rows that budgets and models share compilations; else a power of two
    count = len(layouts.pipeline_volume)
    rows = np.minimum(np.arange(max(ROWS, 1 << (count - 1).bit_length())), count - 1)
    return jax.tree.map(lambda leaf: leaf[rows], layouts)
