"""Weight streaming: a whole wafer computes one layer after the other; weights come and gradients go over its border.

Activations stay in the wafer's SRAM, weights and optimizer states in an external memory that also does the update.
Of one micro-batch and layer,

    forward  = max(products, in) + fabric + attention + elementwise
    backward = max(2 products, in + out) + 2 (fabric + attention + elementwise)
    in, out  = latency + 2 parameters (1 + network_overhead) / link bandwidth

for weights are used as they arrive, one layer's while its products run. So the time per token falls with the batch
until the products of a layer take as long as its weights. `fabric` is the way of a product's input and output across
the array, `2 rows (depth + cols) / (core_rows noc_bytes_per_clock clock)`; nothing overlaps it. The LM head is one
more layer. Wafers share the batch: the external memory sends the same weights to all and adds up their gradients.

A system is one die, the wafer, whose `memory` is its SRAM, and one tier whose link is that of a wafer to the memory.

Neglects: the update where it takes longer than a step (it runs beside the next pass), the embedding look-up, input
data, sparsity, recomputation, several layers' weights on the wafer at once.

Reference: Lie, "Cerebras Architecture Deep Dive", Hot Chips 34, 2022.
"""

from typing import Final

import equinox as eqx
import jax
import jax.numpy as jnp

from watos_jax.hardware import Efficiency, System
from watos_jax.memory import kept_bytes
from watos_jax.model import Transformer
from watos_jax.operators.layer import pieces
from watos_jax.operators.roofline import attention_cost, elementwise_times, matmul_cost
from watos_jax.relax import HARD, Relaxation
from watos_jax.strategy import Layout, Strategy
from watos_jax.units import Scalar, concrete
from watos_jax.workload import (
    ELEMENT_BYTES,
    Elementwise,
    Matmuls,
    activations,
    attention,
    elementwise,
    layer_counts,
    matmuls,
    model_flop,
    parameters,
)

UNSPLIT: Final = "tensor_rows tensor_cols pipeline_parallel context_parallel expert_parallel virtual_stages".split()
"""Degrees of a strategy that are 1 here: every wafer holds every layer in turn, whole."""


AT_ONCE: Final = 1e6
"""Times the speed of the fabric at which it never holds a product up."""
START: Final = Efficiency(matmul_overhead=1.0, attention_overhead=5.0, collective_latency=1e-3)
"""Where a fit starts: what is fitted are the time of products and of attention beyond the peak, and the latency of a
transfer. Everything else is on the data sheet."""


class Streamed(eqx.Module):
    """What one training step takes on wafers that weights are streamed to.

    Attributes:
        step_time: s per optimizer step.
        tokens_per_second: global batch over step time.
        model_flop_utilisation: FLOP that the mathematics needs over what the wafers could do meanwhile.
        breakdown: seconds by cause; they add up to `step_time`. `stream` is what weights and gradients take beyond
            the products they hide behind.
        memory: bytes of activations that a wafer keeps for one micro-batch.
        margins: 1 - use / allowance of every limit; negative where the activations do not fit the SRAM.
    """

    step_time: Scalar
    tokens_per_second: Scalar
    model_flop_utilisation: Scalar
    breakdown: dict[str, Scalar]
    memory: Scalar
    margins: dict[str, Scalar]


def weight_streaming(system: System, model: Transformer, strategy: Strategy, *, relax: Relaxation = HARD) -> Streamed:
    """Estimate one training step by weight streaming.

    Args:
        system: wafers as dies of a single tier, such as `presets.chips.CS2`.
        model: the transformer.
        strategy: wafers (`data_parallel`), micro-batch and batch; all other degrees are 1. Every micro-batch streams
            all weights again.
        relax: `HARD`, the truth, or `Smooth(...)`, for descent.

    Returns:
        Scalars of shape (); differentiable in every leaf of `system`.

    Raises:
        ValueError: a concrete strategy splits layers, or recomputes.
    """
    _check(strategy)
    # one type for floats and arrays alike, so that a sweep over any leaf adds no compilation
    leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), (system, model, strategy, relax))
    return _streamed(*leaves)


@jax.jit
def _streamed(system: System, model: Transformer, strategy: Strategy, relax: Relaxation) -> Streamed:
    die, efficiency = system.die, system.efficiency
    traffic, shapes = elementwise(model, strategy), matmuls(model, strategy)
    seconds = elementwise_times(die, efficiency, traffic, relax)
    core = attention_cost(die, efficiency, attention(model, strategy), relax)
    # the way across the array is counted by itself, and no gradient is accumulated on the wafer
    still = eqx.tree_at(lambda d: d.core.noc_bytes_per_clock, die, AT_ONCE * die.core.noc_bytes_per_clock)
    products = matmul_cost(still, efficiency, shapes, 0.0, relax)
    times = products.forward, products.backward, _fabric(system, shapes)
    forward, backward, way = (pieces(time, jnp.zeros(()), _nothing(seconds)) for time in times)
    counts = parameters(model, strategy)
    dense, mixture = layer_counts(model)
    mixed = counts.attention + counts.router_and_shared + counts.experts
    layers = (
        (dense, counts.attention + counts.mlp, forward.matmul[0], backward.matmul[0], way.matmul[0]),
        (mixture, mixed, forward.matmul[1], backward.matmul[1], way.matmul[1]),
        (1.0, counts.embedding, forward.head, backward.head, way.head),
    )
    link = system.tiers[0].link
    latency = link.latency + efficiency.collective_latency
    per_parameter = ELEMENT_BYTES * (1.0 + efficiency.network_overhead) / link.bandwidth
    parts = {"matmul": 0.0, "stream": 0.0, "fabric": 0.0}
    for number, weights, ahead, back, crossed in layers:
        transfer = latency + weights * per_parameter
        waits = (relax.maximum(ahead, transfer) - ahead) + (relax.maximum(back, 2.0 * transfer) - back)
        parts["matmul"] += number * (ahead + back)
        parts["stream"] += number * waits
        parts["fabric"] += 3.0 * number * crossed
    shared = seconds.norms + seconds.residuals + seconds.rotary
    single = dense * seconds.activation + mixture * seconds.expert_activation
    parts["attention"] = model.num_layers * (core.forward + core.backward)
    parts["elementwise"] = 3.0 * (model.num_layers * shared + single) + seconds.loss
    parts = {name: strategy.num_micro_batches * part for name, part in parts.items()}
    step = sum(parts.values())
    kept = kept_bytes(activations(model, strategy), strategy)
    memory = dense * kept[0] + mixture * kept[1]
    tokens = strategy.global_batch_size * model.sequence_length
    return Streamed(
        step_time=step,
        tokens_per_second=tokens / step,
        model_flop_utilisation=model_flop(model, strategy) / step / strategy.data_parallel / die.flop_rate,
        breakdown=parts,
        memory=memory,
        margins={"memory": 1.0 - memory / die.memory.capacity},
    )


def _nothing(seconds: Elementwise) -> Elementwise:
    return jax.tree.map(jnp.zeros_like, seconds)


def _fabric(system: System, shapes: Matmuls) -> jax.Array:
    # input and output of every product cross the array once, along all of its rows
    core = system.die.core
    rate = system.die.core_rows * core.noc_bytes_per_clock * core.clock
    return ELEMENT_BYTES * shapes.count * shapes.rows * (shapes.depth + shapes.cols) / rate


def step_time(system: System, model: Transformer, strategy: Strategy, layout: Layout) -> Scalar:
    """The step time of `weight_streaming` as an execution model of `calibrate`; there is no layout to speak of."""
    del layout
    return weight_streaming(system, model, strategy).step_time


def _check(strategy: Strategy) -> None:
    for name in UNSPLIT:
        degree = concrete(getattr(strategy, name))
        if degree is not None and (degree != 1.0).any():
            raise ValueError(f"{name} is {degree.flat[0]:g}: it must be 1 where weights are streamed to whole wafers")
    level = concrete(strategy.recompute)
    if level is not None and (level != 0.0).any():
        raise ValueError(f"recompute is {level.flat[0]:g}: it must be 0 (none) where weights are streamed")
