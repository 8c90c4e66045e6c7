"""Seconds of every pipeline stage for one micro-batch, and what follows the last one.

Within a stage nothing overlaps: products, element-wise operators and collectives follow one another, and the gradient
reduction follows the last backward pass. That is an upper bound of what overlapping reaches.
"""

from typing import Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.hardware import System
from watos_jax.memory import Additive, Stages
from watos_jax.network.times import over_tiers, slope_and_latency
from watos_jax.operators.layer import Pieces, recomputed
from watos_jax.relax import Relaxation
from watos_jax.strategy import Collective, Layout, Strategy
from watos_jax.units import PerStage, PerTier, Scalar
from watos_jax.workload import ELEMENT_BYTES, Messages
from watos_jax.xla import fence

OPTIMIZER_TRAFFIC: Final = 30.0
"""DRAM bytes per parameter of an Adam step: gradient and three states read, three states and a weight written."""


class CollectiveTimes(eqx.Module):
    """Seconds of the collectives of one micro-batch.

    Attributes:
        tensor: one all-reduce over the tensor group.
        context: the context ring of one layer, all its steps.
        expert: one all-to-all.
    """

    tensor: Scalar
    context: Scalar
    expert: Scalar


class Sends(eqx.Module):
    """Seconds of one micro-batch's activations and gradients between stages.

    Attributes:
        ahead: activations sent to the next stage.
        both: the same, and gradients sent to the stage before.
        wrap: activations from the last stage back to the first, or their gradients, of interleaved pipelines.
    """

    ahead: PerStage
    both: PerStage
    wrap: Scalar


class StageTimes(eqx.Module):
    """Seconds per micro-batch of every stage.

    Attributes:
        forward: forward pass with its collectives and sends.
        backward: backward pass likewise, recomputation included.
        both: their sum.
        parts: the same seconds by cause; they add up to `both`.
    """

    forward: PerStage
    backward: PerStage
    both: PerStage
    parts: dict[str, PerStage]


class Epilogue(eqx.Module):
    """Seconds after the last backward pass, on the stage where they last longest.

    Attributes:
        reduction: gradients reduced, sharded weights gathered.
        optimizer: Adam's traffic.
    """

    reduction: Scalar
    optimizer: Scalar


def collective_times(system: System, strategy: Strategy, layout: Layout, sizes: Messages) -> CollectiveTimes:
    """Time the collectives that each layer waits for.

    Args:
        system: links and efficiency.
        strategy: number of context parts.
        layout: coefficients.
        sizes: bytes.
    """

    def time(collective: Collective, size: Scalar) -> Scalar:
        slope, latency = slope_and_latency(system, system.efficiency, collective)
        return size * slope + latency

    return CollectiveTimes(
        tensor=time(layout.tensor, sizes.tensor),
        context=(strategy.context_parallel - 1.0) * time(layout.context, sizes.context),
        expert=time(layout.expert, sizes.expert),
    )


def wrap_boundary(strategy: Strategy, coefficients: Float[Array | np.ndarray, "stages tiers"]) -> PerTier:
    """Coefficients of the boundary after the last stage, from which interleaved pipelines wrap to the first."""
    return jnp.asarray(coefficients)[jnp.asarray(strategy.pipeline_parallel - 1.0).astype(jnp.int32)]


def pipeline_sends(system: System, strategy: Strategy, layout: Layout, sizes: Messages, held: Stages) -> Sends:
    """Time the sends of one micro-batch: every chunk passes each boundary, all but one chunk the wrap."""
    links = [tier.link for tier in system.tiers]
    volume_time = (1.0 + system.efficiency.network_overhead) * sizes.pipeline
    per_volume = fence([volume_time / link.bandwidth for link in links], strategy.pipeline_parallel)
    per_step = [link.latency for link in links]

    def seconds(volume: Float[Array, "*s tiers"], steps: Float[Array, "*s tiers"]) -> Float[Array, "*s"]:
        return jnp.asarray(over_tiers(volume, per_volume) + over_tiers(steps, per_step))

    once = seconds(jnp.asarray(layout.pipeline_volume), jnp.asarray(layout.pipeline_steps))
    ahead = jnp.where(held.last > 0.0, 0.0, strategy.virtual_stages * once)
    wrap = seconds(wrap_boundary(strategy, layout.pipeline_volume), wrap_boundary(strategy, layout.pipeline_steps))
    # each stage's own boundary and the one before it
    both = jax.lax.reduce_window(ahead, 0.0, jax.lax.add, (2,), (1,), ((1, 0),))
    return Sends(ahead, both, fence((strategy.virtual_stages - 1.0) * wrap, strategy.pipeline_parallel))


def stage_times(
    forward: Pieces,
    backward: Pieces,
    collective: CollectiveTimes,
    sends: Sends,
    strategy: Strategy,
    held: Stages,
) -> StageTimes:
    """Add up a stage's layers, LM head, collectives and sends.

    A layer makes two tensor collectives forward and two backward; under sequence parallelism its backward pass
    gathers the input of each of its two blocks again, half an all-reduce each.

    Args:
        forward: seconds of the forward pieces.
        backward: seconds of the backward pieces.
        collective: seconds of the collectives.
        sends: seconds of sends between stages.
        strategy: recomputation level and sequence parallelism.
        held: layers of each stage.
    """
    again = 2.0 + strategy.sequence_parallel
    dispatch = 2.0 * collective.expert
    forward_waits = 2.0 * collective.tensor + collective.context
    backward_waits = again * collective.tensor + 2.0 * collective.context
    repeated = Additive(*recomputed(forward, forward_waits, collective.expert, strategy))
    forward_waits, backward_waits = (Additive(wait, wait + dispatch) for wait in (forward_waits, backward_waits))
    ahead = Additive(*forward.layer, last=forward.head + sends.wrap) + forward_waits
    back = Additive(*backward.layer, first=sends.wrap, last=backward.head) + backward_waits + repeated
    ahead, both = fence((ahead, ahead + back), strategy.pipeline_parallel)
    there = held.sum(ahead) + sends.ahead
    whole = held.sum(both) + sends.both
    operators = jax.tree.map(jnp.add, forward, backward)
    every = held.dense + held.mixture
    return StageTimes(
        forward=there,
        backward=whole - there,
        both=whole,
        parts={
            "matmul": held.sum(Additive(*operators.matmul) + Additive(0.0, 0.0, last=operators.head)),
            "attention": every * operators.core,
            "elementwise": held.sum(Additive(*operators.elementwise)),
            "recompute": held.sum(repeated),
            "tensor_parallel": every * (2.0 + again) * collective.tensor,
            "context_parallel": every * 3.0 * collective.context,
            "expert_parallel": held.mixture * 4.0 * collective.expert,
            "pipeline_parallel": sends.both + held.sum(Additive(0.0, 0.0, first=sends.wrap, last=sends.wrap)),
        },
    )


def epilogue(
    system: System,
    strategy: Strategy,
    layout: Layout,
    held: Stages,
    common: Additive,
    experts: Additive,
    relax: Relaxation,
) -> tuple[Scalar, Epilogue]:
    """Time what follows the last backward pass: gradient reduction, then the optimizer.

    Args:
        system: links and DRAM.
        strategy: sharding; sharded states reduce-scatter gradients and gather 16-bit weights.
        layout: coefficients.
        held: layers of each stage.
        common: parameters that all data-parallel peers replicate.
        experts: routed-expert parameters.
        relax: hard or smooth maximum over stages.

    Returns:
        Seconds of the slowest stage, and their parts.
    """
    sharded = jnp.where(strategy.optimizer_sharding >= 1.0, 1.0, 0.0)
    returned = sharded * ELEMENT_BYTES + (1.0 - sharded) * strategy.gradient_bytes
    halves = 0.5 * (strategy.gradient_bytes + returned)
    slope, latency = slope_and_latency(system, system.efficiency, layout.data)
    expert_slope, expert_latency = slope_and_latency(system, system.efficiency, layout.expert_data)
    peers = strategy.data_parallel * strategy.context_parallel
    owners = sharded * peers + (1.0 - sharded)
    expert_owners = sharded * peers / strategy.expert_parallel + (1.0 - sharded)
    update = OPTIMIZER_TRAFFIC * (1.0 + system.efficiency.memory_overhead) / system.die.memory.bandwidth
    updates = common * (update / owners) + experts * (update / expert_owners)
    both = common * (halves * slope) + experts * (halves * expert_slope) + updates
    after = latency + jnp.where(experts.mixture * jnp.max(held.mixture, axis=-1) > 0.0, expert_latency, 0.0)
    updates, both = fence((updates, both), peers)
    seconds = held.sum(both)
    total = relax.max_over(seconds) + after
    optimizer = held.sum(updates)[jnp.argmax(seconds, axis=-1)]
    return total, Epilogue(reduction=total - optimizer, optimizer=optimizer)


def breakdown(times: StageTimes, strategy: Strategy, pipelined: Scalar) -> dict[str, Scalar]:
    """Split the pipeline's time: the slowest stage works through all micro-batches, the rest is `bubble`."""
    slowest = jnp.argmax(times.both, axis=-1)
    busy = {name: strategy.num_micro_batches * part[slowest] for name, part in times.parts.items()}
    return busy | {"bubble": pipelined - sum(busy.values())}
