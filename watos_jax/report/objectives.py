"""Compromises, fronts and uncertain constants as dictionaries, and as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from watos_jax.report.records import Plain, architecture_record, estimate_record, plain, strategy_names, strategy_record
from watos_jax.report.tables import architecture_table
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
        "shortfalls": plain(found.shortfalls),
        "nominal": 0,
        "safest": found.pool.index(found.safest),
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
    """The pool as a table of designs, those that win most first."""
    middle = record["quantiles"].index(0.5)
    short = [percent(part) for part in record["shortfalls"] if part is not None]
    ends = record["best_rates"]
    said = {
        "draws": f"{record['draws']:,}",
        "best of the pool, 5 to 95 % of the draws": "-" if ends is None else f"{digits(ends[0])} to {digits(ends[-1])}",
        "nothing of the pool fits in": percent(record["none_fits"]),
        "pool short of searches of its own by": ", ".join(short) or "-",
        "evaluations": f"{record['evaluations']:,}",
        "search time": seconds(record["wall_time"]),
    }
    order = sorted(range(len(record["pool"])), key=lambda i: -record["pool"][i]["wins"])
    rows = []
    for number in order:
        one = record["pool"][number]
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
    return stacked(
        pairs(title, said), table("Pool: median and regret where it fits, mean with 0 elsewhere", heads, rows)
    )


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
