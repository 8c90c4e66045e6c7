"""Calculon's terms of step time and memory, by its own names.

* network: one latency for a collective of any size, one link speed for each kind of parallelism, and a pass over the
  buffer in memory before or after every collective of a tensor group.
* memory: 2 bytes of a gradient but for the layer at work, which has 4; 12 bytes per parameter and step of the
  optimizer; inputs gathered by sequence parallelism are kept; one layer's activations and activation gradients.
"""

from dataclasses import replace
from typing import Final

import jax.numpy as jnp

from watos_jax import pipeline
from watos_jax.baselines.calculon.operators import OPTIMIZER_FLOP, operators
from watos_jax.baselines.calculon.point import Point, die_of, model_of, strategy_of
from watos_jax.memory import OPTIMIZER_BYTES, kept_bytes, stages
from watos_jax.strategy import RECOMPUTE_LEVELS
from watos_jax.units import GIGA, TERA, Leaf, Scalar
from watos_jax.workload import ELEMENT_BYTES, activations, messages
from watos_jax.workload import parameters as count_parameters

Terms = dict[str, Scalar]
"""Seconds, or bytes, by Calculon's own names."""
MOST_STAGES: Final = 64
"""Longest pipeline."""
NONE, SELECTIVE, FULL = (RECOMPUTE_LEVELS.index(name) for name in ("none", "selective", "full"))


def _by_level(point: Point, none: Scalar, selective: Scalar, full: Scalar) -> Scalar:
    level = jnp.asarray(point.recompute)
    return jnp.where(level == FULL, full, jnp.where(level == SELECTIVE, selective, none))


def times(point: Point) -> Terms:
    """Calculon's terms of the step time, s.

    Args:
        point: one run.
    """
    model, strategy = model_of(point), strategy_of(point)
    block = operators(point, model, strategy)
    blocks, micro_batches = point.blocks / point.pipeline, strategy.num_micro_batches
    sizes, bandwidth = messages(model, strategy), die_of(point).memory.bandwidth
    grouped, piped, replicated = (jnp.asarray(n) > 1 for n in (point.tensor, point.pipeline, point.data))
    gathers, sharded = jnp.asarray(point.sequence_parallel) > 0, jnp.asarray(point.sharded) > 0

    # four collectives of a tensor group each way, an all-reduce counting for one of two
    slope = point.tensor_slope / (point.tensor_GBps * GIGA)
    linked = sizes.tensor * slope * jnp.where(gathers, 0.5, 1.0) + point.tensor_latency
    passed = 2.0 * sizes.tensor / bandwidth
    tensor = jnp.where(grouped, jnp.where(gathers, 4.0, 2.0) * (linked + passed), 0.0)
    again = _by_level(point, jnp.zeros(()), block.attention_again, block.forward)
    # recomputed attention gathers its input again, a recomputed block all four; without a pass over memory
    again_linked = jnp.where(grouped, _by_level(point, jnp.zeros(()), linked, 4.0 * linked), 0.0)
    parameters = count_parameters(model, strategy)
    per_block = parameters.attention + parameters.mlp
    latencies = jnp.where(sharded, 2.0, 1.0) * point.data_latency
    slope = point.data_slope / (point.data_GBps * GIGA)
    data = jnp.where(replicated, ELEMENT_BYTES * per_block * slope + latencies, 0.0)
    update = OPTIMIZER_BYTES * per_block / bandwidth
    added = OPTIMIZER_FLOP * per_block / (point.vector_tflops * TERA * point.efficiency)
    update += jnp.where(jnp.asarray(point.added) > 0, added, 0.0)
    send = sizes.pipeline / (point.pipeline_GBps * GIGA) + point.pipeline_latency
    sends = jnp.where(piped, point.chunks * send, 0.0)
    forward = blocks * (block.forward + tensor) + sends
    backward = blocks * (block.backward + tensor + again + again_linked) + sends
    is_stage = jnp.arange(MOST_STAGES) < point.pipeline
    pipelined = pipeline.step_time(jnp.where(is_stage, forward, 0.0), jnp.where(is_stage, backward, 0.0), strategy)
    terms = {
        "fw_time": micro_batches * blocks * block.forward,
        "bw_time": micro_batches * blocks * block.backward,
        "optim_step_time": blocks * update / jnp.where(sharded, point.data, 1.0),
        "recompute_time": micro_batches * blocks * again,
        "recomm_exposed_time": micro_batches * blocks * again_linked,
        "bubble_time": pipelined - micro_batches * (forward + backward),
        "tp_comm_exposed_time": micro_batches * blocks * 2.0 * tensor,
        "pp_comm_exposed_time": micro_batches * 2.0 * sends,
        "dp_comm_exposed_time": blocks * data,
    }
    return terms | {"total_time": jnp.asarray(sum(terms.values()))}


def memory(point: Point) -> Terms:
    """Calculon's terms of the memory of the first stage, bytes.

    Args:
        point: one run.
    """
    model, strategy = model_of(point), strategy_of(point)
    blocks, owners = point.blocks / point.pipeline, jnp.where(jnp.asarray(point.sharded) > 0, point.data, 1.0)
    parameters = count_parameters(model, strategy)
    per_block = parameters.attention + parameters.mlp
    inventory, sizes = activations(model, strategy), messages(model, strategy)
    in_flight = stages(model, strategy, MOST_STAGES).in_flight[0]

    def kept(level: Leaf) -> Scalar:
        return kept_bytes(inventory, replace(strategy, recompute=level))[0]

    everything = kept(0.0)
    is_full = jnp.asarray(point.recompute) == FULL
    split, gathers = jnp.asarray(point.tensor) > 1, point.sequence_parallel
    gathered = gathers * sizes.tensor
    # what a block at work has beyond what it keeps: outputs of row-split products, and both gathered inputs
    working = everything + jnp.where(split, 2.0 * inventory.boundary, 0.0) + 2.0 * gathered
    gradients = (
        # of every operator's output: two masks of a byte, two residuals, two outputs not split by sequence, and
        # those of the collectives (of an all-reduce the backward one alone)
        everything
        - inventory.always
        - inventory.boundary
        + 3.0 * inventory.boundary
        + 2.0 * sizes.tensor
        + jnp.where(split, 2.0 * (1.0 + gathers) * inventory.boundary, 0.0)
    )
    checkpoints = blocks * in_flight * sizes.tensor  # not split by sequence
    stored = kept(point.recompute) + _by_level(point, 2.0 * gathered, gathered, jnp.zeros(()))
    terms = {
        "weight_space": ELEMENT_BYTES * blocks * per_block,
        "act_space": working + jnp.where(is_full, 0.0, (blocks * in_flight - 1.0) * stored),
        "act_checkpoint_size": jnp.where(is_full, checkpoints, 0.0),
        "act_grad_space": gradients,
        "weight_grad_space": (4.0 + ELEMENT_BYTES / owners * (blocks - 1.0)) * per_block,
        "optimizer_space": OPTIMIZER_BYTES * blocks * per_block / owners,
    }
    return terms | {"proc_mem_tier1_cap_req": jnp.asarray(sum(terms.values()))}
