"""What every mapper of operators shares: the die in its units, cuts of a dimension, costs, the choice of the best."""

from typing import Final, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from watos_jax.hardware import Die, Technology
from watos_jax.units import Leaf, Scalar

SLACK: Final = 0.01
"""Share of the least time that may be spent to save DRAM traffic."""
PARTIAL_BYTES: Final = 4.0
"""Bytes of a partial sum."""


class Machine(NamedTuple):
    """A die in bytes per cycle.

    Attributes:
        rows: rows of cores.
        cols: columns of cores.
        side: rows and columns of the MAC array, `sqrt(num_macs)`.
        sram: bytes of SRAM of a core.
        port: SRAM bytes per cycle of a core.
        link: bytes per cycle of a link in one direction.
        dram: DRAM bytes per cycle of the die.
        clock: Hz.
    """

    rows: Scalar
    cols: Scalar
    side: Scalar
    sram: Scalar
    port: Scalar
    link: Scalar
    dram: Scalar
    clock: Scalar


class Mapping(eqx.Module):
    """The best mapping of an operator.

    Attributes:
        time: s, the least of all mappings.
        dram_bytes: DRAM bytes of the mapping.
        sram_bytes: bytes through the SRAM ports of all cores.
        noc_byte_hops: bytes times links on the network on chip.
        flop: executed FLOP.
        margin: 1 - SRAM of the smallest mapping over that of a core; negative where nothing fits.
        dataflow: index into `DATAFLOWS`.
        tiles: tiles of rows, cols and depth, and products side by side, shape (4,).
    """

    time: Float[Array, "*ops"]
    dram_bytes: Float[Array, "*ops"]
    sram_bytes: Float[Array, "*ops"]
    noc_byte_hops: Float[Array, "*ops"]
    flop: Float[Array, "*ops"]
    margin: Float[Array, "*ops"]
    dataflow: Float[Array, "*ops"]
    tiles: Float[Array, "*ops 4"]

    def energy(self, technology: Technology) -> Float[Array, "*ops"]:
        """J at the nominal voltage: FLOP, SRAM and DRAM bytes at their prices. Neglects: network on chip, leakage."""
        return (
            self.flop * technology.flop_energy
            + self.sram_bytes * technology.sram_energy
            + self.dram_bytes * technology.dram_energy
        )


class Ratios(NamedTuple):
    """Time and DRAM bytes of operators over those of the ideal roofline, each at least 1.

    Attributes:
        forward: time of the forward pass.
        backward: time of the backward pass.
        forward_bytes: DRAM bytes of the forward pass.
        backward_bytes: DRAM bytes of the backward pass.
        outside: 1 where the operator lies outside the range of the model and the ratios are 1, otherwise 0.
    """

    forward: Float[Array, "*ops"]
    backward: Float[Array, "*ops"]
    forward_bytes: Float[Array, "*ops"]
    backward_bytes: Float[Array, "*ops"]
    outside: Float[Array, "*ops"]


class Cost(NamedTuple):
    """Costs of candidate mappings, all of one shape.

    Attributes:
        time: cycles.
        dram: DRAM bytes.
        sram: bytes through the SRAM ports of all cores.
        hops: bytes times links.
        footprint: bytes of SRAM of a core.
        label: what identifies a mapping: dataflow and four counts.
    """

    time: Array
    dram: Array
    sram: Array
    hops: Array
    footprint: Array
    label: tuple[Array, ...]


class Cut(NamedTuple):
    """A dimension cut into tiles, each shared out over the cores of one axis.

    Attributes:
        tiles: how many, the last of which may be smaller.
        size: elements of a whole tile.
        last: elements of the last tile.
        share: elements of a whole tile on its busiest core.
        last_share: the same of the last tile.
        shares: sum of the shares of all tiles.
        passes: sum over the tiles of the MAC array's passes along this dimension.
        used: cores that have work in a whole tile.
    """

    tiles: Array
    size: Array
    last: Array
    share: Array
    last_share: Array
    shares: Array
    passes: Array
    used: Array


def machine(die: Die) -> Machine:
    """The die in the mapper's units; a fraction of a row or column of cores is no row or column."""
    rows, cols = (jnp.maximum(jnp.floor(jnp.asarray(n, float)), 1.0) for n in (die.core_rows, die.core_cols))
    return per_cycle(die)._replace(rows=rows, cols=cols)


def per_cycle(die: Die) -> Machine:
    """The die in bytes per cycle, with as many rows and columns of cores as it says."""
    core = die.core
    return Machine(
        rows=die.core_rows,
        cols=die.core_cols,
        side=jnp.sqrt(core.num_macs),
        sram=core.sram_bytes,
        port=core.sram_bytes_per_clock,
        link=core.noc_bytes_per_clock,
        dram=die.memory.bandwidth / core.clock,
        clock=core.clock,
    )


def cut(extent: Leaf, tiles: Leaf, ways: Leaf, side: Scalar) -> Cut:
    """Cut `extent` elements into equal tiles, and each tile into equal shares.

    Args:
        extent: whole number of elements.
        tiles: how many tiles are asked for; infinity for tiles of one element.
        ways: cores along the axis that shares a tile out, 1 if none does.
        side: elements that the MAC array takes in one pass.
    """
    size = jnp.maximum(jnp.ceil(extent / tiles), 1.0)
    number = jnp.ceil(extent / size)
    last = extent - (number - 1.0) * size
    share, last_share = jnp.ceil(size / ways), jnp.ceil(last / ways)
    return Cut(
        tiles=number,
        size=size,
        last=last,
        share=share,
        last_share=last_share,
        shares=(number - 1.0) * share + last_share,
        passes=(number - 1.0) * jnp.ceil(share / side) + jnp.ceil(last_share / side),
        used=jnp.ceil(size / share),
    )


def best(costs: Cost, die: Die, flop: Scalar, present: Scalar) -> Mapping:
    """Choose among candidates: the least time that fits, and of those within `SLACK` the least DRAM traffic.

    Args:
        costs: of the candidates; where none fits, the one that needs least SRAM is taken.
        die: where it runs.
        flop: executed FLOP.
        present: 1, or 0 where there is nothing to do.
    """
    least = jnp.min(costs.footprint)
    fits = costs.footprint <= jnp.maximum(least, die.core.sram_bytes)
    time = jnp.where(fits, costs.time, jnp.inf)
    quickest = jnp.min(time)
    chosen = jnp.argmin(jnp.where(time <= (1.0 + SLACK) * quickest, costs.dram, jnp.inf))
    at = [jnp.ravel(jnp.broadcast_to(x, costs.time.shape))[chosen] for x in (*costs[1:4], *costs.label)]
    dram, sram, hops, dataflow, *tiles = (present * x for x in at)
    return Mapping(
        time=present * quickest / die.core.clock,
        dram_bytes=dram,
        sram_bytes=sram,
        noc_byte_hops=hops,
        flop=present * flop,
        margin=1.0 - least / die.core.sram_bytes,
        dataflow=dataflow,
        tiles=jnp.stack(tiles),
    )
