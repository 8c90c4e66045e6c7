"""GPU nodes, as systems of two switch tiers: NVLink inside the node, network adapters between nodes; and a CS-2.

A core is a streaming multiprocessor; its clock is the one at which the data sheet's dense bf16 peak holds. SRAM
*capacity* is the GPU's L2 cache, which decides the traffic to memory; SRAM *bandwidth* is that of shared memory,
128 bytes per clock and multiprocessor, which feeds the tensor cores. Core-to-core links stand for the port to L2.
"""

from dataclasses import replace
from typing import Final

from watos_jax.hardware import Core, Die, Link, Memory, System, Tier
from watos_jax.presets._registry import collect, find
from watos_jax.presets.technologies import (
    GPU_N5,
    GPU_N7,
    HBM2E,
    HBM3,
    HBM3E,
    HBM3E_8H,
    NIC_200G,
    NIC_400G,
    NIC_800G,
    NVLINK3,
    NVLINK4,
    NVLINK5,
)
from watos_jax.units import BITS_PER_BYTE, FLOP_PER_MAC, GIGA, MIB, PETA, TERA, check_range

GPUS_PER_NODE: Final = 8
"""GPUs of a DGX or HGX node."""
GPUS_PER_RACK: Final = 72
"""GPUs that the NVLink switches of an NVL72 rack join."""


def _stacks(template: Memory, num_stacks: int) -> Memory:
    # geometry is not modelled in a cluster
    return replace(template, num_stacks=num_stacks, stack_length=0, stack_depth=0, vertical_sides=0)


DGX_A100: Final = System(
    die=Die(
        core_rows=12,
        core_cols=9,
        core=Core(
            num_macs=1024,
            clock=1.41 * GIGA,
            sram_bytes=40 * MIB / 108,
            sram_bytes_per_clock=128,
            noc_bytes_per_clock=5120 / 108,
        ),
        memory=_stacks(HBM2E, 5),
    ),
    tiers=(
        Tier(rows=1, cols=GPUS_PER_NODE, link=NVLINK3, fabric="switch"),
        Tier(rows=1, cols=1, link=NIC_200G, fabric="switch"),
    ),
    technology=GPU_N7,
)
"""Eight A100-80GB (NVIDIA A100 whitepaper and data sheet, 2020): 108 multiprocessors x 1,024 multiply-accumulators
at 1.41 GHz, 312 TFLOP/s dense bf16; L2 40 MB, 5,120 bytes per clock; 80 GB at 2,039 GB/s; NVLink 300 GB/s per
direction; one 200 Gb/s port per GPU."""

DGX_H100: Final = System(
    die=Die(
        core_rows=12,
        core_cols=11,
        core=Core(
            num_macs=2048,
            clock=1.83 * GIGA,
            sram_bytes=50 * MIB / 132,
            sram_bytes_per_clock=256,
            noc_bytes_per_clock=5120 / 132,
        ),
        memory=replace(_stacks(HBM3, 5), stack_bandwidth=3.35 * TERA / 5),
    ),
    tiers=(
        Tier(rows=1, cols=GPUS_PER_NODE, link=NVLINK4, fabric="switch"),
        Tier(rows=1, cols=1, link=NIC_400G, fabric="switch"),
    ),
    technology=GPU_N5,
)
"""Eight H100 SXM (NVIDIA H100 whitepaper and data sheet, 2022): 132 multiprocessors x 2,048 multiply-accumulators
at 1.83 GHz, 989 TFLOP/s dense bf16; L2 50 MB; 80 GB at 3.35 TB/s; NVLink 450 GB/s per direction; one 400 Gb/s port
per GPU. Shared memory gives 128 bytes per clock; products of 64 x 256 keep their sums in registers and read less
than half of what a square array would, hence 256 here. ASSUMPTION: L2 port as in the A100."""

DGX_B200: Final = System(
    die=Die(
        core_rows=148**0.5,
        core_cols=148**0.5,
        core=Core(
            num_macs=4096,
            clock=2250 * TERA / (148 * 4096 * FLOP_PER_MAC),
            sram_bytes=126 * MIB / 148,
            sram_bytes_per_clock=256,
            noc_bytes_per_clock=64,
        ),
        memory=replace(_stacks(HBM3E_8H, 8), stack_bytes=180 * GIGA / 8),
    ),
    tiers=(
        Tier(rows=1, cols=GPUS_PER_NODE, link=NVLINK5, fabric="switch"),
        Tier(rows=1, cols=1, link=NIC_400G, fabric="switch"),
    ),
    technology=GPU_N5,
)
"""Eight B200 SXM (NVIDIA DGX B200 data sheet, 2024): 2,250 TFLOP/s dense bf16; 180 GB usable at 8 TB/s; NVLink 900
GB/s per direction; one 400 Gb/s port per GPU. ASSUMPTION: 148 multiprocessors of 4,096 multiply-accumulators,
taken as a square, which makes the clock 1.86 GHz; L2 126 MB; shared and tensor memory together 256 bytes per clock; L2
port 64 bytes per clock; 4 nm as `GPU_N5`."""

DGX_B300: Final = replace(
    DGX_B200,
    die=replace(DGX_B200.die, memory=_stacks(HBM3E, 8)),
    tiers=(DGX_B200.tiers[0], Tier(rows=1, cols=1, link=NIC_800G, fabric="switch")),
)
"""Eight B300 SXM, Blackwell Ultra (NVIDIA DGX B300 data sheet, 2025): as `DGX_B200` in bf16, with 288 GB at 8 TB/s
and one 800 Gb/s port per GPU."""

DGX_H200: Final = replace(
    DGX_H100,
    die=replace(
        DGX_H100.die, memory=replace(_stacks(HBM3E_8H, 6), stack_bytes=141 * GIGA / 6, stack_bandwidth=4.8 * TERA / 6)
    ),
)
"""Eight H200 SXM (NVIDIA H200 data sheet, 2023): as `DGX_H100`, with 141 GB at 4.8 TB/s."""

GB200_NVL72: Final = replace(
    DGX_B200,
    die=replace(
        DGX_B200.die,
        core=replace(DGX_B200.die.core, clock=2500 * TERA / (148 * 4096 * FLOP_PER_MAC)),
        memory=replace(_stacks(HBM3E_8H, 8), stack_bytes=186 * GIGA / 8),
    ),
    tiers=(Tier(rows=1, cols=GPUS_PER_RACK, link=NVLINK5, fabric="switch"), DGX_B200.tiers[1]),
)
"""72 GPUs of 36 GB200 superchips in one rack (NVIDIA GB200 NVL72 data sheet, 2024): per GPU 2,500 TFLOP/s dense bf16,
186 GB at 8 TB/s, NVLink 900 GB/s per direction to the 71 others, one 400 Gb/s port; the rest as `DGX_B200`, with a
clock of 2.06 GHz for that peak."""

GB300_NVL72: Final = replace(
    GB200_NVL72,
    die=replace(GB200_NVL72.die, memory=_stacks(HBM3E, 8)),
    tiers=(GB200_NVL72.tiers[0], DGX_B300.tiers[1]),
)
"""72 GPUs of 36 GB300 superchips in one rack (NVIDIA GB300 NVL72 data sheet, 2025): as `GB200_NVL72` in bf16, with
288 GB at 8 TB/s and one 800 Gb/s port per GPU."""


CS2: Final = System(
    die=Die(
        core_rows=850_000**0.5,
        core_cols=850_000**0.5,
        core=Core(
            num_macs=7.5 * PETA / (850_000 * FLOP_PER_MAC * 1.1 * GIGA),
            clock=1.1 * GIGA,
            sram_bytes=40 * GIGA / 850_000,
            sram_bytes_per_clock=20 * PETA / (850_000 * 1.1 * GIGA),
            noc_bytes_per_clock=220 * PETA / BITS_PER_BYTE / (850_000 * 8 * 1.1 * GIGA),
        ),
        memory=Memory(num_stacks=1, stack_bytes=40 * GIGA, stack_bandwidth=20 * PETA, sustained_fraction=1.0),
    ),
    tiers=(Tier(rows=1, cols=1, link=Link(bandwidth=150 * GIGA), fabric="switch"),),
    technology=GPU_N7,
)
"""One Cerebras CS-2 (Zhang et al., arXiv 2409.00287, section II; Lie, Hot Chips 34, 2022): a WSE-2 of 46,225 mm2 in 7
nm with 850,000 cores at 1.1 GHz, 7.5 PFLOP/s of dense 16-bit arithmetic, 40 GB of SRAM at 20 PB/s, a fabric of 220
Pb/s, and 12 x 100 Gb/s Ethernet per direction to the memory that weights are streamed from.

Reading: 7.5 PFLOP/s make 4 multiply-accumulates per core and clock; 220 Pb/s counts four links of a core in both
directions, 3.7 bytes per clock for one of them in one direction. The wafer is one die whose memory is its SRAM, for
`baselines.weight_streaming`; `cluster` joins several. ASSUMPTION: a square array; energy constants of a GPU in 7 nm."""


def cluster(node: System, num_nodes: int | float) -> System:
    """Return `num_nodes` equal nodes joined by their outermost tier.

    Args:
        node: a single node, such as `DGX_H100`; its last tier is the network between nodes.
        num_nodes: at least 1, whole.

    Raises:
        ValueError: `num_nodes` is not a whole number of at least 1.
    """
    check_range("cluster", {"num_nodes": num_nodes}, low=1.0, integral=True)
    return replace(node, tiers=(*node.tiers[:-1], replace(node.tiers[-1], cols=num_nodes)))


NAMES: Final[dict[str, System]] = collect(globals(), System)
"""Nodes by name; `cluster` makes larger systems of them."""


def get(name: str) -> System:
    """Return the node of that name, such as `dgx-h100`.

    Raises:
        ValueError: no node has that name.
    """
    return find("system", NAMES, name)
