"""GPU machines to compare a wafer with: one of equal peak, memory and bandwidth, and one of GPUs that are sold.

All GPUs lie in one switch. Both take efficiency and overlap of the wafer: what is compared is hardware and strategy,
not how well each is programmed.
"""

from dataclasses import replace
from typing import Final

from watos_jax.hardware import System, Tier, Wafer
from watos_jax.presets.chips import DGX_B300

EQUAL_GPUS: Final = 8
"""GPUs of the machine of equal peak, as in WATOS (arXiv 2512.12279): there 8 of 5,000 TFLOP/s against 39,648 in all."""


def equal_gpus(wafer: System | Wafer, count: int = EQUAL_GPUS) -> System:
    """As many GPUs as given, which together have a wafer's peak, memory and DRAM bandwidth.

    Each is a B300 with more multiprocessors, and so more SRAM, and the wafer's DRAM; 900 GB/s per direction to the
    switch, NVLink's 1.8 TB/s of both.

    Args:
        wafer: the wafer, or several.
        count: GPUs.
    """
    die, dies = DGX_B300.die, wafer.num_dies / count
    memory = replace(
        die.memory,
        num_stacks=wafer.die.memory.num_stacks * dies,
        stack_bytes=wafer.die.memory.stack_bytes,
        stack_bandwidth=wafer.die.memory.stack_bandwidth,
        sustained_fraction=wafer.die.memory.sustained_fraction,
    )
    rows = die.core_rows * wafer.die.flop_rate * dies / die.flop_rate
    return _in_one_switch(wafer, replace(DGX_B300, die=replace(die, core_rows=rows, memory=memory)), count)


def nearest_b300(wafer: System | Wafer) -> System:
    """The number of B300 whose peak comes nearest to a wafer's, as in one NVLink domain of a rack."""
    return _in_one_switch(
        wafer, DGX_B300, max(1, round(float(wafer.num_dies * wafer.die.flop_rate / DGX_B300.die.flop_rate)))
    )


def _in_one_switch(wafer: System | Wafer, node: System, count: int) -> System:
    tier = Tier(rows=1, cols=count, link=node.tiers[0].link, fabric="switch")
    return replace(node, tiers=(tier,), efficiency=wafer.efficiency, overlap=wafer.overlap)
