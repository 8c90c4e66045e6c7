"""Weight streaming on a wafer of dies with DRAM: the execution model of `weight_streaming` on the hardware of others.

All dies compute one layer after the other. Weights, gradients and Adam's states lie spread over the wafer's DRAM, there
being no other memory. Activations stay in SRAM, as they do on a CS-2, where they fit; else they lie in DRAM too.

* A layer's weights pass along the shorter side of the mesh, each line of dies its share: every link of a line carries
  what lies on one side of it, at most `(n - 1) / n` of the share, each way.
* Inputs and outputs of products cross the array over the links along the longer side, as wide as the narrower of core
  network and die-to-die links.
* Adam's traffic comes after the last backward pass; nothing hides it.
* Several wafers share the batch. States lie spread over all of them, so that `(n - 1) / n` of every layer's weights
  come over the links between wafers, at best over all links of the wafer that has fewest.

Neglects: recomputation (streaming has none), contention of weights with activations, power.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np

from watos_jax.baselines.weight_streaming import Streamed, weight_streaming
from watos_jax.hardware import Link, System, Tier, Wafer
from watos_jax.memory import OPTIMIZER_BYTES
from watos_jax.model import Transformer
from watos_jax.network.bounds import least_links
from watos_jax.network.contention import Network
from watos_jax.search.space import NoStrategy
from watos_jax.stage import OPTIMIZER_TRAFFIC
from watos_jax.strategy import Strategy
from watos_jax.units import Scalar
from watos_jax.workload import ELEMENT_BYTES, num_parameters

GRADIENT_BYTES: Final = 4.0
"""Bytes per accumulated gradient."""
PLACES: Final = ("sram", "dram")
"""Where activations are kept."""


@dataclass(frozen=True)
class StreamedWafer:
    """The best way of streaming weights through a wafer.

    Attributes:
        strategy: micro-batch and flash attention.
        activations: where they are kept, of `PLACES`.
        streamed: the step without the update.
        step_time: s, with the update.
        memory_margin: 1 - use / capacity of the tightest of SRAM and DRAM; negative where nothing fits.
        evaluated: ways tried.
    """

    strategy: Strategy
    activations: str
    streamed: Streamed
    step_time: float
    memory_margin: float
    evaluated: int

    @property
    def tokens_per_second(self) -> float:
        """Global batch over step time."""
        return float(self.streamed.tokens_per_second * self.streamed.step_time) / self.step_time


def streaming_system(wafer: System | Wafer, activations: str) -> System:
    """A wafer as one die whose memory keeps the activations, and one link that weights come over.

    Args:
        wafer: the wafer, concrete; of several, each.
        activations: where they are kept, of `PLACES`.
    """
    machine = wafer.system if isinstance(wafer, Wafer) else wafer
    mesh, die, core = machine.tiers[0], machine.die, machine.die.core
    rows, cols = sorted((float(mesh.rows), float(mesh.cols)))
    dies = rows * cols
    across = min(float(core.noc_bytes_per_clock * core.clock * die.core_rows), float(mesh.link.bandwidth))
    merged = replace(
        core, noc_bytes_per_clock=across / float(core.clock * die.core_rows)
    )  # the width of one row of cores
    memory = replace(die.memory, num_stacks=die.memory.num_stacks * dies)
    if activations == "sram":
        rate = die.num_cores * dies * core.sram_bytes_per_clock * core.clock
        memory = replace(
            memory, num_stacks=1, stack_bytes=die.sram_bytes * dies, stack_bandwidth=rate, sustained_fraction=1.0
        )
    lines = cols * float(mesh.link.bandwidth) * rows / max(rows - 1.0, 1e-9)
    stream = Link(
        bandwidth=min(lines, float(die.memory.bandwidth) * dies, _between(machine)),
        latency=float(mesh.link.latency) * (rows - 1.0) + sum(float(tier.link.latency) for tier in machine.tiers[1:]),
    )
    whole = replace(die, core_rows=die.core_rows * cols, core_cols=die.core_cols * rows, core=merged, memory=memory)
    tier = Tier(rows=1, cols=1, link=stream, fabric="switch")
    return System(whole, (tier,), machine.technology, machine.efficiency, machine.overlap)


def num_wafers(system: System | Wafer) -> int:
    """Wafers of a system whose innermost tier is one."""
    tiers = () if isinstance(system, Wafer) else system.tiers[1:]
    return math.prod(int(tier.rows) * int(tier.cols) for tier in tiers)


def _between(machine: System) -> float:
    # bytes/s at which weights that come from the other wafers let a wafer have all of them
    wafers, rate = num_wafers(machine), math.inf
    if wafers == 1:
        return rate
    for tier, fabric in zip(machine.tiers[1:], Network.of(machine).fabrics[1:], strict=True):
        ports = float(machine.tiers[0].rows * machine.tiers[0].cols) if fabric.is_switch else least_links(fabric)
        rate = min(rate, float(tier.link.bandwidth) * ports)
    return rate * wafers / (wafers - 1.0)


def stream_through(wafer: System | Wafer, model: Transformer, *, global_batch_size: int = 512) -> StreamedWafer:
    """Find the best micro-batch, attention and place of activations.

    Args:
        wafer: the wafer, concrete; or several.
        model: the transformer, concrete.
        global_batch_size: sequences per optimizer step.

    Returns:
        The fastest way that fits; where none fits, the one that exceeds its memory least.

    Raises:
        NoStrategy: the wafers cannot share the batch evenly.
    """
    wafers = num_wafers(wafer)
    sizes = [d for d in range(1, global_batch_size + 1) if global_batch_size % (d * wafers) == 0]
    if not sizes:
        raise NoStrategy(f"global_batch_size is {global_batch_size}: it must be a multiple of the {wafers} wafers")
    weights = float(num_parameters(model))
    states = weights * (ELEMENT_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES)
    dram = float(wafer.die.memory.capacity * wafer.num_dies)
    rate = float(wafer.die.memory.bandwidth * wafer.num_dies) / (1.0 + float(wafer.efficiency.memory_overhead))
    update = weights * OPTIMIZER_TRAFFIC / rate
    columns = np.array([(size, flash) for size in sizes for flash in (0.0, 1.0)], float).T
    found = []
    for place in PLACES:
        system = streaming_system(wafer, place)
        many = jax.vmap(
            lambda micro, flash, machine=system: weight_streaming(
                machine, model, _strategy(micro, flash, global_batch_size, wafers)
            )
        )
        every = many(*(jnp.asarray(column) for column in columns))
        for row, (micro, flash) in enumerate(columns.T):
            one = jax.tree.map(lambda leaf, i=row: leaf[i], every)
            inside = wafers * float(one.memory) if place == "dram" else 0.0
            margin = min(1.0 - (states + inside) / dram, float(one.margins["memory"]))
            strategy = _strategy(float(micro), float(flash), global_batch_size, wafers)
            time = float(one.step_time) + update
            found.append(StreamedWafer(strategy, place, one, time, margin, 2 * len(sizes) * len(PLACES)))
    fitting = [one for one in found if one.memory_margin >= 0.0]
    return min(fitting, key=lambda one: one.step_time) if fitting else max(found, key=lambda one: one.memory_margin)


def _strategy(micro: Scalar, flash: Scalar, batch: int, wafers: int) -> Strategy:
    return Strategy(micro_batch_size=micro, flash_attention=flash, global_batch_size=batch, data_parallel=wafers)
