"""From sampled operators to tables that a network is fitted to: labels of the mapper, inputs, and their slopes."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from watos_jax.batch import map_chunks
from watos_jax.hardware import Core, Die, Efficiency, Memory
from watos_jax.learn.draw import Samples
from watos_jax.operators import predictor
from watos_jax.operators.features import ATTENTION_BOX, PRODUCT_BOX, attention_features, product_features
from watos_jax.operators.fidelity import attention_ratios, product_ratios
from watos_jax.operators.mapper import BANDS
from watos_jax.operators.mapping import Ratios
from watos_jax.operators.roofline import attention_cost, matmul_cost
from watos_jax.relax import HARD
from watos_jax.units import GIGA, Scalar
from watos_jax.workload import Attention, Matmuls


class Point(NamedTuple):
    """One operator on one die, as a network sees it.

    Attributes:
        features: inputs.
        log_times: logarithms of the roofline's forward and backward time, shape (2,).
    """

    features: Any
    log_times: Any


class Table(NamedTuple):
    """What a network is fitted to, one row per sample.

    Attributes:
        features: logarithms of the inputs.
        box: logarithms that state the range.
        targets: logarithms of the ratios, forward and backward time, forward and backward bytes.
        slopes: of the features in the logarithm of each column of `DIE_COLUMNS`, shape (samples, columns, features).
        roofline_slopes: of the roofline's forward and backward time, shape (samples, columns, 2).
    """

    features: Any
    box: Any
    targets: Any
    slopes: Any
    roofline_slopes: Any


def die_of(columns: Any) -> Die:
    """The die of one row of `DIE_COLUMNS`."""
    rows, cols, macs, sram, port, link, dram = columns
    core = Core(macs, jnp.asarray(GIGA), sram, port, link)
    one = jnp.ones_like(dram)
    return Die(rows, cols, core, Memory(one, GIGA * one, GIGA * dram, one))


def shapes_of(columns: Any) -> tuple[Matmuls, Scalar]:
    """One product as a record of arrays of shape (1,), and its bytes per gradient element."""
    return Matmuls(*(column[None] for column in columns[:4])), columns[4]


def label_products(_: None, row: Samples) -> Ratios:
    """Ratios of the mapper for one product that comes alone."""
    shapes, gradient_bytes = shapes_of(row.sizes)
    return jax.tree.map(lambda leaf: leaf[0], product_ratios(die_of(row.dies), shapes, gradient_bytes, (1,)))


def label_many(_: None, row: Samples) -> Ratios:
    """Ratios of the mapper for one product that comes in numbers."""
    shapes, gradient_bytes = shapes_of(row.sizes)
    return jax.tree.map(lambda leaf: leaf[0], product_ratios(die_of(row.dies), shapes, gradient_bytes, BANDS))


def label_attention(_: None, row: Samples) -> Ratios:
    """Ratios of the mapper for one attention core."""
    return attention_ratios(die_of(row.dies), Attention(*row.sizes))


def product_point(dies: Array, sizes: Any) -> Point:
    """One product as the network sees it."""
    die, (shapes, gradient_bytes) = die_of(dies), shapes_of(sizes)
    bound = matmul_cost(die, Efficiency(), shapes, gradient_bytes, HARD)
    return Point(
        product_features(die, shapes, gradient_bytes, HARD)[0],
        jnp.log(jnp.stack([bound.forward[0], bound.backward[0]])),
    )


def attention_point(dies: Array, sizes: Any) -> Point:
    """One attention core as the network sees it."""
    die, shape = die_of(dies), Attention(*sizes)
    bound = attention_cost(die, Efficiency(), shape, HARD)
    log_times = jnp.log(jnp.stack([bound.forward, bound.backward]))
    return Point(attention_features(die, shape, HARD), log_times)


POINTS: Final = {"products": product_point, "attention": attention_point}
"""What each network sees of a row of samples."""
BOXES: Final = {"products": PRODUCT_BOX, "attention": ATTENTION_BOX}
"""Columns of the range of each network, its first inputs."""


def tabulate(samples: Samples, labels: Ratios, subject: str) -> Table:
    """Inputs and targets of all samples.

    Args:
        samples: operators on dies.
        labels: ratios of the mapper.
        subject: a key of `POINTS`.
    """
    features, *slopes = map_chunks(_INPUTS[subject], None, samples, chunk=512, chunks_per_call=8)
    targets = np.log(np.stack(labels[:4], axis=1))
    return Table(*(np.asarray(a, np.float32) for a in (features, features[:, : len(BOXES[subject])], targets, *slopes)))


def times(trained: predictor.Trained, samples: Samples, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Predicted forward time of every sample, s, and whether the sample lies in the range of training.

    Args:
        trained: the network.
        samples: operators on dies.
        subject: a key of `POINTS`.
    """
    return map_chunks(_TIMES[subject], trained, samples, chunk=512, chunks_per_call=8)


def _inputs(point: Callable[..., Point]) -> Callable:
    def inputs(_: None, row: Samples) -> tuple[Array, ...]:
        def seen(log_die: Array) -> tuple[Point, Point]:
            found = point(jnp.exp(log_die), row.sizes)
            found = found._replace(features=jnp.log(found.features))
            return found, found

        at = jnp.log(row.dies)
        slopes, found = jax.jacfwd(seen, has_aux=True)(at)
        return found.features, slopes.features.T, slopes.log_times.T

    return inputs


def _times(point: Callable[..., Point]) -> Callable:
    def time(trained: predictor.Trained, row: Samples) -> tuple[Array, Array]:
        seen = point(row.dies, row.sizes)
        ratios = predictor.ratios(trained, seen.features)
        return jnp.exp(seen.log_times[0]) * ratios.forward, ratios.outside == 0

    return time


_INPUTS: Final = {subject: _inputs(point) for subject, point in POINTS.items()}
_TIMES: Final = {subject: _times(point) for subject, point in POINTS.items()}
# made once: a compiled function is looked up by the function that it was made of
