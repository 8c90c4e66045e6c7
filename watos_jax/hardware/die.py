"""A die and what it is made of: technology, cores, memory stacks and links, with what follows from them directly.

`Link.bandwidth` is payload bytes/s in one direction of one die edge (of one device, in a switch); DRAM bandwidth is
sustained read + write per die.
"""

import equinox as eqx

from watos_jax.units import FLOP_PER_MAC, Leaf, as_leaf, check_range


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
