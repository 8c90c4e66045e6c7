"""Results as plain dictionaries of numbers in SI units, ready for JSON; tables are drawn from the same dictionaries.

Numbers that are not finite, which JSON cannot carry, become None.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import equinox as eqx
import numpy as np

from watos_jax.cost import step_cost, wafer_cost
from watos_jax.estimate import Estimate
from watos_jax.fabrication import area_fractions
from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.report.megatron import megatron_arguments
from watos_jax.search.design import Design
from watos_jax.search.plan import Choice, Plan
from watos_jax.search.refine import Refined
from watos_jax.search.resolved import ResolvedPrice
from watos_jax.search.shadow import ShadowPrices
from watos_jax.strategy import RECOMPUTE_LEVELS, SCHEDULES, TENSOR_COLLECTIVES, Strategy

CODES: Final = {
    "schedule": SCHEDULES,
    "recompute": RECOMPUTE_LEVELS,
    "tensor_collective": TENSOR_COLLECTIVES,
}
"""Fields of a strategy that are codes, with the names they stand for."""

Plain = dict[str, Any]
"""A dictionary of numbers, strings, lists and such dictionaries."""


def plain(value: Any) -> Any:
    """Turn a result into numbers, strings, lists and dictionaries.

    Args:
        value: a number, an array, a record, or a mapping or sequence of them.
    """
    if isinstance(value, eqx.Module):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    array = np.asarray(value)
    if array.ndim:
        return [plain(part) for part in array]
    return float(array) if math.isfinite(array) else None


def strategy_record(strategy: Strategy) -> Plain:
    """Every field of a strategy as whole numbers; a level of recomputation per stage is a list."""
    values = {name: np.asarray(getattr(strategy, name)).astype(int) for name in Strategy.__dataclass_fields__}
    return {name: value.tolist() for name, value in values.items()}


def strategy_names(strategy: Strategy) -> Plain:
    """What the codes of a strategy stand for."""
    codes = strategy_record(strategy)
    return {name: np.array(names)[codes[name]].tolist() for name, names in CODES.items()}


def estimate_record(system: System | Wafer, strategy: Strategy, estimate: Estimate) -> Plain:
    """An estimate with its strategy; memory per stage without padding.

    Args:
        system: the hardware of the estimate.
        strategy: its strategy.
        estimate: the hard estimate.
    """
    num_stages = int(strategy.pipeline_parallel)
    step_time, energy = float(estimate.step_time), float(estimate.energy)
    tokens_per_second = float(estimate.tokens_per_second)
    parts = {name: getattr(estimate.memory_parts, name) for name in estimate.memory_parts.__dataclass_fields__}
    return {
        "tokens_per_second": tokens_per_second,
        "step_time": step_time,
        "model_flop_utilisation": plain(estimate.model_flop_utilisation),
        "power": plain(estimate.power),
        "energy": plain(estimate.energy),
        "tokens_per_joule": plain(tokens_per_second * step_time / energy if energy else None),
        "feasible": estimate.feasible,
        "binding": estimate.binding,
        "margins": plain(estimate.margins),
        "num_dies": int(system.num_dies),
        "num_dies_used": int(strategy.num_dies),
        "strategy": strategy_record(strategy),
        "strategy_names": strategy_names(strategy),
        "breakdown": plain(estimate.breakdown),
        "memory": plain(estimate.memory[:num_stages]),
        "memory_parts": {name: plain(part[:num_stages]) for name, part in parts.items()},
        "memory_capacity": plain(system.die.memory.capacity),
        "fidelity": estimate.fidelity,
        "outside": plain(estimate.outside),
    }


def architecture_record(wafer: Wafer) -> Plain:
    """The quantities of a wafer that co-design chooses, and what follows for one die."""
    die = wafer.die
    return {
        "die_rows": int(wafer.die_rows),
        "die_cols": int(wafer.die_cols),
        "die_width": plain(die.width),
        "die_height": plain(die.height),
        "core_rows": int(die.core_rows),
        "core_cols": int(die.core_cols),
        "sram_bytes_per_core": plain(die.core.sram_bytes),
        "clock": plain(die.core.clock),
        "flop_rate_per_die": plain(die.flop_rate),
        "dram_stacks": int(die.memory.num_stacks),
        "dram_bytes_per_die": plain(die.memory.capacity),
        "dram_bandwidth_per_die": plain(die.memory.bandwidth),
        "dram_horizontal_sides": int(die.memory.horizontal_sides),
        "dram_vertical_sides": int(die.memory.vertical_sides),
        "d2d_bandwidth_per_edge_per_direction": plain(wafer.d2d.bandwidth),
    }


def design_record(design: Design, prices: ShadowPrices | None = None, rescored: Choice | None = None) -> Plain:
    """A co-designed wafer, its strategy and its estimate; areas as fractions of the window, which add up to 1.

    `relaxed_step_time` is None where the objective is another than the step time.

    Args:
        design: the design.
        prices: its shadow prices, if they were asked for.
        rescored: the best strategy of the designed wafer by another operator model, if that was asked for.
    """
    fractions = {name: float(part) for name, part in area_fractions(design.wafer).items()}
    fractions["other"] = 1.0 - sum(part for name, part in fractions.items() if name != "other")
    answer, price_list = design.estimate, design.objective.prices
    cost = wafer_cost(design.wafer, price_list)
    per_step = step_cost(design.wafer, price_list, answer.step_time, answer.energy)
    tokens = answer.tokens_per_second * answer.step_time
    weights = {name: plain(getattr(design.objective, name)) for name in ("time", "energy", "cost")}
    return estimate_record(design.wafer, design.strategy, answer) | {
        "architecture": architecture_record(design.wafer),
        "area_fractions": fractions,
        "wafer_cost": plain(cost._asdict()) | {"total": plain(cost.total)},
        "tokens_per_dollar": plain(tokens / per_step),
        "objective": {"weights": weights, "value": design.value, "relaxed_value": design.relaxed_value},
        "relaxed_step_time": design.relaxed_value if weights == {"time": 1.0, "energy": 0.0, "cost": 0.0} else None,
        "rounding_gap": plain(design.rounding_gap),
        "certificate": _certificate_record(design),
        "refinement": None if design.refined is None else refinement_record(design.refined),
        "prices": None if prices is None else plain(asdict(prices)),
        "rescored": None if rescored is None else estimate_record(design.wafer, rescored.strategy, rescored.estimate),
        "at_bound": design.at_bound,
        "evaluations": design.evaluations,
        "candidates": design.candidates,
        "lattice_points": design.lattice_points,
        "phases": plain(design.phases),
        "wall_time": design.wall_time,
    }


def _certificate_record(design: Design) -> Plain | None:
    # the bound of one level of recomputation for all stages, and that of memory shared where it was asked for
    proof, refined = design.certificate, design.refined
    if proof is None:
        return None
    shared = {
        "shared_lower_bound": None if refined is None else refined.bound.lower_bound,
        "shared_gap": None if refined is None else refined.gap,
    }
    record: Plain = plain(vars(proof) | {"gap": proof.gap} | shared)
    return record


def refinement_record(refined: Refined) -> Plain:
    """A design with memory shared and stages placed: hardware, schedule, what is shipped, and its bound.

    Args:
        refined: the refined design.
    """
    schedule = refined.placed
    answer, num_stages = schedule.estimate, int(schedule.strategy.pipeline_parallel)
    tokens = float(answer.tokens_per_second * answer.step_time)
    senders, helpers = np.nonzero(schedule.shipped)
    return {
        "step_time": refined.step_time,
        "tokens_per_second": tokens / refined.step_time,
        "lower_bound": refined.bound.lower_bound,
        "gap": refined.gap,
        "architecture": architecture_record(refined.wafer),
        "strategy": strategy_record(schedule.strategy),
        "strategy_names": strategy_names(schedule.strategy),
        "order": None if schedule.order is None else [int(slot) for slot in schedule.order],
        "shipped": [
            {"sender": int(s), "helper": int(h), "bytes_per_die": float(schedule.shipped[s, h])}
            for s, h in zip(senders, helpers, strict=True)
        ],
        "memory": plain(answer.memory[:num_stages] - schedule.sent + schedule.held),
        "memory_capacity": plain(refined.wafer.die.memory.capacity),
        "bound": plain(vars(refined.bound) | {"gap": refined.bound.gap}),
        "rounds": refined.rounds,
        "wall_time": refined.wall_time,
    }


def resolved_record(prices: Mapping[str, ResolvedPrice] | None, change: float) -> Plain | None:
    """Prices by searching again, with the share by which allowances were changed; None where there are none.

    Args:
        prices: by allowance.
        change: the share.
    """
    if prices is None:
        return None
    return {"change": change, "allowances": {name: plain(asdict(price)) for name, price in prices.items()}}


def plan_record(system: System | Wafer, model: Transformer, plan: Plan) -> Plain:
    """The best strategies on fixed hardware, each with its estimate; the winner as arguments of Megatron-LM.

    Args:
        system: the hardware.
        model: the transformer.
        plan: the answer.
    """
    record: Plain = {
        "evaluated": plan.evaluated,
        "feasible": plan.feasible,
        "exceeded": plan.exceeded,
        "hardware_exceeds": plan.hardware,
        "pruned": plan.pruned,
        "best": [estimate_record(system, choice.strategy, choice.estimate) for choice in plan.best],
        "nearest": None,
        "megatron_arguments": None,
        "not_in_megatron": [],
    }
    if plan.nearest is not None:
        record["nearest"] = estimate_record(system, plan.nearest.strategy, plan.nearest.estimate)
    if plan.best:
        record["megatron_arguments"], record["not_in_megatron"] = megatron_arguments(model, plan.best[0].strategy)
    return record
