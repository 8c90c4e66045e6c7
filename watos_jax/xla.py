"""Compilation aids: options, and ways of writing the same numbers, that XLA's CPU compiler turns into faster code."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from watos_jax.units import Scalar

Tree = TypeVar("Tree")


@cache
def compiler_options() -> dict[str, bool]:
    """Options of `jax.jit` for large kernels: on a CPU, the older emitters, which compile this model twice as fast.

    The code they emit is as fast and gives the same numbers. Empty on other devices, and where the installed
    compiler does not know the option; only for functions that are not called inside another compiled function.
    """
    options = {"xla_cpu_use_fusion_emitters": False}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def fence(tree: Tree, anchor: Scalar) -> Tree:
    """Return the tree with every leaf computed in one place, before the loops that use it.

    The compiler fuses the arithmetic on per-strategy scalars into every loop over stages that reads them, and then
    repeats it for each stage (measured: 5 times slower, and 12 times as many fused loops to compile). It removes
    `optimization_barrier` before it fuses; but it never fuses a division, which it counts as expensive, into a loop
    that would repeat it. Division by a one that it cannot see through is exact, vectorised and differentiable.

    Args:
        tree: any pytree of arrays.
        anchor: any finite number other than zero that is an input of the compiled function.
    """
    one = anchor / anchor
    return jax.tree.map(lambda leaf: leaf / one, tree)


def fold(combine: Callable, values: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Combine the elements along the last axis in a balanced tree: vectorised, where a reduction runs one by one.

    Args:
        combine: an associative operation on two arrays.
        values: at least one element along the last axis.
    """
    while values.shape[-1] > 1:
        size = values.shape[-1]
        half = size // 2
        paired = combine(values[..., :half], values[..., half : 2 * half])
        values = jnp.concatenate([paired, values[..., 2 * half :]], axis=-1) if size % 2 else paired
    return values[..., 0]


def total(values: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Sum along the last axis."""
    return jnp.sum(values, axis=-1)
