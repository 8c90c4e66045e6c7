"""Time of a collective from its coefficients: alpha-beta with link loads, on any topology.

`time = bytes * sum_tiers(volume / bandwidth) + sum_tiers(steps * latency) + collective_latency` (Hockney 1994; the
volume is the load of the busiest link, so concurrent groups share bandwidth). Tiers are traversed one after another.
"""

import jax.numpy as jnp

from watos_jax.hardware import Efficiency, System
from watos_jax.strategy import Collective
from watos_jax.units import PerTier, Scalar


def tier_links(system: System) -> tuple[PerTier, PerTier, PerTier]:
    """Bandwidth, latency and energy per byte of every tier, innermost first."""
    links = [tier.link for tier in system.tiers]
    return (
        jnp.stack([jnp.asarray(link.bandwidth) for link in links]),
        jnp.stack([jnp.asarray(link.latency) for link in links]),
        jnp.stack([jnp.asarray(link.energy) for link in links]),
    )


def slope_and_latency(system: System, efficiency: Efficiency, collective: Collective) -> tuple[Scalar, Scalar]:
    """Seconds per byte of buffer, and seconds of an empty buffer.

    Args:
        system: the links.
        efficiency: overhead of transfers and latency of a call on the real machine.
        collective: coefficients of the operation.
    """
    bandwidth, latency, _ = tier_links(system)
    slope = jnp.sum(collective.volume / bandwidth, axis=-1) * (1.0 + efficiency.network_overhead)
    hops = jnp.sum(collective.steps * latency, axis=-1)
    called = jnp.where(jnp.sum(collective.steps, axis=-1) > 0, efficiency.collective_latency, 0.0)
    return slope, hops + called
