"""Records of the hardware, with what follows from them directly; no times here.

A `Wafer` is a mesh of dies with its geometry; a `System` is what the engine computes on: one die design and tiers of
links. A wafer becomes a system of one mesh tier, a GPU cluster is a system of two switch tiers, several wafers are a
mesh tier under a switch tier. Bandwidth conventions: `Link.bandwidth` is payload bytes/s in one direction of one die
edge (of one device, in a switch); DRAM bandwidth is sustained read + write per die.
"""

import math
from dataclasses import replace

import equinox as eqx

from watos_jax.units import FLOP_PER_MAC, Leaf, as_leaf, check_range

FABRICS = ("mesh", "torus", "ring", "switch")
"""Topologies of a tier."""
PACKINGS = ("strict", "area")
"""How dies are fitted on a wafer: as a grid of tiles inside the window, or by area alone."""


class Technology(eqx.Module):
    """What a process and its memory interface cost in area and energy.

    Attributes:
        mac_area: m2 per 16-bit multiply-accumulator with its share of control, vector unit and registers.
        sram_area: m2 per byte of SRAM.
        memory_phy_area: m2 on the die per memory stack, PHY and controller.
        memory_phy_length: m of die edge per memory stack.
        flop_energy: J per FLOP at the nominal voltage, datapath with its registers.
        sram_energy: J per byte read or written in SRAM, at the nominal voltage.
        dram_energy: J per byte moved between die and memory stack.
        leakage_power_density: W per m2 of die at the nominal voltage.
        nominal_clock: Hz that the nominal voltage supports.
        minimum_voltage: least supply voltage as a fraction of the nominal one.
        voltage_exponent: voltage grows as (clock / nominal_clock)**voltage_exponent above the minimum.
    """

    mac_area: Leaf = eqx.field(converter=as_leaf)
    sram_area: Leaf = eqx.field(converter=as_leaf)
    memory_phy_area: Leaf = eqx.field(converter=as_leaf)
    memory_phy_length: Leaf = eqx.field(converter=as_leaf)
    flop_energy: Leaf = eqx.field(converter=as_leaf)
    sram_energy: Leaf = eqx.field(converter=as_leaf)
    dram_energy: Leaf = eqx.field(converter=as_leaf)
    leakage_power_density: Leaf = eqx.field(converter=as_leaf)
    nominal_clock: Leaf = eqx.field(converter=as_leaf)
    minimum_voltage: Leaf = eqx.field(converter=as_leaf, default=0.6)
    voltage_exponent: Leaf = eqx.field(converter=as_leaf, default=1.0)

    def __check_init__(self) -> None:
        check_range("Technology", {name: getattr(self, name) for name in self.__dataclass_fields__})
        check_range("Technology", {"nominal_clock": self.nominal_clock}, open_low=True)


class Core(eqx.Module):
    """One core: a MAC array with its vector unit, SRAM and network port.

    Attributes:
        num_macs: 16-bit multiply-accumulators.
        clock: Hz.
        sram_bytes: SRAM of the core.
        sram_bytes_per_clock: bytes read or written in SRAM per cycle.
        noc_bytes_per_clock: bytes per cycle in one direction of one link to a neighbour core.
    """

    num_macs: Leaf = eqx.field(converter=as_leaf)
    clock: Leaf = eqx.field(converter=as_leaf)
    sram_bytes: Leaf = eqx.field(converter=as_leaf)
    sram_bytes_per_clock: Leaf = eqx.field(converter=as_leaf)
    noc_bytes_per_clock: Leaf = eqx.field(converter=as_leaf)

    def __check_init__(self) -> None:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        check_range("Core", values, open_low=True)

    @property
    def flop_rate(self) -> Leaf:
        """Peak 16-bit FLOP/s of the core: `2 num_macs clock`."""
        return FLOP_PER_MAC * self.num_macs * self.clock


class Memory(eqx.Module):
    """The DRAM of one die: equal stacks beside the die, along some of its edges.

    Attributes:
        num_stacks: stacks per die.
        stack_bytes: capacity of one stack.
        stack_bandwidth: peak read + write bytes/s of one stack.
        sustained_fraction: share of the peak that long transfers reach.
        stack_length: m that one stack occupies along the die edge.
        stack_depth: m that one stack occupies away from the die edge.
        horizontal_sides: 0, 1 or 2 of the left and right edges carry stacks.
        vertical_sides: 0, 1 or 2 of the top and bottom edges carry stacks.
    """

    num_stacks: Leaf = eqx.field(converter=as_leaf)
    stack_bytes: Leaf = eqx.field(converter=as_leaf)
    stack_bandwidth: Leaf = eqx.field(converter=as_leaf)
    sustained_fraction: Leaf = eqx.field(converter=as_leaf, default=0.9)
    stack_length: Leaf = eqx.field(converter=as_leaf, default=0.0)
    stack_depth: Leaf = eqx.field(converter=as_leaf, default=0.0)
    horizontal_sides: Leaf = eqx.field(converter=as_leaf, default=0.0)
    vertical_sides: Leaf = eqx.field(converter=as_leaf, default=0.0)

    def __check_init__(self) -> None:
        check_range("Memory", {name: getattr(self, name) for name in self.__dataclass_fields__})
        rates = ("num_stacks", "stack_bytes", "stack_bandwidth", "sustained_fraction")
        check_range("Memory", {name: getattr(self, name) for name in rates}, open_low=True)

    @property
    def capacity(self) -> Leaf:
        """Bytes of DRAM per die."""
        return self.num_stacks * self.stack_bytes

    @property
    def bandwidth(self) -> Leaf:
        """Sustained read + write bytes/s per die."""
        return self.num_stacks * self.stack_bandwidth * self.sustained_fraction


class Link(eqx.Module):
    """A die-to-die, wafer-to-wafer or node-to-node link.

    Attributes:
        bandwidth: payload bytes/s in one direction of one die edge (of one device, in a switch).
        latency: s per hop.
        energy: J per byte and hop.
        shoreline_density: bytes/s in one direction per m of die edge; 0 where no edge is spent.
        phy_area: m2 per byte/s in one direction.
        max_length: m that the link may span; 0 where unlimited.
        module_bandwidth: bytes/s in one direction of the smallest unit (one port) that an edge can carry.
    """

    bandwidth: Leaf = eqx.field(converter=as_leaf)
    latency: Leaf = eqx.field(converter=as_leaf, default=0.0)
    energy: Leaf = eqx.field(converter=as_leaf, default=0.0)
    shoreline_density: Leaf = eqx.field(converter=as_leaf, default=0.0)
    phy_area: Leaf = eqx.field(converter=as_leaf, default=0.0)
    max_length: Leaf = eqx.field(converter=as_leaf, default=0.0)
    module_bandwidth: Leaf = eqx.field(converter=as_leaf, default=0.0)

    def __check_init__(self) -> None:
        check_range("Link", {name: getattr(self, name) for name in self.__dataclass_fields__})
        check_range("Link", {"bandwidth": self.bandwidth}, open_low=True)


class Die(eqx.Module):
    """A compute die: a grid of cores and its memory.

    Attributes:
        core_rows: rows of cores.
        core_cols: columns of cores.
        core: the core.
        memory: the DRAM beside the die.
        width: m, 0 where the geometry is not modelled (GPU clusters).
        height: m, likewise.
    """

    core_rows: Leaf = eqx.field(converter=as_leaf)
    core_cols: Leaf = eqx.field(converter=as_leaf)
    core: Core
    memory: Memory
    width: Leaf = eqx.field(converter=as_leaf, default=0.0)
    height: Leaf = eqx.field(converter=as_leaf, default=0.0)

    def __check_init__(self) -> None:
        # no integrality here: relaxed core counts are what descent moves
        check_range("Die", {"core_rows": self.core_rows, "core_cols": self.core_cols}, open_low=True)
        check_range("Die", {"width": self.width, "height": self.height})

    @property
    def num_cores(self) -> Leaf:
        """Cores of the die."""
        return self.core_rows * self.core_cols

    @property
    def flop_rate(self) -> Leaf:
        """Peak 16-bit FLOP/s of the die."""
        return self.num_cores * self.core.flop_rate

    @property
    def sram_bytes(self) -> Leaf:
        """SRAM of the die, bytes."""
        return self.num_cores * self.core.sram_bytes


class Efficiency(eqx.Module):
    """How far a real machine stays below its roofline: `1 / efficiency = 1 + overhead + sum of size / dimension`.

    All zeros is the ideal machine. The form is smooth and log-log convex in every dimension.

    Attributes:
        matmul_overhead: relative time added to every matrix product.
        matmul_rows: tokens at which a matrix product takes twice its ideal time.
        matmul_cols: width (of either weight dimension) at which it does.
        attention_overhead: relative time added to the attention core.
        attention_rows: sequence length at which the attention core takes twice its ideal time.
        memory_overhead: relative time added to DRAM transfers.
        launch_time: s per kernel.
        collective_latency: s added to every collective operation.
        network_overhead: relative time added to every transfer.
    """

    matmul_overhead: Leaf = eqx.field(converter=as_leaf, default=0.0)
    matmul_rows: Leaf = eqx.field(converter=as_leaf, default=0.0)
    matmul_cols: Leaf = eqx.field(converter=as_leaf, default=0.0)
    attention_overhead: Leaf = eqx.field(converter=as_leaf, default=0.0)
    attention_rows: Leaf = eqx.field(converter=as_leaf, default=0.0)
    memory_overhead: Leaf = eqx.field(converter=as_leaf, default=0.0)
    launch_time: Leaf = eqx.field(converter=as_leaf, default=0.0)
    collective_latency: Leaf = eqx.field(converter=as_leaf, default=0.0)
    network_overhead: Leaf = eqx.field(converter=as_leaf, default=0.0)

    def __check_init__(self) -> None:
        check_range("Efficiency", {name: getattr(self, name) for name in self.__dataclass_fields__})


class Precision(eqx.Module):
    """Width of the numbers that the matrix products of the layers multiply.

    Router, LM head and attention cores stay at 16 bits, and so do messages and what is kept for the backward pass.

    Attributes:
        operand_bytes: bytes per operand, 0.5 to 2; a core multiplies `2 / operand_bytes` times as many per clock as in
            16 bits. Below 2, every product reads its 16-bit input and writes it in the narrow format, as it is and
            transposed for the backward pass.
    """

    operand_bytes: Leaf = eqx.field(converter=as_leaf, default=2.0)

    def __check_init__(self) -> None:
        check_range("Precision", {"operand_bytes": self.operand_bytes}, low=0.5, high=2.0)


class Overlap(eqx.Module):
    """How much communication a machine and its software run beside computation.

    Attributes:
        independent: share of the computation that communication without an operator waiting for it may hide behind, 0
            to 1: gathering of sharded weights, reduction of gradients, sends between stages, the context ring.
        tensor: share of a block's products that its own tensor collective may hide behind, 0 to 1.
    """

    independent: Leaf = eqx.field(converter=as_leaf, default=1.0)
    tensor: Leaf = eqx.field(converter=as_leaf, default=0.0)

    def __check_init__(self) -> None:
        check_range("Overlap", {"independent": self.independent, "tensor": self.tensor}, high=1.0)


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


class Knobs(eqx.Module):
    """The hardware quantities that co-design chooses.

    Attributes:
        core_rows: rows of cores per die.
        core_cols: columns of cores per die.
        sram_bytes_per_core: SRAM of one core.
        dram_stacks: memory stacks per die.
        d2d_bandwidth: payload bytes/s in one direction of one die edge.
        die_width: m.
        die_height: m.
        clock: Hz.
    """

    core_rows: Leaf = eqx.field(converter=as_leaf)
    core_cols: Leaf = eqx.field(converter=as_leaf)
    sram_bytes_per_core: Leaf = eqx.field(converter=as_leaf)
    dram_stacks: Leaf = eqx.field(converter=as_leaf)
    d2d_bandwidth: Leaf = eqx.field(converter=as_leaf)
    die_width: Leaf = eqx.field(converter=as_leaf)
    die_height: Leaf = eqx.field(converter=as_leaf)
    clock: Leaf = eqx.field(converter=as_leaf)


class Budget(eqx.Module):
    """What a co-design may spend: a wafer to fill, and the lattice that each knob lies on.

    Attributes:
        wafer: the template: window, limits, technology, core, memory stack and link; its knobs are replaced.
        low: least value of each knob.
        high: largest value of each knob.
        step: spacing of each knob's lattice, counted from `low`.
        die_rows: least and largest rows of dies.
        die_cols: least and largest columns of dies.
        memory_sides: allowed (horizontal, vertical) numbers of die edges that carry memory.
    """

    wafer: Wafer
    low: Knobs
    high: Knobs
    step: Knobs
    die_rows: tuple[int, int] = eqx.field(static=True)
    die_cols: tuple[int, int] = eqx.field(static=True)
    memory_sides: tuple[tuple[int, int], ...] = eqx.field(static=True, default=((1, 0), (0, 1), (2, 0), (0, 2)))

    def __check_init__(self) -> None:
        for name in Knobs.__dataclass_fields__:
            low, high = getattr(self.low, name), getattr(self.high, name)
            check_range("Budget.step", {name: getattr(self.step, name)}, open_low=True)
            check_range("Budget.low", {name: low}, open_low=True)
            check_range("Budget.high", {name: high}, low=float(low))
        for name in ("die_rows", "die_cols"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise ValueError(f"Budget.{name} is {(least, most)}: it must be (least, most), 1 <= least <= most")

    def build(self, knobs: Knobs, die_rows: Leaf, die_cols: Leaf, sides: tuple[Leaf, Leaf]) -> Wafer:
        """Return the wafer that the knobs describe on one die grid.

        Args:
            knobs: the hardware quantities.
            die_rows: rows of dies.
            die_cols: columns of dies.
            sides: (horizontal, vertical) numbers of die edges that carry memory.
        """
        template = self.wafer
        core = Core(
            num_macs=template.die.core.num_macs,
            clock=knobs.clock,
            sram_bytes=knobs.sram_bytes_per_core,
            sram_bytes_per_clock=template.die.core.sram_bytes_per_clock,
            noc_bytes_per_clock=template.die.core.noc_bytes_per_clock,
        )
        memory = eqx.tree_at(
            lambda m: (m.num_stacks, m.horizontal_sides, m.vertical_sides),
            template.die.memory,
            (knobs.dram_stacks, sides[0], sides[1]),
        )
        die = Die(
            core_rows=knobs.core_rows,
            core_cols=knobs.core_cols,
            core=core,
            memory=memory,
            width=knobs.die_width,
            height=knobs.die_height,
        )
        d2d = eqx.tree_at(lambda link: link.bandwidth, template.d2d, knobs.d2d_bandwidth)
        return eqx.tree_at(lambda w: (w.die_rows, w.die_cols, w.die, w.d2d), template, (die_rows, die_cols, die, d2d))
