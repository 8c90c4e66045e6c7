"""One plan for many draws of faults: the strategy whose worst, or mean, step time over them is least.

`robust` plans anew for what is left, which takes knowing it. Here degrees of parallelism, micro-batch, recomputation
and sharding are chosen once, and only the places of rectangles follow the faults of each draw:

    minimise over strategies s   max over draws d of T(s, d)      or      mean over draws d of T(s, d)

with T the least step time over the ways of laying the rectangles of s on what d leaves, infinite where s does not fit.
All strategies are estimated in every draw, stages in the order of the serpentine and at the pace of the weakest die in
use: with dead dies and links alone this is T on serpentines, exactly; with harvested dies it is no less. The best of
those that fit every draw, of those that fit some, and of the whole wafer are scored again as `robust` scores: each
stage at its own pace, stages placed by local search, or strategy and places kept as `naive` does, whichever is
quickest. The best by this second score is returned, which a strategy outside those lists could still beat.

Neglects: what `robust` neglects; draws are equally likely, and a draw that is not among them is not guarded against.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import Float

from watos_jax.faults import Faults, no_faults, slowed
from watos_jax.hardware import Wafer
from watos_jax.model import Transformer
from watos_jax.network.geometry import Geometry, misfit
from watos_jax.network.layout import padded
from watos_jax.search.plan import Choice, feasible_step_times, rank
from watos_jax.search.robust import RANKED, Survival, Survivor, naive, orders_on, robust, survivor, ways_left
from watos_jax.search.space import NoStrategy, Options, strategies
from watos_jax.strategy import Strategy

OBJECTIVES: Final[dict[str, Callable[..., Any]]] = {"worst": np.max, "mean": np.mean}
"""What one plan is judged by: a statistic of its step times over the draws."""

Keys = np.ndarray
"""Strategies as rows of bytes, shape (n,)."""


@dataclass(frozen=True)
class DrawPlan:
    """The answer of `plan_for_draws`.

    Attributes:
        strategy: the best, as chosen before the draw; None where none fits every draw.
        survivors: what it makes of each draw; `naive` may have had to raise its level of recomputation.
        objective: one of `OBJECTIVES`.
        evaluated: strategies that are legal in every draw.
        feasible: those that fit every draw, as ranked.
        reasons: why a draw leaves nothing.
    """

    strategy: Strategy | None
    survivors: tuple[Survivor, ...]
    objective: str
    evaluated: int
    feasible: int
    reasons: tuple[str, ...] = field(default=())

    @property
    def step_times(self) -> Float[np.ndarray, " draws"]:
        """Step time in s of every draw; empty where no strategy fits."""
        return np.array([float(one.step_time) for one in self.survivors])

    @property
    def value(self) -> float:
        """Worst or mean step time in s; infinite where no strategy fits."""
        return float(OBJECTIVES[self.objective](self.step_times)) if self.survivors else float("inf")


def plan_for_draws(
    wafer: Wafer,
    model: Transformer,
    draws: Sequence[Faults],
    *,
    options: Options | None = None,
    global_batch_size: int = 512,
    objective: str = "worst",
) -> DrawPlan:
    """Find the strategy that is best over all draws, none of which is known when it is chosen.

    Args:
        wafer: the wafer, concrete.
        model: the transformer, concrete.
        draws: what is left of it in each case, at least one.
        options: what strategies may choose from; the default `Options` where None.
        global_batch_size: sequences per optimizer step, where `options` is None.
        objective: "worst" or "mean" step time over the draws.

    Returns:
        The best strategy with its step time in every draw, or the reasons why there is none.

    Raises:
        ValueError: an unknown objective, no draw, or faults of another grid.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}: it must be one of {', '.join(OBJECTIVES)}")
    if not draws:
        raise ValueError("draws is empty: there must be at least one")
    chosen = options or Options(global_batch_size=global_batch_size)
    longest = padded(int(min(float(wafer.num_dies), float(model.num_layers), chosen.max_pipeline)))
    reasons: list[str] = []
    found = [_least_times(wafer, model, faults, chosen, longest, reasons) for faults in (no_faults(wafer), *draws)]
    keys = np.unique(np.concatenate([here for here, _ in found]))
    times, legal = np.full((len(keys), len(found)), np.inf), np.zeros((len(keys), len(found)), bool)
    for number, (here, least) in enumerate(found):
        rows = np.searchsorted(keys, here)
        times[rows, number], legal[rows, number] = least, True
    whole, drawn = times[:, :1], times[:, 1:]
    fits, statistic = np.isfinite(drawn), OBJECTIVES[objective]
    # where a strategy cannot be laid anew, its places may be kept: at best as fast as on the whole wafer
    ranked, always = statistic(np.where(fits, drawn, whole), axis=1), fits.all(axis=1)
    groups = np.where(always, ranked, np.inf), np.where(fits.any(axis=1) & ~always, ranked, np.inf), whole[:, 0]
    first = [row for values in groups for row in np.argsort(values, kind="stable")[:RANKED] if values[row] < np.inf]
    best = DrawPlan(None, (), objective, int(legal[:, 1:].all(axis=1).sum()), int(always.sum()), tuple(reasons))
    for row in dict.fromkeys(first):
        survivors: list[Survivor] = []
        for faults in draws:
            one = _quickest(wafer, model, strategy_of(keys[row]), faults, longest)
            so_far = [float(each.step_time) for each in (*survivors, *([one] if one else []))]
            if one is None or statistic(so_far + [0.0] * (len(draws) - len(so_far))) >= best.value:
                break
            survivors.append(one)
        else:
            best = replace(best, strategy=strategy_of(keys[row]), survivors=tuple(survivors))
    return best


def _least_times(
    wafer: Wafer, model: Transformer, faults: Faults, options: Options, longest: int, reasons: list[str]
) -> tuple[Keys, Float[np.ndarray, " n"]]:
    # every strategy that is legal on what is left, sorted, with its least step time over the ways of laying it
    keys, times = [strategy_keys(Strategy(), 0)], [np.zeros(0)]
    for network, pace in ways_left(wafer, faults):
        try:
            space = strategies(wafer, model, options, max_stages=longest, network=network)
        except NoStrategy as error:
            reasons.append(str(error))
            continue
        keys.append(strategy_keys(space.strategies, len(space)))
        times.append(feasible_step_times(slowed(wafer, pace), model, space))
    every, row = np.unique(np.concatenate(keys), return_inverse=True)
    least = np.full(len(every), np.inf)
    np.minimum.at(least, row, np.concatenate(times))
    return every, least


def strategy_keys(strategies: Strategy, count: int) -> Keys:
    """Strategies as keys that can be sorted and compared.

    Args:
        strategies: record of arrays or numbers.
        count: how many.
    """
    # numbers of a strategy are whole, so that single precision holds them exactly
    columns = [np.broadcast_to(np.asarray(leaf, np.float32), count) for leaf in jax.tree.leaves(strategies)]
    rows = np.ascontiguousarray(np.stack(columns, axis=1))
    return rows.view(f"V{rows.itemsize * rows.shape[1]}").ravel()


def stacked_strategies(keys: Keys) -> Strategy:
    """Strategies from their keys: a record of arrays."""
    columns = np.frombuffer(keys.tobytes(), np.float32).astype(float).reshape(len(keys), -1).T
    return jax.tree.unflatten(jax.tree.structure(Strategy()), list(columns))


def strategy_of(key: np.void) -> Strategy:
    """One strategy from its key."""
    return jax.tree.map(lambda leaf: float(leaf[0]), stacked_strategies(np.array([key])))


def _quickest(wafer: Wafer, model: Transformer, strategy: Strategy, faults: Faults, longest: int) -> Survivor | None:
    # laid anew on what is left, or kept in its places; None where it fits in no way
    geometry = Geometry.of(strategy)
    tried = [
        survivor(wafer, model, strategy, faults, network, order=order, max_stages=longest)
        for network, _ in ways_left(wafer, faults)
        if misfit(network, geometry) is None
        for order in orders_on(network, geometry)
    ]
    if faults.cores.any():
        tried.append(naive(wafer, model, strategy, faults))
    return min((one for one in tried if one.fits), key=lambda one: float(one.step_time), default=None)


@dataclass(frozen=True)
class DrawStudy:
    """What draws of faults cost with a plan that is kept, with one plan for all of them, and with a plan for each.

    Attributes:
        whole: the best strategy of the wafer without faults.
        naive: that strategy in its places, in every draw.
        plan: one strategy for all draws.
        robust: a plan for every draw that knows it; never slower than the others.
    """

    whole: Choice
    naive: tuple[Survivor, ...]
    plan: DrawPlan
    robust: tuple[Survival, ...]

    @property
    def step_times(self) -> dict[str, Float[np.ndarray, " draws"]]:
        """Step time in s of every draw by way of planning, infinite where nothing fits."""
        never = np.full(len(self.naive), np.inf)
        best = [one.best for one in self.robust]
        return {
            "naive": np.array([float(one.step_time) if one.fits else np.inf for one in self.naive]),
            "one_plan": self.plan.step_times if self.plan.survivors else never,
            "robust": np.array([np.inf if one is None else float(one.step_time) for one in best]),
        }


def study_draws(
    wafer: Wafer,
    model: Transformer,
    draws: Sequence[Faults],
    *,
    options: Options | None = None,
    global_batch_size: int = 512,
    objective: str = "worst",
    progress: Callable[[str, float], None] = lambda phase, share: None,
) -> DrawStudy:
    """Compare `naive`, `plan_for_draws` and `robust` on the same draws; arguments as of `plan_for_draws`.

    Raises:
        ValueError: as `plan_for_draws`, or no strategy fits the whole wafer.
    """
    chosen = options or Options(global_batch_size=global_batch_size)
    found = rank(wafer, model, strategies(wafer, model, chosen), top=1)
    if not found.best:
        over = ", ".join(f"{limit} ({count:,})" for limit, count in found.exceeded.items())
        raise NoStrategy(f"none of {found.evaluated:,} strategies fits the wafer without faults: {over}")
    progress("one plan for all draws", 0.0)
    common = plan_for_draws(wafer, model, draws, options=chosen, objective=objective)
    kept, anew = [], []
    for number, faults in enumerate(draws):
        progress("a plan for every draw", number / len(draws))
        kept.append(naive(wafer, model, found.best[0].strategy, faults))
        mine = robust(wafer, model, faults, options=chosen)
        rivals = [one for one in (mine.best, kept[-1], *common.survivors[number : number + 1]) if one and one.fits]
        best = min(rivals, key=lambda one: float(one.step_time), default=None)
        anew.append(replace(mine, best=best))
    return DrawStudy(found.best[0], tuple(kept), common, tuple(anew))
