"""What faults of a wafer cost, as a dictionary and as tables."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from watos_jax.faults import Faults
from watos_jax.report.design import architecture_table
from watos_jax.report.records import Plain, architecture_record, plain, strategy_names, strategy_record
from watos_jax.report.text import digits, pairs, percent, seconds, stacked, table
from watos_jax.search.draw_design import DrawDesign, Laying
from watos_jax.search.draws import DrawPlan, DrawStudy
from watos_jax.search.robust import Survivor

WAYS: Final = {"naive": "plan kept", "one_plan": "one plan for all", "robust": "planned anew"}
"""Ways of planning, and how tables call them."""


def study_record(draws: Sequence[Faults], study: DrawStudy) -> Plain:
    """Step time, throughput and strategy of every draw by way of planning; None where nothing fits.

    Args:
        draws: what was left of the wafer.
        study: the answer.
    """
    times, tokens = study.step_times, float(study.whole.estimate.tokens_per_second * study.whole.estimate.step_time)
    survivors = {
        "naive": study.naive,
        "one_plan": study.plan.survivors or (None,) * len(draws),
        "robust": tuple(one.best for one in study.robust),
    }
    chosen = study.plan.strategy
    return {
        "whole": {
            "step_time": plain(study.whole.estimate.step_time),
            "tokens_per_second": plain(study.whole.estimate.tokens_per_second),
            "strategy": strategy_record(study.whole.strategy),
            "strategy_names": strategy_names(study.whole.strategy),
        },
        "objective": study.plan.objective,
        "one_plan": {
            "value": plain(study.plan.value),
            "strategy": None if chosen is None else strategy_record(chosen),
            "strategy_names": None if chosen is None else strategy_names(chosen),
            "evaluated": study.plan.evaluated,
            "feasible": study.plan.feasible,
        },
        "draws": [
            {"dead_dies": faults.num_dead_dies, "dead_links": faults.num_dead_links}
            | {"usable_dies": study.robust[number].usable, "reasons": list(study.robust[number].reasons)}
            | {way: _survivor(which[number], tokens) for way, which in survivors.items()}
            for number, faults in enumerate(draws)
        ],
        "step_time": {
            way: {name: plain(float(of(times[way]))) for name, of in (("median", np.median), ("worst", np.max))}
            for way in WAYS
        },
    }


def _survivor(one: Survivor | None, tokens: float) -> Plain:
    if one is None or not one.fits:
        margin = None if one is None else plain(one.memory_margin)
        return {"fits": False, "step_time": None, "tokens_per_second": None, "memory_margin": margin}
    return {
        "fits": True,
        "step_time": plain(one.step_time),
        "tokens_per_second": tokens / float(one.step_time),
        "memory_margin": plain(one.memory_margin),
        "strategy": strategy_record(one.strategy),
        "strategy_names": strategy_names(one.strategy),
    }


def study_view(title: str, record: Mapping[str, Any]) -> RenderableType:
    """A study as tables: step times by draw, with throughput over that of the whole wafer, and the strategies."""
    whole = record["whole"]["step_time"]

    def cell(step: float | None) -> str | Text:
        return Text("DOES NOT FIT", "red") if step is None else f"{seconds(step)} ({percent(whole / step)})"

    rows = [
        (
            str(number),
            *(str(draw[name]) for name in ("dead_dies", "dead_links", "usable_dies")),
            *(cell(draw[way]["step_time"]) for way in WAYS),
        )
        for number, draw in enumerate(record["draws"], 1)
    ]
    for name in ("median", "worst"):
        rows.append((name, "", "", "", *(cell(record["step_time"][way][name]) for way in WAYS)))
    heads = ("draw", "dead dies", "dead links", "usable", *WAYS.values())
    plans = [_plan("whole wafer", record["whole"])]
    if record["one_plan"]["strategy"] is not None:
        plans.append(_plan(f"one plan, least {record['objective']} step", record["one_plan"]))
    plans += [
        _plan(f"anew for draw {number}", draw["robust"])
        for number, draw in enumerate(record["draws"], 1)
        if draw["robust"]["fits"]
    ]
    degrees = ("strategy of", "tensor", "pipe", "data", "ctx", "exp", "micro", "recompute")
    parts = [table(f"{title}, whole {seconds(whole)}: step, and throughput over the whole's", heads, rows)]
    parts.append(table("Strategies", degrees, plans))
    lines = [f"draw {n}: {reason}" for n, draw in enumerate(record["draws"], 1) for reason in draw["reasons"]]
    return stacked(*parts, *(Text(line) for line in lines))


def design_record(found: DrawDesign, tokens: float) -> Plain:
    """A wafer designed for draws of faults, beside the one designed without.

    Args:
        found: the answer.
        tokens: per step.
    """
    proof, healthy = found.certificate, found.healthy
    return {
        "objective": found.objective,
        "value": plain(found.value),
        "tokens_per_second": tokens / found.value if np.isfinite(found.value) else None,
        "is_healthy": found.is_healthy,
        "architecture": architecture_record(found.wafer),
        "plan": _plan_record(found.best_plan),
        "draws": [{"dead_dies": one.num_dead_dies, "dead_links": one.num_dead_links} for one in found.draws],
        "laid": _laying_record(found.laid) | {"plan": _plan_record(found.plan)},
        "certificate": {"value": proof.value, "lower_bound": proof.lower_bound, "gap": proof.gap}
        | {"strategies_visited": proof.strategies_visited, "boxes": proof.boxes, "wall_time": proof.wall_time},
        "healthy": {
            "step_time": healthy.value,
            "tokens_per_second": tokens / healthy.value,
            "architecture": architecture_record(healthy.wafer),
            "strategy": strategy_record(healthy.strategy),
            "strategy_names": strategy_names(healthy.strategy),
            "laid": None if found.healthy_laid is None else _laying_record(found.healthy_laid),
            "plan": _plan_record(found.healthy_plan),
        },
        "evaluations": found.evaluations,
        "wall_time": found.wall_time,
    }


def _laying_record(laid: Laying) -> Plain:
    return {
        "value": laid.value,
        "step_times": plain(laid.step_times),
        "architecture": architecture_record(laid.wafer),
        "strategy": strategy_record(laid.strategy),
        "strategy_names": strategy_names(laid.strategy),
    }


def _plan_record(plan: DrawPlan) -> Plain:
    chosen = plan.strategy
    return {
        "value": plain(plan.value),
        "step_times": plain(plan.step_times),
        "strategy": None if chosen is None else strategy_record(chosen),
        "strategy_names": None if chosen is None else strategy_names(chosen),
    }


def design_view(title: str, record: Mapping[str, Any]) -> RenderableType:
    """The answer with its bound, both wafers, their step in every draw, and their strategies."""
    laid, healthy, proof = record["laid"], record["healthy"], record["certificate"]
    kind = record["objective"]

    def gain(value: float | None) -> str:
        return "-" if value is None or record["value"] is None else percent(value / record["value"] - 1.0)

    said = {
        f"{kind} step": seconds(record["value"]),
        "tokens/s": "-" if record["tokens_per_second"] is None else digits(record["tokens_per_second"]),
        "the wafer": "that designed without faults" if record["is_healthy"] else "designed for the draws",
        "quicker than the wafer designed without faults, planned for them": gain(healthy["plan"]["value"]),
        f"{kind} step with stages in the order of the serpentine": seconds(proof["value"]),
        "no wafer is quicker in that order than": seconds(proof["lower_bound"]),
        "proven gap": percent(proof["gap"]),
        "step without faults, wafer designed without": seconds(healthy["step_time"]),
        "evaluations": f"{record['evaluations']:,}",
        "search time": seconds(record["wall_time"]),
    }
    columns = [(laid or {}).get("step_times"), laid["plan"]["step_times"]]
    columns += [(healthy["laid"] or {}).get("step_times"), healthy["plan"]["step_times"]]
    rows = [
        (str(number), str(draw["dead_dies"]), str(draw["dead_links"]))
        + tuple(seconds(times[number - 1]) if times else "-" for times in columns)
        for number, draw in enumerate(record["draws"], 1)
    ]
    heads = ("draw", "dead dies", "dead links", "serpentine", "placed", "healthy, serpentine", "healthy, placed")
    plans = [("designed for the draws", laid["plan"]), ("designed without faults", healthy["plan"])]
    degrees = ("strategy of the wafer", "tensor", "pipe", "data", "ctx", "exp", "micro", "recompute")
    return stacked(
        pairs(title, said),
        table("Step in every draw: the wafer designed for them, and the one designed without faults", heads, rows),
        table("Strategies", degrees, [_plan(name, plan) for name, plan in plans if plan["strategy"] is not None]),
        architecture_table(record),
    )


def _plan(name: str, choice: Mapping[str, Any]) -> tuple[str, ...]:
    strategy = choice["strategy"]
    degrees = (str(strategy[f"{kind}_parallel"]) for kind in ("pipeline", "data", "context", "expert"))
    tensor = f"{strategy['tensor_rows']}x{strategy['tensor_cols']}"
    return name, tensor, *degrees, str(strategy["micro_batch_size"]), str(choice["strategy_names"]["recompute"])
