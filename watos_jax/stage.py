"""Seconds of every pipeline stage for one micro-batch, and what follows the last one.

Within a stage nothing overlaps: products, element-wise operators and collectives follow one another, and the gradient
reduction follows the last backward pass. That is an upper bound of what overlapping reaches.
"""

from typing import Final

import equinox as eqx
import jax
import jax.numpy as jnp

from watos_jax.hardware import System
from watos_jax.memory import Stages
from watos_jax.network.times import slope_and_latency, tier_links
from watos_jax.operators.layer import Pieces, recomputed
from watos_jax.relax import Relaxation
from watos_jax.strategy import Collective, Layout, Strategy
from watos_jax.units import PerStage, Scalar
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


class StageTimes(eqx.Module):
    """Seconds per micro-batch of every stage.

    Attributes:
        forward: forward pass with its collectives and sends.
        backward: backward pass likewise, recomputation included.
        parts: the same seconds by cause; they add up to forward + backward.
    """

    forward: PerStage
    backward: PerStage
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


def pipeline_sends(system: System, strategy: Strategy, layout: Layout, sizes: Messages) -> PerStage:
    """Seconds per micro-batch that each stage spends sending activations on, once per chunk."""
    bandwidth, latency, _ = tier_links(system)
    overhead = 1.0 + system.efficiency.network_overhead
    per_volume = strategy.virtual_stages * overhead * sizes.pipeline / bandwidth
    per_hop = strategy.virtual_stages * latency
    per_volume, per_hop = fence((per_volume, per_hop), strategy.pipeline_parallel)
    return jnp.sum(layout.pipeline_volume * per_volume[None, :] + layout.pipeline_steps * per_hop[None, :], axis=-1)


def stage_times(
    forward: Pieces,
    backward: Pieces,
    collective: CollectiveTimes,
    sent: PerStage,
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
        sent: seconds of sending activations on.
        strategy: recomputation level and sequence parallelism.
        held: layers of each stage.
    """
    again = 2.0 + strategy.sequence_parallel
    forward_waits = 2.0 * collective.tensor + collective.context
    backward_waits = again * collective.tensor + 2.0 * collective.context
    repeated = recomputed(forward, forward_waits, collective.expert, strategy)
    (forward_dense, forward_mixture), (backward_dense, backward_mixture) = forward.layer, backward.layer
    layers = fence(
        (
            forward_dense + forward_waits,
            forward_mixture + forward_waits + 2.0 * collective.expert,
            forward.head,
            backward_dense + backward_waits + repeated[0],
            backward_mixture + backward_waits + 2.0 * collective.expert + repeated[1],
            backward.head,
        ),
        strategy.pipeline_parallel,
    )
    received = jnp.concatenate([jnp.zeros_like(sent[:1]), sent[:-1]])
    both = jax.tree.map(jnp.add, forward, backward)

    def per_stage(dense: Scalar, mixture: Scalar, head: Scalar | float) -> PerStage:
        return held.dense * dense + held.mixture * mixture + held.last * head

    every = held.dense + held.mixture
    return StageTimes(
        forward=per_stage(*layers[:3]) + sent,
        backward=per_stage(*layers[3:]) + received,
        parts={
            "matmul": per_stage(*both.matmul, both.head),
            "attention": every * both.core,
            "elementwise": per_stage(*both.elementwise, 0.0),
            "recompute": per_stage(*repeated, 0.0),
            "tensor_parallel": every * (2.0 + again) * collective.tensor,
            "context_parallel": every * 3.0 * collective.context,
            "expert_parallel": held.mixture * 4.0 * collective.expert,
            "pipeline_parallel": sent + received,
        },
    )


def epilogue(
    system: System, strategy: Strategy, layout: Layout, common: PerStage, experts: PerStage, relax: Relaxation
) -> tuple[Scalar, Epilogue]:
    """Time what follows the last backward pass: gradient reduction, then the optimizer.

    Args:
        system: links and DRAM.
        strategy: sharding; sharded states reduce-scatter gradients and gather 16-bit weights.
        layout: coefficients.
        common: parameters of each stage that all data-parallel peers replicate.
        experts: routed-expert parameters of each stage.
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
    slopes = (halves * slope, halves * expert_slope, update / owners, update / expert_owners)
    slope, expert_slope, update, expert_update = fence(slopes, peers)
    reductions = common * slope + experts * expert_slope
    updates = common * update + experts * expert_update
    longest = relax.max_over(reductions + updates)
    chosen = jnp.argmax(reductions + updates, axis=-1)
    optimizer = updates[chosen]
    after = latency + jnp.where(jnp.max(experts, axis=-1) > 0.0, expert_latency, 0.0)
    return longest + after, Epilogue(reduction=longest + after - optimizer, optimizer=optimizer)


def breakdown(times: StageTimes, strategy: Strategy, pipelined: Scalar) -> dict[str, Scalar]:
    """Split the pipeline's time: the slowest stage works through all micro-batches, the rest is `bubble`."""
    slowest = jnp.argmax(times.forward + times.backward, axis=-1)
    busy = {name: strategy.num_micro_batches * part[slowest] for name, part in times.parts.items()}
    return busy | {"bubble": pipelined - sum(busy.values())}
