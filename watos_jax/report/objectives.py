"""Compromises, fronts and uncertain constants as dictionaries, and as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType

from watos_jax.report.design import architecture_table
from watos_jax.report.records import Plain, architecture_record, estimate_record, plain, strategy_names, strategy_record
from watos_jax.report.text import digits, pairs, percent, seconds, stacked, table
from watos_jax.search.compromise import Case, Compromise
from watos_jax.search.pareto import Front, FrontPoint
from watos_jax.search.uncertainty import QUANTILES, Contender, Uncertainty
from watos_jax.units import GIGA, KIB, MM

SHOWN = 12
"""Designs of a front that a table shows, evenly spread; all are in the dictionary."""


def compromise_record(cases: Sequence[Case], found: Compromise) -> Plain:
    """One wafer with the estimate of every case.

    Args:
        cases: what was asked for.
        found: the answer.
    """
    rows = zip(cases, found.wafers, found.strategies, found.estimates, found.rates, found.own, strict=True)
    return {
        "architecture": architecture_record(found.wafers[0]),
        "mean": found.mean,
        "value": found.value,
        "upper_bound": found.upper_bound,
        "gap": found.gap,
        "cases": [
            estimate_record(wafer, strategy, answer)
            | {
                "name": case.name,
                "weight": case.weight,
                "rate": rate,
                "own_rate": found.own_rates[number],
                "share": found.shares[number],
                "own_architecture": architecture_record(own.wafer),
                "own_gap": None if own.certificate is None else own.certificate.gap,
            }
            for number, (case, wafer, strategy, answer, rate, own) in enumerate(rows)
        ],
        "evaluations": found.evaluations,
        "wall_time": found.wall_time,
    }


def front_record(front: Front) -> Plain:
    """All designs of a front, the best of the first objective first."""
    return {
        "objectives": list(front.objectives),
        "hypervolume": front.hypervolume,
        "points": [
            _design(point) | {"rates": dict(zip(front.objectives, point.rates, strict=True))} for point in front.points
        ],
        "searched": front.searched,
        "evaluations": front.evaluations,
        "wall_time": front.wall_time,
    }


def uncertainty_record(found: Uncertainty) -> Plain:
    """The pool of designs, the nominal one first, with shares and quantiles."""
    figures = ("fits", "wins", "mean_rate", "rates", "regret")
    return {
        "deviations": found.deviations,
        "draws": found.draws,
        "quantiles": list(QUANTILES),
        "best_rates": plain(found.best_rates),
        "none_fits": found.none_fits,
        "tolerance": found.tolerance,
        "searched": found.searched,
        "gains": plain(found.gains),
        "shortfalls": plain(found.shortfalls),
        "shortfall": plain(found.shortfall),
        "nominal": 0,
        "safest": found.pool.index(found.safest),
        "winners": _winners(found),
        "pool": [_design(one) | {name: plain(getattr(one, name)) for name in figures} for one in found.pool],
        "evaluations": found.evaluations,
        "wall_time": found.wall_time,
    }


def _design(one: FrontPoint | Contender) -> Plain:
    return {
        "die_rows": one.die_rows,
        "die_cols": one.die_cols,
        "dram_horizontal_sides": one.sides[0],
        "dram_vertical_sides": one.sides[1],
        "knobs": plain(one.knobs),
        "strategy": strategy_record(one.strategy),
        "strategy_names": strategy_names(one.strategy),
    }


def compromise_view(title: str, record: Mapping[str, Any]) -> RenderableType:
    """The mean, what every case has of it, and the wafer."""
    said = {
        f"{record['mean']} mean": digits(record["value"]),
        "no wafer has more than": "not proven" if record["upper_bound"] is None else digits(record["upper_bound"]),
        "proven gap": percent(record["gap"]),
        "evaluations": f"{record['evaluations']:,}",
        "search time": seconds(record["wall_time"]),
    }
    heads = (
        "case",
        "weight",
        "rate",
        "on its own wafer",
        "share",
        "tensor",
        "pipe",
        "data",
        "ctx",
        "micro",
        "recompute",
    )
    rows = (
        (
            case["name"],
            f"{case['weight']:g}",
            digits(case["rate"]),
            digits(case["own_rate"]),
            percent(case["share"]),
            *_strategy(case),
        )
        for case in record["cases"]
    )
    return stacked(pairs(title, said), table("Cases", heads, rows), architecture_table(record))


def front_view(title: str, record: Mapping[str, Any]) -> RenderableType:
    """The front as a table of designs."""
    points, (first, second) = record["points"], record["objectives"]
    step = max(1, -(-len(points) // SHOWN))
    shown = [*points[:-1:step], points[-1]]
    said = {
        "designs": f"{len(points):,}, of {record['searched']} searches and what lies around",
        "hypervolume": percent(record["hypervolume"]),
        "evaluations": f"{record['evaluations']:,}",
        "search time": seconds(record["wall_time"]),
    }
    rows = ((digits(p["rates"][first]), digits(p["rates"][second]), *_place(p), *_strategy(p)) for p in shown)
    heads = tuple(name.replace("tokens-per-", "tokens/") for name in (first, second))
    return stacked(pairs(title, said), table("Front", (*heads, *_PLACE, *_STRATEGY), rows, words=0))


def uncertainty_view(title: str, record: Mapping[str, Any]) -> RenderableType:
    """The pool as a table of designs, those that win most first, and what the winners have."""
    middle, pool = record["quantiles"].index(0.5), record["pool"]
    (mean, error), ends = record["shortfall"], record["best_rates"]
    checked = sum(part is not None for part in record["shortfalls"])
    said = {
        "draws": f"{record['draws']:,}",
        "best of the pool, 5 to 95 % of the draws": "-" if ends is None else f"{digits(ends[0])} to {digits(ends[-1])}",
        "nothing of the pool fits in": percent(record["none_fits"]),
        "pool": f"{len(pool):,} designs of {record['searched']:,} draws, tolerance {percent(record['tolerance'])}",
        "falls short of searches of its own by": f"{percent(mean)} +- {percent(error)} in {checked:,} further draws",
        "evaluations": f"{record['evaluations']:,}",
        "search time": seconds(record["wall_time"]),
    }
    order = sorted(range(len(pool)), key=lambda i: -pool[i]["wins"])
    listed = list(dict.fromkeys([*order[:SHOWN], record["nominal"], record["safest"]]))
    rows = []
    for number in listed:
        one = pool[number]
        marks = ["nominal"] * (number == record["nominal"]) + ["safest"] * (number == record["safest"])
        half = ("-", "-") if one["rates"] is None else (digits(one["rates"][middle]), percent(one["regret"][middle]))
        rows.append(
            (
                ", ".join(marks),
                percent(one["wins"]),
                percent(one["fits"]),
                *half,
                digits(one["mean_rate"]),
                *_place(one),
            )
        )
    heads = ("", "wins", "fits", "median", "regret", "mean", *_PLACE)
    others = [pool[i]["wins"] for i in order if i not in listed]
    rest = f" ({len(others):,} more win {percent(sum(others))})" if others else ""
    above = f"Pool{rest}: median and regret where it fits, mean with 0 elsewhere"
    shares = tuple(f"{share:.0%}" for share in record["quantiles"])
    winners = [(name, *map(digits, values)) for name, values in record["winners"].items()]
    return stacked(
        pairs(title, said),
        table(above, heads, rows),
        table("Of the best of each draw, not above this in", ("", *shares), winners),
    )


def _winners(found: Uncertainty) -> Plain:
    # quantiles over draws of what the best of the pool has
    wins = np.array([one.wins for one in found.pool])
    if not wins.any():
        return {}
    numbers = {
        "dies": [one.die_rows * one.die_cols for one in found.pool],
        "cores per die": [one.knobs.core_rows * one.knobs.core_cols for one in found.pool],
        "SRAM per core, KiB": [one.knobs.sram_bytes_per_core / KIB for one in found.pool],
        "stacks per die": [one.knobs.dram_stacks for one in found.pool],
        "D2D per edge, GB/s": [one.knobs.d2d_bandwidth / GIGA for one in found.pool],
        "clock, GHz": [one.knobs.clock / GIGA for one in found.pool],
    }
    shown = {}
    for name, column in numbers.items():
        values = np.array(column, float)
        order = np.argsort(values)
        rows = np.searchsorted(np.cumsum(wins[order]), wins.sum() * np.array(QUANTILES))
        shown[name] = values[order][np.minimum(rows, len(values) - 1)].tolist()
    return shown


_PLACE = ("dies", "die, mm", "cores", "KiB", "stacks", "GHz")
_STRATEGY = ("tensor", "pipe", "data", "ctx", "micro", "recompute")


def _place(one: Mapping[str, Any]) -> tuple[str, ...]:
    knobs = one["knobs"]
    return (
        f"{one['die_rows']}x{one['die_cols']}",
        f"{knobs['die_width'] / MM:g}x{knobs['die_height'] / MM:g}",
        f"{knobs['core_rows']:g}x{knobs['core_cols']:g}",
        f"{knobs['sram_bytes_per_core'] / KIB:g}",
        f"{knobs['dram_stacks']:g}",
        f"{knobs['clock'] / GIGA:.1f}",
    )


def _strategy(one: Mapping[str, Any]) -> tuple[str, ...]:
    strategy = one["strategy"]
    return (
        f"{strategy['tensor_rows']}x{strategy['tensor_cols']}",
        *(str(strategy[f"{kind}_parallel"]) for kind in ("pipeline", "data", "context")),
        str(strategy["micro_batch_size"]),
        str(one["strategy_names"]["recompute"]),
    )
