"""Budgets: what a co-design may spend, a wafer to fill and the lattice that each knob lies on.

Every lattice has far more than 10**7 points per die grid. The step of the die-to-die bandwidth is one module of
the link's PHY.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from watos_jax.hardware import Budget, Core, Die, Knobs, Link, Memory, Technology, Wafer
from watos_jax.presets._registry import collect, find
from watos_jax.presets.technologies import (
    ABSTRACT_BLOCK,
    D2D_DOJO,
    D2D_UCIE_A,
    D2D_UCIE_S,
    DEMONSTRATED_N7,
    DENSE_N7,
    HBM3E,
)
from watos_jax.presets.wafers import DOJO_CORE
from watos_jax.units import GIGA, KIB, MIB, MM

CORE: Final = Core(
    num_macs=512,
    clock=2.0 * GIGA,
    sram_bytes=1.25 * MIB,
    sram_bytes_per_clock=DOJO_CORE.sram_bytes_per_clock,
    noc_bytes_per_clock=DOJO_CORE.noc_bytes_per_clock,
)
"""The core that co-design tiles a die with: Dojo-like ports (Tesla, Hot Chips 34, 2022) around 512
multiply-accumulators, 2.05 TFLOP/s at 2 GHz, the size that WATOS (arXiv 2512.12279) assumes."""


def _budget(technology: Technology, link: Link, memory: Memory, window: float) -> Budget:
    die = Die(core_rows=16, core_cols=16, core=CORE, memory=memory, width=25.0 * MM, height=25.0 * MM)
    wafer = Wafer(
        die_rows=6,
        die_cols=6,
        die=die,
        d2d=link,
        technology=technology,
        window_width=window,
        window_height=window,
    )
    # whole modules on the longest edge; the small term keeps a ratio that is whole from rounding down
    num_modules = int(np.asarray(33.0 * MM * link.shoreline_density / link.bandwidth) + 1e-9)
    return Budget(
        wafer=wafer,
        low=Knobs(
            core_rows=4,
            core_cols=4,
            sram_bytes_per_core=256 * KIB,
            dram_stacks=1,
            d2d_bandwidth=link.bandwidth,
            die_width=8.0 * MM,
            die_height=8.0 * MM,
            clock=0.8 * GIGA,
        ),
        high=Knobs(
            core_rows=24,
            core_cols=24,
            sram_bytes_per_core=4 * MIB,
            dram_stacks=8,
            d2d_bandwidth=num_modules * link.bandwidth,
            die_width=33.0 * MM,
            die_height=33.0 * MM,
            clock=2.2 * GIGA,
        ),
        step=Knobs(
            core_rows=1,
            core_cols=1,
            sram_bytes_per_core=64 * KIB,
            dram_stacks=1,
            d2d_bandwidth=link.bandwidth,
            die_width=0.5 * MM,
            die_height=0.5 * MM,
            clock=0.1 * GIGA,
        ),
        die_rows=(2, 10),
        die_cols=(2, 10),
    )


DEFAULT: Final = _budget(DEMONSTRATED_N7, D2D_DOJO, HBM3E, 215.0 * MM)
"""What silicon has shown: 215 x 215 mm (Cerebras WSE-2 and WSE-3, 46,225 mm2), logic and SRAM as dense as Tesla
Dojo D1, wafer wiring of 79 GB/s/mm, real HBM3e stacks of 11 x 11 mm; reticle 26 x 33 mm; 23 kW (CS-3)."""

WINDOW_198: Final = _budget(DEMONSTRATED_N7, D2D_DOJO, HBM3E, 198.0 * MM)
"""`DEFAULT` on the 198 x 198 mm of WATOS (arXiv 2512.12279)."""

DENSE_215: Final = _budget(DENSE_N7, D2D_UCIE_S, ABSTRACT_BLOCK, 215.0 * MM)
"""What wafer-scale papers assume: `DENSE_N7` logic, UCIe standard-package links (112 GB/s/mm, up to 25 mm) and
abstract memory blocks of 8.13 x 4.92 mm, on 215 x 215 mm (WSC-LLM, ISCA 2025)."""

DENSE_198: Final = replace(DENSE_215, wafer=replace(DENSE_215.wafer, window_width=198.0 * MM, window_height=198.0 * MM))
"""`DENSE_215` on the 198 x 198 mm of WATOS (arXiv 2512.12279)."""

ABUTTED_215: Final = _budget(DENSE_N7, D2D_UCIE_A, ABSTRACT_BLOCK, 215.0 * MM)
"""The most optimistic: `DENSE_215` with UCIe advanced-package links, 658 GB/s/mm, which reach 2 mm: memory between
dies puts them out of reach."""

NAMES: Final[dict[str, Budget]] = collect(globals(), Budget)
"""Budgets by name."""


def get(name: str) -> Budget:
    """Return the budget of that name, such as `default`.

    Raises:
        ValueError: no budget has that name.
    """
    return find("budget", NAMES, name)
