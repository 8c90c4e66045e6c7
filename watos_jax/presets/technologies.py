"""Process technologies, die-to-die links and memory stacks.

Published constants disagree by 2 to 30 times, so sets are named and never mixed or adjusted to a throughput:
`GPU_N7` describes a GPU core, `DENSE_N7` the dataflow cores that wafer-scale papers assume, `DEMONSTRATED_N7` what
Tesla Dojo D1 reached in silicon. A number without a published source is marked ASSUMPTION.

Areas are per 16-bit multiply-accumulator with control, vector unit and registers but without SRAM, which is
counted by capacity. Network-on-chip, I/O and gaps are not in these constants. MB of SRAM is 2**20 bytes.
"""

from dataclasses import replace
from typing import Final

from watos_jax.hardware import Link, Memory, Technology
from watos_jax.presets._registry import collect, find
from watos_jax.units import BITS_PER_BYTE, FLOP_PER_MAC, GIGA, MIB, MICRO, MM, MM2, NANO, PICO, TERA

PJ_PER_BIT: Final = BITS_PER_BYTE * PICO
"""One pJ/bit in J/byte."""

# ---- links: templates whose bandwidth is one module of the PHY; replace the bandwidth

D2D_UCIE_A: Final = Link(
    bandwidth=256 * GIGA,
    latency=15 * NANO,
    energy=0.3 * PJ_PER_BIT,
    shoreline_density=256 * GIGA / (0.3888 * MM),
    phy_area=0.4055 * MM2 / (256 * GIGA),
    max_length=2 * MM,
    module_bandwidth=256 * GIGA,
)
"""UCIe advanced package, abutted dies: one x64 module at 32 GT/s is 256 GB/s per direction in 0.3888 mm of edge
and 0.4055 mm2 (CATCH, io_definitions), 658 GB/s/mm; 0.3 pJ/bit (GEMINI, main.cpp; Das Sharma, Hot Interconnects
2025: 0.25-0.3); reach 2 mm (UCIe specification, advanced package). Latency about 15 ns without forward error
correction (TickTock, ISCA 2025)."""

D2D_UCIE_S: Final = Link(
    bandwidth=64 * GIGA,
    latency=20 * NANO,
    energy=0.6 * PJ_PER_BIT,
    shoreline_density=64 * GIGA / (0.5715 * MM),
    phy_area=0.754 * MM2 / (64 * GIGA),
    max_length=25 * MM,
    module_bandwidth=64 * GIGA,
)
"""UCIe standard package, up to 25 mm: one x16 module at 32 GT/s is 64 GB/s per direction in 0.5715 mm and 0.754
mm2 (CATCH, io_definitions), 112 GB/s/mm; 0.5-0.6 pJ/bit (Das Sharma, Hot Interconnects 2025; GEMINI fan-out: 0.6).
Latency 20 ns (FRED, arXiv 2406.19580)."""

D2D_DOJO: Final = Link(
    bandwidth=0.5 * MM * 2 * TERA / (25.4 * MM),
    latency=200 * NANO,
    energy=1.25 * PJ_PER_BIT,
    shoreline_density=2 * TERA / (25.4 * MM),
    phy_area=D2D_UCIE_S.phy_area,
    max_length=50 * MM,
    module_bandwidth=0.5 * MM * 2 * TERA / (25.4 * MM),
)
"""Wafer wiring up to 50 mm, as in Tesla Dojo D1: 2 TB/s per direction on each 25.4 mm edge (Tesla AI Day 2021), 79
GB/s/mm; 1.25 pJ/bit (dse4wse, stitched reticle links); reach 50 mm (TickTock, ISCA 2025). Latency 200 ns (TEMP,
arXiv 2512.14256; TickTock: 210 ns with forward error correction). ASSUMPTION: a module is 0.5 mm of edge, and the
PHY takes the area per byte/s of `D2D_UCIE_S`, the nearest class with a published area."""

# ---- memory stacks: templates of one stack; replace the number of stacks and the sides

HBM2E: Final = Memory(
    num_stacks=1,
    stack_bytes=16 * GIGA,
    stack_bandwidth=408 * GIGA,
    sustained_fraction=0.9,
    stack_length=11 * MM,
    stack_depth=11 * MM,
    vertical_sides=1,
)
"""HBM2e as shipped in the A100-80GB: five stacks of 16 GB, 2,039 GB/s (NVIDIA A100 80GB data sheet), 408 GB/s per
stack; footprint read as that of HBM3, 11 x 11 mm (ASSUMPTION); 0.90 of the peak is sustained."""

HBM3: Final = Memory(
    num_stacks=1,
    stack_bytes=16 * GIGA,
    stack_bandwidth=819.2 * GIGA,
    sustained_fraction=0.9,
    stack_length=11 * MM,
    stack_depth=11 * MM,
    vertical_sides=1,
)
"""HBM3: 1,024 bits at 6.4 Gb/s (JEDEC JESD238), 16 GB (8-high), 11 x 11 mm."""

HBM3E: Final = Memory(
    num_stacks=1,
    stack_bytes=36 * GIGA,
    stack_bandwidth=1.0 * TERA,
    sustained_fraction=0.9,
    stack_length=11 * MM,
    stack_depth=11 * MM,
    vertical_sides=1,
)
"""HBM3e, 12-high: 36 GB and 1.0 TB/s as shipped in B300 (eight stacks, 288 GB, 8 TB/s); 11 x 11 mm (Micron HBM3E
product brief, which allows more than 1.2 TB/s)."""

HBM3E_8H: Final = replace(HBM3E, stack_bytes=24 * GIGA)
"""HBM3e, 8-high: 24 GB and 1.0 TB/s as shipped in B200; 11 x 11 mm."""

ABSTRACT_BLOCK: Final = replace(HBM3E, stack_length=8.13 * MM, stack_depth=4.92 * MM)
"""The abstract memory block of the TX8 wafer model, 8.13 x 4.92 mm, the size that wafer-scale papers seem to use,
with the capacity and bandwidth of `HBM3E`. No stack of that footprint ships."""

# ---- logic: GPU_N7

N7_DENSITY: Final = 96.3e6 / MM2
"""Transistors per m2 at 7 nm (ttm-cas, as used by LLMCompass)."""
N5_DENSITY: Final = 138.2e6 / MM2
"""Transistors per m2 at 5 nm (ttm-cas, as used by LLMCompass)."""
GPU_CORE_AREA_N7: Final = 4.10 * MM2
"""A GA100 multiprocessor in LLMCompass (cost_model.py on GA100.json): 1,024 fp16 multiply-accumulators; control
1.32, register file 1.57, SRAM 0.51, vector units 0.44, matrix units 0.27 mm2."""
GPU_CORE_SRAM_AREA_N7: Final = 0.51 * MM2
"""The SRAM part of `GPU_CORE_AREA_N7`, 192 KB."""
GPU_CROSSBAR_AREA_N7: Final = 44.3e6 / N7_DENSITY
"""LLMCompass's own uncore overhead, m2 per core: 44.3 M transistors that connect a core to the crossbar. It is
network, so `GPU_N7.mac_area` leaves it out."""
NVLINK3_AREA_N7: Final = 1.888 * MM2 + 74.632e6 / N7_DENSITY
"""m2 of one NVLink 3 link of 25 GB/s per direction, PHY and controller (LLMCompass, cost_model.py)."""

GPU_N7: Final = Technology(
    mac_area=(GPU_CORE_AREA_N7 - GPU_CORE_SRAM_AREA_N7) / 1024,
    sram_area=2.37 * MM2 / MIB,
    memory_phy_area=10.45 * MM2 + 552.743e6 / N7_DENSITY,
    memory_phy_length=8.5 * MM,
    flop_energy=0.70 * PICO,
    sram_energy=1.59 * PJ_PER_BIT,
    dram_energy=13.1 * PJ_PER_BIT,
    leakage_power_density=0.06 / MM2,
    nominal_clock=1.41 * GIGA,
)
"""A GPU core at 7 nm, from LLMCompass (arXiv 2312.03134, cost_model.py): 3,506 um2 per multiply-accumulator
without SRAM; cache 2.37 mm2/MB (512 KB units); HBM2e PHY 10.45 mm2 and controller 5.74 mm2 per stack. The full
GA100 is then 460 (logic) + 171 (24 + 48 MB) + 97 (six stacks) + 32 (twelve NVLinks) + 59 (`GPU_CROSSBAR_AREA_N7`)
= 818 mm2 against 826 in silicon; LLMCompass was calibrated there, so this checks the transcription only.

Edge per stack 8.5 mm (TX8 wafer model, on the die). A100 matrix arithmetic 0.70 pJ/FLOP with instruction and
register overhead, L1 SRAM 1.59 pJ/bit, memory 13.1 pJ/bit for the whole path (A100 measurements, SC 2025). Clock
of the A100. ASSUMPTION: leakage 0.06 W/mm2, about 50 W at idle over 826 mm2; least voltage 0.6 of nominal, linear
in the clock."""

GPU_N5: Final = replace(
    GPU_N7,
    mac_area=GPU_N7.mac_area * N7_DENSITY / N5_DENSITY,
    sram_area=1.74 * MM2 / MIB,
    memory_phy_area=10.45 * MM2 + 552.743e6 / N5_DENSITY,
    flop_energy=0.7 * GPU_N7.flop_energy,
    sram_energy=0.7 * GPU_N7.sram_energy,
    dram_energy=11.7 * PJ_PER_BIT,
    nominal_clock=1.83 * GIGA,
)
"""The same core at 5 nm: LLMCompass scales all logic by transistor density (a bare multiply-accumulator from 263
to 183 um2); cache 1.74 mm2/MB; HBM PHY 10.45 and controller 4.00 mm2. Memory 11.7 pJ/bit (GH200, SC 2025); clock
of the H100. ASSUMPTION: arithmetic and SRAM take 0.7 of their energy at 7 nm (TSMC: N5 saves 30 % of the power of
N7 at equal speed)."""

# ---- logic: wafer cores

WAFER_CLOCK: Final = 2.0 * GIGA
"""Design clock of the wafer machines that `DENSE_N7` and `DEMONSTRATED_N7` are applied to (Dojo D1, WATOS), Hz."""
DENSE_AREA_PER_FLOP_RATE: Final = 0.506 * MM2 / TERA
"""m2 per FLOP/s of a TX8-like 7 nm dataflow core without its SRAM, implementation overhead of 10 % included: the
core is 5.00 mm2 with 3 MiB of SRAM and 8.2 TFLOP/s."""

DENSE_N7: Final = Technology(
    mac_area=DENSE_AREA_PER_FLOP_RATE * FLOP_PER_MAC * WAFER_CLOCK,
    sram_area=0.287 * MM2 / MIB,
    memory_phy_area=GPU_N7.memory_phy_area,
    memory_phy_length=GPU_N7.memory_phy_length,
    flop_energy=0.33 * PICO,
    sram_energy=0.082 * PJ_PER_BIT,
    dram_energy=6.0 * PJ_PER_BIT,
    leakage_power_density=GPU_N7.leakage_power_density,
    nominal_clock=WAFER_CLOCK,
)
"""The dataflow cores that wafer-scale papers assume, 7 nm: optimistic, Dojo D1 needed 1.78 times the area. What is
carried over is area per FLOP/s, at the 2 GHz
design clock of these machines: 0.506 mm2 per TFLOP/s is 2,024 um2 per multiply-accumulator. SRAM: published N7
macro, 29.2 Mb/mm2, 0.287 mm2/MB. Memory interface: as `GPU_N7`.

Datapath 0.33 pJ/FLOP, without the instruction and register overhead of a GPU (A100 measurements, SC 2025); SRAM
0.082 pJ/bit read (dse4wse, SRAM compiler table); memory 6.0 pJ/bit (TEMP, arXiv 2512.14256). TEMP's 2 TFLOPS/W,
0.5 pJ/FLOP for everything, is the sum to compare with. ASSUMPTION: leakage and voltage as `GPU_N7`."""

D1_AREA: Final = 645 * MM2
"""Die area of Tesla Dojo D1 (Tesla AI Day 2021), m2."""
D1_D2D_AREA: Final = 4 * 2 * TERA * D2D_DOJO.phy_area
"""Area of D1's die-to-die PHYs, m2: four edges of 2 TB/s at the PHY density of `D2D_DOJO`, 94 mm2."""
D1_DENSE_AREA: Final = 354 * (256 * DENSE_N7.mac_area + 1.25 * MIB * DENSE_N7.sram_area)
"""What `DENSE_N7` predicts for D1's logic and SRAM, m2: 354 cores of 256 multiply-accumulators (362 TFLOP/s) and
1.25 MB, 183 + 127 mm2."""
DEMONSTRATED_FACTOR: Final = (D1_AREA - D1_D2D_AREA) / D1_DENSE_AREA
"""Area of D1 without its links over the prediction of `DENSE_N7`: 1.78. With no PHY at all it would be 2.08."""

DEMONSTRATED_N7: Final = replace(
    DENSE_N7,
    mac_area=DEMONSTRATED_FACTOR * DENSE_N7.mac_area,
    sram_area=DEMONSTRATED_FACTOR * DENSE_N7.sram_area,
    dram_energy=11.7 * PJ_PER_BIT,
)
"""What silicon has shown: logic and SRAM areas of `DENSE_N7` times the one factor that makes Tesla Dojo D1 come
out right, so D1 is a fit here and no test. Memory 11.7 pJ/bit, the least of three measured whole paths (A100 13.1,
GH200 11.7, MI250X 13.6; SC 2025). The rest as `DENSE_N7`; check: D1 at the peak of everything is 119 W datapath +
155 W SRAM (670 GB/s per core) + 80 W links + 39 W leakage = 394 W against its 400 W."""

# ---- named alternatives of the memory interface

MEMORY_PHY_LENGTH_SILICON: Final = 2.56 * MM
"""Edge per stack on a silicon interconnect: 1,024 links at 400 per mm (DeepFlow, SiIF), m."""
MEMORY_PHY_LENGTH_PACKAGE: Final = 12 * MM
"""Edge per stack at package pitch with keep-out: A100 5 x 12 of 115 mm, B200 8 x 12 of 160 mm (OpenTallas), m."""

DENSE_N7_SILICON_PITCH: Final = replace(DENSE_N7, memory_phy_length=MEMORY_PHY_LENGTH_SILICON)
"""`DENSE_N7` with memory on a silicon interconnect (DeepFlow, SiIF): 2.56 mm of edge per stack."""
DEMONSTRATED_N7_PACKAGE_PITCH: Final = replace(DEMONSTRATED_N7, memory_phy_length=MEMORY_PHY_LENGTH_PACKAGE)
"""`DEMONSTRATED_N7` with memory at package pitch (OpenTallas): 12 mm of edge per stack."""

# ---- links of GPU clusters

NVLINK3: Final = Link(
    bandwidth=300 * GIGA,
    latency=1.9 * MICRO,
    energy=13 * PJ_PER_BIT,
    phy_area=NVLINK3_AREA_N7 / (25 * GIGA),
)
"""NVLink 3 through NVSwitch, per A100: twelve links of 25 GB/s per direction (NVIDIA A100 whitepaper, 2020).
Latency per ring step 1.9 us (NCCL tuning.cc, LL128). 13 pJ/bit (DeepFlow, board link). PHY area: LLMCompass."""
NVLINK4: Final = replace(NVLINK3, bandwidth=450 * GIGA, phy_area=0.0)
"""NVLink 4 through NVSwitch, per H100: 450 GB/s per direction (NVIDIA H100 whitepaper, 2022); the rest as
`NVLINK3`."""
NVLINK5: Final = replace(NVLINK3, bandwidth=900 * GIGA, phy_area=0.0)
"""NVLink 5 through NVSwitch, per B200: 900 GB/s per direction (NVIDIA Blackwell brief, 2024); the rest as
`NVLINK3`."""
NIC_200G: Final = Link(bandwidth=25 * GIGA, latency=4.0 * MICRO, energy=30 * PJ_PER_BIT)
"""One 200 Gb/s InfiniBand port per GPU (DGX A100 data sheet). Latency per ring step 4.0 us (NCCL tuning.cc,
LL128). ASSUMPTION: 30 pJ/bit, two optical modules, adapters and one switch."""
NIC_400G: Final = replace(NIC_200G, bandwidth=50 * GIGA)
"""One 400 Gb/s InfiniBand port per GPU (DGX H100 and DGX B200 data sheets); the rest as `NIC_200G`."""
NIC_800G: Final = replace(NIC_200G, bandwidth=100 * GIGA)
"""One 800 Gb/s InfiniBand port per GPU (DGX B300 data sheet); the rest as `NIC_200G`."""

NAMES: Final[dict[str, Technology]] = collect(globals(), Technology)
"""Technologies by name."""
LINKS: Final[dict[str, Link]] = collect(globals(), Link)
"""Link templates by name."""
MEMORIES: Final[dict[str, Memory]] = collect(globals(), Memory)
"""Memory stack templates by name."""


def get(name: str) -> Technology:
    """Return the technology of that name, such as `demonstrated-n7`.

    Raises:
        ValueError: no technology has that name.
    """
    return find("technology", NAMES, name)
