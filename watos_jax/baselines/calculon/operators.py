"""Calculon's operators of one block, out of our products and bytes.

Query, key and value are three products, attention is two products, softmax and dropout; each takes the longer of its
FLOP and bytes, or their sum. A mask is a byte, and both gradients of an attention product share one pass over its
operands. Adding the gradients of branches is an operator of its own; weight gradients accumulate for nothing.
"""

from typing import NamedTuple

import jax.numpy as jnp

from watos_jax.baselines.calculon.point import Point, die_of
from watos_jax.hardware import Efficiency
from watos_jax.model import Transformer
from watos_jax.operators.roofline import SCORE_BYTES, matmul_cost
from watos_jax.relax import HARD
from watos_jax.strategy import Strategy
from watos_jax.units import TERA, Scalar
from watos_jax.workload import ELEMENT_BYTES, MATMULS, Matmuls, attention, elementwise, matmuls, messages

# FLOP per element (an optimizer's parameter) that Calculon counts for operators that are no products; ours have none
LAYER_NORM, ACTIVATION, SOFTMAX, OPTIMIZER_FLOP = (9.0, 14.0, 7.0), (8.0, 13.0), (5.0, 8.0), 11.0


def _longer(point: Point, compute: Scalar, moved: Scalar) -> Scalar:
    return jnp.where(jnp.asarray(point.added) > 0, compute + moved, jnp.maximum(compute, moved))


class Operators(NamedTuple):
    """Seconds of one block's operators.

    Attributes:
        forward: all of them.
        backward: all of them.
        attention_again: those that selective recomputation repeats.
    """

    forward: Scalar
    backward: Scalar
    attention_again: Scalar


def operators(point: Point, model: Transformer, strategy: Strategy) -> Operators:
    """Seconds of one block's operators as Calculon counts them.

    Args:
        point: one run.
        model: that of the run.
        strategy: that of the run.
    """
    die = die_of(point)
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
    return Operators(forward, backward, again)
