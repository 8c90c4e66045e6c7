"""Seconds that communication takes, and what computation hides of it.

`exposed` is what is left of a communication behind a computation that needs neither its result nor its operands.
Everything else here is the time of a communication alone.

Reference: Zhao et al., VLDB 2023, arXiv 2304.11277 (sharded weights).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.hardware import System
from watos_jax.memory import Additive, Stages
from watos_jax.network.times import over_tiers, slope_and_latency
from watos_jax.relax import Relaxation
from watos_jax.strategy import Collective, Layout, Strategy
from watos_jax.units import PerStage, PerTier, Scalar
from watos_jax.workload import ELEMENT_BYTES, Messages
from watos_jax.xla import fence


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


def exposed(
    communication: Scalar | PerStage, share: Scalar | None, computation: Scalar | PerStage, relax: Relaxation
) -> Scalar | PerStage:
    """Seconds of communication that computation does not hide: `max(communication - share computation, 0)`.

    The two together take at least the longer of them, at most their sum.

    Args:
        communication: s alone.
        share: of the computation that can hide something, 0 to 1; None is 0.
        computation: s of operators that need neither its result nor its operands.
        relax: hard or smooth; exact in both where nothing hides.
    """
    if share is None:
        return communication
    return relax.maximum(communication, share * computation) - share * computation


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


def gathers(
    system: System, strategy: Strategy, layout: Layout, common: Additive, experts: Additive
) -> tuple[Additive, Additive]:
    """Time the collectives of fully sharded weights of one micro-batch, nothing where `optimizer_sharding` is below 3.

    Every layer gathers its 16-bit weights before its forward and its backward pass and scatters its gradients after
    it; embedding and head stay gathered from one to the other.

    Args:
        system: links and efficiency.
        strategy: sharding.
        layout: coefficients.
        common: parameters that all data-parallel peers share.
        experts: routed-expert parameters.

    Returns:
        Seconds forward and backward.
    """
    fully = jnp.where(strategy.optimizer_sharding >= 3.0, 0.5, 0.0)
    slope, latency = slope_and_latency(system, system.efficiency, layout.data)
    expert_slope, expert_latency = slope_and_latency(system, system.efficiency, layout.expert_data)
    calls = Additive(latency, latency, latency, latency) + Additive(
        0.0, jnp.where(experts.mixture > 0, expert_latency, 0.0)
    )

    def seconds(size: Scalar) -> Additive:
        return (common * (slope * size) + experts * (expert_slope * size) + calls) * fully

    gathered, scattered = seconds(ELEMENT_BYTES), seconds(strategy.gradient_bytes)
    return gathered, scattered + Additive(gathered.dense, gathered.mixture)
