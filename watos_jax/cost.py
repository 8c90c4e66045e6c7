"""Dollars: from defects and prices to a known good die, an assembled wafer, and a token.

A wafer here is an assembly: dies that were tested are bonded with memory stacks to a passive interconnect wafer.

Neglects: test, spare dies and repair, masks and design, cooling, power supply, host and network.
"""

from typing import NamedTuple

import jax.numpy as jnp

from watos_jax.hardware import Wafer
from watos_jax.prices import Prices
from watos_jax.units import Leaf, Scalar


class WaferCost(NamedTuple):
    """$ of one working wafer by cause; each counts its share of the assemblies that fail.

    Attributes:
        dies: known good dies.
        memory: memory stacks.
        interconnect: the passive wafer.
    """

    dies: Scalar
    memory: Scalar
    interconnect: Scalar

    @property
    def total(self) -> Scalar:
        """Sum of all causes."""
        return self.dies + self.memory + self.interconnect


def die_yield(area: Leaf, prices: Prices) -> Scalar:
    """Share of dies without a defect.

    With `x = area * defect_density`: negative binomial `(1 + x / alpha)**-alpha` (Stapper, IBM J. Res. Dev. 27, 1983),
    or Murphy's `((1 - exp(-x)) / x)**2` (Proc. IEEE 52, 1964) where the clustering is 0.

    Args:
        area: m2 of one die.
        prices: defects of the process.
    """
    x = jnp.asarray(area * prices.defect_density)
    alpha = jnp.where(prices.clustering > 0, prices.clustering, 1.0)
    clustered = (1.0 + x / alpha) ** -alpha
    safe = jnp.where(x > 1e-6, x, 1.0)
    murphy = jnp.where(x > 1e-6, (-jnp.expm1(-safe) / safe) ** 2, 1.0 - x)
    return jnp.where(prices.clustering > 0, clustered, murphy)


def dies_per_wafer(width: Leaf, height: Leaf, prices: Prices) -> Scalar:
    """Whole dies on a round wafer, as a smooth count: `pi r**2 / A - 0.58 * 2 pi r / sqrt(A)`, at least 1.

    The constant is that of de Vries (IEEE Trans. Semicond. Manuf. 18, 2005); the older `1 / sqrt(2)` counts too few.

    Args:
        width: m of one die.
        height: m of one die.
        prices: wafer, rim and scribe lines.
    """
    area = (width + prices.scribe) * (height + prices.scribe)
    radius = 0.5 * prices.wafer_diameter - prices.edge_exclusion
    count = jnp.pi * radius**2 / area - 0.58 * 2.0 * jnp.pi * radius / jnp.sqrt(area)
    return jnp.where(count > 1.0, count, 1.0)


def known_good_die(wafer: Wafer, prices: Prices) -> Scalar:
    """$ of a compute die that passed its test: wafer price over good dies per wafer."""
    width, height = wafer.die.width, wafer.die.height
    return prices.wafer_price / (dies_per_wafer(width, height, prices) * die_yield(width * height, prices))


def wafer_cost(wafer: Wafer, prices: Prices) -> WaferCost:
    """$ of a working wafer: parts over the yield of the assembly, `bond_yield**(dies + stacks)`.

    Args:
        wafer: the design.
        prices: of the process and the parts.
    """
    memory = wafer.die.memory
    assembled = prices.bond_yield ** (wafer.num_dies * (1.0 + memory.num_stacks))
    return WaferCost(
        dies=wafer.num_dies * known_good_die(wafer, prices) / assembled,
        memory=wafer.num_dies * memory.capacity * prices.memory_price / assembled,
        interconnect=jnp.asarray(prices.interconnect_price / prices.interconnect_yield / assembled),
    )


def step_cost(wafer: Wafer, prices: Prices, step_time: Scalar, energy: Scalar) -> Scalar:
    """$ of one optimizer step: the wafer's price spread over its lifetime, and electricity.

    Args:
        wafer: the design.
        prices: of parts and electricity.
        step_time: s per step.
        energy: J per step.
    """
    return wafer_cost(wafer, prices).total * step_time / prices.lifetime + energy * prices.energy_price
