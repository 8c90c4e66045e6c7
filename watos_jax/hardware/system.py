"""What the engine computes on: equal dies joined by tiers of links.

A GPU cluster is a system of two switch tiers, a wafer one of a mesh tier.
"""

import equinox as eqx

from watos_jax.hardware.die import Die, Link, Technology
from watos_jax.hardware.execution import Efficiency, Overlap, Precision
from watos_jax.units import Leaf, as_leaf, check_range

FABRICS = ("mesh", "torus", "ring", "switch")
"""Topologies of a tier."""


class Tier(eqx.Module):
    """One level of a network: a grid of children joined by equal links.

    Attributes:
        rows: rows of children (1 in a ring or switch).
        cols: columns of children.
        link: the link of one child.
        fabric: "mesh", "torus", "ring" or "switch".
    """

    rows: Leaf = eqx.field(converter=as_leaf)
    cols: Leaf = eqx.field(converter=as_leaf)
    link: Link
    fabric: str = eqx.field(static=True, default="mesh")

    def __check_init__(self) -> None:
        check_range("Tier", {"rows": self.rows, "cols": self.cols}, low=1.0, integral=True)
        if self.fabric not in FABRICS:
            raise ValueError(f"Tier.fabric is {self.fabric!r}: it must be one of {', '.join(FABRICS)}")


class System(eqx.Module):
    """What the engine computes on: equal dies joined by tiers of links, innermost first.

    Attributes:
        die: the die (or GPU).
        tiers: levels of the network, innermost first; a GPU node is a switch tier of 8.
        technology: energy constants.
        efficiency: distance of the real machine from its roofline.
        overlap: communication beside computation; None where there is none.
        precision: width of the numbers that the layers' products multiply; None is 16 bits.
    """

    die: Die
    tiers: tuple[Tier, ...]
    technology: Technology
    efficiency: Efficiency = Efficiency()
    overlap: Overlap | None = None
    precision: Precision | None = None

    @property
    def num_dies(self) -> Leaf:
        """Dies of the whole system."""
        count = 1.0
        for tier in self.tiers:
            count = count * tier.rows * tier.cols
        return count
