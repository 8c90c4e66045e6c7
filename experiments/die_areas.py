"""How large would published dies be under each of the three 7 nm technology sets? A prediction, not a fit.

Counts of multiply-accumulators, bytes of SRAM, memory stacks and link bandwidth are taken from the sources of each
machine and multiplied by the areas of a set. `GPU_N7` was built from GA100, so that row checks a transcription;
`DEMONSTRATED_N7` has one factor that makes Dojo D1 come out right, so that cell is a fit and is marked so. Every other
cell is a prediction, and nothing is adjusted to it: the errors say which machine a set describes.

    python experiments/die_areas.py            # table
    python experiments/die_areas.py --json     # one JSON object
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import watos_jax as wj
from watos_jax.fabrication import die_area
from watos_jax.presets import technologies, wafers
from watos_jax.units import GIGA, KIB, MIB, MM, MM2, PETA

SETS = {
    "GPU_N7": technologies.GPU_N7,
    "DENSE_N7": technologies.DENSE_N7,
    "DEMONSTRATED_N7": technologies.DEMONSTRATED_N7,
}
FITS = {("Dojo D1", "DEMONSTRATED_N7")}
"""Cells that a set was adjusted to."""
TOLERANCE = 0.03
"""Largest error of GA100 under `GPU_N7`, relative."""


class Machine(NamedTuple):
    """A published die.

    Attributes:
        wafer: its counts, as a wafer of one die or of many.
        area: published area of one die, m2.
        network: area that the source counts but `die_area` does not, m2.
        has_memory_interface: whether the die itself carries the PHYs of its memory.
        source: where the area comes from.
        reading: why the prediction is off, or what it leaves out.
    """

    wafer: wj.Wafer
    area: float
    network: float
    has_memory_interface: bool
    source: str
    reading: str


def _ga100() -> wj.Wafer:
    core = wj.Core(
        num_macs=1024,
        clock=1.41 * GIGA,
        sram_bytes=192 * KIB + 48 * MIB / 128,
        sram_bytes_per_clock=128,
        noc_bytes_per_clock=40,
    )
    memory = replace(technologies.HBM2E, num_stacks=6)
    die = wj.Die(core_rows=16, core_cols=8, core=core, memory=memory, width=26 * MM, height=31.77 * MM)
    # twelve links of 25 GB/s, a quarter of them on each edge of the record
    link = replace(technologies.NVLINK3, bandwidth=75 * GIGA)
    return wj.Wafer(die_rows=1, die_cols=1, die=die, d2d=link, technology=technologies.GPU_N7)


def _wse2() -> wj.Wafer:
    num_cores, clock = 850_000, 1.1 * GIGA
    core = wj.Core(
        num_macs=7.5 * PETA / (2 * num_cores * clock),
        clock=clock,
        sram_bytes=40 * GIGA / num_cores,
        sram_bytes_per_clock=16,
        noc_bytes_per_clock=4,
    )
    memory = wj.Memory(num_stacks=1, stack_bytes=1 * GIGA, stack_bandwidth=150 * GIGA)
    die = wj.Die(core_rows=850, core_cols=num_cores / 850, core=core, memory=memory, width=215 * MM, height=215 * MM)
    # reticle fields are stitched, there is no PHY between them
    return wj.Wafer(die_rows=1, die_cols=1, die=die, d2d=wj.Link(bandwidth=1 * GIGA), technology=technologies.DENSE_N7)


MACHINES = {
    "GA100": Machine(
        wafer=_ga100(),
        area=826 * MM2,
        network=128 * technologies.GPU_CROSSBAR_AREA_N7,
        has_memory_interface=True,
        source="NVIDIA A100 whitepaper, 2020",
        reading="GPU_N7 was built from this die: a check of the transcription. The dataflow sets lack its control "
        "and its register files.",
    ),
    "Dojo D1": Machine(
        wafer=wafers.DOJO_TILE,
        area=645 * MM2,
        network=0.0,
        has_memory_interface=False,
        source="Tesla AI Day, 2021",
        reading="DEMONSTRATED_N7 has one factor for logic and SRAM that makes this die come out right: a fit. A "
        "GPU's cache constants more than double it; DENSE_N7 has no network and no vector unit of its size.",
    ),
    "WSE-2": Machine(
        wafer=_wse2(),
        area=46_225 * MM2,
        network=0.0,
        has_memory_interface=False,
        source="Cerebras WSE-2, 40 GB and 7.5 PFLOP/s (arXiv 2409.00287)",
        reading="A GPU's cache constants double the wafer, for SRAM is most of it. The others leave out fabric, spare "
        "cores, and the control of a core of four multiply-accumulators.",
    ),
    "WSC-LLM": Machine(
        wafer=wafers.WSC_LLM_54,
        area=500 * MM2,
        network=0.0,
        has_memory_interface=True,
        source="WSC-LLM, ISCA 2025: 21.92 x 22.81 mm",
        reading="Not silicon, and its SRAM is our assumption. At 1 GHz a multiply-accumulator of a set made for 2 GHz "
        "does half of the work per area.",
    ),
    "WATOS": Machine(
        wafer=wafers.WATOS_CONFIG_3,
        area=643 * MM2,
        network=0.0,
        has_memory_interface=True,
        source="WATOS configuration 3, arXiv 2512.12279: 25.5 x 25.2 mm",
        reading="Not silicon: denser than silicon has shown, as the positive error under DEMONSTRATED_N7 says.",
    ),
}


def prediction(machine: Machine, technology: wj.Technology) -> dict[str, float]:
    """Areas of one die by use, in mm2, and the signed relative error of their sum."""
    if not machine.has_memory_interface:
        technology = replace(technology, memory_phy_area=0.0)
    parts = die_area(replace(machine.wafer, technology=technology))
    uses = {name: float(area) / MM2 for name, area in parts._asdict().items()}
    uses["network"] = machine.network / MM2
    total = sum(uses.values())
    return uses | {"total": total, "error": total * MM2 / machine.area - 1.0}


def run() -> dict[str, Any]:
    """Every machine under every set, and the checks."""
    machines = {
        name: {
            "published_mm2": machine.area / MM2,
            "source": machine.source,
            "reading": machine.reading,
            "sets": {
                label: prediction(machine, technology) | {"fit": (name, label) in FITS}
                for label, technology in SETS.items()
            },
        }
        for name, machine in MACHINES.items()
    }
    errors = {name: {label: row["error"] for label, row in of["sets"].items()} for name, of in machines.items()}
    checks = {
        "GA100 under GPU_N7 is within 3 %": abs(errors["GA100"]["GPU_N7"]) <= TOLERANCE,
        "Dojo D1 under DEMONSTRATED_N7 is the fit that it is marked as": abs(errors["Dojo D1"]["DEMONSTRATED_N7"])
        < 1e-6,
        "DENSE_N7 is the densest on every machine": all(of["DENSE_N7"] == min(of.values()) for of in errors.values()),
        "the die of WATOS is denser than silicon has shown": errors["WATOS"]["DEMONSTRATED_N7"] > 0,
    }
    return {"machines": machines, "checks": checks}


def show(answer: dict[str, Any]) -> None:
    """Print the table, the reasons and the checks."""
    uses = ("compute", "sram", "memory_phy", "d2d_phy", "network", "total")
    print("mm2 of one die     set               " + "".join(f"{use:>11}" for use in uses) + "   published    error")
    for name, machine in answer["machines"].items():
        for label, row in machine["sets"].items():
            areas = "".join(f"{row[use]:11,.0f}" for use in uses)
            mark, error = "  fit" if row["fit"] else "", round(row["error"], 6) + 0.0
            print(f"{name:18} {label:18}{areas}{machine['published_mm2']:12,.0f}{error:+9.1%}{mark}")
    print()
    for name, machine in answer["machines"].items():
        print(f"{name}: {machine['reading']} ({machine['source']})")
    print()
    for name, holds in answer["checks"].items():
        print(f"{'ok    ' if holds else 'FAILED'} {name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict, print; 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--smoke", action="store_true", help="the same: the whole table takes a second")
    given = parser.parse_args(arguments)
    answer = run()
    if given.json:
        print(json.dumps(answer))
    else:
        show(answer)
    return 0 if all(answer["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
