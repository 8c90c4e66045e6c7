"""What do recomputation, shared memory and placement add? Throughput as DRAM gets scarce, the search being the same.

WATOS configuration 3 (arXiv 2512.12279) with less and more DRAM per die, its bandwidth unchanged. Every rung is the
best of the same strategies: nothing recomputed; one level of recomputation for all stages; the best level of each
stage in its own memory; memory shared between stages (GCMR), helpers taken for neighbours; the twenty best of these
with exact levels, stages along the serpentine and bytes shipped over real distances; and placed on the mesh. DRAM is
counted in what weights, gradients and Adam's states take.

The paper reports up to 40 % from recomputation and 10 to 15 % from its genetic optimiser, without naming capacities.

    python experiments/ablation.py --out experiments/results
    python experiments/ablation.py --model llama3-70b        # may be repeated
    python experiments/ablation.py --json
    python experiments/ablation.py --smoke
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

import harness
import numpy as np

import watos_jax as wj
from watos_jax.presets import models, wafers
from watos_jax.search.placed import can_place, score
from watos_jax.units import GIGA
from watos_jax.workload import num_parameters

WAFER = wafers.WATOS_CONFIG_3
MODELS = ("llama3-70b", "gpt3-175b")
RATIOS = (1.04, 1.08, 1.15, 1.25, 1.4, 1.6, 2.0, 3.0)
"""DRAM of the wafer over bytes of weights, gradients and Adam's states."""
STATE_BYTES = 18.0
"""Bytes per parameter: 2 of weights, 4 of gradients, 12 of Adam's states."""
OPTIONS = wj.Options(global_batch_size=512, context_parallel=1, virtual_stages=(1, 2), sequence_parallel=1)
RUNGS = {
    "kept": "nothing recomputed",
    "uniform": "+ recomputation, one level",
    "local": "+ level by stage",
    "shared": "+ memory shared (GCMR)",
    "exact": "+ exact levels, real distances",
    "placed": "+ placement",
}


def with_memory(capacity: float) -> wj.Wafer:
    """The wafer with as many bytes of DRAM per die."""
    memory = replace(WAFER.die.memory, stack_bytes=capacity / float(WAFER.die.memory.num_stacks))
    return replace(WAFER, die=replace(WAFER.die, memory=memory))


def rungs(model: wj.Transformer, capacity: float, options: wj.Options) -> dict[str, Any]:
    """Tokens per second of every rung at one capacity, and what the best schedule does."""
    wafer = with_memory(capacity)
    tokens = float(options.global_batch_size * model.sequence_length)
    kept = wj.plan(wafer, model, options=replace(options, recompute=("none",)))
    found = wj.central(wafer, model, options=options)
    rates = {"kept": tokens / float(kept.best[0].estimate.step_time) if kept.best else 0.0}
    rates |= {way: tokens / step for way, step in found.least_step_time.items()}
    record: dict[str, Any] = {"capacity": capacity, "strategies": found.evaluated, "feasible": found.feasible}
    if found.best:
        best = found.best[0]
        needed = np.asarray(best.estimate.memory)[: len(best.sent)]
        room = np.maximum(capacity - needed, 0.0)
        straight = best
        if can_place(wafer, best.strategy):
            # the rung before: the same strategy, levels and bytes, along the serpentine
            straight = score(wafer, model, best.strategy, np.arange(len(best.order)), best.sent, room)
        rates |= {"exact": float(straight.tokens_per_second), "placed": float(best.tokens_per_second)}
        record |= {
            "sent_bytes": best.sent.sum(),
            "levels": best.strategy.recompute,
            "tensor_parallel": float(best.strategy.tensor_parallel),
            "pipeline_parallel": float(best.strategy.pipeline_parallel),
        }
    return record | {"tokens_per_second": rates}


def answer(given: argparse.Namespace) -> dict[str, Any]:
    """Every rung at every capacity."""
    chosen = {name: models.get(name) for name in given.model or MODELS}
    options, ratios = OPTIONS, RATIOS
    if given.smoke:
        options = wj.Options(global_batch_size=8, micro_batch_sizes=1, virtual_stages=1, context_parallel=1)
        chosen, ratios = {"llama2-13b, 8 layers": replace(models.LLAMA2_13B, num_layers=8)}, (1.5, 8.0)
    rows: dict[str, Any] = {}
    for name, model in chosen.items():
        states = STATE_BYTES * float(num_parameters(model)) / float(WAFER.num_dies)
        rows[name] = {"states_bytes_per_die": states, "capacities": [], "preset": float(WAFER.die.memory.capacity)}
        for ratio in ratios:
            rows[name]["capacities"].append(rungs(model, ratio * states, options))
            print(f"{name} at {ratio:g} of its states", file=sys.stderr, flush=True)
    return {"ratios": ratios, "rows": rows}


def show(record: dict[str, Any]) -> None:
    """Print the rungs."""
    for name, row in record["rows"].items():
        print(f"{name}, {row['capacities'][0]['strategies']:,} strategies on every rung: tokens/s")
        print("  DRAM per die  of states  " + "".join(f"{word:>28s}" for word in RUNGS.values()) + "   sent")
        for ratio, at in zip(record["ratios"], row["capacities"], strict=True):
            rates = at["tokens_per_second"]
            cells = "".join(f"{rates[rung]:28,.0f}" if rates.get(rung) else f"{'-':>28s}" for rung in RUNGS)
            sent = at.get("sent_bytes") or 0.0
            print(f"  {at['capacity'] / GIGA:9.1f} GB  {ratio:9.2f}  {cells}   {sent / GIGA:.1f} GB")


def draw(record: dict[str, Any], plt: Any) -> Any:
    """Above, throughput of every rung by DRAM, a column for each model; below, what each adds to the one before."""
    rows, ratios = record["rows"], record["ratios"]
    figure, axes = plt.subplots(2, len(rows), figsize=(5.8 * len(rows), 7.2), layout="constrained", squeeze=False)
    place = np.arange(len(ratios))
    for (above, below), (name, row) in zip(axes.T, rows.items(), strict=True):
        before = None
        for number, (rung, label) in enumerate(RUNGS.items()):
            rates = np.array([at["tokens_per_second"].get(rung) or np.nan for at in row["capacities"]], float)
            colour = harness.COLOURS[number]
            above.plot(place, rates / 1e3, "o-", ms=7 - number, lw=3 - 0.45 * number, color=colour, label=label)
            if before is not None:
                at = place + (number - 3) * 0.17
                gain = 100.0 * (rates / before - 1.0)
                below.bar(at, gain, 0.16, color=colour, label=label)
                for x in at[np.isnan(before) & ~np.isnan(rates)]:
                    words = below.text(x, 0.03, "the first that fits", transform=below.get_xaxis_transform())
                    words.set(rotation=90, ha="center", va="bottom", fontsize=7, color=colour)
            before = rates
        labels = [
            f"{ratio:g}\n{at['capacity'] / GIGA:.0f}" for ratio, at in zip(ratios, row["capacities"], strict=True)
        ]
        for axis in (above, below):
            axis.set_xticks(place, labels)
            axis.set_xlim(-0.6, len(ratios) - 0.4)
        below.set_xlabel("DRAM over weights, gradients and Adam's states\n(second line: GB per die)")
        below.axhline(0.0, color="black", lw=0.8)
        above.set_title(f"{name} on 56 dies")
        every = [rate for at in row["capacities"] for rate in at["tokens_per_second"].values() if rate]
        above.set_ylim(bottom=0.9e-3 * min(every))
    axes[0, 0].set_ylabel("thousand tokens/s")
    axes[1, 0].set_ylabel("gain over the rung before (%)")
    axes[0, 0].legend(loc="lower right", fontsize=8)
    return figure


main = harness.command(__doc__, answer, show, draw, model=models.NAMES)

if __name__ == "__main__":
    sys.exit(main())
