"""One run of Calculon, and the model, strategy and device that stand for it here."""

from typing import NamedTuple

from watos_jax.hardware import Core, Die, Memory
from watos_jax.model import Transformer
from watos_jax.strategy import Strategy
from watos_jax.units import GIGA, TERA, Leaf


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


def model_of(point: Point) -> Transformer:
    """The model of a run."""
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


def strategy_of(point: Point) -> Strategy:
    """The strategy of a run, nothing recomputed."""
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


def die_of(point: Point) -> Die:
    """A device of Calculon's two rates alone: nothing else holds it up."""
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
