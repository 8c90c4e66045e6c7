"""Matrix products of one micro-batch on one device, and the parameters and model FLOP that follow from their shapes.

The shapes are columns over all products: what the model gives is stacked once, and the strategy enters as numbers that
scale whole columns, so that many strategies cost little more than one.

Neglects: biases and norm parameters (below 0.1 % of the weights), imbalance between experts.
"""

from typing import Final, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from watos_jax.model import Transformer
from watos_jax.strategy import Strategy
from watos_jax.units import Scalar
from watos_jax.workload.shares import (
    expert_rows,
    kv_heads_per_device,
    layer_counts,
    mean_keys,
    micro_batch_tokens,
    stream_share,
    value_dim,
)

MATMULS: Final = (
    "query_key_value",
    "query_up",
    "key_value_down",
    "key_value_up",
    "attention_output",
    "mlp_up",
    "mlp_down",
    "router",
    "expert_up",
    "expert_down",
    "shared_up",
    "shared_down",
    "head",
)
"""The matrix products of a model, in the order of the arrays of `Matmuls`; absent ones have size zero."""


_LATENT: Final = tuple(map(MATMULS.index, ("query_up", "key_value_down", "key_value_up")))
_MIXTURE: Final = tuple(map(MATMULS.index, ("router", "expert_up", "expert_down", "shared_up", "shared_down")))


class Matmuls(eqx.Module):
    """Products of a (rows x depth) activation with a (depth x cols) weight, one entry per name in `MATMULS`.

    Attributes:
        rows: tokens, shape (ops,).
        cols: output width, shape (ops,).
        depth: input width, shape (ops,).
        count: how many such products, shape (ops,).
    """

    rows: Float[Array, " ops"]
    cols: Float[Array, " ops"]
    depth: Float[Array, " ops"]
    count: Float[Array, " ops"]


class _Product(NamedTuple):
    # One product of the whole model: what each device repeats, what the tensor group splits, and what it holds per
    # key and value head; the expert group splits `experts`, and each device then sees `routed` more tokens per token;
    # `stream_rows` are tokens of the residual stream, which sequence parallelism splits.
    rows: Scalar = 1.0
    stream_rows: Scalar = 0.0
    routed: Scalar = 0.0
    cols: Scalar = 0.0
    split_cols: Scalar = 0.0
    cols_per_kv_head: Scalar = 0.0
    depth: Scalar = 0.0
    split_depth: Scalar = 0.0
    count: Scalar = 1.0
    experts: Scalar = 0.0


def _products(model: Transformer) -> tuple[_Product, ...]:
    # in the order of `MATMULS`
    latent = jnp.where(model.kv_lora_rank > 0, 1.0, 0.0)
    compressed = latent * jnp.where(model.q_lora_rank > 0, 1.0, 0.0)
    mixture = jnp.where(model.num_experts > 0, 1.0, 0.0)
    hidden, matrices = model.hidden_size, 1.0 + model.gated_mlp
    query = model.num_attention_heads * model.head_dim
    values = model.num_attention_heads * value_dim(model)
    nope = model.num_attention_heads * (model.head_dim - model.qk_rope_head_dim)
    inner, expert_inner = model.ffn_hidden_size, model.moe_ffn_hidden_size
    shared_inner = model.num_shared_experts * expert_inner
    routed = mixture * expert_rows(model) / jnp.where(model.num_experts > 0, model.num_experts, 1.0)
    expert = _Product(rows=0.0, routed=routed, count=0.0, experts=model.num_experts)
    return (
        _Product(
            rows=1.0 - compressed,
            stream_rows=compressed,
            cols=compressed * model.q_lora_rank,
            split_cols=(1.0 - compressed) * query,
            cols_per_kv_head=(1.0 - latent) * (model.head_dim + value_dim(model)),
            depth=hidden,
        ),
        _Product(rows=compressed, split_cols=query, depth=model.q_lora_rank),
        _Product(rows=0.0, stream_rows=latent, cols=model.kv_lora_rank + model.qk_rope_head_dim, depth=hidden),
        _Product(rows=latent, split_cols=nope + values, depth=model.kv_lora_rank),
        _Product(cols=hidden, split_depth=values),
        _Product(split_cols=matrices * inner, depth=hidden),
        _Product(cols=hidden, split_depth=inner),
        _Product(rows=0.0, stream_rows=mixture, cols=model.num_experts, depth=hidden),
        expert._replace(split_cols=matrices * expert_inner, depth=hidden),
        expert._replace(cols=hidden, split_depth=expert_inner),
        _Product(rows=mixture, split_cols=matrices * shared_inner, depth=hidden),
        _Product(rows=mixture, cols=hidden, split_depth=shared_inner),
        _Product(split_cols=model.vocab_size, depth=hidden),
    )


def families(model: Transformer) -> tuple[tuple[tuple[int, ...], Bool[Array, ""]], ...]:
    """Products that a model has together or not at all: their places in `MATMULS`, and whether it has them."""
    rest = tuple(n for n in range(len(MATMULS)) if n not in _LATENT + _MIXTURE)
    latent, mixture = (jnp.asarray(size) > 0 for size in (model.kv_lora_rank, model.num_experts))
    return (rest, jnp.ones((), bool)), (_LATENT, latent), (_MIXTURE, mixture)


def matmuls(model: Transformer, strategy: Strategy) -> Matmuls:
    """Shapes of all products of one micro-batch on one device.

    Args:
        model: the transformer.
        strategy: how it is spread.

    Returns:
        Arrays of shape (len(MATMULS),).
    """
    columns = zip(*_products(model), strict=True)
    of = _Product(*(jnp.stack([jnp.asarray(value, float) for value in column]) for column in columns))
    tensor, expert = strategy.tensor_parallel, strategy.expert_parallel
    return Matmuls(
        rows=micro_batch_tokens(model, strategy)
        * (of.rows + of.stream_rows * stream_share(strategy) + of.routed * expert),
        cols=of.cols + of.split_cols / tensor + of.cols_per_kv_head * kv_heads_per_device(model, strategy),
        depth=of.depth + of.split_depth / tensor,
        count=of.count + of.experts / expert,
    )


class Parameters(eqx.Module):
    """Weights that one device holds.

    Attributes:
        attention: of one layer's attention.
        mlp: of one dense feed-forward block.
        router_and_shared: of one mixture layer, outside the routed experts.
        experts: of one mixture layer's routed experts.
        embedding: of the embedding table (or LM head).
        positions: of the learned table of positions.
    """

    attention: Scalar
    mlp: Scalar
    router_and_shared: Scalar
    experts: Scalar
    embedding: Scalar
    positions: Scalar


_HOLDER: Final = (0, 0, 0, 0, 0, 3, 3, 1, 2, 2, 1, 1, 3)
_HOLDERS: Final = np.eye(4)[np.array(_HOLDER)]
# whose weights each product multiplies, as a matrix: attention, router and shared experts, routed experts, others


def parameters(model: Transformer, strategy: Strategy) -> Parameters:
    """Weights per device, by kind.

    Args:
        model: the transformer.
        strategy: how it is spread (before any sharding over data-parallel replicas).

    Returns:
        Counts of elements.
    """
    t = strategy.tensor_parallel
    hidden = model.hidden_size
    shapes = matmuls(model, strategy)
    weights = shapes.cols * shapes.depth * jnp.where(shapes.rows > 0, 1.0, 0.0) * shapes.count
    attention, router_and_shared, experts, _ = jnp.dot(weights, _HOLDERS, precision="highest")
    matrices = 2.0 + model.gated_mlp
    return Parameters(
        attention=attention,
        mlp=matrices * hidden * model.ffn_hidden_size / t,
        router_and_shared=router_and_shared,
        experts=experts,
        embedding=model.vocab_size * hidden / t,
        positions=model.learned_positions * model.sequence_length * hidden,
    )


def num_parameters(model: Transformer) -> Scalar:
    """Weights of the whole model, without biases and norm parameters."""
    per_device = parameters(model, Strategy())
    dense, mixture = layer_counts(model)
    tables = 2.0 - model.tied_embeddings
    return (
        model.num_layers * per_device.attention
        + dense * per_device.mlp
        + mixture * (per_device.router_and_shared + per_device.experts)
        + tables * model.vocab_size * model.hidden_size
        + model.learned_positions * model.sequence_length * model.hidden_size
    )


def parameters_per_pipeline(model: Transformer, strategy: Strategy) -> tuple[Scalar, Scalar]:
    """Weights on all stages of one pipeline, per device of a tensor group: replicated ones, and routed experts."""
    per_device = parameters(model, strategy)
    dense, mixture = layer_counts(model)
    tables = 2.0 - model.tied_embeddings * jnp.where(strategy.pipeline_parallel > 1.0, 0.0, 1.0)
    layers = model.num_layers * per_device.attention + dense * per_device.mlp + mixture * per_device.router_and_shared
    return layers + tables * per_device.embedding + per_device.positions, mixture * per_device.experts


def model_flop(model: Transformer, strategy: Strategy) -> Scalar:
    """FLOP per optimizer step that the mathematics needs, for the model FLOP utilisation.

    `3 * 2 * (weights touched per token) * tokens + 3 * 2 * layers * tokens * keys * heads * (head_dim + value_dim)`:
    forward, input gradient and weight gradient of every product, LM head included, embedding lookup excluded;
    attention with causal halving; no recomputation, no padding of experts.
    """
    shapes = matmuls(eqx.tree_at(lambda m: m.capacity_factor, model, 1.0), Strategy())
    per_token = 2.0 * shapes.rows * shapes.cols * shapes.depth * shapes.count / model.sequence_length
    dense, mixture = layer_counts(model)
    weights = (
        model.num_layers * jnp.sum(per_token[:5])
        + dense * jnp.sum(per_token[5:7])
        + mixture * jnp.sum(per_token[7:12])
        + per_token[12]
    )
    width = model.num_attention_heads * (model.head_dim + value_dim(model))
    core = 2.0 * model.num_layers * mean_keys(model) * width
    return 3.0 * (weights + core) * strategy.global_batch_size * model.sequence_length
