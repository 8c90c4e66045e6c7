"""Wafers: machines from papers and from silicon, each with the reading of its source that was taken.

Papers print a die-to-die bandwidth without saying per edge or per die, one direction or both. `Wafer.d2d` is one
direction of one edge, so every preset states its reading; where the choice matters the others ship as variants. A
DRAM bandwidth in a paper or data sheet is read as a peak, of which 0.90 is sustained.
"""

from dataclasses import replace
from typing import Final

from watos_jax.hardware import Core, Die, Memory, Wafer
from watos_jax.presets._registry import collect, find
from watos_jax.presets.technologies import (
    D2D_DOJO,
    D2D_UCIE_S,
    DEMONSTRATED_N7,
    DENSE_N7,
    PJ_PER_BIT,
)
from watos_jax.units import FLOP_PER_MAC, GIGA, KILO, MIB, MM, NANO, TERA

DOJO_CORE: Final = Core(
    num_macs=256,
    clock=2.0 * GIGA,
    sram_bytes=1.25 * MIB,
    sram_bytes_per_clock=(400 + 270) / 2.0,
    noc_bytes_per_clock=64,
)
"""One of 354 nodes of Tesla Dojo D1: 362 TFLOP/s / 354 at 2 GHz is 256 bf16 multiply-accumulators (8 x 8 x 4),
1.25 MB of SRAM with 400 GB/s load and 270 GB/s store, 64 bytes per clock to each neighbour (Tesla, Hot Chips 34,
2022)."""

WATOS_CORE: Final = replace(DOJO_CORE, num_macs=708 * TERA / (18 * 18 * FLOP_PER_MAC * 2.0 * GIGA))
"""A core of the large WATOS die (arXiv 2512.12279, configuration table): 708 TFLOP/s over 18 x 18 cores at 2 GHz
is 2.185 TFLOP/s, 546.3 multiply-accumulators; 1.25 MB; called Dojo-like, so the ports are those of `DOJO_CORE`."""

WATOS_CONFIG_3: Final = Wafer(
    die_rows=7,
    die_cols=8,
    die=Die(
        core_rows=18,
        core_cols=18,
        core=WATOS_CORE,
        memory=Memory(
            num_stacks=2,
            stack_bytes=35 * GIGA,
            stack_bandwidth=1.0 * TERA,
            stack_length=8.13 * MM,
            stack_depth=4.92 * MM,
            vertical_sides=1,
        ),
        width=25.5 * MM,
        height=25.2 * MM,
    ),
    d2d=replace(D2D_UCIE_S, bandwidth=1.0 * TERA),
    technology=DENSE_N7,
)
"""WATOS, configuration 3, the best of its table (arXiv 2512.12279): 56 dies of 25.5 x 25.2 mm, 18 x 18 cores, 708
TFLOP/s, 70 GB and 2 TB/s of DRAM, "4 TB/s" die-to-die; 39,648 TFLOP/s and 3,920 GB in all.

Reading: 4 TB/s is the sum over four edges in one direction, 1 TB/s per edge; `WATOS_CONFIG_3_D2D_HALF` (both
directions counted) and `WATOS_CONFIG_3_D2D_4TB` (per edge) are the others. Packing: 56 dies with this memory do
not fit the paper's 198 x 198 mm, neither as tiles nor by area. They fit 215 x 215 mm strictly as 7 rows of 8 with
two abstract blocks of 8.13 x 4.92 mm (35 GB, 1 TB/s each) along one edge: 7 x (25.2 + 4.92 + 0.15) = 212 mm and 8
x (25.5 + 0.15) = 205 mm; a real stack, 11 x 11 mm, does not fit. The link spans the block, so it is UCIe standard
package; with two memory interfaces of 8.5 mm on the same 25.5 mm edge, its 8.9 mm overrun the edge by 0.4 mm (1.7
%), which the margins report. Technology `DENSE_N7`: the die is denser than silicon has shown. Link latency and
energy, ports and power limit are not in the paper: those of the link class, Dojo and a CS-3."""

WATOS_CONFIG_3_D2D_HALF: Final = replace(WATOS_CONFIG_3, d2d=replace(D2D_UCIE_S, bandwidth=0.5 * TERA))
"""`WATOS_CONFIG_3` (arXiv 2512.12279) with 4 TB/s read as four edges, both directions: 0.5 TB/s per edge."""

WATOS_CONFIG_3_D2D_4TB: Final = replace(WATOS_CONFIG_3, d2d=replace(D2D_UCIE_S, bandwidth=4.0 * TERA))
"""`WATOS_CONFIG_3` (arXiv 2512.12279) with 4 TB/s read as one edge, one direction (other passages speak of about
12 TB/s over four edges)."""

WATOS_CONFIG_3_198: Final = replace(WATOS_CONFIG_3, window_width=198 * MM, window_height=198 * MM, packing="area")
"""`WATOS_CONFIG_3` in the paper's own window, 198 x 198 mm (arXiv 2512.12279; rounded to 40,000 mm2 there),
counted by area: 56 x 642.6 mm2 of dies leave 57 mm2 per die for memory, less than the 80 mm2 of two abstract
blocks."""

WATOS_CONFIG_1: Final = replace(
    WATOS_CONFIG_3,
    die_rows=8,
    die_cols=9,
    die=replace(
        WATOS_CONFIG_3.die,
        core_rows=16,
        core_cols=16,
        memory=replace(WATOS_CONFIG_3.die.memory, num_stacks=1, stack_bytes=48 * GIGA, stack_bandwidth=1.0 * TERA),
        width=25.5 * MM * 16 / 18,
        height=25.2 * MM * 16 / 18,
    ),
    d2d=replace(D2D_UCIE_S, bandwidth=4.5 * TERA / 4),
    packing="area",
)
"""WATOS, configuration 1 (arXiv 2512.12279), the one of most compute. Of its table we have the ranges alone, 48 to 96
GB, 1 to 2.5 TB/s, 4 to 4.5 TB/s, dies of 16 x 16 or 18 x 18 cores, and that configurations 2 to 4 have 18 x 18.

ASSUMPTION, all that is not in that sentence: least memory (48 GB, 1 TB/s, one block) and most die-to-die bandwidth;
16 x 16 cores on a die that is smaller by as much, 22.7 x 22.4 mm; 72 dies (8 x 9), what 198 x 198 mm hold by area if
memory takes the area per byte that configuration 3 leaves it. 40,278 TFLOP/s, so that it does have most compute. The
rest as `WATOS_CONFIG_3`; 72 tiles fit 215 x 215 mm by area, not as a grid."""

WATOS_CONFIG_2: Final = replace(
    WATOS_CONFIG_3,
    die=replace(
        WATOS_CONFIG_3.die,
        memory=replace(WATOS_CONFIG_3.die.memory, stack_bytes=29.5 * GIGA, stack_bandwidth=0.75 * TERA),
    ),
    d2d=replace(D2D_UCIE_S, bandwidth=4.25 * TERA / 4),
)
"""WATOS, configuration 2 (arXiv 2512.12279), of whose table only the ranges are recovered, see `WATOS_CONFIG_1`.

ASSUMPTION: halfway between configurations 1 and 3 in memory and links, 59 GB, 1.5 TB/s and 4.25 TB/s; the dies, 56 of
18 x 18 cores, and the rest as `WATOS_CONFIG_3`. Memory and links overrun an edge of the die by 3.9 %."""

WATOS_CONFIG_4: Final = replace(
    WATOS_CONFIG_3,
    die_rows=6,
    die_cols=9,
    die=replace(
        WATOS_CONFIG_3.die,
        memory=replace(WATOS_CONFIG_3.die.memory, stack_bytes=48 * GIGA, stack_bandwidth=1.25 * TERA),
    ),
    packing="area",
)
"""WATOS, configuration 4 (arXiv 2512.12279), the one of most memory; of its table only the ranges are recovered, see
`WATOS_CONFIG_1`.

ASSUMPTION: most memory (96 GB, 2.5 TB/s) and least die-to-die bandwidth (4 TB/s); 54 dies (6 x 9), what 198 x 198 mm
hold by area if memory takes the area per byte that configuration 3 leaves it. The rest as `WATOS_CONFIG_3`; 54 tiles
fit 215 x 215 mm by area, not as a grid of 6 x 9. Memory and links overrun an edge by 1.7 %, as there."""

WSC_LLM_54: Final = Wafer(
    die_rows=6,
    die_cols=9,
    die=Die(
        core_rows=16,
        core_cols=16,
        core=Core(
            num_macs=512,
            clock=1.0 * GIGA,
            sram_bytes=DOJO_CORE.sram_bytes,
            sram_bytes_per_clock=DOJO_CORE.sram_bytes_per_clock,
            noc_bytes_per_clock=DOJO_CORE.noc_bytes_per_clock,
        ),
        memory=Memory(
            num_stacks=4,
            stack_bytes=16 * GIGA,
            stack_bandwidth=0.5 * TERA,
            stack_length=8.13 * MM,
            stack_depth=4.92 * MM,
            vertical_sides=2,
        ),
        width=21.92 * MM,
        height=22.81 * MM,
    ),
    d2d=replace(D2D_UCIE_S, bandwidth=0.5 * TERA),
    technology=DENSE_N7,
    packing="area",
)
"""WSC-LLM, the best design of the paper (ISCA 2025): 54 dies of 21.92 x 22.81 mm, tile with memory 24.99 x 33.25
mm, 256 cores at 1 GHz, 261 TFLOP/s, 64 GB, 2 TB/s of DRAM and 2 TB/s die-to-die, wafer 215 x 215 mm.

Reading: 2 TB/s is the sum over four edges in one direction. 256 cores of 512 multiply-accumulators are 262
TFLOP/s. The tile is 10.44 mm taller than the die: two rows of abstract blocks and gaps, so four blocks of 16 GB
and 0.5 TB/s on two edges. 54 tiles fit by area (215^2 / 831 = 55.6), not as a grid (8 x 6 = 48), so packing is by
area. ASSUMPTION: SRAM and ports per core as Dojo's. At 1 GHz `DENSE_N7`, sized for 2 GHz, charges 265 mm2 of
logic."""

TEMP_6X8: Final = Wafer(
    die_rows=6,
    die_cols=8,
    die=Die(
        core_rows=8,
        core_cols=8,
        core=Core(
            num_macs=1800 * TERA / (8 * 8 * FLOP_PER_MAC * 2.0 * GIGA),
            clock=2.0 * GIGA,
            sram_bytes=80 * MIB / 64,
            sram_bytes_per_clock=1800 * TERA / (362 * TERA) * 354 / 64 * DOJO_CORE.sram_bytes_per_clock,
            noc_bytes_per_clock=4 * DOJO_CORE.noc_bytes_per_clock,
        ),
        memory=Memory(
            num_stacks=2,
            stack_bytes=36 * GIGA,
            stack_bandwidth=1.0 * TERA,
            stack_length=12.0 * MM,
            stack_depth=8.75 * MM,
            vertical_sides=1,
        ),
        width=24.3 * MM,
        height=24.3 * MM,
    ),
    d2d=replace(D2D_UCIE_S, bandwidth=1.0 * TERA, latency=200 * NANO, energy=5 * PJ_PER_BIT),
    technology=DENSE_N7,
    window_width=198 * MM,
    window_height=198 * MM,
    packing="area",
)
"""TEMP (HPCA 2026, arXiv 2512.14256): 6 x 8 dies of 1,800 TFLOP/s, 80 MB of SRAM, 72 GB in 210 mm2 of HBM with 6
pJ/bit, "4 TB/s" die-to-die with 200 ns and 5 pJ/bit, wafer of about 40,000 mm2, 2 TFLOPS/W.

Reading: 4 TB/s is the sum over four edges in one direction. ASSUMPTION, where the paper is silent: 2 GHz and 8 x 8
cores; SRAM bandwidth per FLOP as Dojo's, core-to-core links of 256 bytes per clock; two stacks of 36 GB, 1 TB/s
and 105 mm2; dies of 24.3 x 24.3 mm, what 198 x 198 mm by area leaves beside 210 mm2 of HBM. `DENSE_N7` needs 911
mm2 for the logic alone: the margins report that the die does not exist at 7 nm, and that memory and links overrun
one edge by 1.6 mm."""

DOJO_TILE: Final = Wafer(
    die_rows=5,
    die_cols=5,
    die=Die(
        core_rows=18,
        core_cols=354 / 18,
        core=DOJO_CORE,
        memory=Memory(
            num_stacks=1,
            stack_bytes=5 * 32 * GIGA / 25,
            stack_bandwidth=5 * 800 * GIGA / 25,
        ),
        width=25.4 * MM,
        height=25.4 * MM,
    ),
    d2d=replace(D2D_DOJO, bandwidth=2.0 * TERA),
    technology=replace(DEMONSTRATED_N7, memory_phy_area=0, memory_phy_length=0),
    power_limit=15 * KILO,
)
"""Tesla Dojo training tile (AI Day 2021; Hot Chips 34, 2022): 5 x 5 D1 dies of 645 mm2, 354 cores, 362 TFLOP/s, 2
TB/s per edge and direction, 15 kW; 9 PFLOP/s and 11 GB of SRAM in all.

Reading: D1 has no DRAM of its own. The tile is fed by interface processors at its border, five of 32 GB of HBM and
800 GB/s on one edge: 160 GB and 4 TB/s per tile. ASSUMPTION: they are spread evenly, 6.4 GB and 160 GB/s per die;
neglected are the way across the tile, the area of the stacks and of the I/O dies around the tile, and the memory
interface, which is not on D1. The cores are 354 of an 18 x 20 grid, written as 18 rows of 19.67."""

NAMES: Final[dict[str, Wafer]] = collect(globals(), Wafer)
"""Wafers by name."""


def get(name: str) -> Wafer:
    """Return the wafer of that name, such as `watos-config-3`.

    Raises:
        ValueError: no wafer has that name.
    """
    return find("wafer", NAMES, name)
