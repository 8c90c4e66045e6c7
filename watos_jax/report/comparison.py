"""A comparison with the baselines as a dictionary, and as tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from watos_jax.baselines.comparison import Comparison, Side
from watos_jax.baselines.streamed_wafer import StreamedWafer
from watos_jax.hardware import System, Wafer
from watos_jax.report.records import Plain, estimate_record, plain, strategy_names, strategy_record
from watos_jax.report.text import digits, pairs, percent, quantity, seconds, stacked, table
from watos_jax.search.central import Schedule
from watos_jax.search.plan import Plan
from watos_jax.units import GIGA


def comparison_record(wafer: System | Wafer, comparison: Comparison) -> Plain:
    """Ours, the baselines and the speedup over each; numbers of a side that does not fit are None, and it says why.

    Args:
        wafer: the wafer.
        comparison: the answer.
    """
    return {
        "ours": _ours(wafer, comparison.ours),
        "baselines": {name: _side(side) for name, side in comparison.baselines.items()},
        "speedup": {name: comparison.speedup(side) for name, side in comparison.baselines.items()},
        "variants": {
            name: _side(side) | {"speedup": comparison.speedup(side)} for name, side in comparison.variants.items()
        },
    }


def _ours(wafer: System | Wafer, side: Side) -> Plain:
    if isinstance(side.answer, Schedule):
        return schedule_record(wafer, side.answer) | {"reason": side.reason}
    nothing: Plain = {"fits": False, "tokens_per_second": None, "step_time": None, "evaluated": 0}
    return nothing | {"feasible": {}, "least_step_time": {}, "reason": side.reason}


def schedule_record(wafer: System | Wafer, schedule: Schedule) -> Plain:
    """The best schedule of a wafer: its strategy, who keeps how many bytes for others, and the counts of the search."""
    counts = {
        "evaluated": schedule.evaluated,
        "feasible": schedule.feasible,
        "least_step_time": plain(schedule.least_step_time),
        "exceeded": schedule.exceeded,
        "pruned": schedule.pruned,
    }
    if not schedule.best:
        return {"fits": False, "tokens_per_second": None, "step_time": None} | counts
    best = schedule.best[0]
    record = estimate_record(wafer, best.strategy, best.estimate)
    needed = np.asarray(best.estimate.memory)[: len(best.sent)]
    shared = {
        "fits": True,
        "tokens_per_second": plain(best.tokens_per_second),
        "step_time": plain(best.step_time),
        "step_time_without_shipping": plain(best.estimate.step_time),
        "order": None if best.order is None else best.order.tolist(),
        "sent": plain(best.sent),
        "held": plain(best.held),
        "resident": plain(needed - np.asarray(best.sent) + np.asarray(best.held)),
    }
    return record | shared | counts


def _side(side: Side) -> Plain:
    system = side.machine.system if isinstance(side.machine, Wafer) else side.machine
    machine = {
        "devices": int(system.num_dies),
        "flop_rate": plain(system.num_dies * system.die.flop_rate),
        "memory": plain(system.num_dies * system.die.memory.capacity),
        "memory_bandwidth": plain(system.num_dies * system.die.memory.bandwidth),
        "link_bandwidth": plain(system.tiers[0].link.bandwidth),
    }
    answer = side.answer
    record: Plain = {"tokens_per_second": side.tokens_per_second, "fits": side.fits, "machine": machine}
    record["reason"] = side.reason
    if not isinstance(answer, Plan | StreamedWafer):
        return record | {"step_time": None, "evaluated": 0}
    if isinstance(answer, Plan):
        choice = answer.best[0] if answer.best else answer.nearest
        if choice is not None:
            record = estimate_record(side.machine, choice.strategy, choice.estimate) | record
        return record | {"evaluated": answer.evaluated}
    parts = plain(answer.streamed.breakdown)
    return record | {
        "step_time": answer.step_time,
        "breakdown": parts | {"optimizer": answer.step_time - float(answer.streamed.step_time)},
        "activations": answer.activations,
        "memory_margin": answer.memory_margin,
        "strategy": strategy_record(answer.strategy),
        "strategy_names": strategy_names(answer.strategy),
        "evaluated": answer.evaluated,
    }


def comparison_view(title: str, record: Mapping[str, Any]) -> RenderableType:
    """A comparison as tables: throughputs, ours by the way recomputation is settled, memory that is shared."""
    rows = [_row("ours", record["ours"], None)]
    rows += [_row(name, side, record["speedup"][name]) for name, side in record["baselines"].items()]
    rows += [_row(name, side, side["speedup"]) for name, side in record["variants"].items()]
    heads = ("", "tokens/s", "step", "speedup", "tried", "tensor", "pipe", "data", "ctx", "micro", "recompute")
    parts: list[RenderableType] = [table(title, heads, rows)]
    ours = record["ours"]
    ways = ((name, seconds(value), f"{ours['feasible'][name]:,}") for name, value in ours["least_step_time"].items())
    if ours["least_step_time"]:
        settled = ("settled by", "least step", "strategies that fit")
        parts.append(table("Recomputation and memory of ours", settled, ways))
    if ours["fits"]:
        sent = sum(ours["sent"])
        shared = {
            "memory that stages keep for others": f"{sent / GIGA:.2f} GB per die, all stages together",
            "what shipping adds to the step": percent(ours["step_time"] / ours["step_time_without_shipping"] - 1.0),
        }
        parts.append(pairs("The best of ours", shared))
    every = {"ours": ours} | record["baselines"] | record["variants"]
    lines = [f"{name.replace('_', ' ')}: {side['reason']}" for name, side in every.items() if side["reason"]]
    if lines:
        parts.append(Group(Text("Why not", "bold"), *(Text(line) for line in lines)))
    return stacked(*parts)


def _row(name: str, side: Mapping[str, Any], speedup: float | None) -> tuple[str | Text, ...]:
    words, tried = name.replace("_", " "), f"{side['evaluated']:,}"
    if not side["fits"]:
        verdict = Text("DOES NOT FIT" if side["evaluated"] else "NO STRATEGY", "red")
        return words, verdict, "-", "-", tried, *("-" for _ in range(6))
    strategy, names = side["strategy"], side["strategy_names"]
    level = names["recompute"]
    shown = level if isinstance(level, str) else "by stage" if len(set(level)) > 1 else level[0]
    return (
        words,
        f"{side['tokens_per_second']:,.0f}",
        quantity(side["step_time"], "s", largest=1.0),
        "-" if speedup is None else digits(speedup),
        tried,
        f"{strategy['tensor_rows']}x{strategy['tensor_cols']}",
        *(str(strategy[f"{kind}_parallel"]) for kind in ("pipeline", "data", "context")),
        str(strategy["micro_batch_size"]),
        shown,
    )
