"""Operator predictor: a small network that learned how far the mapper lies above the roofline.

For a product with its two gradients, or an attention core with its own,

    log(time / roofline), log(DRAM bytes / roofline), forward and backward = softplus(network(features))

so that a prediction is never below the roofline. Features are logarithms of sizes and of the die's resources, ratios of
the roofline's terms, and the padding that whole cores and whole passes of the MAC array cost; ceilings are those of the
relaxation, so hard predictions jump where tiles do and smooth ones do not. Outside the box of sizes and resources that
training covered the ratios are 1: the roofline itself.

Weights, means and the box lie beside this file as plain arrays, with a manifest that says how they were made and how
far they are off on samples held out. `watos_jax.learn` makes them.
"""

from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.hardware import Die
from watos_jax.operators.mapping import Ratios
from watos_jax.relax import Relaxation
from watos_jax.units import Leaf, Scalar
from watos_jax.workload import Attention, Matmuls

FOLDER: Final = Path(__file__).parent / "weights"
"""Where the shipped weights and their manifest lie."""
HIDDEN: Final = 48
"""Width of both hidden layers."""
OUTPUTS: Final = 4
"""Time forward and backward, DRAM bytes forward and backward."""
ROUNDING: Final = 1e-4
"""Excess of a logarithm over the range that is put down to single precision."""

_DIE: Final = ("core_rows", "core_cols", "array side", "sram_bytes", "port over operands", "noc_bytes_per_clock")
PRODUCT_BOX: Final = ("rows", "cols", "depth", "count", "gradient_bytes", *_DIE, "dram bytes per clock")
"""Columns of `product_box`."""
ATTENTION_BOX: Final = (
    *("units", "rows of a unit", "keys", "sequence", "head_dim", "value_dim", "group", "1 + materialised", *_DIE),
    "dram bytes per clock",
)
"""Columns of `attention_box`."""

Features = Float[Array, "*ops features"]


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
        """Logarithms of the ratios."""
        hidden = nn.silu(nn.Dense(self.hidden)(features))
        hidden = nn.silu(nn.Dense(self.hidden)(hidden))
        return nn.softplus(nn.Dense(self.outputs)(hidden))


class Trained(NamedTuple):
    """A network with what it takes to use it.

    Attributes:
        parameters: of `Network`.
        mean: of each feature.
        scale: standard deviation of each feature.
        low: smallest logarithm that training covered, of each column of `product_box` or `attention_box`.
        high: largest one.
    """

    parameters: Any
    mean: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray


def predicted(
    die: Die, shapes: Matmuls, core: Attention, gradient_bytes: Scalar, relax: Relaxation
) -> tuple[Ratios, Ratios]:
    """Ratios of all products and of the attention core, with the shipped weights.

    Args:
        die: where the operators run.
        shapes: the products.
        core: the attention core.
        gradient_bytes: bytes of an accumulated gradient element.
        relax: hard or smooth ceilings.
    """
    products = ratios(
        load("products"), product_features(die, shapes, gradient_bytes, relax), product_box(die, shapes, gradient_bytes)
    )
    return products, ratios(load("attention"), attention_features(die, core, relax), attention_box(die, core))


def ratios(trained: Trained, features: Features, box: Float[Array, "*ops columns"]) -> Ratios:
    """Apply a network where it was trained, and 1 elsewhere.

    Args:
        trained: the network.
        features: its inputs.
        box: logarithms of sizes and resources.
    """
    mean, scale, low, high = (jnp.reshape(a, (1,) * (box.ndim - 1) + (-1,)) for a in trained[1:])
    inside = jnp.all((box >= low - ROUNDING) & (box <= high + ROUNDING), axis=-1)
    logs = apply(trained.parameters, (features - mean) / scale)
    each = jnp.exp(jnp.where(inside[..., None], logs, 0.0))
    forward, backward, once, twice = (each[..., i] for i in range(OUTPUTS))
    return Ratios(forward, backward, once, twice, outside=1.0 - inside)


def apply(parameters: Any, features: Features) -> Float[Array, "*ops outputs"]:
    """Logarithms of the ratios, from normalised features."""
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


class _Resources(NamedTuple):
    # the die in dimensionless or per-cycle quantities
    rows: Scalar
    cols: Scalar
    side: Scalar
    sram: Scalar
    port: Scalar
    link: Scalar
    dram: Scalar


def _resources(die: Die) -> _Resources:
    side = jnp.sqrt(die.core.num_macs)
    return _Resources(
        rows=die.core_rows,
        cols=die.core_cols,
        side=side,
        sram=die.core.sram_bytes,
        port=die.core.sram_bytes_per_clock / (4.0 * side),
        link=die.core.noc_bytes_per_clock,
        dram=die.memory.bandwidth / die.core.clock,
    )


def _logs(values: list[Leaf], like: Array) -> Features:
    return jnp.stack([jnp.log(jnp.broadcast_to(value, like.shape)) for value in values], axis=-1)


def product_box(die: Die, shapes: Matmuls, gradient_bytes: Scalar) -> Float[Array, "ops columns"]:
    """Logarithms of what the range of training is stated in: sizes, number, resources of the die."""
    return _logs([*_sizes(shapes), gradient_bytes, *_resources(die)], shapes.rows)


def _sizes(shapes: Matmuls) -> list[Array]:
    # an absent product counts as one of one element; it costs nothing in any case
    return [jnp.where(size > 0, size, 1.0) for size in (shapes.rows, shapes.cols, shapes.depth, shapes.count)]


def product_features(die: Die, shapes: Matmuls, gradient_bytes: Scalar, relax: Relaxation) -> Features:
    """Inputs of the network for products.

    Args:
        die: where they run.
        shapes: the products.
        gradient_bytes: bytes of an accumulated gradient element.
        relax: hard or smooth ceilings.
    """
    rows, cols, depth, count = _sizes(shapes)
    r = _resources(die)
    left, right, result = rows * depth, depth * cols, rows * cols
    compute = rows * right / (r.rows * r.cols * r.side**2) * relax.maximum(jnp.ones_like(r.port), 1.0 / r.port)
    room = r.rows * r.cols * r.sram
    terms = [compute * r.dram / (left + right + result)]
    terms += [compute * r.link * r.rows / left, compute * r.link * r.cols / right]
    terms += [compute * r.link * r.rows / result, compute * r.link * r.cols / result]
    terms += [left / room, right / room, result / room]
    for extent in (rows, cols, depth):
        for ways in (r.rows, r.cols):
            share = relax.ceil(extent / ways)
            terms += [share * ways / extent, relax.ceil(share / r.side) * r.side / share]
        terms.append(relax.ceil(extent / r.side) * r.side / extent)
    return _logs([rows, cols, depth, count, gradient_bytes, *r, *terms], rows)


def _units(core: Attention) -> list[Scalar]:
    # keys and values of one sequence and head, the query rows that share them, keys met by a row, keys to be read
    sequences = jnp.maximum(core.key_tokens / core.sequence, 1.0)
    rows = core.queries / sequences * core.heads / core.kv_heads
    return [sequences * core.kv_heads, rows, core.keys, core.sequence, core.head_dim, core.value_dim]


def attention_box(die: Die, core: Attention) -> Float[Array, " columns"]:
    """Logarithms of what the range of training is stated in: units, rows, keys, widths, resources of the die."""
    return _logs([*_units(core), core.heads / core.kv_heads, 1.0 + core.materialised, *_resources(die)], core.queries)


def attention_features(die: Die, core: Attention, relax: Relaxation) -> Features:
    """Inputs of the network for attention cores.

    Args:
        die: where they run.
        core: their sizes.
        relax: hard or smooth ceilings.
    """
    units, rows, keys, sequence, head, value = _units(core)
    group, r = core.heads / core.kv_heads, _resources(die)
    cores = r.rows * r.cols
    width = head + value
    compute = units * rows * keys * width / (cores * r.side**2) * relax.maximum(jnp.ones_like(r.port), 1.0 / r.port)
    moved = units * width * (rows + sequence)
    terms = [compute * r.dram / moved, compute * r.link * r.rows / moved, cores / units, rows * units / cores]
    terms += [rows * width / r.sram, sequence * width / r.sram, sequence / keys]
    for extent, ways in ((units, r.rows), (units, r.cols), (units, cores), (rows, cores), (rows, r.rows)):
        terms.append(relax.ceil(extent / ways) * ways / extent)
    for extent in (head, value, rows / cores + 1.0):
        terms.append(relax.ceil(extent / r.side) * r.side / extent)
    return _logs([units, rows, keys, sequence, head, value, group, 1.0 + core.materialised, *r, *terms], core.queries)
