"""Tables of a co-designed wafer: area, architecture, cost, prices, refinement and search."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table

from watos_jax.report.estimate import (
    breakdown_table,
    gigabytes,
    inline,
    margin_table,
    memory_table,
    strategy_table,
    summary_table,
)
from watos_jax.report.text import pairs, percent, quantity, seconds, stacked, table
from watos_jax.strategy import Strategy
from watos_jax.units import KIB, MM

PRICED: Final = 12
"""Constants of a budget whose shadow prices are shown, the strongest."""


def architecture_table(record: Mapping[str, Any]) -> Table:
    """The wafer that was designed."""
    a = record["architecture"]
    beside = " and ".join(
        f"{a[f'dram_{name}_sides']} {name}" for name in ("horizontal", "vertical") if a[f"dram_{name}_sides"]
    )
    rows = {
        "dies": f"{a['die_rows']} x {a['die_cols']}, rows x columns",
        "die": f"{a['die_width'] / MM:.1f} x {a['die_height'] / MM:.1f} mm, width x height",
        "cores per die": f"{a['core_rows']} x {a['core_cols']} at {quantity(a['clock'], 'Hz')}",
        "SRAM per core": f"{a['sram_bytes_per_core'] / KIB:,.0f} KiB",
        "peak per die": quantity(a["flop_rate_per_die"], "FLOP/s"),
        "DRAM per die": f"{a['dram_stacks']} stacks, {quantity(a['dram_bytes_per_die'], 'B')}",
        "DRAM bandwidth per die": quantity(a["dram_bandwidth_per_die"], "B/s"),
        "die edges with DRAM": beside or "none",
        "die-to-die per edge and direction": quantity(a["d2d_bandwidth_per_edge_per_direction"], "B/s"),
    }
    return pairs("Architecture", rows)


def area_table(record: Mapping[str, Any]) -> Table:
    """Split of the window's area."""
    fractions = record["area_fractions"]
    longest = max(fractions.values())
    bars = ((name, "#" * round(30 * part / longest), percent(part)) for name, part in fractions.items())
    return table("Area of the window", ("use", "", "share"), bars, words=2)


def search_table(record: Mapping[str, Any]) -> Table:
    """How the design was found and what the search cost."""
    rows = {
        "objective": f"{record['objective']['value']:.6g}",
        "relaxed objective": f"{record['objective']['relaxed_value']:.6g}",
        "rounding gap": percent(record["rounding_gap"]),
        **_proven(record["certificate"]),
        "at an end of the budget": ", ".join(name.replace("_", " ") for name in record["at_bound"]) or "nothing",
        "discrete choices": f"{record['candidates']:,}",
        "lattice points of each": f"{record['lattice_points']:.2g}",
        "evaluations": f"{record['evaluations']:,}",
        "search time": seconds(record["wall_time"]),
        "of it compilation": seconds(record["compile_time"]),
    }
    return pairs("Search", rows)


def _proven(certificate: Mapping[str, Any] | None) -> dict[str, str]:
    if certificate is None:
        return {"proven gap": "none: only for tokens per second, without overlap"}
    visited, boxes = f"{certificate['strategies_visited']:,}", f"{certificate['boxes']:,}"
    return {
        "no design is faster than": seconds(certificate["lower_bound"]),
        "proven gap": f"{percent(certificate['gap'])} ({visited} strategies in {boxes} boxes)",
    }


def refinement_table(refined: Mapping[str, Any]) -> Table:
    """The design with memory shared between stages and stages placed, and how far it may be from the best such one."""
    a, levels = refined["architecture"], refined["strategy_names"]["recompute"]
    shipped = ", ".join(
        f"{one['sender']} to {one['helper']}: {gigabytes(one['bytes_per_die'])}" for one in refined["shipped"]
    )
    degrees = {"tensor": "tensor_rows", "x": "tensor_cols", "pipeline": "pipeline_parallel", "data": "data_parallel"}
    degrees |= {"context": "context_parallel", "micro-batch": "micro_batch_size"}
    rows = {
        "step time": seconds(refined["step_time"]),
        "tokens per second": f"{refined['tokens_per_second']:,.0f}",
        "no such design is faster than": seconds(refined["lower_bound"]),
        "proven gap": percent(refined["gap"]),
        "dies": f"{a['die_rows']} x {a['die_cols']}, {a['core_rows']} x {a['core_cols']} cores, "
        f"{a['dram_stacks']} stacks, {quantity(a['d2d_bandwidth_per_edge_per_direction'], 'B/s')} per edge",
        "strategy": ", ".join(f"{word} {refined['strategy'][name]}" for word, name in degrees.items()),
        "recompute by stage": inline(levels, "recompute"),
        "order of rectangles": "-" if refined["order"] is None else " ".join(map(str, refined["order"])),
        "shipped, GB per die": shipped or "nothing",
    }
    return pairs("Memory shared between stages, stages placed", rows)


def cost_table(record: Mapping[str, Any]) -> Table:
    """Dollars of a working wafer, and what they buy."""
    causes = {name: f"$ {part:,.0f}" for name, part in record["wafer_cost"].items()}
    return pairs("Cost of a wafer", causes | {"tokens per dollar": f"{record['tokens_per_dollar']:,.0f}"})


def worth_table(prices: Mapping[str, Any]) -> Table:
    """What one unit, and one per cent, more of each allowance adds to tokens per second, or to the objective."""
    rows = []
    for name, worth in prices["allowances"].items():
        amount = f"{worth['amount']:,.{0 if worth['amount'] >= 1000.0 else 2}f} {worth['unit']}"
        gains = (f"{worth[part]:+.4f}" if worth[part] else "0" for part in ("one_unit", "one_percent"))
        rows.append((name.replace("_", " "), amount, *gains))
    return table("Worth, in per cent of the objective", ("", "there is", "of one more", "of 1 % more"), rows, words=2)


def resolved_table(resolved: Mapping[str, Any]) -> Table:
    """The local price of each allowance beside the slopes of whole searches with less and with more of it."""
    change = f"{100.0 * resolved['change']:g} %"
    rows = []
    for name, price in resolved["allowances"].items():
        sides = [price[side] for side in ("less", "more")]
        slopes = ("-" if side["one_percent"] is None else f"{side['one_percent'] + 0.0:+.3f}" for side in sides)
        changed = (", ".join(_kinds(side["changed"])) if side["value"] else "nothing fits" for side in sides)
        rows.append((name.replace("_", " "), f"{price['local'] + 0.0:+.3f}", *slopes, *changed))
    headings = ("", "local", f"{change} less", f"{change} more", "less changes", "more changes")
    return table("Worth of 1 % more, per cent, by searching again", headings, rows)


def _kinds(changed: Sequence[str]) -> list[str]:
    # what kind of choice each changed name is
    kinds = {
        "grid": {"die_rows", "die_cols"},
        "edges": {"horizontal_sides", "vertical_sides"},
        "stacks": {"dram_stacks"},
        "strategy": set(Strategy.__dataclass_fields__),
    }
    found = [kind for kind, names in kinds.items() if names & set(changed)]
    return found + ["knobs"] * bool(set(changed) - set().union(*kinds.values()))


def prices_table(prices: Mapping[str, Any]) -> Table:
    """What one per cent more of each limit and of the strongest constants does to the objective, per cent."""
    rows = [(f"limit {name.replace('_', ' ')}", f"{-value:+.3f}") for name, value in prices["limits"].items()]
    rows += [(f"budget {name.replace('_', ' ')}", f"{-value:+.3f}") for name, value in prices["bounds"].items()]
    strongest = sorted(prices["constants"].items(), key=lambda item: -abs(item[1]))
    rows += [(name, f"{value:+.3f}") for name, value in strongest[:PRICED] if abs(value) >= 5e-4]
    return table("One per cent more of", ("", "changes the objective by, %"), rows)


def design_view(title: str, record: Mapping[str, Any], *, every_price: bool = False) -> RenderableType:
    """All tables of a co-designed wafer.

    Args:
        title: above the first table.
        record: of the design.
        every_price: also those of limits and constants.
    """
    prices = record["prices"]
    priced = [] if prices is None else [worth_table(prices), *([prices_table(prices)] if every_price else [])]
    resolved = record.get("resolved_prices")
    priced += [] if resolved is None else [resolved_table(resolved)]
    rescored = record["rescored"]
    again = [] if rescored is None else [summary_table("The wafer's best strategy by this model", rescored)]
    again += [] if rescored is None else [strategy_table(rescored)]
    return stacked(
        summary_table(title, record),
        area_table(record),
        architecture_table(record),
        strategy_table(record),
        breakdown_table(record),
        memory_table(record),
        margin_table(record),
        cost_table(record),
        *priced,
        *([] if record["refinement"] is None else [refinement_table(record["refinement"])]),
        search_table(record),
        *again,
    )
