"""What silicon, memory, assembly and electricity cost, and how often they fail: `Prices`."""

import equinox as eqx

from watos_jax.units import Leaf, as_leaf, check_range


class Prices(eqx.Module):
    """Money in US dollars, and the defects of one process.

    Attributes:
        wafer_price: $ per processed wafer of compute dies.
        wafer_diameter: m.
        edge_exclusion: m of the wafer's rim that carries no die.
        scribe: m between dies on the wafer.
        defect_density: per m2 of die.
        clustering: alpha of the negative binomial yield; 0 means Murphy's yield.
        memory_price: $ per byte of stacked DRAM, known good.
        interconnect_price: $ per processed wafer of the passive interconnect that the dies are bonded to.
        interconnect_yield: share of interconnect wafers that work.
        bond_yield: chance that bonding one die or memory stack succeeds; one failure loses the assembly.
        energy_price: $ per J.
        lifetime: s over which the wafer is paid for.
    """

    wafer_price: Leaf = eqx.field(converter=as_leaf)
    defect_density: Leaf = eqx.field(converter=as_leaf)
    clustering: Leaf = eqx.field(converter=as_leaf)
    memory_price: Leaf = eqx.field(converter=as_leaf)
    interconnect_price: Leaf = eqx.field(converter=as_leaf)
    interconnect_yield: Leaf = eqx.field(converter=as_leaf)
    bond_yield: Leaf = eqx.field(converter=as_leaf)
    energy_price: Leaf = eqx.field(converter=as_leaf)
    lifetime: Leaf = eqx.field(converter=as_leaf)
    wafer_diameter: Leaf = eqx.field(converter=as_leaf, default=0.3)
    edge_exclusion: Leaf = eqx.field(converter=as_leaf, default=5e-3)
    scribe: Leaf = eqx.field(converter=as_leaf, default=0.2e-3)

    def __check_init__(self) -> None:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        check_range("Prices", values)
        above = ("wafer_diameter", "lifetime", "interconnect_yield", "bond_yield")
        check_range("Prices", {name: values[name] for name in above}, open_low=True)
        check_range("Prices", {name: 1.0 - values[name] for name in ("interconnect_yield", "bond_yield")})
