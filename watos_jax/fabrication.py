"""Does the wafer fit: areas, edges, packing, reticle, link reach. Each limit is a ratio of use to allowance.

A die carries its cores, the PHYs of its memory stacks and of its D2D ports; a tile is a die with the stacks beside it.
Every ratio is a posynomial over a monomial in the knobs (log-log convex), but for the reticle's orientation and the
whole number of stacks per side.

Neglects: I/O at the wafer's rim, clock and power distribution, thermal expansion, redundancy.
"""

from typing import NamedTuple

import jax.numpy as jnp

from watos_jax.hardware import Wafer
from watos_jax.relax import HARD, Relaxation
from watos_jax.units import Scalar


class DieArea(NamedTuple):
    """m2 of one die by use: MACs with control and vector unit, SRAM, memory PHYs and controllers, D2D PHYs."""

    compute: Scalar
    sram: Scalar
    memory_phy: Scalar
    d2d_phy: Scalar

    @property
    def total(self) -> Scalar:
        """Sum of all uses."""
        return self.compute + self.sram + self.memory_phy + self.d2d_phy


def die_area(wafer: Wafer) -> DieArea:
    """Area that the parts of one die need: counts times the technology's areas, ports on all four edges."""
    die, technology = wafer.die, wafer.technology
    return DieArea(
        compute=die.num_cores * die.core.num_macs * technology.mac_area,
        sram=die.sram_bytes * technology.sram_area,
        memory_phy=die.memory.num_stacks * technology.memory_phy_area,
        d2d_phy=4.0 * wafer.d2d.bandwidth * wafer.d2d.phy_area,
    )


def tile(wafer: Wafer) -> tuple[Scalar, Scalar]:
    """Width and height of a die with the memory beside it and the gap to the next tile, m."""
    die, memory = wafer.die, wafer.die.memory
    width = die.width + memory.horizontal_sides * memory.stack_depth + wafer.die_gap
    height = die.height + memory.vertical_sides * memory.stack_depth + wafer.die_gap
    return width, height


def link_lengths(wafer: Wafer) -> tuple[Scalar, Scalar]:
    """Distance that horizontal and vertical D2D links span: the memory between two dies and the gap, m."""
    memory = wafer.die.memory
    return (
        memory.horizontal_sides * memory.stack_depth + wafer.die_gap,
        memory.vertical_sides * memory.stack_depth + wafer.die_gap,
    )


def fabrication_ratios(wafer: Wafer, relax: Relaxation = HARD) -> dict[str, Scalar]:
    """Use over allowance of every geometric limit; the wafer can be made where all are at most 1.

    Args:
        wafer: the design.
        relax: hard or smooth.

    Returns:
        `die_area`; `edge_horizontal` and `edge_vertical` (shoreline of D2D and memory PHYs on one edge that carries
        memory, over the edge's length); `stacks_horizontal` and `stacks_vertical` (stacks side by side over the edge);
        `window_area`, with strict packing also `window_width` and `window_height`, and then no gap counted after the
        last row and column; `reticle`; `link_length`; `d2d_port` (one port over the ports that an edge has).
    """
    die, memory, d2d, technology = wafer.die, wafer.die.memory, wafer.d2d, wafer.technology
    sides = memory.horizontal_sides + memory.vertical_sides
    per_side = relax.ceil(memory.num_stacks / jnp.where(sides > 0, sides, 1.0))
    on_horizontal = jnp.where(memory.horizontal_sides > 0, per_side, 0.0)
    on_vertical = jnp.where(memory.vertical_sides > 0, per_side, 0.0)
    ports = _ratio(d2d.bandwidth, d2d.shoreline_density)
    tile_width, tile_height = tile(wafer)
    last_gap = wafer.die_gap if wafer.packing == "strict" else 0.0
    width_ratio = (wafer.die_cols * tile_width - last_gap) / wafer.window_width
    height_ratio = (wafer.die_rows * tile_height - last_gap) / wafer.window_height
    longest = relax.maximum(*link_lengths(wafer))
    ratios = {
        "die_area": die_area(wafer).total / (die.width * die.height),
        "edge_horizontal": (ports + on_horizontal * technology.memory_phy_length) / die.height,
        "edge_vertical": (ports + on_vertical * technology.memory_phy_length) / die.width,
        "stacks_horizontal": on_horizontal * memory.stack_length / die.height,
        "stacks_vertical": on_vertical * memory.stack_length / die.width,
        "window_area": width_ratio * height_ratio,
        "reticle": relax.maximum(
            relax.minimum(die.width, die.height) / wafer.reticle_width,
            relax.maximum(die.width, die.height) / wafer.reticle_height,
        ),
        "link_length": _ratio(longest, d2d.max_length),
        "d2d_port": d2d.module_bandwidth / d2d.bandwidth,
    }
    if wafer.packing == "strict":
        ratios |= {"window_width": width_ratio, "window_height": height_ratio}
    return ratios


def area_fractions(wafer: Wafer) -> dict[str, Scalar]:
    """Shares of the window: `compute`, `sram`, `dram` (stacks and PHYs), `d2d` PHYs, `other` (gaps, unused); sum 1."""
    parts, memory = die_area(wafer), wafer.die.memory
    stacks = memory.num_stacks * memory.stack_length * memory.stack_depth
    share = wafer.num_dies / (wafer.window_width * wafer.window_height)
    fractions = {
        "compute": parts.compute * share,
        "sram": parts.sram * share,
        "dram": (parts.memory_phy + stacks) * share,
        "d2d": parts.d2d_phy * share,
    }
    fractions["other"] = 1.0 - sum(fractions.values())
    return fractions


def _ratio(use: Scalar, allowance: Scalar) -> Scalar:
    # an allowance of 0 means that the limit does not exist
    return jnp.where(allowance > 0, use / jnp.where(allowance > 0, allowance, 1.0), 0.0)
