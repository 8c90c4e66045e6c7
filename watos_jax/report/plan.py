"""Tables of a search over strategies on fixed hardware, and its winner as arguments of Megatron-LM."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from watos_jax.report.estimate import margin_table
from watos_jax.report.text import pairs, percent, seconds, stacked, table


def plan_view(title: str, record: Mapping[str, Any]) -> RenderableType:
    """All tables of a search over strategies on fixed hardware."""
    counts = {"strategies estimated": f"{record['evaluated']:,}", "of them fit": f"{record['feasible']:,}"}
    counts |= {f"exceed {name.replace('_', ' ')}": f"{count:,}" for name, count in record["exceeded"].items()}
    own = {
        f"the machine itself exceeds {name.replace('_', ' ')} by": part
        for name, part in record["hardware_exceeds"].items()
    }
    parts = [pairs(title, counts | {words: percent(part) for words, part in own.items()})]
    if record["nearest"] is not None:
        nearest = record["nearest"]
        excess = percent(-nearest["margins"][nearest["binding"]])
        words = f"None fits; the nearest exceeds {nearest['binding'].replace('_', ' ')} by {excess}"
        return stacked(*parts, _ranking(words, [nearest]), margin_table(nearest))
    parts.append(_ranking("Fastest strategies that fit", record["best"]))
    lines = [shlex.join(record["megatron_arguments"]), *record["not_in_megatron"]]
    return stacked(*parts, Text("The first as arguments of Megatron-LM", "bold"), *(Text(line) for line in lines))


def _ranking(title: str, choices: Sequence[Mapping[str, Any]]) -> Table:
    short = {
        "tensor": "tensor_cols",
        "pipe": "pipeline_parallel",
        "chunks": "virtual_stages",
        "data": "data_parallel",
        "ctx": "context_parallel",
        "exp": "expert_parallel",
        "micro": "micro_batch_size",
        "seq": "sequence_parallel",
        "shard": "optimizer_sharding",
        "grad": "gradient_bytes",
        "flash": "flash_attention",
    }
    rows = []
    for choice in choices:
        strategy, names = choice["strategy"], choice["strategy_names"]
        cells = {heading: str(strategy[name]) for heading, name in short.items()}
        if strategy["tensor_rows"] > 1:
            cells["tensor"] = f"{strategy['tensor_rows']}x{strategy['tensor_cols']}"
        step, rate = seconds(choice["step_time"]), f"{choice['tokens_per_second']:,.0f}"
        used = percent(1.0 - choice["margins"]["memory"])
        rows.append((names["recompute"], names["schedule"], step, rate, used, *cells.values()))
    return table(title, ("recompute", "schedule", "step", "tokens/s", "memory", *short), rows, words=2)
