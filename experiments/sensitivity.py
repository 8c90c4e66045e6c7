"""Do the conclusions hold under other technologies and other readings of the die-to-die bandwidth?

WATOS configuration 3 (arXiv 2512.12279) cannot be made as printed in all three 7 nm technologies. Here each die keeps
its size, memory and links, and gets as many cores as its area then has room for, at the technology's own clock; 4
TB/s of a die are read as 0.5, 1 or 4 TB/s per edge and direction. Ours is compared with the baselines on each of the
nine wafers; GPUs get the peak of that wafer, so what changes is the balance of compute, memory and links.

    python experiments/sensitivity.py --out experiments/results
    python experiments/sensitivity.py --model gshard-137b    # may be repeated
    python experiments/sensitivity.py --json
    python experiments/sensitivity.py --smoke
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

import harness
import numpy as np

import watos_jax as wj
from watos_jax.fabrication import fabrication_ratios
from watos_jax.hardware import Technology
from watos_jax.presets import models, technologies, wafers
from watos_jax.units import TERA

MODELS = ("llama3-70b", "gshard-137b")
TECHNOLOGIES = ("dense-n7", "demonstrated-n7", "gpu-n7")
READINGS = (0.5, 1.0, 4.0)
"""TB/s per edge and direction."""
OPTIONS = wj.Options(global_batch_size=512, context_parallel=1, virtual_stages=(1, 2), sequence_parallel=1)
SIDES = {
    "megatron_on_wafer": "Megatron-LM, same wafer",
    "megatron_on_wafer_equal_stages": "the same, equal stages",
    "weight_streaming": "weight streaming, same wafer",
    "megatron_on_gpu": "Megatron-LM, 8 GPUs of equal peak",
}


def can_be_made(technology: Technology, rate: float) -> wj.Wafer:
    """Configuration 3 with the links of a reading and as many cores as a technology leaves room for."""
    base = wafers.WATOS_CONFIG_3
    core = replace(base.die.core, clock=min(float(base.die.core.clock), float(technology.nominal_clock)))
    wafer = replace(base, technology=technology, d2d=replace(base.d2d, bandwidth=rate * TERA))
    for side in range(int(base.die.core_rows), 0, -1):
        for rows, cols in ((side, side), (side - 1, side)):
            made = replace(wafer, die=replace(base.die, core=core, core_rows=max(1, rows), core_cols=cols))
            if float(fabrication_ratios(made)["die_area"]) <= 1.0:
                return made
    raise ValueError(f"{rate:g} TB/s per edge leave no room for a core")


def answer(given: argparse.Namespace) -> dict[str, Any]:
    """Every technology, reading and model."""
    chosen = {name: models.get(name) for name in given.model or MODELS}
    readings, names, options = READINGS, TECHNOLOGIES, OPTIONS
    if given.smoke:
        chosen = {"llama2-7b, 4 layers": replace(models.LLAMA2_7B, num_layers=4)}
        options = wj.Options(global_batch_size=8, micro_batch_sizes=1, virtual_stages=1, context_parallel=1)
        readings, names = (1.0,), ("demonstrated-n7",)
    made: dict[str, Any] = {}
    rows: dict[str, Any] = {model: {} for model in chosen}
    for technology in names:
        made[technology] = {}
        for rate in readings:
            wafer = can_be_made(technologies.get(technology), rate)
            ratios = fabrication_ratios(wafer)
            made[technology][rate] = {
                "cores": wafer.die.num_cores,
                "flop_rate": wafer.num_dies * wafer.die.flop_rate,
                "exceeds": {limit: ratio for limit, ratio in ratios.items() if ratio > 1 + 1e-6},
            }
            for name, model in chosen.items():
                found = wj.compare(wafer, model, options=options)
                sides = found.baselines | found.variants
                rows[name].setdefault(technology, {})[rate] = {
                    "tokens_per_second": {"ours": found.tokens_per_second}
                    | {side: sides[side].tokens_per_second for side in SIDES},
                    "speedup": {side: found.speedup(sides[side]) for side in SIDES},
                }
                print(f"{name}, {technology}, {rate:g} TB/s", file=sys.stderr, flush=True)
    return {"made": made, "rows": rows}


def show(record: dict[str, Any]) -> None:
    """Print the wafers, the speedups and who wins."""
    for technology, by_rate in record["made"].items():
        for rate, one in by_rate.items():
            over = ", ".join(f"{limit} {ratio:.2f}" for limit, ratio in one["exceeds"].items())
            print(
                f"{technology} at {rate} TB/s: {one['cores']:.0f} cores per die, {one['flop_rate'] / 1e15:.1f} PFLOP/s"
                + (f"; exceeds {over}" if over else "")
            )
    for name, by_technology in record["rows"].items():
        print(f"{name}: ours over each")
        for technology, by_rate in by_technology.items():
            for rate, found in by_rate.items():
                rates = {side: value for side, value in found["tokens_per_second"].items() if value}
                cells = "  ".join(f"{side} {ratio:.3f}" for side, ratio in found["speedup"].items() if ratio)
                winner = max(rates, key=lambda side: rates[side]) if rates else "none fits"
                print(f"  {technology:16s}{float(rate):4.1f} TB/s  {cells}  fastest: {winner}")


def draw(record: dict[str, Any], plt: Any) -> Any:
    """A map of speedups for each baseline and model: technologies by readings."""
    rows = record["rows"]
    size = (3.1 * len(SIDES), 2.6 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), len(SIDES), figsize=size, layout="constrained", squeeze=False)
    for number, (line, (name, by_technology)) in enumerate(zip(axes, rows.items(), strict=True), 1):
        sets, readings = list(by_technology), list(next(iter(by_technology.values())))
        for axis, (side, label) in zip(line, SIDES.items(), strict=True):
            first = axis is line[0]
            table = np.array([[by_technology[t][r]["speedup"][side] or np.nan for r in readings] for t in sets], float)
            image = axis.imshow(np.log2(table), cmap="PuOr", vmin=-1.2, vmax=1.2, aspect="auto")
            for (i, j), value in np.ndenumerate(table):
                text = "-" if np.isnan(value) else f"{value:.2f}"
                if first:
                    text += f"\n{record['made'][sets[i]][readings[j]]['cores']:.0f} cores"
                dark = not np.isnan(value) and abs(np.log2(value)) > 0.8
                axis.text(j, i, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
            axis.set_xticks(range(len(readings)), [f"{float(r):g}" for r in readings])
            axis.set_yticks(range(len(sets)), sets if first else [""] * len(sets))
            axis.set_title(f"{name} over\n{label}", fontsize=8)
            axis.grid(visible=False)
            if number == len(rows):
                axis.set_xlabel("TB/s per edge and direction")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=np.log2([0.5, 0.7, 1.0, 1.4, 2.0]))
    bar.ax.set_yticklabels(["0.5", "0.7", "1", "1.4", "2"])
    bar.set_label("ours over the baseline")
    return figure


main = harness.command(__doc__, answer, show, draw, model=models.NAMES)

if __name__ == "__main__":
    sys.exit(main())
