"""How much bandwidth between wafers does training over four of them need?

Throughput of GPT-3 175B and DeepSeek-V3 on four wafers of WATOS configuration 3 against the bandwidth between them, the
best of all strategies at each point: in a mesh of 2 x 2, where all dies of a wafer share the link to a neighbour, and
under a switch, where every die has a port of its own. Beside it what the best spreads over wafers, and four times what
one wafer reaches with a quarter of the batch (DeepSeek-V3 does not fit one). WATOS studies links of 1.8 TB/s and 400
GB/s between wafers (arXiv 2512.12279); read here as one direction of a link, or of a wafer into the switch. Its figures
for them are not known to us.

    python experiments/several_wafers.py --out experiments/results    # tables, figure, JSON
    python experiments/several_wafers.py --json                       # one JSON object
    python experiments/several_wafers.py --smoke                      # small wafers and model, two bandwidths
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

import harness
import numpy as np

import watos_jax as wj
from watos_jax.presets import models, wafers
from watos_jax.units import TERA

WAFERS = 4
BANDWIDTHS = (0.05, 0.1, 0.2, 0.4, 0.9, 1.8, 3.6)
"""TB/s, one direction."""
PAPER = (0.4, 1.8)
LATENCY = 1e-6
"""s; ASSUMPTION: that of a link between boards, for the paper states none."""
FABRICS = ("mesh", "switch")
BATCH = 512
MODELS = ("gpt3-175b", "deepseek-v3")
OPTIONS = wj.Options(
    global_batch_size=BATCH,
    micro_batch_sizes=(1, 2),
    virtual_stages=1,
    context_parallel=1,
    sequence_parallel=1,
    optimizer_sharding=(1, 2),
    recompute=("none", "norms", "mlp", "attention", "full"),
    least_use=0.8,
)


def spread(layout: wj.Layout) -> list[str]:
    """What crosses the links between wafers."""
    kinds = {name: getattr(layout, name).volume for name in ("tensor", "data", "expert")}
    kinds["pipeline"] = np.asarray(layout.pipeline_volume).max(axis=0)
    return [name for name, volume in kinds.items() if volume[1] > 0.0]


def point(
    wafer: wj.Wafer, model: wj.Transformer, options: wj.Options, count: int, fabric: str, bandwidth: float
) -> dict[str, Any]:
    """The best of all strategies."""
    system = wj.several(wafer, count, wj.Link(bandwidth=bandwidth * TERA, latency=LATENCY), fabric=fabric)
    found = wj.plan(system, model, options=options, top=1)
    if not found.best:
        return {"bandwidth": bandwidth, "tokens_per_second": None, "evaluated": found.evaluated}
    strategy, answer = found.best[0].strategy, found.best[0].estimate
    names = "tensor_parallel pipeline_parallel data_parallel expert_parallel micro_batch_size recompute".split()
    step = float(answer.step_time)
    return {
        "bandwidth": bandwidth,
        "tokens_per_second": float(answer.tokens_per_second),
        "strategy": {name: float(getattr(strategy, name)) for name in names},
        "between_wafers": spread(wj.layout(system, strategy)),
        "breakdown": {name: float(part) / step for name, part in answer.breakdown.items()},
        "evaluated": found.evaluated,
        "feasible": found.feasible,
    }


def alone(wafer: wj.Wafer, model: wj.Transformer, options: wj.Options, count: int) -> float | None:
    """As many times what one wafer reaches with its part of the batch; None where the model does not fit."""
    batch = int(options.global_batch_size) // count
    found = wj.plan(wafer, model, options=replace(options, global_batch_size=batch), top=1)
    return count * float(found.best[0].estimate.tokens_per_second) if found.best else None


def answer(options: argparse.Namespace) -> harness.Answer:
    wafer, chosen, bandwidths = wafers.WATOS_CONFIG_3, OPTIONS, BANDWIDTHS
    taken = {name: models.get(name) for name in MODELS}
    if options.smoke:
        wafer, bandwidths = replace(wafer, die_rows=2, die_cols=2), PAPER
        taken = {"llama2-7b, 8 layers": replace(models.LLAMA2_7B, num_layers=8)}
        chosen = replace(OPTIONS, global_batch_size=16, micro_batch_sizes=1, recompute="none", optimizer_sharding=1)
    record: harness.Answer = {"wafers": WAFERS, "global_batch_size": int(chosen.global_batch_size), "models": {}}
    for name, model in taken.items():
        fabrics = {
            fabric: [point(wafer, model, chosen, WAFERS, fabric, rate) for rate in bandwidths] for fabric in FABRICS
        }
        record["models"][name] = {"alone": alone(wafer, model, chosen, WAFERS), "fabrics": fabrics}
    return record


def draw(record: harness.Answer, plt: Any) -> Any:
    """Throughput against bandwidth, a panel per model."""
    figure, axes = plt.subplots(1, len(record["models"]), figsize=(9, 3.8), squeeze=False)
    for axis, (name, found) in zip(axes[0], record["models"].items(), strict=True):
        for fabric, color in zip(FABRICS, harness.COLOURS, strict=False):
            points = [one for one in found["fabrics"][fabric] if one["tokens_per_second"]]
            rates = [one["tokens_per_second"] / 1e3 for one in points]
            axis.plot([one["bandwidth"] for one in points], rates, "o-", color=color, markersize=3, label=fabric)
        if found["alone"]:
            axis.axhline(found["alone"] / 1e3, color="black", linewidth=0.8, linestyle=":", label="4 x one wafer")
        for bandwidth in PAPER:
            axis.axvline(bandwidth, color="#999999", linewidth=0.5)
        axis.set(xscale="log", title=name, xlabel="TB/s of a link, or into the switch, one direction")
        axis.set_ylim(bottom=0.0)
        axis.legend(loc="lower right", fontsize=8)
    axes[0, 0].set_ylabel("1,000 tokens/s")
    figure.tight_layout()
    return figure


def show(record: harness.Answer) -> None:
    for name, found in record["models"].items():
        single = "does not fit one wafer" if found["alone"] is None else f"{found['alone']:,.0f} tokens/s alone"
        print(f"{name} on {record['wafers']} wafers, {single}")
        for fabric, points in found["fabrics"].items():
            for one in points:
                head = f"  {fabric:7s}{one['bandwidth']:6.2f} TB/s"
                if one["tokens_per_second"] is None:
                    print(f"{head}  nothing fits")
                    continue
                degrees = " ".join(f"{key.split('_')[0]} {value:g}" for key, value in one["strategy"].items())
                crosses = ", ".join(one["between_wafers"]) or "nothing"
                print(f"{head}{one['tokens_per_second']:12,.0f} tokens/s  {degrees}; {crosses} between wafers")


main = harness.command(__doc__, answer, show, draw)

if __name__ == "__main__":
    sys.exit(main())
