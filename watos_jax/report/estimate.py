"""Tables of an estimate: time, breakdown, memory by stage, limits, strategy; what is shown is what JSON holds."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from watos_jax.report.records import CODES
from watos_jax.report.text import digits, pairs, percent, quantity, seconds, stacked, table
from watos_jax.units import GIGA


def summary_table(title: str, record: Mapping[str, Any]) -> Table:
    """Time, throughput, utilisation and power of an estimate."""
    rows = {
        "step time": seconds(record["step_time"]),
        "tokens per second": f"{record['tokens_per_second']:,.0f}",
        "model FLOP utilisation": f"{percent(record['model_flop_utilisation'])} of the dies used",
        "dies used": f"{record['num_dies_used']:,} of {record['num_dies']:,}",
        "mean power": quantity(record["power"], "W"),
        "energy per step": quantity(record["energy"], "J"),
        "tokens per joule": "-" if record["tokens_per_joule"] is None else digits(record["tokens_per_joule"]),
        "operator model": _operator_model(record),
    }
    return pairs(title, rows)


def _operator_model(record: Mapping[str, Any]) -> str:
    name, outside = record["fidelity"], record["outside"]
    return f"{name}; roofline for {percent(outside)} of the time, outside its range" if outside > 0.0 else str(name)


def breakdown_table(record: Mapping[str, Any]) -> Table:
    """Where the time of a step goes: the slowest stage's work, the pipeline's bubble, and what follows."""
    step = record["step_time"]
    shown = sorted(((name, part) for name, part in record["breakdown"].items() if part), key=lambda item: -item[1])
    rows = [(name.replace("_", " "), seconds(part), percent(part / step)) for name, part in shown]
    drawn = table("Time of a step", ("cause", "time", "share"), rows)
    drawn.add_section()
    drawn.add_row("total", seconds(step), percent(sum(part for _, part in shown) / step))
    return drawn


def memory_table(record: Mapping[str, Any]) -> Table:
    """Bytes per die at each stage's peak, stages of equal need in one row."""
    parts, capacity = record["memory_parts"], record["memory_capacity"]
    stages = zip(record["memory"], *parts.values(), strict=True)
    rows = []
    for cells, group in groupby(enumerate(stages), key=lambda item: [gigabytes(value) for value in item[1]]):
        numbers = [number for number, _ in group]
        share = percent(record["memory"][numbers[0]] / capacity) if capacity else "-"
        rows.append((_range(numbers), cells[0], share, *cells[1:]))
    title = f"Memory per die, GB (capacity {gigabytes(capacity)})"
    return table(title, ("stage", "total", "used", *parts), rows)


def gigabytes(value: float | None) -> str:
    """Bytes in GB, without the unit."""
    return "-" if value is None else f"{value / GIGA:.2f}"


def _range(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def margin_table(record: Mapping[str, Any]) -> Table:
    """Every limit with the share of it that is used, the tightest first and marked."""
    margins = {name: 0.0 if margin is None else margin for name, margin in record["margins"].items()}
    binding = record["binding"]
    ordered = sorted(margins, key=lambda name: (name != binding, margins[name]))
    rows = []
    for name in ordered:
        marks = ["binding"] * (name == binding) + ["DOES NOT FIT"] * (margins[name] < 0.0)
        style = "red" if margins[name] < 0.0 else "bold" if name == binding else ""
        cells = (name.replace("_", " "), ", ".join(marks), percent(1.0 - margins[name]), percent(margins[name]))
        rows.append([Text(cell, style) for cell in cells])
    return table("Limits", ("limit", "", "used", "margin"), rows, words=2)


def strategy_table(record: Mapping[str, Any]) -> Table:
    """Every field of the strategy, codes by name."""
    shown = record["strategy"] | record["strategy_names"]
    rows = {name.replace("_", " "): inline(value, name) for name, value in shown.items()}
    return pairs("Strategy", rows)


def inline(value: Any, name: str) -> str:
    """One field of a strategy, runs of equal values of stages together.

    Args:
        value: a number or name, or one for each stage.
        name: of the field.
    """
    values = value if isinstance(value, list) else [value]
    texts = [text if name in CODES else f"{text:,}" for text in values]
    return ", ".join(f"{text} x {len(list(run))}" if len(values) > 1 else text for text, run in groupby(texts))


def estimate_view(title: str, record: Mapping[str, Any]) -> RenderableType:
    """All tables of an estimate."""
    parts = (breakdown_table(record), memory_table(record), margin_table(record))
    return stacked(summary_table(title, record), *parts)
