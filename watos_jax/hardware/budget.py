"""What a co-design may spend, and the wafer that its knobs describe."""

import equinox as eqx

from watos_jax.hardware.die import Core, Die
from watos_jax.hardware.wafer import Wafer
from watos_jax.units import Leaf, as_leaf, check_range


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
