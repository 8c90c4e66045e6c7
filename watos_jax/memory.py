"""Bytes of DRAM that every pipeline stage needs at its peak.

Weights (2 bytes), gradients (2 or 4), Adam's states (12: two moments and a 32-bit master copy), activations of the
micro-batches in flight, and a working set: the layer that is being recomputed and the gradients of its larger block, or
the 32-bit logits on the last stage.

Neglects: allocator fragmentation, communication buffers, framework and kernel workspaces.
"""

from typing import Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.model import Transformer
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy
from watos_jax.units import PerStage, Scalar
from watos_jax.workload import ELEMENT_BYTES, Activations, activations, micro_batch_tokens, parameters
from watos_jax.xla import fence

OPTIMIZER_BYTES: Final = 12.0
"""Adam in mixed precision: 32-bit master weight and two 32-bit moments per parameter."""
LOGIT_BYTES: Final = 6.0
"""16-bit logits and their 32-bit copy, held while the loss is computed."""


class Additive(eqx.Module):
    """A quantity that adds up over what a stage holds: seconds, bytes or parameters.

    Attributes:
        dense: of one dense layer; one number, or one per stage.
        mixture: of one mixture layer; likewise.
        first: of the first stage alone, beside its layers.
        last: of the last stage alone.
    """

    dense: Scalar | PerStage
    mixture: Scalar | PerStage
    first: Scalar = 0.0
    last: Scalar = 0.0

    def __add__(self, other: "Additive") -> "Additive":
        return jax.tree.map(jnp.add, self, other)

    def __mul__(self, factor: Scalar) -> "Additive":
        return jax.tree.map(lambda value: value * factor, self)


class Stages(eqx.Module):
    """What each pipeline stage holds, padded to the layout's number of stages.

    Attributes:
        active: 1 for stages that exist.
        first: 1 for the stage with the embedding.
        last: 1 for the stage with LM head and loss.
        dense: dense layers.
        mixture: mixture layers.
        in_flight: micro-batches whose activations are kept at the peak.
    """

    active: PerStage
    first: PerStage
    last: PerStage
    dense: PerStage
    mixture: PerStage
    in_flight: PerStage

    def sum(self, each: Additive) -> PerStage:
        """A quantity of each stage: its dense and mixture layers, embedding and head times the value of each."""
        layers = self.dense * each.dense + self.mixture * each.mixture
        return jnp.where(self.last > 0.0, each.last, 0.0) + (layers + self.first * each.first)


class MemoryUse(eqx.Module):
    """Bytes per device at each stage's peak.

    Attributes:
        weights: 16-bit parameters.
        gradients: accumulated gradients.
        optimizer: Adam's states.
        activations: kept for the micro-batches in flight.
        working: recomputed layer, gradients of its activations, gathered weights and whole gradients of sharded layers;
            or logits.
    """

    weights: PerStage
    gradients: PerStage
    optimizer: PerStage
    activations: PerStage
    working: PerStage

    @property
    def total(self) -> PerStage:
        """Sum of all kinds."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


def stages(model: Transformer, strategy: Strategy, max_stages: int) -> Stages:
    """Spread the layers: `floor(layers / stages)` each, one more on stages 1, 2, ... until all are placed.

    The first stage is passed over because it keeps most micro-batches, the last because it has the LM head.
    1F1B keeps `min(m, p - s)` micro-batches at stage s (0-based), GPipe all m, interleaving with v chunks
    `min(m v, 2 (p - s - 1) + (v - 1) p + 1)` chunks (Narayanan et al., SC 2021, section 2.2).

    Args:
        model: the transformer.
        strategy: how it is spread.
        max_stages: padded number of stages.
    """
    # counted from 1, and compared with `where`: the compiler converts 0, 1, 2, ... from integers in every loop, and
    # its minimum looks for NaN
    number = np.arange(1.0, max_stages + 1.0)
    turn = np.where(number > 1.0, number - 1.0, np.inf)
    earlier = np.maximum(number - 2.0, 0.0)
    p, m, v = strategy.pipeline_parallel, strategy.num_micro_batches, strategy.virtual_stages
    exists = number <= p
    base = jnp.floor(model.num_layers / p)
    spare = model.num_layers - base * p
    layers = jnp.where(exists, base + jnp.where(turn <= spare, 1.0, 0.0), 0.0)
    before = number * base - base + jnp.where(earlier < spare, earlier, spare)
    mixture = _mixture_layers_before(model, before + layers) - _mixture_layers_before(model, before)
    # micro-batches kept at a stage: offset - slope * number, at most m
    interleaved, gpipe = v > 1.0, strategy.schedule == 1.0
    slope = jnp.where(interleaved, 2.0 / v, 1.0)
    offset = jnp.where(interleaved, (2.0 * p + 1.0 + (v - 1.0) * p) / v, p + 1.0)
    offset, slope = fence((jnp.where(gpipe, m, offset), jnp.where(gpipe, 0.0, slope)), p)
    kept = offset - slope * number
    return Stages(
        active=jnp.where(exists, 1.0, 0.0),
        first=jnp.where(number == 1.0, 1.0, 0.0),
        last=jnp.where(number == p, 1.0, 0.0),
        dense=layers - mixture,
        mixture=mixture,
        in_flight=jnp.where(exists, jnp.where(kept < m, kept, m), 0.0),
    )


def kept_bytes(inventory: Activations, strategy: Strategy) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Bytes kept per dense and per mixture layer and micro-batch at the strategy's recomputation level.

    Args:
        inventory: bytes of each saved tensor.
        strategy: `recompute` is one level or one per stage; flash attention frees its row sums with its output.
    """
    level = jnp.asarray(strategy.recompute)
    flash = strategy.flash_attention
    keep = {name: jnp.where(level < code, 1.0, 0.0) for code, name in enumerate(RECOMPUTE_LEVELS)}
    shared = (
        inventory.boundary
        + inventory.always * keep["full"]
        + inventory.scores * (flash * keep["attention"] + (1.0 - flash) * keep["selective"])
        + inventory.norms * keep["norms"]
        + inventory.projections * keep["projections"]
        + inventory.attention_output * keep["attention"]
    )
    dense = inventory.activation * keep["activation"] + inventory.up * keep["mlp"]
    mixture = inventory.expert_activation * keep["activation"] + inventory.expert_up * keep["mlp"]
    return shared + dense, shared + mixture


def gradient_bytes(inventory: Activations) -> tuple[Scalar, Scalar]:
    """Bytes of the gradients that one dense and one mixture layer hold at a time in the backward pass.

    A block's gradients are as large as the tensors that it keeps; with them lives the gradient of the residual stream.
    The larger of attention and feed-forward block counts.

    Args:
        inventory: bytes of each saved tensor.
    """
    attention = inventory.scores + inventory.projections + inventory.attention_output
    feed_forward = inventory.activation + inventory.up, inventory.expert_activation + inventory.expert_up
    dense, mixture = (inventory.boundary + jnp.where(attention >= one, attention, one) for one in feed_forward)
    return dense, mixture


def stage_parameters(model: Transformer, strategy: Strategy) -> tuple[Additive, Additive]:
    """Parameters per device: those replicated over all data-parallel peers, and routed experts."""
    counts = fence(parameters(model, strategy), strategy.pipeline_parallel)
    # with one stage and tied tables the first table is also the last
    second = 1.0 - model.tied_embeddings * jnp.where(strategy.pipeline_parallel > 1.0, 0.0, 1.0)
    common = Additive(
        dense=counts.attention + counts.mlp,
        mixture=counts.attention + counts.router_and_shared,
        first=counts.embedding + counts.positions,
        last=counts.embedding * second,
    )
    return common, Additive(dense=0.0, mixture=counts.experts)


def memory_use(
    model: Transformer, strategy: Strategy, held: Stages, common: Additive, experts: Additive
) -> tuple[PerStage, MemoryUse]:
    """Peak bytes per device of every stage.

    Args:
        model: the transformer.
        strategy: how it is spread; `optimizer_sharding` 1 shards Adam's states, 2 also gradients, 3 also weights.
        held: layers and micro-batches of each stage.
        common: parameters that all data-parallel peers replicate.
        experts: routed-expert parameters.

    Returns:
        Bytes of each stage and their parts, shape (stages,), zero on padding.
    """
    peers = strategy.data_parallel * strategy.context_parallel
    share, expert_share = 1.0 / peers, strategy.expert_parallel / peers
    states_sharded, gradients_sharded, weights_sharded = (
        strategy.optimizer_sharding >= level for level in (1.0, 2.0, 3.0)
    )
    weights = (
        common * jnp.where(weights_sharded, share, 1.0) + experts * jnp.where(weights_sharded, expert_share, 1.0)
    ) * ELEMENT_BYTES
    gradients = (
        common * jnp.where(gradients_sharded, share, 1.0) + experts * jnp.where(gradients_sharded, expert_share, 1.0)
    ) * strategy.gradient_bytes
    optimizer = (
        common * jnp.where(states_sharded, share, 1.0) + experts * jnp.where(states_sharded, expert_share, 1.0)
    ) * OPTIMIZER_BYTES
    inventory = activations(model, strategy)
    kept = kept_bytes(inventory, strategy)
    # a layer's gathered weights, the next one's and its own whole gradients; embedding and head stay gathered
    fully = jnp.where(weights_sharded, 1.0, 0.0)
    gathered = common * ((1.0 - share) * ELEMENT_BYTES) + experts * ((1.0 - expert_share) * ELEMENT_BYTES)
    gathered = Additive(2.0 * gathered.dense, 2.0 * gathered.mixture, gathered.first, gathered.last)
    whole_gradients = (common + experts) * strategy.gradient_bytes
    buffers = (gathered + Additive(whole_gradients.dense, whole_gradients.mixture)) * fully
    none_again = Strategy(recompute=0.0, flash_attention=strategy.flash_attention)
    dense_again, mixture_again = jax.tree.map(jnp.subtract, kept_bytes(inventory, none_again), kept)
    of_gradients = gradient_bytes(inventory)
    again = dense_again + of_gradients[0] + buffers.dense, mixture_again + of_gradients[1] + buffers.mixture
    logits = LOGIT_BYTES * micro_batch_tokens(model, strategy) * model.vocab_size / strategy.tensor_parallel
    edges = Additive(0.0, 0.0, buffers.first, buffers.last)
    kept, again, logits, whole = fence((kept, again, logits, weights + gradients + optimizer + edges), peers)
    kept_now = held.in_flight * (held.dense * kept[0] + held.mixture * kept[1])
    of_dense, of_mixture = (
        jnp.where(layers > 0.0, one, 0.0) for layers, one in zip((held.dense, held.mixture), again, strict=True)
    )
    working = jnp.where(of_dense >= of_mixture, of_dense, of_mixture)
    # the logits are gone before the first layer's backward pass begins
    working = jnp.where((held.last > 0.0) & (working < logits), logits, working)
    parts = MemoryUse(
        weights=held.sum(weights),
        gradients=held.sum(gradients),
        optimizer=held.sum(optimizer),
        activations=kept_now,
        working=working + held.sum(edges),
    )
    return held.sum(whole) + kept_now + working, parts


def _mixture_layers_before(model: Transformer, layers: PerStage) -> PerStage:
    # floor((layers - num_dense_layers) / interval); the half keeps products of whole numbers away from the jumps
    share = jnp.where(model.num_experts > 0.0, 1.0 / model.moe_layer_interval, 0.0)
    past_dense = layers - (model.num_dense_layers - 0.5)
    return jnp.floor(jnp.where(past_dense > 0.0, past_dense, 0.0) * share)
