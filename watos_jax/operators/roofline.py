"""Roofline time of the operators of one layer on one die: the largest of compute, DRAM, and on-chip transfers.

A product of (rows x depth) by (depth x cols) takes

    time  = max(compute, dram, noc, launch_time)
    compute = 2 rows cols depth (1 + overhead + rows0 / rows + cols0 / cols + cols0 / depth) / flop_rate * starvation
    dram  = 2 bytes * max(rows depth + depth cols + rows cols, 2 rows cols depth / sqrt(S)) / bandwidth
    noc   = 2 bytes * max(rows depth / core_rows, depth cols / core_cols) / noc_bandwidth      its operands enter

with S the elements that the die's SRAM holds: `2 M N K / sqrt(S)` is the I/O lower bound of Hong & Kung (1981) in the
form of Kwasniewski et al. (SC 2019, arXiv 1908.09606), so traffic falls with capacity down to the compulsory one.
`starvation = max(1, 2 bytes 2 sqrt(num_macs) / sram_bytes_per_clock)`: an output-stationary square array reads two
operands along its sides each cycle. Kernels are launched ahead of time: what takes a host longer to launch than a die
to run takes `launch_time`, everything else hides it.

Neglects: tile quantisation, fill and drain, reuse of SRAM between operators.
"""

from typing import Final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.hardware import Die, Efficiency, Precision
from watos_jax.relax import Relaxation
from watos_jax.units import Scalar
from watos_jax.workload import ELEMENT_BYTES, MATMULS, Attention, Elementwise, Matmuls

SCORE_BYTES: Final = 12.0
"""DRAM bytes per attention score of a materialised forward pass: product writes 2, softmax reads 2 and writes 2,
dropout reads 2 and writes 2, product with the values reads 2."""
SCORE_KERNELS: Final = 4.0
"""Kernels of a materialised forward pass, the same four; a flash kernel is one. The backward pass has twice as many."""


_NARROW: Final = np.array([name not in ("router", "head") for name in MATMULS])


class OperatorCost(eqx.Module):
    """Time, FLOP and DRAM bytes of operators, forward and backward.

    Attributes:
        forward: s.
        backward: s.
        forward_flop: executed FLOP.
        backward_flop: executed FLOP.
        forward_bytes: DRAM bytes.
        backward_bytes: DRAM bytes.
    """

    forward: Float[Array, "*ops"]
    backward: Float[Array, "*ops"]
    forward_flop: Float[Array, "*ops"]
    backward_flop: Float[Array, "*ops"]
    forward_bytes: Float[Array, "*ops"]
    backward_bytes: Float[Array, "*ops"]


def matmul_cost(
    die: Die,
    efficiency: Efficiency,
    shapes: Matmuls,
    gradient_bytes: Scalar,
    relax: Relaxation,
    precision: Precision | None = None,
) -> OperatorCost:
    """Cost of every product of a micro-batch: forward, then input gradient and weight gradient.

    The three products of training share sizes, hence compulsory traffic and I/O bound, but each has its own operands
    at the row and column ends of the cores; the weight gradient also reads and writes its accumulator,
    `2 gradient_bytes` per weight.

    Args:
        die: where it runs.
        efficiency: distance from the roofline.
        shapes: the products.
        gradient_bytes: bytes of an accumulated gradient element.
        relax: hard or smooth.
        precision: of the layers' products, which are then those of `MATMULS`; None is 16 bits.

    Returns:
        One entry per product, shape (ops,).
    """
    rows, cols, depth, count = shapes.rows, shapes.cols, shapes.depth, shapes.count
    weights = count * depth * cols
    macs = rows * weights
    side = efficiency.matmul_cols * rows * (cols + depth) * count
    worked = (1.0 + efficiency.matmul_overhead) * macs + efficiency.matmul_rows * weights + side
    compute = worked * _time_per_mac(die, relax)
    compulsory = count * rows * (depth + cols) + weights
    tiled = macs * (2.0 * _inverse_root_capacity(die))
    moved = ELEMENT_BYTES * relax.maximum(compulsory, tiled)
    accumulated = 2.0 * gradient_bytes * weights
    per_byte = _time_per_dram_byte(die, efficiency)
    if precision is None:
        cast: Scalar | Array = 0.0
    else:
        narrow = jnp.where(_NARROW, precision.operand_bytes, ELEMENT_BYTES)
        compute = compute * narrow / ELEMENT_BYTES
        cast = jnp.where(narrow < ELEMENT_BYTES, ELEMENT_BYTES + 2.0 * narrow, 0.0) * rows * count * per_byte
    noc_rate = die.core.noc_bytes_per_clock * die.core.clock
    inputs, weighted, results = (
        size * (ELEMENT_BYTES / noc_rate) for size in (count * rows * depth, weights, count * rows * cols)
    )
    busy = relax.maximum(compute, jnp.where(macs > 0, efficiency.launch_time, 0.0))

    def time(by_rows: Array, by_cols: Array, moved: Array) -> Array:
        streamed = relax.maximum(by_rows / die.core_rows, by_cols / die.core_cols)
        return relax.maximum(relax.maximum(busy, streamed), moved * per_byte)

    forward = time(inputs, weighted, moved) + cast * depth
    input_gradient = time(results, weighted, moved) + cast * cols
    weight_gradient = time(inputs, results, moved + accumulated)
    return OperatorCost(
        forward=forward,
        backward=input_gradient + weight_gradient,
        forward_flop=2.0 * macs,
        backward_flop=4.0 * macs,
        forward_bytes=moved,
        backward_bytes=2.0 * moved + accumulated,
    )


def attention_cost(die: Die, efficiency: Efficiency, shape: Attention, relax: Relaxation) -> OperatorCost:
    """Cost of the attention core of one layer: scores, softmax and product with the values.

    DRAM traffic is compulsory or `macs (head_dim + value_dim) / S`, keys and values once for every block of queries
    that the SRAM holds (Dao et al., FlashAttention, arXiv 2205.14135, theorem 2).

    Flash attention keeps scores on chip and computes them again in its backward pass (five products instead of
    four); the materialised form moves `SCORE_BYTES` per score forward and twice that backward.

    Args:
        die: where it runs.
        efficiency: distance from the roofline.
        shape: sizes of the core.
        relax: hard or smooth.
    """
    width = shape.heads * (shape.head_dim + shape.value_dim)
    macs = shape.queries * shape.keys * width
    overhead = 1.0 + efficiency.attention_overhead + efficiency.attention_rows / shape.sequence
    compute = macs * overhead * _time_per_mac(die, relax)
    kv_width = shape.kv_heads * (shape.head_dim + shape.value_dim)
    compulsory = shape.queries * width + shape.key_tokens * kv_width
    tiled = macs * (shape.head_dim + shape.value_dim) * _inverse_root_capacity(die) ** 2
    scores = shape.materialised * SCORE_BYTES * shape.queries * shape.keys * shape.heads
    moved = ELEMENT_BYTES * relax.maximum(compulsory, tiled) + scores
    per_byte = _time_per_dram_byte(die, efficiency)
    products = 2.5 - 0.5 * shape.materialised
    launch = (1.0 + (SCORE_KERNELS - 1.0) * shape.materialised) * efficiency.launch_time
    return OperatorCost(
        forward=relax.maximum(relax.maximum(compute, launch), moved * per_byte),
        backward=relax.maximum(relax.maximum(products * compute, 2.0 * launch), 2.0 * moved * per_byte),
        forward_flop=2.0 * macs,
        backward_flop=2.0 * products * macs,
        forward_bytes=moved,
        backward_bytes=2.0 * moved,
    )


def elementwise_times(die: Die, efficiency: Efficiency, traffic: Elementwise, relax: Relaxation) -> Elementwise:
    """Forward time of each group of element-wise operators: DRAM bytes over sustained bandwidth, or its launches.

    Args:
        die: where it runs.
        efficiency: distance from the roofline.
        traffic: DRAM bytes of each group.
        relax: hard or smooth.

    Returns:
        The same record with seconds in place of bytes.
    """
    per_byte = _time_per_dram_byte(die, efficiency)

    def seconds(moved: Scalar, kernels: Scalar) -> Scalar:
        return relax.maximum(moved * per_byte, kernels * efficiency.launch_time)

    return Elementwise(
        norms=seconds(traffic.norms, 2.0),
        rotary=seconds(traffic.rotary, jnp.where(traffic.rotary > 0, 1.0, 0.0)),
        residuals=seconds(traffic.residuals, 2.0),
        activation=seconds(traffic.activation, 1.0),
        expert_activation=seconds(traffic.expert_activation, 3.0),
        loss=seconds(traffic.loss, 1.0),
    )


def _time_per_mac(die: Die, relax: Relaxation) -> Scalar:
    core = die.core
    operands = 2.0 * ELEMENT_BYTES * jnp.sqrt(core.num_macs) / core.sram_bytes_per_clock
    return relax.maximum(jnp.ones_like(operands), operands) / (die.num_cores * core.num_macs * core.clock)


def _time_per_dram_byte(die: Die, efficiency: Efficiency) -> Scalar:
    return (1.0 + efficiency.memory_overhead) / die.memory.bandwidth


def _inverse_root_capacity(die: Die) -> Scalar:
    return 1.0 / jnp.sqrt(die.sram_bytes / ELEMENT_BYTES)
