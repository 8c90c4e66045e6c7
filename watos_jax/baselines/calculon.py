"""Calculon's training time and memory, put together from our public functions.

Calculon (Isaev, McDonald, Dennison, Vuduc, "Calculon: a methodology and tool for high-level co-design of systems and
large language models", SC 2023; calculon-ai/calculon at caa4b11) and this library count the same products, collectives,
schedules and tensors. Where Calculon defines a term otherwise it is written here out of our parts, and the comment says
how:

* operators: query, key and value are three products, attention is two products, softmax and dropout; each takes the
  longer of its FLOP and bytes, or their sum. A mask is a byte, and both gradients of an attention product share one
  pass over its operands. Adding the gradients of branches is an operator of its own; weight gradients accumulate for
  nothing. Embedding, LM head and loss are left out.
* network: one latency for a collective of any size, one link speed for each kind of parallelism, and a pass over the
  buffer in memory before or after every collective of a tensor group.
* memory: 2 bytes of a gradient but for the layer at work, which has 4; 12 bytes per parameter and step of the
  optimizer; inputs gathered by sequence parallelism are kept; one layer's activations and activation gradients.

Neglects: its efficiencies by size of the operator, and overlap of communication with computation.
"""

from dataclasses import replace
from typing import Final, NamedTuple

import jax.numpy as jnp

from watos_jax import pipeline
from watos_jax.hardware import Core, Die, Efficiency, Memory
from watos_jax.memory import OPTIMIZER_BYTES, kept_bytes, stages
from watos_jax.model import Transformer
from watos_jax.operators.roofline import SCORE_BYTES, matmul_cost
from watos_jax.relax import HARD
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy
from watos_jax.units import GIGA, TERA, Leaf, Scalar
from watos_jax.workload import ELEMENT_BYTES, MATMULS, Matmuls, activations, attention, elementwise, matmuls, messages
from watos_jax.workload import parameters as count_parameters

Terms = dict[str, Scalar]
"""Seconds, or bytes, by Calculon's own names."""


class Point(NamedTuple):
    """One run of Calculon; a pytree of numbers, so that thousands are one call.

    Attributes:
        hidden: model width.
        sequence: tokens per sequence.
        heads: attention heads.
        blocks: layers.
        matrix_tflops: of one device.
        vector_tflops: of one device.
        memory_GBps: of one device.
        efficiency: share of these rates that is reached.
        added: whether compute and memory time of an operator add up; 0 where the longer counts.
        tensor_GBps: one direction, of links of tensor groups.
        tensor_latency: s.
        pipeline_GBps: likewise between stages.
        pipeline_latency: s.
        data_GBps: likewise between replicas.
        data_latency: s.
        tensor_slope: bytes that an all-reduce over a tensor group sends per byte of its buffer; `2 (n - 1) / n` on a
            ring of n.
        data_slope: likewise over the replicas.
        tensor: devices of a tensor group.
        pipeline: stages.
        data: replicas.
        chunks: per stage.
        micro_batch: sequences.
        batch: sequences per step.
        recompute: code of `RECOMPUTE_LEVELS`, of none, selective or full.
        sharded: whether the optimizer is.
        sequence_parallel: whether norms are split over the tensor group.
    """

    hidden: Leaf
    sequence: Leaf
    heads: Leaf
    blocks: Leaf
    matrix_tflops: Leaf
    vector_tflops: Leaf
    memory_GBps: Leaf
    efficiency: Leaf
    added: Leaf
    tensor_GBps: Leaf
    tensor_latency: Leaf
    pipeline_GBps: Leaf
    pipeline_latency: Leaf
    data_GBps: Leaf
    data_latency: Leaf
    tensor_slope: Leaf
    data_slope: Leaf
    tensor: Leaf
    pipeline: Leaf
    data: Leaf
    chunks: Leaf
    micro_batch: Leaf
    batch: Leaf
    recompute: Leaf
    sharded: Leaf
    sequence_parallel: Leaf


MOST_STAGES: Final = 64
"""Longest pipeline."""
NONE, SELECTIVE, FULL = (RECOMPUTE_LEVELS.index(name) for name in ("none", "selective", "full"))
# FLOP per element (an optimizer's parameter) that Calculon counts for operators that are no products; ours have none
LAYER_NORM, ACTIVATION, SOFTMAX, OPTIMIZER_FLOP = (9.0, 14.0, 7.0), (8.0, 13.0), (5.0, 8.0), 11.0


def _model(point: Point) -> Transformer:
    return Transformer(
        num_layers=point.blocks,
        hidden_size=point.hidden,
        ffn_hidden_size=4 * point.hidden,
        num_attention_heads=point.heads,
        num_kv_heads=point.heads,
        head_dim=point.hidden / point.heads,
        sequence_length=point.sequence,
        vocab_size=1,
        gated_mlp=0,
        learned_positions=1,
        dropout=1,
    )


def _strategy(point: Point) -> Strategy:
    return Strategy(
        tensor_cols=point.tensor,
        pipeline_parallel=point.pipeline,
        data_parallel=point.data,
        sequence_parallel=point.sequence_parallel,
        micro_batch_size=point.micro_batch,
        global_batch_size=point.batch,
        virtual_stages=point.chunks,
        flash_attention=0,
    )


def _die(point: Point) -> Die:
    # of Calculon's two rates alone: nothing else holds it up
    core = Core(
        num_macs=1024,
        clock=point.matrix_tflops * TERA * point.efficiency / 2048,
        sram_bytes=1e30,
        sram_bytes_per_clock=1e30,
        noc_bytes_per_clock=1e30,
    )
    memory = Memory(
        num_stacks=1,
        stack_bytes=80 * GIGA,
        stack_bandwidth=point.memory_GBps * GIGA,
        sustained_fraction=point.efficiency,
    )
    return Die(core_rows=1, core_cols=1, core=core, memory=memory)


def _longer(point: Point, compute: Scalar, moved: Scalar) -> Scalar:
    return jnp.where(jnp.asarray(point.added) > 0, compute + moved, jnp.maximum(compute, moved))


class _Operators(NamedTuple):
    # seconds of one block's operators
    forward: Scalar
    backward: Scalar
    attention_again: Scalar


def _operators(point: Point, model: Transformer, strategy: Strategy) -> _Operators:
    die = _die(point)
    vector_rate = point.vector_tflops * TERA * point.efficiency
    shapes, core, traffic = matmuls(model, strategy), attention(model, strategy), elementwise(model, strategy)

    def vector(moved: Scalar, flop: Scalar) -> Scalar:
        # an operator that is no product, from our bytes and Calculon's FLOP
        return _longer(point, flop / vector_rate, moved / die.memory.bandwidth)

    def product(rows: Scalar, cols: Scalar, depth: Scalar, count: Scalar) -> tuple[Scalar, Scalar, Scalar]:
        # forward and backward of one product, and its backward with one pass over the operands
        one = Matmuls(*(jnp.stack([jnp.asarray(x, float)]) for x in (rows, cols, depth, count)))
        cost = matmul_cost(die, Efficiency(), one, jnp.zeros(()), HARD)
        compute, moved = cost.forward_flop[0] / die.flop_rate, cost.forward_bytes[0] / die.memory.bandwidth
        is_sum = jnp.asarray(point.added) > 0
        forward = _longer(point, compute, moved)
        return (
            jnp.where(is_sum, forward, cost.forward[0]),
            jnp.where(is_sum, 2.0 * forward, cost.backward[0]),
            _longer(point, 2.0 * compute, moved),
        )

    def weights(name: str, parts: float) -> tuple[Scalar, Scalar, Scalar]:
        # one of our products, as so many of an equal part of its columns
        rows, cols, depth, count = (
            x[MATMULS.index(name)] for x in (shapes.rows, shapes.cols, shapes.depth, shapes.count)
        )
        return product(rows, cols / parts, depth, count * parts)

    heads = core.heads * core.queries / core.sequence
    asked = product(core.sequence, core.keys, core.head_dim, heads)
    answered = product(core.sequence, core.value_dim, core.keys, heads)
    scores = core.queries * core.keys * core.heads
    stream = traffic.residuals / 12.0  # elements of the residual stream on a device
    inner = traffic.activation / (2.0 * ELEMENT_BYTES)
    products = [weights("query_key_value", 3.0)] + [
        weights(name, 1.0) for name in ("attention_output", "mlp_up", "mlp_down")
    ]
    norms, softmax, mask = traffic.norms, SCORE_BYTES - 2.0 * 4.0, 1.0
    others = vector(2.0 * (2.0 * ELEMENT_BYTES + mask) * stream, 2.0 * stream)
    masks = vector((4.0 + mask) * scores, scores)
    again = asked[0] + vector(softmax * scores, SOFTMAX[0] * scores) + masks
    forward = (
        sum(one[0] for one in products)
        + again
        + answered[0]
        + vector(norms, 2.0 * LAYER_NORM[0] * stream)
        + others
        + vector(traffic.residuals, 2.0 * stream)
        + vector(traffic.activation, ACTIVATION[0] * inner)
    )
    # adding gradients where a tensor went to two places (three: queries, keys and values; not split by sequence)
    tokens_by_width = messages(model, strategy).tensor / ELEMENT_BYTES
    branches = vector(2.0 * 3.0 * ELEMENT_BYTES * stream, 2.0 * 2.0 * stream)
    branches += vector(4.0 * ELEMENT_BYTES * tokens_by_width, 3.0 * tokens_by_width)
    backward = (
        sum(one[1] for one in products)
        + asked[2]
        + vector(softmax * scores, SOFTMAX[1] * scores)
        + masks
        + answered[2]
        + vector(norms, 2.0 * LAYER_NORM[1] * stream)
        + vector(norms, 2.0 * LAYER_NORM[2] * stream)
        + others
        + vector(traffic.residuals, 2.0 * 2.0 * stream)
        + vector(traffic.activation, ACTIVATION[1] * inner)
        + branches
    )
    return _Operators(forward, backward, again)


def _by_level(point: Point, none: Scalar, selective: Scalar, full: Scalar) -> Scalar:
    level = jnp.asarray(point.recompute)
    return jnp.where(level == FULL, full, jnp.where(level == SELECTIVE, selective, none))


def times(point: Point) -> Terms:
    """Calculon's terms of the step time, s.

    Args:
        point: one run.
    """
    model, strategy = _model(point), _strategy(point)
    operators = _operators(point, model, strategy)
    blocks, micro_batches = point.blocks / point.pipeline, strategy.num_micro_batches
    sizes, bandwidth = messages(model, strategy), _die(point).memory.bandwidth
    grouped, piped, replicated = (jnp.asarray(n) > 1 for n in (point.tensor, point.pipeline, point.data))
    gathers, sharded = jnp.asarray(point.sequence_parallel) > 0, jnp.asarray(point.sharded) > 0

    # four collectives of a tensor group each way, an all-reduce counting for one of two
    slope = point.tensor_slope / (point.tensor_GBps * GIGA)
    linked = sizes.tensor * slope * jnp.where(gathers, 0.5, 1.0) + point.tensor_latency
    passed = 2.0 * sizes.tensor / bandwidth
    tensor = jnp.where(grouped, jnp.where(gathers, 4.0, 2.0) * (linked + passed), 0.0)
    again = _by_level(point, jnp.zeros(()), operators.attention_again, operators.forward)
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
    forward = blocks * (operators.forward + tensor) + sends
    backward = blocks * (operators.backward + tensor + again + again_linked) + sends
    is_stage = jnp.arange(MOST_STAGES) < point.pipeline
    pipelined = pipeline.step_time(jnp.where(is_stage, forward, 0.0), jnp.where(is_stage, backward, 0.0), strategy)
    terms = {
        "fw_time": micro_batches * blocks * operators.forward,
        "bw_time": micro_batches * blocks * operators.backward,
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
    model, strategy = _model(point), _strategy(point)
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
