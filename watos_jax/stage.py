"""Seconds of every pipeline stage for one micro-batch, and what follows the last one.

Operators follow one another, and so does communication, unless the machine lets it hide: `exposed` is what is left of a
communication behind a computation that needs neither its result nor its operands. What may hide behind what follows
from the schedule:

* a tensor collective: the products of its own block, in chunks (`Overlap.tensor`; `independent` is all else below);
* gathering a layer's sharded weights: the operators of the layer before; scattering their gradients: of the one after;
* the context ring: the attention core, of all parts but the last, whose keys and values came before;
* sends between stages, but in fill and drain: the operators of another micro-batch;
* reduction of gradients: the backward pass of the last micro-batch, but for the layer that it ends with; gathering of
  updated weights: the forward pass of the first one.

Expert collectives are always exposed. Communication hides behind operators alone, never behind other
communication: links are shared.
"""

from typing import Final

import equinox as eqx
import jax
import jax.numpy as jnp

from watos_jax.hardware import Overlap, System
from watos_jax.memory import Additive, Stages
from watos_jax.network.times import slope_and_latency
from watos_jax.operators.layer import Pieces, recomputed
from watos_jax.relax import Relaxation
from watos_jax.strategy import Layout, Strategy
from watos_jax.units import PerStage, Scalar
from watos_jax.waits import CollectiveTimes, Sends, exposed
from watos_jax.workload import ELEMENT_BYTES
from watos_jax.xla import fence, total

OPTIMIZER_TRAFFIC: Final = 30.0
"""DRAM bytes per parameter of an Adam step: gradient and three states read, three states and a weight written."""


class StageTimes(eqx.Module):
    """Seconds per micro-batch of every stage, in steady state.

    Attributes:
        forward: forward pass with its collectives and sends.
        backward: backward pass likewise, recomputation included.
        both: their sum.
        hidden: part of the sends of all stages that steady state hides, but fill and drain do not.
        window: operators of one micro-batch that reduction and gathering of weights may hide behind.
        parts: the same seconds by cause; they add up to `both`.
    """

    forward: PerStage
    backward: PerStage
    both: PerStage
    hidden: Scalar
    window: Scalar | PerStage
    parts: dict[str, PerStage]


class Epilogue(eqx.Module):
    """Seconds after the last backward pass, on the stage where they last longest.

    Attributes:
        reduction: gradients reduced, sharded weights gathered.
        optimizer: Adam's traffic.
    """

    reduction: Scalar
    optimizer: Scalar


def stage_times(
    forward: Pieces,
    backward: Pieces,
    collective: CollectiveTimes,
    weights: tuple[Additive, Additive],
    sends: Sends,
    strategy: Strategy,
    held: Stages,
    overlap: Overlap | None,
    relax: Relaxation,
) -> StageTimes:
    """Add up a stage's layers, LM head, collectives and sends.

    A layer makes two tensor collectives forward and two backward, one for attention and one for the feed-forward
    block; under sequence parallelism its backward pass gathers the input of each block again, half an all-reduce each.
    Embedding and LM head are spread over the vocabulary and add up to one more of each: see `edge_collectives`.

    Args:
        forward: seconds of the forward pieces.
        backward: seconds of the backward pieces.
        collective: seconds of the collectives.
        weights: seconds of the collectives of sharded weights, forward and backward.
        sends: seconds of sends between stages.
        strategy: recomputation level and sequence parallelism.
        held: layers of each stage.
        overlap: what may hide behind operators; None is nothing.
        relax: hard or smooth.
    """
    again = 1.0 + 0.5 * strategy.sequence_parallel
    ahead_tensor = _tensor_waits(collective.tensor, forward, overlap, relax)
    back_tensor = _tensor_waits(again * collective.tensor, backward, overlap, relax)
    dispatch = Additive(0.0, 2.0 * collective.expert)
    share = None if overlap is None else overlap.independent
    context, context_back = _context_waits(collective.context, forward.core, backward.core, strategy, share, relax)
    waits = ahead_tensor + Additive(context, context)
    ahead_edges, back_edges = (share * collective.tensor for share in edge_collectives(strategy))
    repeated = Additive(*recomputed(forward, (waits.dense, waits.mixture), collective.expert, strategy))
    operators_again = Additive(*recomputed(forward, (0.0, 0.0), 0.0, strategy))
    ahead = Additive(*forward.layer, last=forward.head)
    back = Additive(*backward.layer, last=backward.head) + operators_again
    ahead_weights, back_weights = (
        jax.tree.map(lambda wait, work: exposed(wait, share, work, relax), wait, work)
        for wait, work in zip(weights, (ahead, back), strict=True)
    )
    ahead_all = ahead + waits + dispatch + ahead_weights + ahead_edges + Additive(0.0, 0.0, last=sends.wrap)
    back_all = Additive(*backward.layer, last=backward.head) + back_tensor + dispatch + repeated
    back_all = back_all + Additive(context_back, context_back)
    back_all = back_all + back_weights + back_edges + Additive(0.0, 0.0, first=sends.wrap)
    ahead_all, all_both = fence((ahead_all, ahead_all + back_all), strategy.pipeline_parallel)
    sent, sent_both = sends.ahead, sends.both
    hidden = window = jnp.zeros(())
    if share is not None:
        ahead_window, back_window = (held.sum(work) for work in fence((ahead, back), strategy.pipeline_parallel))
        sent = exposed(sends.ahead, share, ahead_window, relax)
        sent_both = sent + exposed(sends.both - sends.ahead, share, back_window, relax)
        hidden = total(sends.both - sent_both)
        # weights are gathered after an optimizer step only where its states are sharded
        window = back_window + jnp.where(strategy.optimizer_sharding >= 1.0, ahead_window, 0.0)
    there = held.sum(ahead_all) + sent
    whole = held.sum(all_both) + sent_both
    operators = jax.tree.map(jnp.add, forward, backward)
    every = held.dense + held.mixture
    return StageTimes(
        forward=there,
        backward=whole - there,
        both=whole,
        hidden=hidden,
        window=window,
        parts={
            "matmul": held.sum(Additive(*operators.matmul) + Additive(0.0, 0.0, last=operators.head)),
            "attention": every * operators.core,
            "elementwise": held.sum(Additive(*operators.elementwise)),
            "recompute": held.sum(repeated),
            "tensor_parallel": held.sum(ahead_tensor + back_tensor + ahead_edges + back_edges),
            "context_parallel": every * (context + context_back),
            "expert_parallel": held.mixture * 4.0 * collective.expert,
            "pipeline_parallel": sent_both + held.sum(Additive(0.0, 0.0, first=sends.wrap, last=sends.wrap)),
            "data_parallel": held.sum(ahead_weights + back_weights),
        },
    )


def edge_collectives(strategy: Strategy) -> tuple[Additive, Additive]:
    """Tensor collectives of embedding and LM head, forward and backward, in all-reduces of the residual stream.

    Both are spread over the vocabulary: the embedding's partial sums are added up forward, the gradient of the head's
    input backward (Shoeybi et al., arXiv 1909.08053, section 3). Under sequence parallelism the first becomes a
    scatter, whose gradient is gathered, and the head gathers its input in both passes (Korthikanti et al., arXiv
    2205.05198).

    Args:
        strategy: sequence parallelism.

    **Neglects:** the loss's all-reduces of a few numbers per token.
    """
    half = 0.5 * strategy.sequence_parallel
    return Additive(0.0, 0.0, first=1.0 - half, last=half), Additive(0.0, 0.0, first=half, last=1.0)


def _context_waits(
    ring: Scalar, forward: Scalar, backward: Scalar, strategy: Strategy, share: Scalar | None, relax: Relaxation
) -> tuple[Scalar, Scalar]:
    # what a layer waits for keys and values, forward, and for them and their gradients, backward
    if share is None:
        return ring, 2.0 * ring
    but_last = 1.0 - 1.0 / strategy.context_parallel
    return (
        exposed(ring, share, forward * but_last, relax),
        exposed(2.0 * ring, share, backward * but_last, relax),
    )


def _tensor_waits(wait: Scalar, layer: Pieces, overlap: Overlap | None, relax: Relaxation) -> Additive:
    # what a dense and a mixture layer wait for the collective of its attention and of its feed-forward block
    share = None if overlap is None else overlap.tensor
    attention = exposed(wait, share, layer.projections + layer.attention_output, relax)
    return Additive(
        dense=attention + exposed(wait, share, layer.up + layer.down, relax),
        mixture=attention + exposed(wait, share, layer.expert_up + layer.expert_down, relax),
    )


def epilogue(
    system: System,
    strategy: Strategy,
    layout: Layout,
    held: Stages,
    common: Additive,
    experts: Additive,
    window: Scalar | PerStage,
    relax: Relaxation,
) -> tuple[Scalar, Epilogue]:
    """Time what follows the last backward pass: gradient reduction as far as it is exposed, then the optimizer.

    Args:
        system: links and DRAM.
        strategy: sharding; sharded states reduce-scatter gradients and gather 16-bit weights, sharded weights have done
            both within the micro-batches.
        layout: coefficients.
        held: layers of each stage.
        common: parameters that all data-parallel peers replicate.
        experts: routed-expert parameters.
        window: s of operators that the reduction may hide behind, shape (stages,).
        relax: hard or smooth maximum over stages.

    Returns:
        Seconds of the slowest stage, and their parts.
    """
    sharded = jnp.where(strategy.optimizer_sharding >= 1.0, 1.0, 0.0)
    returned = sharded * ELEMENT_BYTES + (1.0 - sharded) * strategy.gradient_bytes
    in_epilogue = jnp.where(strategy.optimizer_sharding >= 3.0, 0.0, 1.0)
    halves = in_epilogue * 0.5 * (strategy.gradient_bytes + returned)
    slope, latency = slope_and_latency(system, system.efficiency, layout.data)
    expert_slope, expert_latency = slope_and_latency(system, system.efficiency, layout.expert_data)
    peers = strategy.data_parallel * strategy.context_parallel
    owners = sharded * peers + (1.0 - sharded)
    expert_owners = sharded * peers / strategy.expert_parallel + (1.0 - sharded)
    update = OPTIMIZER_TRAFFIC * (1.0 + system.efficiency.memory_overhead) / system.die.memory.bandwidth
    updates = common * (update / owners) + experts * (update / expert_owners)
    reduction = common * (halves * slope) + experts * (halves * expert_slope)
    after = latency + jnp.where(experts.mixture * jnp.max(held.mixture, axis=-1) > 0.0, expert_latency, 0.0)
    updates, reduction = fence((updates, reduction), peers)
    if system.overlap is None:
        seconds = held.sum(updates + reduction)
    else:
        # the layer that a backward pass ends with has nothing left to hide behind; of a stage with the mean number
        tail = strategy.pipeline_parallel / total(held.dense + held.mixture)
        early = exposed(held.sum(reduction * (1.0 - tail)), system.overlap.independent, window, relax)
        seconds = held.sum(updates + reduction * tail) + early
    slowest = relax.max_over(seconds) + in_epilogue * after
    optimizer = held.sum(updates)[jnp.argmax(seconds, axis=-1)]
    return slowest, Epilogue(reduction=slowest - optimizer, optimizer=optimizer)


def breakdown(times: StageTimes, strategy: Strategy, pipelined: Scalar, after: Epilogue) -> dict[str, Scalar]:
    """Split a step: the slowest stage works through all micro-batches, the rest is `bubble`; then comes `after`."""
    slowest = jnp.argmax(times.both, axis=-1)
    parts = {name: strategy.num_micro_batches * part[slowest] for name, part in times.parts.items()}
    bubble = pipelined - sum(parts.values())
    parts["data_parallel"] += after.reduction
    return parts | {"bubble": bubble, "optimizer": after.optimizer}
