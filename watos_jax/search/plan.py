"""Fixed hardware: every legal strategy of a model on a system, ranked by the hard model.

Nothing is sampled and nothing pruned by cost, so the first is the best of the enumerated options, and the answer says
how many were looked at, how many fit, and what the others exceed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING, Estimate, estimate
from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.search.space import Options, StrategySpace, strategies
from watos_jax.strategy import FEW_VALUES, RECOMPUTE_LEVELS, SCHEDULES, Layout, Strategy
from watos_jax.units import Scalar

TOP: Final = 10
"""Strategies returned."""
LIMITS: Final = ("memory", "power")
"""Limits that depend on the strategy; the others are the hardware's own, and no strategy can mend them."""


class Choice(eqx.Module):
    """One ranked strategy.

    Attributes:
        strategy: the strategy.
        estimate: the hard estimate.
    """

    strategy: Strategy
    estimate: Estimate


@dataclass(frozen=True)
class Plan:
    """The answer of an exhaustive search over strategies.

    Attributes:
        best: the fastest strategies that fit, fastest first.
        nearest: where none fits, the strategy that exceeds its worst limit least.
        evaluated: strategies estimated.
        feasible: those that fit.
        exceeded: strategies that do not fit, by the limit that they exceed most.
        hardware: limits that the hardware itself exceeds, whatever the strategy, with use / allowance - 1.
        pruned: combinations of degrees that were ruled out before, by reason.
    """

    best: tuple[Choice, ...]
    nearest: Choice | None
    evaluated: int
    feasible: int
    exceeded: dict[str, int] = field(default_factory=dict)
    hardware: dict[str, float] = field(default_factory=dict)
    pruned: dict[str, int] = field(default_factory=dict)


def every_option(model: Transformer, global_batch_size: int) -> Options:
    """All values of every option that the model and the batch allow.

    Args:
        model: the transformer, concrete.
        global_batch_size: sequences per optimizer step.
    """
    allowed = {name: tuple(int(value) for value in values) for name, values, _ in FEW_VALUES}
    return Options(
        global_batch_size=global_batch_size,
        micro_batch_sizes=_divisors(global_batch_size),
        recompute=RECOMPUTE_LEVELS,
        virtual_stages=_divisors(int(model.num_layers)),
        context_parallel=(1, 2, 4, 8),
        sequence_parallel=allowed["sequence_parallel"],
        optimizer_sharding=allowed["optimizer_sharding"],
        schedule=SCHEDULES,
        gradient_bytes=allowed["gradient_bytes"],
        flash_attention=allowed["flash_attention"],
        max_pipeline=int(model.num_layers),
    )


def plan(
    system: System | Wafer,
    model: Transformer,
    *,
    options: Options | None = None,
    global_batch_size: int = 512,
    top: int = TOP,
    rule: Callable[[Strategy], Bool[np.ndarray, " n"]] | None = None,
) -> Plan:
    """Estimate every legal strategy and rank those that fit by step time.

    Args:
        system: the hardware, concrete.
        model: the transformer, concrete.
        options: what strategies may choose from; `every_option` where None.
        global_batch_size: sequences per optimizer step, where `options` is None.
        top: how many of the best to return.
        rule: which of many strategies, stacked, may be chosen; all where None.

    Returns:
        The best strategies, the nearest one where none fits, and the counts.

    Raises:
        ValueError: no strategy is legal on the system, or `top` is below 1.
    """
    if top < 1:
        raise ValueError(f"top is {top}: it must be at least 1")
    space = strategies(system, model, options or every_option(model, global_batch_size))
    if rule is not None:
        space = space.where(rule(space.strategies), "against the rule")
    return rank(system, model, space, top=top)


def rank(system: System | Wafer, model: Transformer, space: StrategySpace, *, top: int = TOP) -> Plan:
    """Estimate strategies that were listed before; arguments and answer as of `plan`."""
    shared = (system, model, space.roomy_layouts)
    step_time, margins = map_chunks(_outcome, shared, (space.strategies, space.geometry.astype(np.int32)))
    names, worst = tuple(margins), np.min(list(margins.values()), axis=0)
    binding = np.argmin(list(margins.values()), axis=0)
    fits = worst >= -ROUNDING
    order = np.argsort(np.where(fits, step_time, np.inf), kind="stable")[: max(1, min(top, int(fits.sum())))]
    rows = order if fits.any() else [np.argmax(worst)]
    found = tuple(_choice(system, model, space, int(row)) for row in rows)
    own = {name: float(margin) for name, margin in found[0].estimate.margins.items() if name not in LIMITS}
    return Plan(
        best=found if fits.any() else (),
        nearest=None if fits.any() else found[0],
        evaluated=len(space),
        feasible=int(fits.sum()),
        exceeded={
            name: int(np.sum(binding[~fits] == i)) for i, name in enumerate(names) if (binding[~fits] == i).any()
        },
        hardware={name: -margin for name, margin in own.items() if margin < -ROUNDING},
        pruned=space.pruned,
    )


def _divisors(number: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def _outcome(
    shared: tuple[System | Wafer, Transformer, Layout], point: tuple[Strategy, Int[Array, ""]]
) -> tuple[Scalar, dict[str, Scalar]]:
    (system, model, layouts), (strategy, geometry) = shared, point
    answer = estimate(system, model, strategy, layout=jax.tree.map(lambda leaf: leaf[geometry], layouts))
    return answer.step_time, {name: answer.margins[name] for name in LIMITS if name in answer.margins}


def _choice(system: System | Wafer, model: Transformer, space: StrategySpace, row: int) -> Choice:
    strategy = space.strategy(row)
    return Choice(strategy, estimate(system, model, strategy, layout=space.layout(row)))
