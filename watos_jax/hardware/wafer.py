"""A wafer, a mesh of dies with its geometry and limits; and several, a tier of wafers round the mesh."""

import math
from dataclasses import replace

import equinox as eqx

from watos_jax.hardware.die import Die, Link, Technology
from watos_jax.hardware.execution import Efficiency, Overlap, Precision
from watos_jax.hardware.system import System, Tier
from watos_jax.units import Leaf, as_leaf, check_range

PACKINGS = ("strict", "area")
"""How dies are fitted on a wafer: as a grid of tiles inside the window, or by area alone."""


class Wafer(eqx.Module):
    """A wafer: a mesh of equal dies inside a square or rectangular window, with its limits.

    Attributes:
        die_rows: rows of dies.
        die_cols: columns of dies.
        die: the die with its memory.
        d2d: the link between neighbour dies, the same on all four edges.
        technology: process constants.
        window_width: m of usable wafer.
        window_height: m of usable wafer.
        die_gap: m between neighbouring tiles.
        reticle_width: m, the short side of the exposure field.
        reticle_height: m, the long side.
        power_limit: W of the whole wafer.
        power_density_limit: W per m2 of die.
        efficiency: distance of the real machine from its roofline.
        overlap: communication beside computation; None where there is none.
        precision: width of the numbers that the layers' products multiply; None is 16 bits.
        packing: "strict" (a grid of tiles inside the window) or "area" (sum of areas only).
    """

    die_rows: Leaf = eqx.field(converter=as_leaf)
    die_cols: Leaf = eqx.field(converter=as_leaf)
    die: Die
    d2d: Link
    technology: Technology
    window_width: Leaf = eqx.field(converter=as_leaf, default=0.215)
    window_height: Leaf = eqx.field(converter=as_leaf, default=0.215)
    die_gap: Leaf = eqx.field(converter=as_leaf, default=0.15e-3)
    reticle_width: Leaf = eqx.field(converter=as_leaf, default=26e-3)
    reticle_height: Leaf = eqx.field(converter=as_leaf, default=33e-3)
    power_limit: Leaf = eqx.field(converter=as_leaf, default=23e3)
    power_density_limit: Leaf = eqx.field(converter=as_leaf, default=1.0e6)
    efficiency: Efficiency = Efficiency()
    overlap: Overlap | None = None
    precision: Precision | None = None
    packing: str = eqx.field(static=True, default="strict")

    def __check_init__(self) -> None:
        check_range("Wafer", {"die_rows": self.die_rows, "die_cols": self.die_cols}, low=1.0, integral=True)
        positive = ("window_width window_height reticle_width reticle_height power_limit power_density_limit").split()
        check_range("Wafer", {name: getattr(self, name) for name in positive}, open_low=True)
        check_range("Wafer", {"die_gap": self.die_gap})
        check_range("Die", {"width": self.die.width, "height": self.die.height}, open_low=True)
        if self.packing not in PACKINGS:
            raise ValueError(f"Wafer.packing is {self.packing!r}: it must be one of {', '.join(PACKINGS)}")

    @property
    def num_dies(self) -> Leaf:
        """Dies of the wafer."""
        return self.die_rows * self.die_cols

    @property
    def d2d_bandwidth_per_die(self) -> Leaf:
        """Bytes/s in one direction over the existing edges of an average die (edge dies have fewer neighbours)."""
        links = 2.0 * self.num_dies - self.die_rows - self.die_cols
        return 2.0 * links / self.num_dies * self.d2d.bandwidth

    @property
    def system(self) -> System:
        """The wafer as the engine sees it: one mesh tier."""
        mesh = Tier(rows=self.die_rows, cols=self.die_cols, link=self.d2d, fabric="mesh")
        return System(self.die, (mesh,), self.technology, self.efficiency, self.overlap, self.precision)


def several(wafer: Wafer, count: int, link: Link, *, fabric: str = "mesh") -> System:
    """Wafers joined by links: a tier of wafers round the mesh of dies.

    In a mesh (as square as the count allows) or a ring, a link joins two wafers and all their dies share it. In a
    switch every die has a port of its own, `1 / dies` of the wafer's bandwidth, so that few dies cannot use all of it.

    Args:
        wafer: each of them.
        count: wafers, at least 1.
        link: of one wafer; bytes/s in one direction to each neighbour, or into the switch.
        fabric: "mesh", "ring" or "switch".

    **Neglects:** the way across a wafer to its border.
    """
    check_range("several", {"count": count}, low=1.0, integral=True)
    if fabric not in ("mesh", "ring", "switch"):
        raise ValueError(f"fabric is {fabric!r}: it must be mesh, ring or switch")
    rows = max(r for r in range(1, math.isqrt(count) + 1) if count % r == 0) if fabric == "mesh" else 1
    if fabric == "switch":
        link = replace(link, bandwidth=link.bandwidth / wafer.num_dies)
    inside = wafer.system
    return replace(inside, tiers=(*inside.tiers, Tier(rows=rows, cols=count // rows, link=link, fabric=fabric)))
