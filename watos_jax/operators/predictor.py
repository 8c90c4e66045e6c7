"""Operator predictor: a small network that learned how far the mapper lies above the roofline.

For a product with its two gradients, or an attention core with its own,

    log(time / roofline), log(DRAM bytes / roofline), forward and backward = softplus(network(log(features)))

so that a prediction is never below the roofline. `features` says what goes in; ceilings are those of the relaxation, so
hard predictions jump where tiles do and smooth ones do not. Outside the box of sizes and resources that
training covered the ratios are 1: the roofline itself.

Weights, means and the box lie beside this file as plain arrays, with a manifest that says how they were made and how
far they are off on samples held out. `watos_jax.learn` makes them.
"""

from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.hardware import Die
from watos_jax.model import Transformer
from watos_jax.operators.features import Features, attention_features, product_features
from watos_jax.operators.mapping import Ratios
from watos_jax.relax import Relaxation
from watos_jax.units import Scalar
from watos_jax.workload import Attention, Matmuls, families
from watos_jax.xla import fence

FOLDER: Final = Path(__file__).parent / "weights"
"""Where the shipped weights and their manifest lie."""
HIDDEN: Final = 64
"""Width of both hidden layers."""
OUTPUTS: Final = 4
"""Time forward and backward, DRAM bytes forward and backward."""
ROUNDING: Final = 1e-4
"""Excess of a logarithm over the range that is put down to single precision."""


def rectified(x: Array) -> Array:
    """`max(x, 0)` but for a parabola between -1 and 1: its slope is continuous, and it takes no exponential."""
    corner = jnp.maximum(1.0 - jnp.abs(x), 0.0)
    return jnp.maximum(x, 0.0) + 0.25 * corner * corner


class Network(nn.Module):
    """Two hidden layers, smooth; outputs are at least 0.

    Attributes:
        hidden: width of the hidden layers.
        outputs: number of outputs.
    """

    hidden: int = HIDDEN
    outputs: int = OUTPUTS

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "*ops outputs"]:
        """Logarithms of the ratios, from normalised logarithms of the inputs."""
        hidden = rectified(nn.Dense(self.hidden)(features))
        hidden = rectified(nn.Dense(self.hidden)(hidden))
        return nn.softplus(nn.Dense(self.outputs)(hidden))


class Trained(NamedTuple):
    """A network with what it takes to use it.

    Attributes:
        parameters: of `Network`.
        mean: of the logarithm of each feature.
        scale: standard deviation of the same.
        low: smallest logarithm that training covered, of each column of `PRODUCT_BOX` or `ATTENTION_BOX`.
        high: largest one.
    """

    parameters: Any
    mean: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray


def predicted(
    die: Die, model: Transformer, shapes: Matmuls, core: Attention, gradient_bytes: Scalar, relax: Relaxation
) -> tuple[Ratios, Ratios]:
    """Ratios of all products and of the attention core, with the shipped weights.

    Products that the model does not have are left out where that is one question for a whole batch.

    Args:
        die: where the operators run.
        model: whose operators they are.
        shapes: the products.
        core: the attention core.
        gradient_bytes: bytes of an accumulated gradient element.
        relax: hard or smooth ceilings.
    """
    shapes, core = fence((shapes, core), die.core.clock)  # else every candidate of a closed form computes them again

    def some(shapes: Matmuls) -> Ratios:
        return ratios(load("products"), product_features(die, shapes, gradient_bytes, relax))

    def none(shapes: Matmuls) -> Ratios:
        one = jnp.ones_like(shapes.rows)
        return Ratios(one, one, one, one, outside=jnp.zeros_like(one))

    parts: list[Ratios] = []
    order: list[int] = []
    for places, there in families(model):
        order += places
        family = jax.tree.map(lambda leaf, places=places: jnp.stack([leaf[n] for n in places]), shapes)
        parts.append(jax.lax.cond(there, some, none, family))
    back = [order.index(n) for n in range(len(order))]
    products = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[np.array(back)], *parts)
    return products, ratios(load("attention"), attention_features(die, core, relax))


def ratios(trained: Trained, features: Features) -> Ratios:
    """Apply a network where it was trained, and 1 elsewhere.

    Args:
        trained: the network.
        features: its inputs, of which the first state the range.
    """
    mean, scale, low, high = (jnp.reshape(a, (1,) * (features.ndim - 1) + (-1,)) for a in trained[1:])
    # the range is asked of inputs, not of their logarithms: those are then computed while they are moved to the network
    box = features[..., : low.shape[-1]]
    inside = jnp.all((box >= jnp.exp(low - ROUNDING)) & (box <= jnp.exp(high + ROUNDING)), axis=-1)
    logs = apply(trained.parameters, (jnp.log(features) - mean) / scale)
    each = jnp.exp(jnp.where(inside[..., None], logs, 0.0))
    forward, backward, once, twice = (each[..., i] for i in range(OUTPUTS))
    return Ratios(forward, backward, once, twice, outside=1.0 - inside)


def apply(parameters: Any, features: Features) -> Float[Array, "*ops outputs"]:
    """Logarithms of the ratios, from normalised logarithms of the inputs."""
    found = Network().apply({"params": parameters}, features)
    return jnp.asarray(found)


@cache
def load(name: str, folder: Path = FOLDER) -> Trained:
    """Read a trained network: arrays alone, nothing that could be executed.

    Args:
        name: `products` or `attention`.
        folder: where the file lies.
    """
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    parameters: dict[str, dict[str, np.ndarray]] = {}
    for key in [key for key in arrays if "/" in key]:
        layer, kind = key.split("/")
        parameters.setdefault(layer, {})[kind] = arrays[key]
    return Trained(parameters, *(arrays[name] for name in ("mean", "scale", "low", "high")))


def save(trained: Trained, name: str, folder: Path) -> None:
    """Write what `load` reads, in single precision."""
    arrays = {f"{layer}/{kind}": a for layer, kinds in trained.parameters.items() for kind, a in kinds.items()}
    arrays |= {name: getattr(trained, name) for name in ("mean", "scale", "low", "high")}
    single: dict[str, Any] = {key: np.asarray(value, np.float32) for key, value in arrays.items()}
    np.savez(folder / f"{name}.npz", **single)
