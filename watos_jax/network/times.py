"""Time of a collective from its coefficients: alpha-beta with link loads, on any topology.

`time = bytes * sum_tiers(volume / bandwidth) + sum_tiers(steps * latency) + collective_latency` (Hockney 1994; the
volume is the load of the busiest link, so concurrent groups share bandwidth). Tiers are traversed one after another.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.hardware import Efficiency, System
from watos_jax.strategy import Collective
from watos_jax.units import Scalar


def over_tiers(
    coefficients: Float[Array | np.ndarray, "*stages tiers"], values: list[Scalar]
) -> Float[Array | np.ndarray, "*stages"]:
    """Sum over tiers of a coefficient, along its last axis, times a value of the tier."""
    # a sum of few terms: with an axis of tiers the compiler's reductions over stages become ten times slower
    return sum(coefficients[..., tier] * value for tier, value in enumerate(values))


def slope_and_latency(system: System, efficiency: Efficiency, collective: Collective) -> tuple[Scalar, Scalar]:
    """Seconds per byte of buffer, and seconds of an empty buffer.

    Args:
        system: the links.
        efficiency: overhead of transfers and latency of a call on the real machine.
        collective: coefficients of the operation.
    """
    slope = over_tiers(collective.volume, [1.0 / tier.link.bandwidth for tier in system.tiers])
    hops = over_tiers(collective.steps, [tier.link.latency for tier in system.tiers])
    called = jnp.where(jnp.sum(collective.steps, axis=-1) > 0, efficiency.collective_latency, 0.0)
    return slope * (1.0 + efficiency.network_overhead), hops + called
