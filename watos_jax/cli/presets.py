"""`watos presets`: what is known by name, its numbers and their sources."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Final

import equinox as eqx
import typer
from rich.text import Text

from watos_jax.cli.documentation import meanings, sources
from watos_jax.cli.options import AsJson
from watos_jax.cli.runtime import prepare
from watos_jax.cli.values import choice
from watos_jax.presets import budgets, chips, models, prices, technologies, wafers
from watos_jax.presets.technologies import PJ_PER_BIT
from watos_jax.report.records import plain
from watos_jax.report.text import stacked, table
from watos_jax.units import GIGA, KILO, MIB, MM, MM2, NANO, PICO, TERA, UM2
from watos_jax.workload import num_parameters

Figures = dict[str, Callable[[Any], str]]


@dataclass(frozen=True)
class Kind:
    """One kind of preset.

    Attributes:
        module: where the constants and their sources are.
        names: the presets by name.
        figures: key figures of a list, by heading.
    """

    module: ModuleType
    names: Mapping[str, Any]
    figures: Figures


def _size(width: Any, height: Any) -> str:
    return f"{float(width) / MM:g} x {float(height) / MM:g}"


def _grid(rows: Any, cols: Any) -> str:
    return f"{float(rows):g} x {float(cols):g}"


_LINK: Final[Figures] = {
    "GB/s": lambda link: f"{float(link.bandwidth) / GIGA:,.1f}",
    "latency, ns": lambda link: f"{float(link.latency) / NANO:,.0f}",
    "pJ/bit": lambda link: f"{float(link.energy) / PJ_PER_BIT:.2f}",
    "GB/s per mm": lambda link: f"{float(link.shoreline_density) * MM / GIGA:.1f}" if link.shoreline_density else "-",
    "reach, mm": lambda link: f"{float(link.max_length) / MM:g}" if link.max_length else "-",
}
_MEMORY: Final[Figures] = {
    "GB": lambda memory: f"{float(memory.stack_bytes) / GIGA:g}",
    "peak GB/s": lambda memory: f"{float(memory.stack_bandwidth) / GIGA:,.0f}",
    "footprint, mm": lambda memory: _size(memory.stack_length, memory.stack_depth),
}
_TECHNOLOGY: Final[Figures] = {
    "um2/MAC": lambda logic: f"{float(logic.mac_area) / UM2:,.0f}",
    "mm2/MiB": lambda logic: f"{float(logic.sram_area) * MIB / MM2:.2f}",
    "pJ/FLOP": lambda logic: f"{float(logic.flop_energy) / PICO:.2f}",
    "DRAM pJ/bit": lambda logic: f"{float(logic.dram_energy) / PJ_PER_BIT:.1f}",
    "mm/stack": lambda logic: f"{float(logic.memory_phy_length) / MM:g}",
}
_DIE: Final[Figures] = {
    "TFLOP/s": lambda system: f"{float(system.die.flop_rate) / TERA:,.0f}",
    "GB": lambda system: f"{float(system.die.memory.capacity) / GIGA:g}",
    "DRAM GB/s": lambda system: f"{float(system.die.memory.bandwidth) / GIGA:,.0f}",
}
KINDS: Final = {
    "models": Kind(
        models,
        models.NAMES,
        {
            "10^9 parameters": lambda model: f"{float(num_parameters(model)) / GIGA:,.1f}",
            "layers": lambda model: f"{model.num_layers:g}",
            "hidden": lambda model: f"{model.hidden_size:g}",
            "heads": lambda model: f"{model.num_attention_heads:g}",
            "experts": lambda model: f"{model.num_experts:g}" if model.num_experts else "-",
            "sequence": lambda model: f"{model.sequence_length:g}",
        },
    ),
    "wafers": Kind(
        wafers,
        wafers.NAMES,
        {"dies": lambda wafer: _grid(wafer.die_rows, wafer.die_cols)}
        | _DIE
        | {
            "edge GB/s": lambda wafer: f"{float(wafer.d2d.bandwidth) / GIGA:,.0f}",
            "window, mm": lambda wafer: _size(wafer.window_width, wafer.window_height),
        },
    ),
    "systems": Kind(
        chips,
        chips.NAMES,
        {"GPUs": lambda system: f"{float(system.num_dies):g}"}
        | _DIE
        | {
            "NVLink GB/s": lambda system: f"{float(system.tiers[0].link.bandwidth) / GIGA:g}",
            "network GB/s": lambda system: f"{float(system.tiers[-1].link.bandwidth) / GIGA:g}",
        },
    ),
    "budgets": Kind(
        budgets,
        budgets.NAMES,
        {
            "window, mm": lambda budget: _size(budget.wafer.window_width, budget.wafer.window_height),
            "kW": lambda budget: f"{float(budget.wafer.power_limit) / KILO:g}",
            "um2/MAC": lambda budget: _TECHNOLOGY["um2/MAC"](budget.wafer.technology),
            "link GB/s per mm": lambda budget: _LINK["GB/s per mm"](budget.wafer.d2d),
            "stack, mm": lambda budget: _MEMORY["footprint, mm"](budget.wafer.die.memory),
        },
    ),
    "prices": Kind(
        prices,
        prices.NAMES,
        {
            "$ per wafer": lambda price: f"{price.wafer_price:,.0f}",
            "defects per cm2": lambda price: f"{price.defect_density / prices.PER_CM2:.2f}",
            "alpha": lambda price: f"{price.clustering:g}",
            "$ per GB": lambda price: f"{price.memory_price * GIGA:g}",
        },
    ),
    "technologies": Kind(technologies, technologies.NAMES, _TECHNOLOGY),
    "links": Kind(technologies, technologies.LINKS, _LINK),
    "memories": Kind(technologies, technologies.MEMORIES, _MEMORY),
}
"""The kinds, in the order in which they are listed."""


def presets(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One preset of that kind.")] = None,
    as_json: AsJson = False,
) -> Any:
    """List what is known by name.

    One preset is shown with every number, what it means, and its source.

    \b
      watos presets                        everything, with key figures
      watos presets wafers                 one kind
      watos presets models llama3-70b      one preset
    """  # noqa: D301
    prepare()
    kinds = KINDS if kind is None else {kind: KINDS[choice("KIND", kind, KINDS)]}
    if kind is None or name is None:
        if as_json:
            return json.dumps({title: _records(one) for title, one in kinds.items()}, indent=2, allow_nan=False)
        return stacked(*(_list(title, one) for title, one in kinds.items()))
    key = choice("NAME", name, KINDS[kind].names)
    if as_json:
        return json.dumps({"name": key} | _records(KINDS[kind])[key], indent=2, allow_nan=False)
    return _details(key, KINDS[kind])


def _records(kind: Kind) -> dict[str, Any]:
    found = sources(kind.module)
    return {key: {"values": plain(value), "source": found.get(key)} for key, value in kind.names.items()}


def _list(title: str, kind: Kind) -> Any:
    rows = ((key, *(show(value) for show in kind.figures.values())) for key, value in kind.names.items())
    return table(title, ("name", *kind.figures), rows)


def _details(key: str, kind: Kind) -> Any:
    drawn = table(key, ("field", "value", "meaning"), _numbers(kind.names[key], ""))
    drawn.columns[2].justify = "left"
    for column in drawn.columns[1:]:
        column.no_wrap = False
    drawn.columns[1].max_width = 20
    return stacked(drawn, Text(sources(kind.module).get(key, "no source is written down")))


def _numbers(record: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    texts = meanings(type(record))
    for field in record.__dataclass_fields__:
        value, path = getattr(record, field), prefix + field
        if isinstance(value, eqx.Module):
            yield from _numbers(value, f"{path}.")
        elif isinstance(value, tuple) and isinstance(value[0], eqx.Module):
            for number, part in enumerate(value):
                yield from _numbers(part, f"{path}[{number}].")
        else:
            text = str(value or "none") if isinstance(value, str | tuple | None) else f"{float(value):.10g}"
            yield path, text, texts.get(field, "").rstrip(".")
