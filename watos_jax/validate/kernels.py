"""Single kernels: the utilisation curves of `Efficiency` beside measured times, on kernels left out of the fit.

A file holds matrix products (columns `m, n, k`), attention cores (`pass_, head_dim`), element-wise operators (`op, m,
n`) or collectives (`op, n_ranks, size_bytes`), and the `chip` of each. The measured time is `time_us`, or follows from
`tflops` or `busbw_GBs` by the convention of the row. At most four numbers of `Efficiency` are fitted to each group (a
kernel library on a chip), by gradient; predicted is what kernels left out of the fit would take (five folds by shape).
The naive baseline has one utilisation of the peak (of FLOP, DRAM or link) per group, fitted to the very rows.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.calibrate import FOLDS, Times, fit_times
from watos_jax.hardware import Die, Efficiency, System
from watos_jax.measured import CHIPS, Skip, chip_of, needed, number, rows_of
from watos_jax.network.layout import layout
from watos_jax.network.times import slope_and_latency
from watos_jax.operators.roofline import attention_cost, elementwise_times, matmul_cost
from watos_jax.presets import chips
from watos_jax.relax import HARD
from watos_jax.strategy import Strategy
from watos_jax.units import GIGA, MICRO, TERA
from watos_jax.validate.errors import Report, constant_per_group, report
from watos_jax.workload import ELEMENT_BYTES, Attention, Elementwise, Matmuls

BACKWARD_OF_FLASH: Final = 2.5
"""FLOP of a flash backward pass over those of the forward pass, in the convention of its authors."""


class Kernel(NamedTuple):
    """One measured kernel.

    Attributes:
        group: what it is compared with, and fitted together with.
        shape: rows of one shape are left out together.
        measured: s.
        arguments: what the function of its kind takes.
        ideal: s at the peak, for the baseline.
    """

    group: str
    shape: tuple[float, ...]
    measured: float
    arguments: Any
    ideal: float


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        columns: that it must have.
        read: a row on its chip as a kernel.
        times: s from an efficiency and the stacked arguments.
        start: where the fit starts; its fields above 0 are those that are fitted.
    """

    columns: frozenset[str]
    read: Callable[[Mapping[str, str], System], Kernel]
    times: Times
    start: Efficiency


def kernels(path: str | Path) -> Report:
    """Compare times of single kernels with the roofline and utilisation curves fitted to other shapes.

    Args:
        path: a CSV file of kernels.

    Returns:
        The keys of `errors.report`, and `efficiency`: fitted numbers of each group. A group needs ten kernels of five
        shapes; those of a smaller one are skipped.

    Raises:
        ValueError: the file cannot be read, is of no known kind, or no row can be used.
    """
    rows = rows_of(path)
    columns = set(rows[0])
    kind = next((one for one in KINDS if one.columns <= columns), None)
    if kind is None:
        needed = "; ".join(", ".join(sorted(one.columns)) for one in KINDS)
        raise ValueError(f"{path} has no columns of kernels: it must have one of {needed}")
    skipped, groups = Counter[str](), defaultdict[str, list[tuple[str, Kernel]]](list)
    for line, row in enumerate(rows, start=2):
        try:
            one = kind.read(row, CHIPS[chip_of(row)])
        except Skip as reason:
            skipped[str(reason)] += 1
        else:
            groups[one.group].append((row.get("row_id") or str(line), one))
    predictions, labels, ideal = list[dict[str, Any]](), list[str](), list[float]()
    fitted = dict[str, dict[str, float]]()
    for name, members in sorted(groups.items()):
        shapes = [one.shape for _, one in members]
        if len(members) < 2 * FOLDS or len(set(shapes)) < FOLDS:
            skipped[f"fewer than {2 * FOLDS} kernels of {FOLDS} shapes in a group"] += len(members)
            continue
        truth = np.array([one.measured for _, one in members])
        stacked = jax.tree.map(lambda *leaves: jnp.asarray(leaves, float), *(one.arguments for _, one in members))
        found = fit_times(kind.times, stacked, truth, shapes, start=kind.start)
        for (row_id, one), time in zip(members, found.predictions, strict=True):
            predictions.append({"row_id": row_id, "measured": one.measured, "predicted": float(time)})
            ideal.append(one.ideal)
            labels.append(name)
        fitted[name] = {
            field: float(getattr(found.efficiency, field))
            for field in kind.start.__dataclass_fields__
            if getattr(kind.start, field) > 0
        }
    right = [one["measured"] for one in predictions]
    naive = constant_per_group(ideal, right, labels) if predictions else None
    return report(path, len(rows), skipped, labels, predictions, naive) | {"efficiency": fitted}


def _matmul(row: Mapping[str, str], system: System) -> Kernel:
    m, n, k = (needed(row, name) for name in "mnk")
    if "16" not in row.get("dtype", ""):
        raise Skip("precision other than 16 bits")
    count = number(row, "batch") or 1.0
    flop = 2.0 * m * n * k * count
    time = number(row, "time_us")
    rate = number(row, "tflops")
    if time is None and rate is None:
        raise Skip("time_us and tflops blank")
    seconds = time * MICRO if time is not None else flop / ((rate or 1.0) * TERA)
    kind = "grouped products" if "grouped" in row.get("kind", "") else "products"
    arguments = (system.die, (m, n, k, count))
    ideal = flop / float(system.die.flop_rate)
    return Kernel(f"{kind} on {row['chip']}", (m, n, k, count), seconds, arguments, ideal)


def _matmul_times(efficiency: Efficiency, arguments: tuple[Die, tuple[Array, ...]]) -> Float[Array, " rows"]:
    def one(die: Die, sizes: tuple[Array, ...]) -> Float[Array, ""]:
        shapes = Matmuls(*(size[None] for size in sizes))
        return matmul_cost(die, efficiency, shapes, jnp.asarray(ELEMENT_BYTES), HARD).forward[0]

    return jax.vmap(one)(*arguments)


def _attention(row: Mapping[str, str], system: System) -> Kernel:
    batch, length, heads, width, rate = (needed(row, name) for name in ("batch", "seq", "heads", "head_dim", "tflops"))
    part, causal = row["pass_"], row.get("causal") == "1"
    whole = "full" in row.get("flop_convention", "")  # counts the masked half of causal attention
    if whole and part != "fwd":
        raise Skip("FLOP convention of the backward pass not stated")
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
    passes = {"fwd": 1.0, "bwd": BACKWARD_OF_FLASH, "fwd+bwd": 1.0 + BACKWARD_OF_FLASH}
    if part not in passes:
        raise Skip(f"pass_ is {part or 'blank'}")
    forward = 2.0 * batch * length * keys * heads * (width + value)
    counted = passes[part] * forward * (2.0 if whole and causal else 1.0)
    share = (float("fwd" in part), float("bwd" in part))
    ideal = passes[part] * forward / float(system.die.flop_rate)
    sizes = (batch, length, heads, width, keys, *share)
    arguments = (system.die, shape, share)
    return Kernel(f"{row['kernel']} on {row['chip']}", sizes, counted / (rate * TERA), arguments, ideal)


def _attention_times(
    efficiency: Efficiency, arguments: tuple[Die, Attention, tuple[Array, Array]]
) -> Float[Array, " rows"]:
    def one(die: Die, shape: Attention, share: tuple[Array, Array]) -> Float[Array, ""]:
        cost = attention_cost(die, efficiency, shape, HARD)
        return share[0] * cost.forward + share[1] * cost.backward

    return jax.vmap(one)(*arguments)


PASSES: Final = {"softmax": 2.0, "layernorm": 2.0, "gelu": 2.0}
"""Tensors that an element-wise operator reads or writes, by the `op` column."""


def _elementwise(row: Mapping[str, str], system: System) -> Kernel:
    m, n, time = (needed(row, name) for name in ("m", "n", "time_us"))
    if row["op"] not in PASSES:
        raise Skip(f"operator {row['op']}")
    moved = PASSES[row["op"]] * ELEMENT_BYTES * m * n
    ideal = moved / float(system.die.memory.bandwidth)
    return Kernel(f"{row['op']} on {row['chip']}", (m, n), time * MICRO, (system.die, moved), ideal)


def _elementwise_times(efficiency: Efficiency, arguments: tuple[Die, Array]) -> Float[Array, " rows"]:
    def one(die: Die, moved: Array) -> Float[Array, ""]:
        zero = jnp.zeros_like(moved)
        traffic = Elementwise(zero, zero, zero, moved, zero, zero)
        return elementwise_times(die, efficiency, traffic, HARD).activation

    return jax.vmap(one)(*arguments)


SHARES: Final = {"all_reduce": 1.0, "reduce_scatter": 0.5, "all_gather": 0.5}
"""Time of a collective over that of an all-reduce of the same buffer."""


def _collective(row: Mapping[str, str], system: System) -> Kernel:
    ranks, size = needed(row, "n_ranks"), needed(row, "size_bytes")
    if len(system.tiers) != 2:
        raise Skip(f"no network of nodes: {row['chip']}")
    op = row.get("op") or "all_reduce"
    if op not in SHARES:
        raise Skip(f"operator {op}")
    time, bus = number(row, "time_us"), number(row, "busbw_GBs")
    carried = 2.0 * SHARES[op] * (ranks - 1.0) / ranks * size
    if time is None and bus is None:
        raise Skip("time_us and busbw_GBs blank")
    nodes = number(row, "n_nodes") or 1.0
    within = ranks / nodes
    if within % 1.0 or within > chips.GPUS_PER_NODE or (nodes > 1 and within < chips.GPUS_PER_NODE):
        raise Skip("nodes that are not whole")
    first, last = system.tiers
    system = replace(system, tiers=(replace(first, cols=within), replace(last, cols=nodes)))
    all_reduce = jax.tree.map(jnp.asarray, layout(system, Strategy(data_parallel=ranks, global_batch_size=ranks)).data)
    slope, latency = slope_and_latency(system, Efficiency(), all_reduce)
    link = float((first if nodes == 1 else last).link.bandwidth)
    seconds = time * MICRO if time is not None else carried / ((bus or 1.0) * GIGA)
    arguments = (SHARES[op] * size * float(slope), SHARES[op] * float(latency))
    return Kernel(f"{op} on {row['chip']}", (ranks, nodes, size), seconds, arguments, carried / link)


def _collective_times(efficiency: Efficiency, arguments: tuple[Array, Array]) -> Float[Array, " rows"]:
    carried, hops = arguments
    return carried * (1.0 + efficiency.network_overhead) + hops + efficiency.collective_latency


KINDS: Final[Sequence[Kind]] = (
    Kind(
        frozenset({"chip", "m", "n", "k"}),
        _matmul,
        _matmul_times,
        Efficiency(matmul_overhead=0.3, matmul_rows=100.0, matmul_cols=300.0, launch_time=5e-6),
    ),
    Kind(
        frozenset({"chip", "pass_", "head_dim", "tflops"}),
        _attention,
        _attention_times,
        Efficiency(attention_overhead=1.0, attention_rows=100.0, memory_overhead=0.3, launch_time=5e-6),
    ),
    Kind(
        frozenset({"chip", "n_ranks", "size_bytes"}),
        _collective,
        _collective_times,
        Efficiency(network_overhead=0.3, collective_latency=2e-5),
    ),
    Kind(
        frozenset({"chip", "op", "m", "n", "time_us"}),
        _elementwise,
        _elementwise_times,
        Efficiency(memory_overhead=0.3, launch_time=5e-6),
    ),
)
"""Files of kernels, and the at most four numbers that are fitted to each group."""
