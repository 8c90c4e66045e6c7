"""How full and how busy is every stage, with memory local and with memory shared?

1F1B fills the DRAM of early stages and leaves that of late ones free (arXiv 2512.12279: about 90 GB on the first of 8
stages, 30 GB on the last). For one strategy: bytes per die of every stage where nothing is recomputed; with the best
level of each stage in its own DRAM; and with memory shared (GCMR), where some stages keep checkpoints in the DRAM of
others. Beside it, seconds per micro-batch of every stage: work, recomputation, shipping. A pipeline runs at the pace
of its slowest stage, so what the others lack to it is idle time.

The strategy is the best of all if memory is shared; its levels are settled anew for local memory.

    python experiments/utilisation.py --out experiments/results
    python experiments/utilisation.py --model llama3-70b --memory 28     # GB of DRAM per die; each may be given
    python experiments/utilisation.py --json
    python experiments/utilisation.py --smoke
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import harness
import numpy as np

import watos_jax as wj
from watos_jax.presets import models, wafers
from watos_jax.search.placed import Placed, score
from watos_jax.search.sharing import levels_of, unshared
from watos_jax.strategy import RECOMPUTE_LEVELS
from watos_jax.units import GIGA

WAFER = wafers.WATOS_CONFIG_3
MODEL, MEMORY = "llama3-70b", 28.0
OPTIONS = wj.Options(global_batch_size=512, context_parallel=1, virtual_stages=(1, 2), sequence_parallel=1)
SCHEMES = {"kept": "nothing recomputed", "local": "memory local to each stage", "shared": "memory shared"}


def of_stages(placed: Placed, capacity: float) -> dict[str, Any]:
    """Bytes and seconds of every stage of a placed strategy."""
    count = len(placed.sent)
    forward, backward = (
        np.asarray(part)[:count] for part in (placed.estimate.stage_forward, placed.estimate.stage_backward)
    )
    needed = np.asarray(placed.estimate.memory)[:count]
    return {
        "levels": np.broadcast_to(np.asarray(placed.strategy.recompute), (count,)),
        "needed": needed,
        "resident": needed - placed.sent + placed.held,
        "sent": placed.sent,
        "held": placed.held,
        "busy": forward + backward,
        "step_time": float(placed.step_time),
        "fits": bool((needed - placed.sent + placed.held <= capacity * (1 + 1e-6)).all()),
        "memory_used": float(np.mean(np.minimum(needed - placed.sent + placed.held, capacity)) / capacity),
    }


def answer(given: argparse.Namespace) -> dict[str, Any]:
    """The best strategy with shared memory, and the same with other ways of settling memory."""
    name, gigabytes, options = given.model, given.memory, OPTIONS
    model = models.get(name)
    if given.smoke:
        name, gigabytes = "llama2-13b, 16 layers", 3.0
        model = replace(models.LLAMA2_13B, num_layers=16)
        options = wj.Options(global_batch_size=32, micro_batch_sizes=1, virtual_stages=1, context_parallel=1)
    memory = replace(WAFER.die.memory, stack_bytes=gigabytes * GIGA / float(WAFER.die.memory.num_stacks))
    wafer = replace(WAFER, die=replace(WAFER.die, memory=memory))
    capacity = float(memory.capacity)
    found = wj.central(wafer, model, options=options)
    if not found.best:
        raise SystemExit(f"{name} does not fit {gigabytes:g} GB per die")
    best = found.best[0]
    count = len(best.sent)
    every = levels_of(wafer, model, best.strategy, best.layout)
    alone = unshared(every)
    levels = {"kept": np.zeros(count), "local": np.asarray(alone.level[:count], float)}
    nothing = np.zeros(count)

    def with_levels(chosen: np.ndarray) -> Placed:
        strategy = eqx.tree_at(lambda s: s.recompute, best.strategy, chosen)
        return score(wafer, model, strategy, best.order, nothing, nothing)

    schemes = {way: of_stages(with_levels(chosen), capacity) for way, chosen in levels.items()}
    schemes["shared"] = of_stages(best, capacity)
    work = np.asarray(every.forward[0] + every.backward[0])[:count]
    strategy = best.strategy
    return {
        "model": name,
        "capacity": capacity,
        "strategies": found.evaluated,
        "least_step_time": found.least_step_time,
        "work": work,
        "strategy": {
            field: float(getattr(strategy, field))
            for field in ("tensor_parallel", "pipeline_parallel", "data_parallel", "micro_batch_size", "virtual_stages")
        },
        "schemes": schemes,
    }


def show(record: dict[str, Any]) -> None:
    """Print the stages."""
    strategy = ", ".join(f"{name} {value:g}" for name, value in record["strategy"].items())
    print(f"{record['model']}, {record['capacity'] / GIGA:g} GB per die: {strategy}")
    for way, scheme in record["schemes"].items():
        fits = "" if scheme["fits"] else "  DOES NOT FIT"
        print(f"{SCHEMES[way]}: step {scheme['step_time']:.2f} s, DRAM {scheme['memory_used']:.1%} used{fits}")
        for title, values, unit, form in (
            ("GB", scheme["resident"], GIGA, "{:.1f}"),
            ("busy over the slowest", scheme["busy"], max(scheme["busy"]), "{:.2f}"),
        ):
            print(f"  {title:22s}" + " ".join(form.format(value / unit) for value in values))
        print(f"  {'recomputation':22s}" + " ".join(RECOMPUTE_LEVELS[int(level)] for level in scheme["levels"]))
        if any(scheme["sent"]):
            print(f"  {'sent, GB':22s}" + " ".join(f"{value / GIGA:.1f}" for value in scheme["sent"]))
    steps = ", ".join(f"{way} {seconds:.2f} s" for way, seconds in record["least_step_time"].items() if seconds)
    print(f"best of all {record['strategies']:,} strategies by way of settling memory: {steps}")


def draw(record: dict[str, Any], plt: Any) -> Any:
    """Above, DRAM of every stage; below, its time; a column for each way of settling memory."""
    schemes = record["schemes"]
    figure, axes = plt.subplots(2, len(schemes), figsize=(12.5, 6.5), layout="constrained", sharex=True, sharey="row")
    stages = np.arange(len(record["work"]))
    capacity, work = record["capacity"] / GIGA, np.array(record["work"])
    most = max(max(scheme["busy"]) for scheme in schemes.values())
    for (memory, time), (way, scheme) in zip(axes.T, schemes.items(), strict=True):
        needed, sent, held = (np.array(scheme[part]) / GIGA for part in ("needed", "sent", "held"))
        memory.bar(stages, needed - sent, color=harness.COLOURS[0], label="its own")
        memory.bar(stages, held, bottom=needed - sent, color=harness.COLOURS[2], label="kept for others")
        away = needed - sent + held
        gone = sent > 0
        memory.bar(stages[gone], sent[gone], bottom=away[gone], fill=False, ls="--", ec=harness.COLOURS[1])
        memory.axhline(capacity, color="black", lw=1.2)
        memory.text(stages[-1] + 0.6, capacity, f"DRAM, {capacity:g} GB ", ha="right", va="bottom", fontsize=8)
        words = f"{scheme['memory_used']:.0%} of DRAM used" if scheme["fits"] else "does not fit"
        memory.set_title(f"{SCHEMES[way]}\n{words}, step {scheme['step_time']:.4g} s")
        again = np.array(scheme["busy"]) - work
        time.bar(stages, 1e3 * work, color=harness.COLOURS[5], label="work")
        time.bar(stages, 1e3 * again, bottom=1e3 * work, color=harness.COLOURS[4], label="recomputation")
        time.axhline(1e3 * max(scheme["busy"]), color="black", lw=1.2)
        share = float(np.mean(scheme["busy"]) / max(scheme["busy"]))
        time.text(
            stages[-1] + 0.6,
            1e3 * max(scheme["busy"]),
            f"slowest; mean {share:.0%} ",
            ha="right",
            va="bottom",
            fontsize=8,
        )
        time.set_xlabel("pipeline stage")
    axes[0, 0].set_ylabel("DRAM per die (GB)")
    axes[1, 0].set_ylabel("time per micro-batch (ms)")
    axes[1, 0].set_ylim(0, 1.15e3 * most)
    axes[0, 0].set_ylim(top=1.12 * max(max(scheme["needed"]) for scheme in schemes.values()) / GIGA)
    away_from_home = plt.Rectangle((0, 0), 1, 1, fill=False, ls="--", ec=harness.COLOURS[1], label="kept elsewhere")
    handles = axes[0, -1].get_legend_handles_labels()[0]
    axes[0, -1].legend(handles=[*handles, away_from_home], loc="upper right", fontsize=8)
    axes[1, -1].legend(loc="lower left", fontsize=8, frameon=True)
    strategy = record["strategy"]
    title = f"{record['model']} on 56 dies: tensor groups of {strategy['tensor_parallel']:g}, "
    figure.suptitle(title + f"{strategy['pipeline_parallel']:g} stages, {strategy['data_parallel']:g} replica(s)")
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = harness.arguments(__doc__ or "")
    parser.add_argument("--model", default=MODEL, choices=sorted(models.NAMES))
    parser.add_argument("--memory", type=float, default=MEMORY, metavar="GB", help="DRAM per die")
    return harness.run(parser, arguments, answer, show, draw)


if __name__ == "__main__":
    sys.exit(main())
