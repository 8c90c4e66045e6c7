"""What faults of a wafer cost, as a dictionary and as tables."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from watos_jax.faults import Faults
from watos_jax.report.records import Plain, plain, strategy_names, strategy_record
from watos_jax.report.text import percent, seconds, stacked, table
from watos_jax.search.draws import DrawStudy
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


def _plan(name: str, choice: Mapping[str, Any]) -> tuple[str, ...]:
    strategy = choice["strategy"]
    degrees = (str(strategy[f"{kind}_parallel"]) for kind in ("pipeline", "data", "context", "expert"))
    tensor = f"{strategy['tensor_rows']}x{strategy['tensor_cols']}"
    return name, tensor, *degrees, str(strategy["micro_batch_size"]), str(choice["strategy_names"]["recompute"])
