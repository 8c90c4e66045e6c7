"""How a model is spread over dies and trained: `Strategy`, and `Layout`, what the network makes of it.

Codes are floats, so that one compilation serves every strategy: a schedule, a recomputation level and a collective
algorithm are leaves. `RECOMPUTE_LEVELS`, `SCHEDULES` and `TENSOR_COLLECTIVES` name the codes.
"""

from typing import Any, Final

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from watos_jax.model import Transformer
from watos_jax.units import Leaf, as_leaf, check_range, concrete

RECOMPUTE_LEVELS: Final = (
    "none",
    "selective",
    "norms",
    "activation",
    "mlp",
    "projections",
    "attention",
    "full",
)
"""Recomputation levels; each keeps less than the one before: nothing is recomputed; the attention core; also the
norms; also the activation function; also the first feed-forward product; also queries, keys and values; also the
attention output; everything from the layer's input."""
SCHEDULES: Final = ("1f1b", "gpipe")
"""Pipeline schedules. Interleaving is `virtual_stages` above 1."""
TENSOR_COLLECTIVES: Final = ("ring", "row_column")
"""Algorithms of the tensor-parallel all-reduce on a rectangle of dies: one ring through all of them, or
reduce-scatter along rows, all-reduce along columns, all-gather along rows."""

FEW_VALUES: Final = (
    ("sequence_parallel", (0.0, 1.0), "0 or 1"),
    ("flash_attention", (0.0, 1.0), "0 or 1"),
    ("tensor_collective", (0.0, 1.0), "0 (ring) or 1 (row_column)"),
    ("gradient_bytes", (2.0, 4.0), "2 or 4"),
    ("optimizer_sharding", (0.0, 1.0, 2.0, 3.0), "0, 1, 2 or 3"),
)
"""Fields of a strategy that take few values."""


class Strategy(eqx.Module):
    """One way to train a model on a system.

    Attributes:
        tensor_rows: rows of the rectangle of dies that shares each layer.
        tensor_cols: its columns; `tensor_parallel = tensor_rows * tensor_cols`.
        pipeline_parallel: pipeline stages.
        data_parallel: replicas of the pipeline.
        context_parallel: parts that each sequence is cut into.
        expert_parallel: parts that the experts are spread over; divides `data_parallel * context_parallel`.
        sequence_parallel: 1 if norms and residuals are split over the tensor group, 0 if repeated.
        micro_batch_size: sequences per micro-batch.
        global_batch_size: sequences per optimizer step.
        virtual_stages: model chunks per stage; 1 is plain 1F1B.
        schedule: index into `SCHEDULES`.
        recompute: index into `RECOMPUTE_LEVELS`, one for all stages or one per stage.
        optimizer_sharding: 0 none, 1 optimizer states, 2 also gradients, 3 also weights (FSDP, ZeRO-3), over the data-
            and context-parallel peers.
        gradient_bytes: bytes per gradient element, 2 or 4.
        flash_attention: 1 if attention scores never reach DRAM, 0 if they are materialised.
        tensor_collective: index into `TENSOR_COLLECTIVES`.
    """

    tensor_rows: Leaf = eqx.field(converter=as_leaf, default=1.0)
    tensor_cols: Leaf = eqx.field(converter=as_leaf, default=1.0)
    pipeline_parallel: Leaf = eqx.field(converter=as_leaf, default=1.0)
    data_parallel: Leaf = eqx.field(converter=as_leaf, default=1.0)
    context_parallel: Leaf = eqx.field(converter=as_leaf, default=1.0)
    expert_parallel: Leaf = eqx.field(converter=as_leaf, default=1.0)
    sequence_parallel: Leaf = eqx.field(converter=as_leaf, default=1.0)
    micro_batch_size: Leaf = eqx.field(converter=as_leaf, default=1.0)
    global_batch_size: Leaf = eqx.field(converter=as_leaf, default=1.0)
    virtual_stages: Leaf = eqx.field(converter=as_leaf, default=1.0)
    schedule: Leaf = eqx.field(converter=as_leaf, default=0.0)
    recompute: Leaf = eqx.field(converter=as_leaf, default=0.0)
    optimizer_sharding: Leaf = eqx.field(converter=as_leaf, default=1.0)
    gradient_bytes: Leaf = eqx.field(converter=as_leaf, default=4.0)
    flash_attention: Leaf = eqx.field(converter=as_leaf, default=1.0)
    tensor_collective: Leaf = eqx.field(converter=as_leaf, default=0.0)

    def __check_init__(self) -> None:
        degrees = (
            "tensor_rows tensor_cols pipeline_parallel data_parallel context_parallel expert_parallel "
            "micro_batch_size global_batch_size virtual_stages gradient_bytes"
        ).split()
        check_range("Strategy", {name: getattr(self, name) for name in degrees}, low=1.0, integral=True)
        codes = ("sequence_parallel schedule recompute optimizer_sharding flash_attention tensor_collective").split()
        check_range("Strategy", {name: getattr(self, name) for name in codes}, integral=True)

    @property
    def tensor_parallel(self) -> Leaf:
        """Dies that share each layer."""
        return self.tensor_rows * self.tensor_cols

    @property
    def num_micro_batches(self) -> Leaf:
        """Micro-batches per pipeline and step."""
        return self.global_batch_size / (self.micro_batch_size * self.data_parallel)

    @property
    def num_dies(self) -> Leaf:
        """Dies that the strategy occupies."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel * self.context_parallel


class Collective(eqx.Module):
    """The cost of one collective operation as coefficients.

    `time = bytes * sum(volume / bandwidth) + sum(steps * latency)`, sums over tiers.
    `bytes` is the full buffer per device for all-reduce, reduce-scatter, all-gather and all-to-all, and the message
    for point-to-point. Reduce-scatter and all-gather each take half of an all-reduce.

    Attributes:
        volume: bytes over the busiest link per byte of buffer, all concurrent groups included, by tier.
        steps: serial hops, by tier.
        traffic: bytes times hops that one device sends per byte of buffer, by tier (for energy).
    """

    volume: Float[Array | np.ndarray, "*batch tiers"]
    steps: Float[Array | np.ndarray, "*batch tiers"]
    traffic: Float[Array | np.ndarray, "*batch tiers"]


class Layout(eqx.Module):
    """What the network makes of a strategy: link loads and hops, computed in numpy when strategies are enumerated.

    Attributes:
        tensor: all-reduce within the tensor group.
        data: all-reduce across replicas (and context parts) of one stage.
        context: one step of the ring that passes keys and values between context parts.
        expert: all-to-all between the dies that share a mixture layer's experts.
        expert_data: all-reduce across the dies that hold the same experts.
        pipeline_volume: bytes over the busiest link per byte sent from stage s to s + 1, shape (stages, tiers).
        pipeline_steps: hops from stage s to s + 1, shape (stages, tiers).
    """

    tensor: Collective
    data: Collective
    context: Collective
    expert: Collective
    expert_data: Collective
    pipeline_volume: Float[Array | np.ndarray, "*batch stages tiers"]
    pipeline_steps: Float[Array | np.ndarray, "*batch stages tiers"]

    @property
    def max_stages(self) -> int:
        """Padded number of stages."""
        return int(self.pipeline_volume.shape[-2])


def chunks_are_equal(num_layers: Any, pipeline_parallel: Any, virtual_stages: Any) -> Any:
    """Whether the chunks of an interleaved pipeline hold equally many layers.

    Either `pipeline_parallel virtual_stages` divides the layers; or, where the stages cannot be equal, it divides two
    more: embedding and LM head then stand for a layer of the first and of the last chunk (Megatron-LM's
    `--account-for-embedding-in-pipeline-split` and `--account-for-loss-in-pipeline-split`; Llama 3.1 405B has 126
    layers for that).

    Args:
        num_layers: layers of the model; arrays broadcast.
        pipeline_parallel: stages.
        virtual_stages: chunks of a stage.
    """
    chunks = pipeline_parallel * virtual_stages
    with_ends = (num_layers % pipeline_parallel != 0) & ((num_layers + 2) % chunks == 0)
    return (num_layers % chunks == 0) | with_ends


def violation(model: Transformer, strategy: Strategy) -> str | None:
    """Return the first structural rule that the strategy breaks for this model, as a sentence, or None.

    Rules: degrees divide what they split (attention heads, experts, the batch; key and value
    heads may also be repeated), every stage has a layer,
    interleaving has equal chunks and full rounds of micro-batches.

    Args:
        model: the transformer, concrete.
        strategy: one strategy, concrete.
    """
    t, p, v = (float(x) for x in (strategy.tensor_parallel, strategy.pipeline_parallel, strategy.virtual_stages))
    peers = float(strategy.data_parallel * strategy.context_parallel)
    batch = float(strategy.global_batch_size)
    replica_batch = float(strategy.micro_batch_size * strategy.data_parallel)
    heads, kv_heads = float(model.num_attention_heads), float(model.num_kv_heads)
    layers, experts = float(model.num_layers), float(model.num_experts)
    expert_parallel = float(strategy.expert_parallel)
    levels = concrete(strategy.recompute)
    rules = (
        (heads % t == 0, f"tensor_parallel is {t:g}: it must divide num_attention_heads ({heads:g})"),
        (
            kv_heads % t == 0 or t % kv_heads == 0,
            f"tensor_parallel is {t:g}: it must divide num_kv_heads ({kv_heads:g}) or be a multiple of it",
        ),
        (p <= layers, f"pipeline_parallel is {p:g}: it must be at most num_layers ({layers:g})"),
        (
            batch % replica_batch == 0,
            f"global_batch_size is {batch:g}: it must be a multiple of micro_batch_size x data_parallel "
            f"({replica_batch:g})",
        ),
        (
            v == 1 or chunks_are_equal(layers, p, v),
            f"virtual_stages is {v:g}: pipeline_parallel x virtual_stages ({p * v:g}) must divide num_layers "
            f"({layers:g}), or two more where pipeline_parallel does not",
        ),
        (
            v == 1 or (batch / replica_batch) % p == 0,
            f"virtual_stages is {v:g}: the number of micro-batches ({batch / replica_batch:g}) must be a multiple of "
            f"pipeline_parallel ({p:g})",
        ),
        (
            v == 1 or float(strategy.schedule) == 0,
            f"schedule is {float(strategy.schedule):g}: virtual_stages above 1 ({v:g}) needs schedule 0 (1f1b)",
        ),
        (v == 1 or p > 1, f"virtual_stages is {v:g}: it needs pipeline_parallel above 1"),
        (
            expert_parallel == 1 or (experts > 0 and experts % expert_parallel == 0),
            f"expert_parallel is {expert_parallel:g}: it must divide num_experts ({experts:g})",
        ),
        (
            peers % expert_parallel == 0,
            f"expert_parallel is {expert_parallel:g}: it must divide data_parallel x context_parallel ({peers:g})",
        ),
        (
            levels is None or bool((levels < len(RECOMPUTE_LEVELS)).all()),
            f"recompute is {levels}: it must be below {len(RECOMPUTE_LEVELS)}",
        ),
        *(
            (
                float(getattr(strategy, name)) in allowed,
                f"{name} is {float(getattr(strategy, name)):g}: it must be {rule}",
            )
            for name, allowed, rule in FEW_VALUES
        ),
        (
            float(model.sequence_length) % float(strategy.context_parallel) == 0,
            f"context_parallel is {float(strategy.context_parallel):g}: it must divide sequence_length "
            f"({float(model.sequence_length):g})",
        ),
        (
            float(strategy.schedule) < len(SCHEDULES),
            f"schedule is {float(strategy.schedule):g}: it must be below {len(SCHEDULES)}",
        ),
    )
    return next((sentence for holds, sentence in rules if not holds), None)
