"""Fixed hardware: every legal strategy of a model on a system, ranked by the hard model.

Nothing is sampled and nothing pruned by cost, so the first is the best of the enumerated options, and the answer says
how many were looked at, how many fit, and what the others exceed.

Above the roofline the ranking is as exact: the roofline's step time is never above that of another rung, so strategies
are estimated in the order of it until the next one could no longer be among the best. The counts are the roofline's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from watos_jax.batch import CHUNK, CHUNKS_PER_CALL, map_chunks
from watos_jax.estimate import ROUNDING, Estimate, estimate
from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.operators.fidelity import FIDELITIES, Fidelity
from watos_jax.search.space import Options, StrategySpace, strategies
from watos_jax.strategy import FEW_VALUES, RECOMPUTE_LEVELS, SCHEDULES, Layout, Strategy
from watos_jax.units import Scalar

TOP: Final = 10
"""Strategies returned."""
BLOCKS: Final[dict[str, tuple[int, int]]] = {"predictor": (512, 2), "mapper": (1, 32)}
"""Strategies per chunk, and chunks per device, that a rung above the roofline estimates before it looks at the bound
again."""
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
        virtual_stages=tuple(sorted({*_divisors(int(model.num_layers)), *_divisors(int(model.num_layers) + 2)})),
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
    fidelity: Fidelity = "roofline",
    rule: Callable[[Strategy], Bool[np.ndarray, " n"]] | None = None,
) -> Plan:
    """Estimate every legal strategy and rank those that fit by step time.

    Args:
        system: the hardware, concrete.
        model: the transformer, concrete.
        options: what strategies may choose from; `every_option` where None.
        global_batch_size: sequences per optimizer step, where `options` is None.
        top: how many of the best to return.
        fidelity: operator model that ranks and estimates the best.
        rule: which of many strategies, stacked, may be chosen; all where None.

    Returns:
        The best strategies, the nearest one where none fits, and the counts.

    Raises:
        ValueError: no strategy is legal on the system (`NoStrategy`), `top` is below 1, or the fidelity is unknown.
    """
    if top < 1:
        raise ValueError(f"top is {top}: it must be at least 1")
    if fidelity not in FIDELITIES:
        raise ValueError(f"fidelity is {fidelity!r}: it must be one of {', '.join(FIDELITIES)}")
    space = strategies(system, model, options or every_option(model, global_batch_size))
    if rule is not None:
        space = space.where(rule(space.strategies), "against the rule")
    return rank(system, model, space, top=top, fidelity=fidelity)


def rank(
    system: System | Wafer, model: Transformer, space: StrategySpace, *, top: int = TOP, fidelity: Fidelity = "roofline"
) -> Plan:
    """Estimate strategies that were listed before; arguments and answer as of `plan`."""
    shared, points = _listed(system, model, space)
    step_time, margins = _outcomes(shared, points)
    names, worst = tuple(margins), np.min(list(margins.values()), axis=0)
    binding = np.argmin(list(margins.values()), axis=0)
    fits = worst >= -ROUNDING
    rows = _best(np.where(fits, step_time, np.inf), top)
    if fidelity != "roofline":
        holds = margins["memory"] >= -ROUNDING  # a slower step draws less power, so that limit is looked at again
        rows = _refined(shared, points, np.where(holds, step_time, np.inf), top, fidelity)
    found = tuple(_choice(system, model, space, row, fidelity) for row in rows or [int(np.argmax(worst))])
    own = {name: float(margin) for name, margin in found[0].estimate.margins.items() if name not in LIMITS}
    return Plan(
        best=found if rows else (),
        nearest=None if rows else found[0],
        evaluated=len(space),
        feasible=int(fits.sum()),
        exceeded={
            name: int(np.sum(binding[~fits] == i)) for i, name in enumerate(names) if (binding[~fits] == i).any()
        },
        hardware={name: -margin for name, margin in own.items() if margin < -ROUNDING},
        pruned=space.pruned,
    )


def _listed(system: System | Wafer, model: Transformer, space: StrategySpace) -> tuple[Any, Any]:
    # what all strategies of a list have in common, and the strategies
    return (system, model, space.roomy_layouts), (space.strategies, space.geometry.astype(np.int32))


def _outcomes(shared: Any, points: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    # step time and margins of many strategies by the roofline
    calls = 1 if len(points[1]) <= 2 * CHUNK else CHUNKS_PER_CALL
    return map_chunks(outcome_at("roofline"), shared, points, chunks_per_call=calls)


def feasible_step_times(system: System | Wafer, model: Transformer, space: StrategySpace) -> Float[np.ndarray, " n"]:
    """Step time in s of every strategy of a list by the roofline, infinite where it does not fit; see `rank`."""
    step_time, margins = _outcomes(*_listed(system, model, space))
    return np.where(np.min(list(margins.values()), axis=0) >= -ROUNDING, step_time, np.inf)


@cache
def outcome_at(fidelity: Fidelity) -> Callable[..., tuple[Scalar, dict[str, Scalar]]]:
    """The function that `map_chunks` estimates strategies with: step time and margins of `LIMITS`.

    Args:
        fidelity: operator model.
    """

    def outcome(
        shared: tuple[System | Wafer, Transformer, Layout], point: tuple[Strategy, Int[Array, ""]]
    ) -> tuple[Scalar, dict[str, Scalar]]:
        (system, model, layouts), (strategy, geometry) = shared, point
        placed = jax.tree.map(lambda leaf: leaf[geometry], layouts)
        answer = estimate(system, model, strategy, fidelity=fidelity, layout=placed)
        return answer.step_time, {name: answer.margins[name] for name in LIMITS if name in answer.margins}

    return outcome


def _divisors(number: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def _best(step_time: np.ndarray, top: int) -> list[int]:
    # rows of the least finite times, least first
    order = np.argsort(step_time, kind="stable")[:top]
    return [int(row) for row in order if np.isfinite(step_time[row])]


def _refined(shared: Any, points: Any, bound: np.ndarray, top: int, fidelity: Fidelity) -> list[int]:
    # rows of the least times of a rung, least first; `bound` is infinite where a row cannot be chosen
    chunk, chunks = BLOCKS[fidelity]
    order = np.array(_best(bound, len(bound)), int)
    step_time = np.full(len(bound), np.inf)
    block = chunk * chunks * len(jax.local_devices())
    for start in range(0, len(order), block):
        rows = order[start : start + block]
        best = _best(step_time, top)
        if len(best) == top and bound[rows[0]] >= step_time[best[-1]]:
            break
        some = jax.tree.map(lambda leaf, rows=rows: leaf[rows], points)
        times, margins = map_chunks(outcome_at(fidelity), shared, some, chunk=chunk, chunks_per_call=chunks)
        step_time[rows] = np.where(np.min(list(margins.values()), axis=0) >= -ROUNDING, times, np.inf)
    return _best(step_time, top)


def _choice(system: System | Wafer, model: Transformer, space: StrategySpace, row: int, fidelity: Fidelity) -> Choice:
    strategy = space.strategy(row)
    return Choice(strategy, estimate(system, model, strategy, fidelity=fidelity, layout=space.layout(row)))
