"""Is a wafer faster if scheduled as in WATOS? Ours beside Megatron-LM and weight streaming, by model and wafer.

Models and wafers are those of the paper (arXiv 2512.12279): configuration 3 with the three readings of its die-to-die
bandwidth, 4 TB/s of a die being 0.5, 1 or 4 TB/s per edge and direction, and configurations 1, 2 and 4, of which most
values are our assumptions (`presets/wafers.py` names each); DeepSeek-V3, which fits no single one, on four wafers of
configuration 3 in a mesh with 1.8 TB/s between neighbours, beside 32 GPUs of equal peak. All sides run at the same
efficiency, the ideal one of the presets, and each is the best that its own rules allow. "Without recomputation" leaves
every stage what it keeps.

    python experiments/baselines.py                          # tables
    python experiments/baselines.py --model llama3-70b       # one model; may be repeated
    python experiments/baselines.py --every-option           # as `watos compare`; slower
    python experiments/baselines.py --json                   # one JSON object
    python experiments/baselines.py --smoke                  # a small model, few options
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import harness
import numpy as np

import watos_jax as wj
from watos_jax.baselines.megatron import megatron
from watos_jax.presets import models, wafers

MODELS = ("llama2-30b", "llama3-70b", "gshard-137b", "gpt3-175b")
READINGS = ("watos-config-3-d2d-half", "watos-config-3", "watos-config-3-d2d-4tb")
WAFERS = (*READINGS, "watos-config-1", "watos-config-2", "watos-config-4")
FOUR = "4 x watos-config-3"
BETWEEN = wj.Link(bandwidth=1.8e12, latency=1e-6)
"""Between neighbours of `FOUR`, as the paper has it; the latency is an ASSUMPTION, that of a link between boards."""
LARGE = ("deepseek-v3",)
"""Models that are trained on `FOUR`."""
BATCH = 512
OPTIONS = wj.Options(global_batch_size=BATCH, context_parallel=1, sequence_parallel=1)
"""What every side may choose from, but for `--every-option`, which also leaves sequence parallelism off."""
PAPER = {"megatron": 2.74, "weight_streaming": 1.53}
"""Mean ratios of the paper's abstract; whether Megatron ran on the wafer or on GPUs is read both ways."""
WHY = (
    "The paper's Megatron is not described beyond its name; ours may split layers unevenly, chooses its tensor group "
    "freely and is searched to the end. Held to equal stages, as older versions are, it loses much where the number "
    "of layers shares few divisors with 56 dies. All sides run at ideal efficiency, without launch or software time."
)
SIDES = {
    "ours": "ours",
    "megatron_on_wafer": "Megatron-LM, same wafer",
    "megatron_on_wafer_equal_stages": "the same, equal stages",
    "weight_streaming": "weight streaming, same wafer",
    "megatron_on_gpu": "Megatron-LM, 8 GPUs of equal peak (32 for four wafers)",
    "megatron_on_b300": "Megatron-LM, B300 of nearest peak",
}


def rate_of(found: wj.Plan) -> float | None:
    """Tokens per second of the best; None where nothing fits."""
    return float(found.best[0].estimate.tokens_per_second) if found.best else None


def machine_of(name: str) -> wj.Wafer | wj.System:
    """One wafer, or four that are joined."""
    return wj.several(wafers.WATOS_CONFIG_3, 4, BETWEEN) if name == FOUR else wafers.get(name)


def row(model: wj.Transformer, wafer: wj.Wafer | wj.System, options: wj.Options | None) -> dict[str, Any]:
    """Tokens per second of every side, ours over each, and what the ways of settling recomputation give."""
    start = time.perf_counter()
    batch = BATCH if options is None else int(options.global_batch_size)
    answer = wj.compare(wafer, model, options=options, global_batch_size=batch)
    kept = replace(options or OPTIONS, recompute=("none",))
    without = {"ours": rate_of(wj.plan(wafer, model, options=kept))} | {
        name: rate_of(megatron(machine, model, options=kept))
        for name, machine in (("megatron_on_wafer", wafer), ("megatron_on_gpu", _machine(answer, "megatron_on_gpu")))
    }
    sides, ours = answer.baselines | answer.variants, answer.ours.answer
    best = ours.best[0] if ours.best else None
    return {
        "tokens_per_second": {"ours": answer.tokens_per_second}
        | {name: side.tokens_per_second for name, side in sides.items()},
        "tokens_per_second_without_recomputation": without,
        "speedup": {name: answer.speedup(side) for name, side in sides.items()},
        "least_step_time": ours.least_step_time,
        "strategies": ours.evaluated,
        "shared_bytes_per_die": None if best is None else best.sent.sum(),
        "order": None if best is None else best.order,
        "seconds": time.perf_counter() - start,
    }


def _machine(answer: wj.Comparison, side: str) -> Any:
    return answer.baselines[side].machine


def answer(given: argparse.Namespace) -> dict[str, Any]:
    """Every model on every wafer."""
    options: wj.Options | None = None if given.every_option else OPTIONS
    chosen = {name: models.get(name) for name in given.model or MODELS + LARGE}
    machines = {name: given.wafer or ((FOUR,) if name in LARGE else WAFERS) for name in chosen}
    if given.smoke:
        options = wj.Options(global_batch_size=8, micro_batch_sizes=1, virtual_stages=1, context_parallel=1)
        chosen = {"llama2-7b, 4 layers": replace(models.LLAMA2_7B, num_layers=4)}
        machines = dict.fromkeys(chosen, ("watos-config-3",))
    rows: dict[str, Any] = {}
    for name, model in chosen.items():
        rows[name] = {}
        for machine in machines[name]:
            rows[name][machine] = row(model, machine_of(machine), options)
            print(f"{name} on {machine}: {rows[name][machine]['seconds']:.0f} s", file=sys.stderr, flush=True)
    return {"global_batch_size": BATCH, "paper": PAPER, "why": WHY, "means": _means(rows), "rows": rows}


def _means(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    # geometric means over the models, of each wafer and side
    every = {
        machine: {
            side: [one["speedup"][side] for one in _on(rows, machine).values() if one["speedup"][side]]
            for side in SIDES
            if side != "ours"
        }
        for machine in _machines(rows)
    }
    return {
        machine: {side: float(np.exp(np.mean(np.log(ratios)))) for side, ratios in of.items() if ratios}
        for machine, of in every.items()
    }


def _machines(rows: dict[str, Any]) -> list[str]:
    # all of them, in the order of the rows
    return list(dict.fromkeys(machine for of in rows.values() for machine in of))


def _on(rows: dict[str, Any], machine: str) -> dict[str, Any]:
    # rows of the models that have this machine
    return {name: of[machine] for name, of in rows.items() if machine in of}


def show(record: dict[str, Any]) -> None:
    """Print every row, then the means beside the paper's."""
    for model, machines in record["rows"].items():
        for machine, found in machines.items():
            print(f"{model} on {machine}: {found['strategies']:,} strategies, {found['seconds']:.0f} s")
            for name, rate in found["tokens_per_second"].items():
                ratio, kept = found["speedup"].get(name), found["tokens_per_second_without_recomputation"]
                shown = "  does not fit" if rate is None else f"{rate:12,.0f} tokens/s"
                line = f"  {name:32s}{shown}" + (f"   ours is {ratio:.3f} times as fast" if ratio else "")
                if name in kept:
                    line += "   without recomputation: "
                    line += "does not fit" if kept[name] is None else f"{kept[name]:,.0f}"
                print(line)
            ways = found["least_step_time"]
            steps = ", ".join(
                f"{way} {'-' if seconds is None else f'{seconds:.2f} s'}" for way, seconds in ways.items()
            )
            print(f"  step by way of settling recomputation: {steps}")
    print("Ours over each, geometric mean over the models")
    for machine, means in record["means"].items():
        print(f"  {machine:26s}" + "  ".join(f"{side} {ratio:.3f}" for side, ratio in means.items()))
    print(
        f"The paper: {record['paper']['megatron']} times Megatron, {record['paper']['weight_streaming']} times ", end=""
    )
    print(f"weight streaming. {record['why']}")


def _rates(row: dict[str, Any]) -> list[float]:
    # of the sides that fit, where ours does
    rates = row["tokens_per_second"]
    return [rate for rate in rates.values() if rate] if rates["ours"] else []


def draw(record: dict[str, Any], plt: Any) -> Any:
    """Above, tokens per second of every side on the middle reading; below, ours over Megatron-LM by wafer."""
    rows = record["rows"]
    machines, names = _machines(rows), list(rows)
    main = {name: "watos-config-3" if "watos-config-3" in of else next(iter(of)) for name, of in rows.items()}
    shown_on = [rows[name][main[name]] for name in names]
    figure, (above, below) = plt.subplots(2, 1, figsize=(11, 8), layout="constrained")
    place, width = np.arange(len(names)), 0.8 / len(SIDES)
    for number, (side, label) in enumerate(SIDES.items()):
        ours = [one["tokens_per_second"]["ours"] for one in shown_on]
        values = [one["tokens_per_second"][side] for one in shown_on]
        shares = [np.nan if not own or not value else value / own for own, value in zip(ours, values, strict=True)]
        at = place + (number - (len(SIDES) - 1) / 2) * width
        above.bar(at, shares, 0.92 * width, color=harness.COLOURS[number], label=label)
        for x, share in zip(at, shares, strict=True):
            text, y = ("does not fit", 0.02) if np.isnan(share) else (f"{share:.2f}", share + 0.01)
            above.text(x, y, text, ha="center", va="bottom", fontsize=7, rotation=90 if np.isnan(share) else 0)
        kept = [one["tokens_per_second_without_recomputation"].get(side) for one in shown_on]
        marks = [np.nan if not own or not value else value / own for own, value in zip(ours, kept, strict=True)]
        without = "without recomputation" if side == "ours" else None
        above.plot(at, marks, "D", color="black", ms=4, label=without)
    rates = [one["tokens_per_second"]["ours"] for one in shown_on]
    where = [f"{name}\non {main[name].replace('watos-', '')}" for name in names]
    rated = [f"\nours: {rate:,.0f} tokens/s" if rate else "" for rate in rates]
    above.set_xticks(place, [label + rate for label, rate in zip(where, rated, strict=True)])
    above.set(ylabel="throughput over ours", title="Every side, each the best of its own rules")
    most = max((rate / one["tokens_per_second"]["ours"] for one in shown_on for rate in _rates(one)), default=1.0)
    above.set_ylim(0, 1.3 * most)
    above.legend(ncols=4, loc="upper center", fontsize=8)
    above.grid(axis="x", visible=False)

    shown = ("megatron_on_wafer", "megatron_on_wafer_equal_stages", "weight_streaming", "megatron_on_gpu")
    for column, machine in enumerate(machines):
        for number, side in enumerate(shown):
            ratios = [one["speedup"][side] for one in _on(rows, machine).values()]
            ratios = [ratio for ratio in ratios if ratio]
            colour = harness.COLOURS[list(SIDES).index(side)]
            x = column + 0.18 * (number - 1.5)
            below.plot([x] * len(ratios), ratios, "o", color=colour, ms=4, alpha=0.6, mew=0)
            mean = record["means"][machine].get(side)
            if mean:
                below.plot([x - 0.07, x + 0.07], [mean, mean], color=colour, lw=2.5)
                below.text(x, mean, f" {mean:.2f}", va="bottom", ha="left", fontsize=7, color=colour)
    below.axhline(1.0, color="black", lw=0.8)
    for name, side in (("megatron", "megatron_on_wafer"), ("weight_streaming", "weight_streaming")):
        colour = harness.COLOURS[list(SIDES).index(side)]
        below.axhline(record["paper"][name], ls=":", color=colour, lw=1.2)
        words = f"the paper: {record['paper'][name]} x {name.replace('_', ' ')}"
        below.text(-0.5, record["paper"][name], words, ha="left", va="bottom", fontsize=8, color=colour)
    below.set_yscale("log")
    ticks = (0.75, 1, 1.5, 2, 3)
    below.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    below.minorticks_off()
    below.set_xticks(range(len(machines)), [machine.replace("watos-", "") for machine in machines])
    below.set(ylabel="ours over the baseline", title="By wafer: models (points) and their geometric mean (bars)")
    below.grid(axis="x", visible=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = harness.arguments(__doc__ or "")
    parser.add_argument("--model", action="append", choices=sorted(models.NAMES), help="may be repeated")
    parser.add_argument("--wafer", action="append", choices=[*sorted(wafers.NAMES), FOUR], help="may be repeated")
    parser.add_argument("--every-option", action="store_true", help="all values of all options")
    return harness.run(parser, arguments, answer, show, draw)


if __name__ == "__main__":
    sys.exit(main())
