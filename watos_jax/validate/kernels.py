"""Single kernels: predicted beside measured, with the efficiencies that steps of training were fitted to.

A file holds matrix products (columns `m, n, k`), attention cores (`pass_, head_dim`), element-wise operators (`op, m,
n`) or collectives (`op, n_ranks, size_bytes`), and the `chip` of each. The measured time is `time_us`, or follows from
`tflops` or `busbw_GBs` by the convention of the row. No kernel entered a fit. The naive baseline has one utilisation
of the peak (of FLOP, DRAM or link) per group.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp

from watos_jax.hardware import System
from watos_jax.measured import CHIPS
from watos_jax.network.layout import layout
from watos_jax.network.times import slope_and_latency
from watos_jax.operators.roofline import OperatorCost, attention_cost, elementwise_times, matmul_cost
from watos_jax.presets import chips, efficiencies
from watos_jax.relax import HARD
from watos_jax.strategy import Strategy
from watos_jax.units import GIGA, MICRO, TERA
from watos_jax.validate.errors import Report, constant_per_group, number, report, rows_of
from watos_jax.workload import ELEMENT_BYTES, Attention, Elementwise, Matmuls

SOURCE_OF_SET: Final = {"A100": "Megatron-LM", "H100": "NeMo", "B200": "SimuMax"}
"""Source whose efficiency stands for each chip."""
BACKWARD_OF_FLASH: Final = 2.5
"""FLOP of a flash backward pass over those of the forward pass, in the convention of its authors."""


class Kernel(NamedTuple):
    """One measured kernel.

    Attributes:
        group: what it is compared with.
        measured: s.
        predicted: s.
        ideal: s at the peak, for the baseline.
    """

    group: str
    measured: float
    predicted: float
    ideal: float


class _Left(Exception):
    # why a row is not used
    pass


def kernels(path: str | Path) -> Report:
    """Compare times of single kernels with the roofline and its fitted efficiencies.

    Args:
        path: a CSV file of kernels.

    Raises:
        ValueError: the file cannot be read, is of no known kind, or no row can be used.
    """
    rows = rows_of(path)
    columns = set(rows[0]) if rows else set()
    found = next((read for needed, read in KINDS if needed <= columns), None)
    if found is None:
        raise ValueError(f"{path} has no columns of kernels: it must have one of {_kinds()}")
    skipped, used = Counter[str](), list[Kernel]()
    predictions = list[dict[str, Any]]()
    for line, row in enumerate(rows, start=2):
        try:
            one = found(row, _system(row))
        except _Left as reason:
            skipped[str(reason)] += 1
            continue
        used.append(one)
        name = row.get("row_id") or str(line)
        predictions.append({"row_id": name, "measured": one.measured, "predicted": one.predicted})
    groups = [one.group for one in used]
    naive = constant_per_group([one.ideal for one in used], [one.measured for one in used], groups) if used else None
    return report(path, len(rows), skipped, groups, predictions, naive)


def _kinds() -> str:
    return "; ".join(", ".join(sorted(needed)) for needed, _ in KINDS)


def _system(row: Mapping[str, str]) -> System:
    words = row["chip"].replace("-", " ").split()
    name = words[0] if words else ""
    if name not in SOURCE_OF_SET or "PCIe" in row["chip"]:
        raise _Left(f"chip without a preset: {row['chip'] or 'blank'}")
    efficiency = efficiencies.of(name, SOURCE_OF_SET[name])
    if efficiency is None:
        raise _Left(f"no fitted efficiency for {name}")
    return replace(CHIPS[name], efficiency=efficiency)


def _sizes(row: Mapping[str, str], *names: str) -> list[float]:
    values = [number(row, name) for name in names]
    blank = next((name for name, value in zip(names, values, strict=True) if value is None), None)
    if blank is not None:
        raise _Left(f"{blank} blank")
    return [value for value in values if value is not None]


def _matmul(row: Mapping[str, str], system: System) -> Kernel:
    m, n, k = _sizes(row, "m", "n", "k")
    if "16" not in row.get("dtype", ""):
        raise _Left("precision other than 16 bits")
    count = number(row, "batch") or 1.0
    flop = 2.0 * m * n * k * count
    time = number(row, "time_us")
    rate = number(row, "tflops")
    if time is None and rate is None:
        raise _Left("time_us and tflops blank")
    seconds = time * MICRO if time is not None else flop / ((rate or 1.0) * TERA)
    kind = "grouped products" if "grouped" in row.get("kind", "") else "products"
    cost = _matmul_cost(system, jnp.array([m]), jnp.array([n]), jnp.array([k]), jnp.array([count]))
    return Kernel(f"{kind} on {row['chip']}", seconds, float(cost.forward[0]), flop / float(system.die.flop_rate))


@jax.jit
def _matmul_cost(system: System, m: jax.Array, n: jax.Array, k: jax.Array, count: jax.Array) -> OperatorCost:
    shapes = Matmuls(rows=m, cols=n, depth=k, count=count)
    return matmul_cost(system.die, system.efficiency, shapes, jnp.asarray(ELEMENT_BYTES), HARD)


@jax.jit
def _attention_cost(system: System, shape: Attention) -> OperatorCost:
    return attention_cost(system.die, system.efficiency, shape, HARD)


def _attention(row: Mapping[str, str], system: System) -> Kernel:
    batch, length, heads, width, rate = _sizes(row, "batch", "seq", "heads", "head_dim", "tflops")
    part, causal = row["pass_"], row.get("causal") == "1"
    whole = "full" in row.get("flop_convention", "")  # counts the masked half of causal attention
    if whole and part != "fwd":
        raise _Left("FLOP convention of the backward pass not stated")
    value = number(row, "v_head_dim") or width
    keys = length / 2.0 if causal else length
    shape = Attention(
        queries=batch * length,
        keys=keys,
        key_tokens=batch * length,
        heads=heads,
        kv_heads=number(row, "kv_heads") or heads,
        head_dim=width,
        value_dim=value,
        sequence=length,
        materialised=1.0 if "standard" in row["kernel"] else 0.0,
    )
    shape = jax.tree.map(jnp.asarray, shape)
    passes = {"fwd": 1.0, "bwd": BACKWARD_OF_FLASH, "fwd+bwd": 1.0 + BACKWARD_OF_FLASH}
    if part not in passes:
        raise _Left(f"pass_ is {part or 'blank'}")
    forward = 2.0 * batch * length * keys * heads * (width + value)
    counted = passes[part] * forward * (2.0 if whole and causal else 1.0)
    cost = _attention_cost(system, shape)
    both = {"fwd": cost.forward, "bwd": cost.backward, "fwd+bwd": cost.forward + cost.backward}
    ideal = passes[part] * forward / float(system.die.flop_rate)
    return Kernel(f"{row['kernel']} on {row['chip']}", counted / (rate * TERA), float(both[part]), ideal)


PASSES: Final = {"softmax": 2.0, "layernorm": 2.0, "gelu": 2.0}
"""Tensors that an element-wise operator reads or writes, by the `op` column."""


def _elementwise(row: Mapping[str, str], system: System) -> Kernel:
    m, n, time = _sizes(row, "m", "n", "time_us")
    if row["op"] not in PASSES:
        raise _Left(f"operator {row['op']}")
    moved = PASSES[row["op"]] * ELEMENT_BYTES * m * n
    zero = jnp.zeros(())
    traffic = Elementwise(zero, zero, zero, jnp.asarray(moved), zero, zero)
    seconds = float(_elementwise_times(system, traffic).activation)
    return Kernel(f"{row['op']} on {row['chip']}", time * MICRO, seconds, moved / float(system.die.memory.bandwidth))


@jax.jit
def _elementwise_times(system: System, traffic: Elementwise) -> Elementwise:
    return elementwise_times(system.die, system.efficiency, traffic, HARD)


SHARES: Final = {"all_reduce": 1.0, "reduce_scatter": 0.5, "all_gather": 0.5}
"""Time of a collective over that of an all-reduce of the same buffer."""


def _collective(row: Mapping[str, str], system: System) -> Kernel:
    ranks, size = _sizes(row, "n_ranks", "size_bytes")
    op = row.get("op") or "all_reduce"
    if op not in SHARES:
        raise _Left(f"operator {op}")
    time, bus = number(row, "time_us"), number(row, "busbw_GBs")
    carried = 2.0 * SHARES[op] * (ranks - 1.0) / ranks * size
    if time is None and bus is None:
        raise _Left("time_us and busbw_GBs blank")
    nodes = number(row, "n_nodes") or 1.0
    within = ranks / nodes
    if within % 1.0 or within > chips.GPUS_PER_NODE or (nodes > 1 and within < chips.GPUS_PER_NODE):
        raise _Left("nodes that are not whole")
    first, last = system.tiers
    system = replace(system, tiers=(replace(first, cols=within), replace(last, cols=nodes)))
    all_reduce = jax.tree.map(jnp.asarray, layout(system, Strategy(data_parallel=ranks, global_batch_size=ranks)).data)
    slope, latency = slope_and_latency(system, system.efficiency, all_reduce)
    link = float((first if nodes == 1 else last).link.bandwidth)
    seconds = time * MICRO if time is not None else carried / ((bus or 1.0) * GIGA)
    return Kernel(
        f"{op} on {row['chip']}",
        seconds,
        SHARES[op] * (size * float(slope) + float(latency) - float(system.efficiency.collective_latency))
        + float(system.efficiency.collective_latency),
        carried / link,
    )


KINDS: Final[tuple[tuple[set[str], Callable[[Mapping[str, str], System], Kernel]], ...]] = (
    ({"chip", "m", "n", "k"}, _matmul),
    ({"chip", "pass_", "head_dim", "tflops"}, _attention),
    ({"chip", "n_ranks", "size_bytes"}, _collective),
    ({"chip", "op", "m", "n", "time_us"}, _elementwise),
)
"""Columns of each kind of file, and how one of its rows is read."""
