"""The least time of the slowest stage.

A cap on it is feasible if supplies add up to at least nothing (pooled), or if one scan along the line finds a flow.
Both are monotone in the cap, so it is bisected down to neighbouring floating-point numbers: exact, without sorting
candidates.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from watos_jax.recompute.problem import Choices, Sharing, sharing_of, supplies
from watos_jax.units import PerStage, Scalar
from watos_jax.xla import fold


def _covered(supply: PerStage, link_bytes: PerStage, pooled: bool) -> Bool[Array, ""]:
    if pooled:
        return fold(jnp.add, supply) >= 0.0

    def cross(state: tuple, stage: tuple) -> tuple[tuple, None]:
        # least and most bytes on their way to later stages, negative to earlier ones; empty once, the range stays so
        (least, most, possible), (gives, link) = state, stage
        least = jnp.maximum(least - gives, -link)
        most = jnp.minimum(most + jnp.maximum(-gives, 0.0), link)
        return (least, most, possible & (least <= most)), None

    ends = jnp.arange(len(supply)) == len(supply) - 1
    zero = jnp.zeros((), supply.dtype)
    state, _ = jax.lax.scan(cross, (zero, zero, jnp.asarray(True)), (supply, jnp.where(ends, 0.0, link_bytes)))
    return state[2]


def least_slowest(given: Choices, *, pooled: bool = True) -> Sharing:
    """The least time of the slowest stage: exact for the stated problem.

    Args:
        given: the problem, one strategy; use `jax.vmap` for many.
        pooled: whether any stage may help any other; else `given.link_bytes` limits what passes each boundary.

    Returns:
        Levels, supplies and the time, which is the least floating-point number at which the stages fit.

    **Neglects:** hops between sender and helper, which `send_time` stands for.
    """

    def enough(cap: Scalar) -> Bool[Array, ""]:
        return _covered(fold(jnp.maximum, supplies(given, cap).T), given.link_bytes, pooled)

    helped = given.busy + given.hold_time * jnp.maximum(given.room, 0.0)
    # above `most` nothing changes any more; below `quickest` some stage has no level left
    most = jnp.max(jnp.where(jnp.isfinite(given.busy), helped, 0.0))
    quickest = jnp.max(jnp.min(given.busy, axis=0))
    fits = enough(most) & jnp.isfinite(quickest)
    low = jnp.where(fits, quickest, most)
    high = jnp.where(enough(low), low, most)

    def between(bounds: tuple[Scalar, Scalar]) -> Scalar:
        return bounds[0] + 0.5 * (bounds[1] - bounds[0])

    def unfinished(bounds: tuple[Scalar, Scalar]) -> Bool[Array, ""]:
        return (bounds[0] < between(bounds)) & (between(bounds) < bounds[1])

    def halve(bounds: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        middle = between(bounds)
        covered = enough(middle)
        return jnp.where(covered, bounds[0], middle), jnp.where(covered, middle, bounds[1])

    _, cap = jax.lax.while_loop(unfinished, halve, (low, high))
    supply = supplies(given, cap)
    return sharing_of(supply, jnp.where(fits, cap, jnp.inf), jnp.argmax(supply, axis=0))
