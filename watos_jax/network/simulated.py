"""What the coefficients predict for a run of a network simulator: one row of a table in, seconds out.

No number is fitted: a row states topology, size, link bandwidth, latency, algorithm and chunks. How messages move
(`Transport`) is told by the tool; that in ASTRA-sim chunks take turns, and the all-gather of an all-reduce per
dimension goes against its reduce-scatter, was read from its results:

* ASTRA-sim, congestion-aware analytical backend: every message is stored and forwarded whole at every hop, a ring
  goes one way, the buffer is cut into `splits` chunks, rows of a 2-D topology come before columns;
* SimGrid SMPI, flow-level: cut-through, XY routes, blocking send-receive, ranks in the order of `rank_mapping`;
  its all-gather and all-to-all named ring send straight to rank + i in step i;
* TACOS: synthesised schedules, compared with the bound at which a link is busy for latency and bandwidth of a
  message;
* BookSim: flit-level all-to-all, compared with the bound from link loads; a node has one port of a link's
  bandwidth.

`bytes` is the full buffer per node, `link_GBps` 1e9 bytes/s in one direction of one link, `latency_ns` of one
link; a route through a switch has two links.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from watos_jax.network.bounds import bound_of_messages
from watos_jax.network.collectives import (
    Transport,
    half,
    ring_all_reduce,
)
from watos_jax.network.contention import Network
from watos_jax.network.exchanges import (
    all_to_all,
    halving_doubling,
    in_steps,
    pairwise,
    recursive_doubling,
    rotation,
)
from watos_jax.network.rectangles import row_column
from watos_jax.network.topology import Fabric, hamiltonian_cycle, row_major, snake
from watos_jax.strategy import Collective
from watos_jax.units import GIGA, NANO

Row = Mapping[str, str]
"""One row of a table, by column name; values as text."""

FULL_CHUNKS: Final = 16
"""Chunks from which a network that stores and forwards behaves as one that cuts through."""

SHAPE: Final = (
    "tool",
    "topology",
    "dims",
    "collective",
    "algorithm",
    "splits",
    "active_chunks",
    "rank_mapping",
    "chunks_per_npu",
)
"""Columns that decide the coefficients."""

COLLECTIVES: Final = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
"""Values of `collective`; more may stand in brackets."""

ORDERS: Final[dict[str, Callable[[int, int], np.ndarray]]] = {
    "row-major": row_major,
    "snake": snake,
    "hamiltonian-cycle": hamiltonian_cycle,
}


class Prediction(NamedTuple):
    """What is predicted for one row.

    Attributes:
        case: tool, algorithm and topology: the class that errors are reported by; empty where the row is skipped.
        time: s; nan where the row is skipped.
        skipped: why it is, or empty.
    """

    case: str
    time: float
    skipped: str


class Unmodelled(Exception):
    """A row that the coefficients do not describe; the message says why."""


def predict(row: Row) -> Prediction:
    """Predict the time of one collective of a simulator.

    Args:
        row: columns `tool, topology, dims, collective, algorithm, bytes, link_GBps, latency_ns`, and by tool
            `splits` and `active_chunks`, `rank_mapping` or `chunks_per_npu`.

    Returns:
        The class of the row and its time, or why it is skipped.

    Raises:
        ValueError: a column is missing.
    """
    tool = row.get("tool", "").split("-")[0].split(" ")[0]
    try:
        if tool not in TOOLS or "time_us" not in row:
            raise Unmodelled("not a table of collectives of a known simulator")
        size, bandwidth = _number(row, "bytes", above=True), _number(row, "link_GBps", above=True) * GIGA
        latency = _number(row, "latency_ns") * NANO
        case, operation = _operation(tool, tuple((name, row[name]) for name in SHAPE if name in row))
    except Unmodelled as reason:
        return Prediction("", float("nan"), str(reason))
    except KeyError as missing:
        raise ValueError(f"row has no column or value {missing}: a table of {tool} needs it") from missing
    links = 2 if row["topology"].lower() == "switch" else 1
    volume, steps = float(np.sum(operation.volume)), float(np.sum(operation.steps))
    return Prediction(f"{tool}: {case}", size * volume / bandwidth + steps * latency * links, "")


@lru_cache(maxsize=4096)
def _operation(tool: str, described: tuple[tuple[str, str], ...]) -> tuple[str, Collective]:
    """Class and coefficients of the rows that share the columns of `SHAPE`."""
    row = dict(described)
    if row["collective"].split("(")[0] not in COLLECTIVES:
        raise Unmodelled(f"collective {row['collective']} is not modelled")
    return TOOLS[tool](row)


def _number(row: Row, column: str, *, above: bool = False) -> float:
    # a finite number from 0 on
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not (0.0 < value < math.inf or (value == 0.0 and not above)):
        raise Unmodelled(f"{column} is no number {'above' if above else 'from'} 0")
    return value


def _count(row: Row, column: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,5}", row[column]):
        raise Unmodelled(f"{column} is no whole number from 1 on")
    return int(row[column])


def _fabric(row: Row) -> tuple[str, Fabric]:
    """Topology of a row, its name in the tool's words and as a fabric."""
    name = row["topology"].lower()
    kinds = (("mesh", "mesh"), ("line", "mesh"), ("torus", "torus"), ("ring", "torus"), ("switch", "switch"))
    kind = next((kind for start, kind in kinds if name.startswith(start)), None)
    if kind is None:
        raise Unmodelled(f"topology {row['topology']} is not modelled")
    if not re.fullmatch("[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?", row["dims"]):
        raise Unmodelled(f"dims {row['dims']} are not modelled")
    sizes = [int(size) for size in row["dims"].split("x")]
    rows, cols = sizes if len(sizes) == 2 else (1, sizes[0])
    return name, Fabric(kind, rows, cols)


def _shape(fabric: Fabric) -> str:
    """Fabric in words: line and ring in one dimension, mesh and torus in two."""
    if fabric.is_switch or min(fabric.rows, fabric.cols) > 1:
        return fabric.kind
    return "line" if fabric.kind == "mesh" else "ring"


def _part(row: Row, all_reduce: Collective) -> Collective:
    """The operation of a row, of which the whole all-reduce is given."""
    return all_reduce if row["collective"] == "all_reduce" else half(all_reduce)


def _astra(row: Row) -> tuple[str, Collective]:
    """ASTRA-sim's analytical backend."""
    name, fabric = _fabric(row)
    chunks = _count(row, "splits")
    if row["tool"].startswith("astra-sim unaware") and row["algorithm"] != "ring":
        raise Unmodelled("ASTRA-sim without congestion does not share links")
    if fabric.is_switch:
        raise Unmodelled("a switch that stores and forwards whole messages is not modelled")
    if _count(row, "active_chunks") != chunks:
        raise Unmodelled("chunks that wait for one another are not modelled")
    network, members = Network((fabric,)), np.arange(fabric.num_nodes)[None]
    transport = Transport(chunks=chunks, store_and_forward=True)
    when = "whole messages" if chunks == 1 else "chunked" if chunks >= FULL_CHUNKS else "few chunks"
    match row["algorithm"], row["collective"]:
        case "ring", "all_to_all":
            raise Unmodelled("an all-to-all passed on round a ring is not modelled")
        case "ring", _ if "_" in name:
            return f"ring per dimension, {_shape(fabric)}, {when}", row_column(
                network,
                members,
                fabric.rows,
                fabric.cols,
                operation=row["collective"],
                directions="one",
                transport=transport,
            )
        case "ring", _:
            ring = ring_all_reduce(network, members, directions="one", transport=transport)
            return f"ring, {_shape(fabric)}, {when}", _part(row, ring)
        case "direct", collective:
            direct = all_to_all(network, members, transport=transport)
            phases = 2.0 if collective == "all_reduce" else 1.0
            return f"direct all-to-all, {_shape(fabric)}, {when}", _times(direct, phases)
        case "halvingDoubling", _ if chunks == 1:
            return f"halving and doubling, {_shape(fabric)}, {when}", _part(
                row, in_steps(network, members, halving_doubling(fabric.num_nodes))
            )
    raise Unmodelled(f"algorithm {row['algorithm']} with {chunks} chunks is not modelled")


def _simgrid(row: Row) -> tuple[str, Collective]:
    """SimGrid's SMPI on flow-level links."""
    _, fabric = _fabric(row)
    size = fabric.num_nodes
    mapping = row["rank_mapping"]
    if mapping not in ORDERS:
        raise Unmodelled(f"rank_mapping {mapping} is not modelled")
    network, members = Network((fabric,)), ORDERS[mapping](fabric.rows, fabric.cols)[None]
    where = f"{_shape(fabric)}, {mapping}" if mapping != "row-major" or _shape(fabric) == "mesh" else _shape(fabric)
    match row["algorithm"], row["collective"]:
        case (("lr" | "ompi_ring_segmented"), _):
            ring = ring_all_reduce(network, members, directions="one", transport=Transport(blocking=True))
            return f"ring, {where}", ring
        case "rab", _:
            return f"halving and doubling, {where}", in_steps(network, members, halving_doubling(size))
        case "rdb", "all_reduce":
            return f"recursive doubling, {where}", in_steps(network, members, recursive_doubling(size))
        case "ring", _:
            return f"all-to-all by rotation, {where}", in_steps(network, members, rotation(size))
        case "pair", "all_to_all":
            return f"all-to-all pairwise, {where}", in_steps(network, members, pairwise(size))
        case "basic_linear", "all_to_all":
            return f"direct all-to-all, {where}", all_to_all(network, members)
    raise Unmodelled(f"algorithm {row['algorithm']} is not modelled")


def _tacos(row: Row) -> tuple[str, Collective]:
    """Schedules synthesised by TACOS."""
    _, fabric = _fabric(row)
    bound = bound_of_messages(fabric, _count(row, "chunks_per_npu"))
    return f"synthesised against bound, {_shape(fabric)}", _part(row, bound)


def _booksim(row: Row) -> tuple[str, Collective]:
    """BookSim's uniform random batch, which loads links as an all-to-all does."""
    _, fabric = _fabric(row)
    direct = all_to_all(Network((fabric,)), np.arange(fabric.num_nodes)[None])
    volume = np.maximum(np.asarray(direct.volume), 1.0)
    return f"all-to-all of flits, {_shape(fabric)}", Collective(volume, direct.steps, direct.traffic)


def _times(operation: Collective, phases: float) -> Collective:
    """An operation several times over."""
    return Collective(*(phases * np.asarray(part) for part in (operation.volume, operation.steps, operation.traffic)))


TOOLS: Final = {"astra": _astra, "simgrid": _simgrid, "tacos": _tacos, "booksim2": _booksim}
"""Simulators by the first word of the column `tool`."""
