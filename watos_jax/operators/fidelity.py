"""The ladder of operator models behind one interface: how much slower, and how much more traffic, than the roofline.

Each rung above the roofline gives, for every operator, its time and its DRAM bytes over those of the roofline of an
ideal machine (all fields of `Efficiency` zero) on the same die, and what `roofline` computes is multiplied by them.
Both are at least 1, so the roofline bounds every rung; on an ideal machine the mapper's rung is the mapper's time.

    roofline    1
    mapper      exact minimum over mappings; held constant by derivatives, which are then those of the roofline
    predictor   a network that learned the mapper; 1 outside the range that it was trained on

`mapper` is for final answers: an estimate maps every product of the model with its two gradients, and attention both
ways. It holds for dies whose cores form a mesh, as on wafers; a GPU's cores share a cache instead.
"""

from typing import Final, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from watos_jax.hardware import Die, Efficiency
from watos_jax.model import Transformer
from watos_jax.operators.attention_mapper import map_attention
from watos_jax.operators.mapper import BANDS, elementwise_slowdown, map_product
from watos_jax.operators.mapping import Ratios
from watos_jax.operators.roofline import OperatorCost, attention_cost, matmul_cost
from watos_jax.relax import HARD, Relaxation
from watos_jax.units import Scalar
from watos_jax.workload import ELEMENT_BYTES, MATMULS, Attention, Elementwise, Matmuls, families
from watos_jax.xla import fence

Fidelity = Literal["roofline", "mapper", "predictor"]
FIDELITIES: Final[tuple[Fidelity, ...]] = ("roofline", "mapper", "predictor")
"""Operator models, from the quickest to the most faithful but one: the predictor is quick and learned the mapper."""


class Operators(eqx.Module):
    """Costs of the operators of a layer at some fidelity.

    Attributes:
        products: matrix products.
        core: attention core.
        elementwise: s of each group of element-wise operators, forward.
        outside: share of the time of products and attention that lies outside the range of the predictor.
    """

    products: OperatorCost
    core: OperatorCost
    elementwise: Elementwise
    outside: Scalar


def refine(
    roofline: Operators,
    fidelity: Fidelity,
    die: Die,
    model: Transformer,
    shapes: Matmuls,
    core: Attention,
    gradient_bytes: Scalar,
    mapped: tuple[Ratios, Ratios] | None,
    relax: Relaxation,
) -> Operators:
    """Costs at the given fidelity from those of the roofline.

    Args:
        roofline: costs of the roofline, with the efficiency of the machine.
        fidelity: one of `FIDELITIES`.
        die: where the operators run.
        model: whose operators they are.
        shapes: the products.
        core: the attention core.
        gradient_bytes: bytes of an accumulated gradient element.
        mapped: what `map_operators` found, at the fidelity of the mapper.
        relax: hard or smooth.
    """
    if fidelity == "roofline":
        return roofline
    if mapped is not None:
        products, attention = mapped
    else:
        from watos_jax.operators.predictor import predicted  # flax is imported by those who use it

        products, attention = predicted(die, model, shapes, core, gradient_bytes, relax)
    costs = _scaled(roofline.products, products), _scaled(roofline.core, attention)
    slowdown = elementwise_slowdown(die, relax)
    seconds = [jnp.sum(cost.forward + cost.backward) for cost in costs]
    missed = [jnp.sum(r.outside * (c.forward + c.backward)) for r, c in zip((products, attention), costs, strict=True)]
    refined = Operators(
        products=costs[0],
        core=costs[1],
        elementwise=jax.tree.map(lambda time: slowdown * time, roofline.elementwise),
        outside=sum(missed) / sum(seconds),
    )
    return fence(refined, die.core.clock)


def map_operators(
    die: Die, model: Transformer, shapes: Matmuls, core: Attention, gradient_bytes: Scalar
) -> tuple[Ratios, Ratios]:
    """Ratios of the mapper for every product and for the attention core, held constant by derivatives.

    Args:
        die: where the operators run.
        model: whose operators they are.
        shapes: the products.
        core: the attention core.
        gradient_bytes: bytes of an accumulated gradient element.
    """
    die, model, shapes, core, gradient_bytes = jax.lax.stop_gradient((die, model, shapes, core, gradient_bytes))
    there = jnp.zeros(len(MATMULS), bool)
    for places, has in families(model):
        there = there.at[np.array(places)].set(has)

    def all_of(places: np.ndarray, bands: tuple[int, ...]) -> Ratios:
        # one after another, so that a model pays for no product that it lacks; one question for a batch of one model
        def mapped(shape: Matmuls) -> Ratios:
            single = jax.tree.map(lambda leaf: leaf[None], shape)
            return jax.tree.map(lambda leaf: leaf[0], product_ratios(die, single, gradient_bytes, bands))

        def none(shape: Matmuls) -> Ratios:
            one = jnp.ones_like(shape.rows)
            return Ratios(one, one, one, one, outside=jnp.zeros_like(one))

        some = jax.tree.map(lambda leaf: leaf[places], (there, shapes))
        return jax.lax.map(lambda one: jax.lax.cond(one[0], mapped, none, one[1]), some)

    many = np.array([name.startswith("expert") for name in MATMULS])
    order = np.concatenate([np.flatnonzero(~many), np.flatnonzero(many)])
    parts = all_of(np.flatnonzero(~many), (1,)), all_of(np.flatnonzero(many), BANDS)
    products = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[np.argsort(order)], *parts)
    return products, attention_ratios(die, core)


def product_ratios(die: Die, shapes: Matmuls, gradient_bytes: Scalar, bands: tuple[int, ...]) -> Ratios:
    """Ratios of the mapper for products and their two gradients.

    Forward (rows x depth) (depth x cols), input gradient (rows x cols) (cols x depth), weight gradient
    (depth x rows) (rows x cols), which also reads and writes its accumulator.

    Args:
        die: where they run.
        shapes: the products.
        gradient_bytes: bytes of an accumulated gradient element.
        bands: products side by side to be tried.
    """
    accumulated = ELEMENT_BYTES + 2.0 * gradient_bytes
    rows, cols, depth = shapes.rows, shapes.cols, shapes.depth
    sizes = [jnp.concatenate(each) for each in ((rows, rows, depth), (cols, depth, cols), (depth, cols, rows))]
    result = jnp.repeat(
        jnp.stack([jnp.asarray(x, float) for x in (ELEMENT_BYTES, ELEMENT_BYTES, accumulated)]), rows.size
    )

    def one(m: Scalar, n: Scalar, k: Scalar, count: Scalar, result_bytes: Scalar) -> tuple[Scalar, Scalar]:
        mapping = map_product(die, m, n, k, count, result_bytes, bands=bands)
        return mapping.time, mapping.dram_bytes

    m, n, k = sizes
    times, moved = jax.vmap(one)(m, n, k, jnp.tile(shapes.count, 3), result)
    (forward, backward), (read, read_back) = (
        (x[: rows.size], x[rows.size :].reshape(2, -1).sum(0)) for x in (times, moved)
    )
    costs = (forward, backward, read, read_back)
    return _ratios(costs, matmul_cost(die, Efficiency(), shapes, gradient_bytes, HARD))


def attention_ratios(die: Die, core: Attention) -> Ratios:
    """Ratios of the mapper for an attention core.

    Args:
        die: where it runs.
        core: its sizes.
    """
    forward, backward = map_attention(die, core), map_attention(die, core, backward=True)
    costs = (forward.time, backward.time, forward.dram_bytes, backward.dram_bytes)
    return _ratios(costs, attention_cost(die, Efficiency(), core, HARD))


def _ratios(costs: tuple[Array, ...], ideal: OperatorCost) -> Ratios:
    # never below 1: the bound holds but for rounding; where nothing is done it is 1
    bounds = (ideal.forward, ideal.backward, ideal.forward_bytes, ideal.backward_bytes)
    pairs = zip(costs, bounds, strict=True)
    over = [jnp.maximum(cost / jnp.where(bound > 0, bound, 1.0), 1.0) for cost, bound in pairs]
    forward, backward, once, twice = over
    return Ratios(forward, backward, once, twice, outside=jnp.zeros_like(forward))


def _scaled(cost: OperatorCost, ratios: Ratios) -> OperatorCost:
    return OperatorCost(
        forward=cost.forward * ratios.forward,
        backward=cost.backward * ratios.backward,
        forward_flop=cost.forward_flop,
        backward_flop=cost.backward_flop,
        forward_bytes=cost.forward_bytes * ratios.forward_bytes,
        backward_bytes=cost.backward_bytes * ratios.backward_bytes,
    )
