"""How much bandwidth between wafers does training over four of them need?

Throughput of GPT-3 175B and DeepSeek-V3 on four wafers of WATOS configuration 3 against the bandwidth between them, the
best of all strategies at each point: in a mesh of 2 x 2, where all dies of a wafer share the link to a neighbour, and
under a switch, where every die has a port of its own. Beside it what the best spreads over wafers, and four times what
one wafer reaches with a quarter of the batch (DeepSeek-V3 does not fit one). WATOS studies links of 1.8 TB/s and 400
GB/s between wafers (arXiv 2512.12279); read here as one direction of a link, or of a wafer into the switch.

    python experiments/several_wafers.py --out experiments/results    # tables, figure, JSON
    python experiments/several_wafers.py --compare                    # DeepSeek-V3 beside the baselines, at 1.8 TB/s
    python experiments/several_wafers.py --json                       # one JSON object
    python experiments/several_wafers.py --smoke                      # small wafers and model, two bandwidths
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if "jax" not in sys.modules and "XLA_FLAGS" not in os.environ:  # every core; before JAX starts
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={os.cpu_count()}"

import numpy as np

import watos_jax as wj

WAFERS = 4
BANDWIDTHS = (0.05e12, 0.1e12, 0.2e12, 0.4e12, 0.9e12, 1.8e12, 3.6e12)
PAPER = (0.4e12, 1.8e12)
LATENCY = 1e-6
"""s; ASSUMPTION: that of a link between boards, for the paper states none."""
FABRICS = ("mesh", "switch")
BATCH = 512
MODELS = {"gpt3-175b": wj.presets.models.GPT3_175B, "deepseek-v3": wj.presets.models.DEEPSEEK_V3}
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
    system = wj.several(wafer, count, wj.Link(bandwidth=bandwidth, latency=LATENCY), fabric=fabric)
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


def beside_baselines(wafer: wj.Wafer, model: wj.Transformer, options: wj.Options, count: int) -> dict[str, Any]:
    """`compare` on several wafers in a mesh."""
    system = wj.several(wafer, count, wj.Link(bandwidth=PAPER[1], latency=LATENCY))
    answer = wj.compare(system, model, options=options)
    sides = answer.baselines | answer.variants
    return {
        "tokens_per_second": {"ours": answer.tokens_per_second}
        | {name: side.tokens_per_second for name, side in sides.items()},
        "speedup": {name: answer.speedup(side) for name, side in sides.items()},
    }


def draw_figure(record: dict[str, Any], path: Path) -> None:
    """Throughput against bandwidth, a panel per model."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "watos_jax"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(record["models"]), figsize=(4.5 * len(record["models"]), 3.8))
    for axis, (name, found) in zip(np.atleast_1d(axes), record["models"].items(), strict=True):
        for fabric, color in (("mesh", "#2171b5"), ("switch", "#238b45")):
            points = [one for one in found["fabrics"][fabric] if one["tokens_per_second"]]
            rates = [one["tokens_per_second"] / 1e3 for one in points]
            axis.plot([one["bandwidth"] / 1e12 for one in points], rates, "o-", color=color, markersize=3, label=fabric)
        if found["alone"]:
            axis.axhline(found["alone"] / 1e3, color="black", linewidth=0.8, linestyle=":", label="4 x one wafer")
        for bandwidth in PAPER:
            axis.axvline(bandwidth / 1e12, color="#999999", linewidth=0.5)
        axis.set(xscale="log", title=name, xlabel="TB/s of a link between wafers, or into the switch, one direction")
        axis.xaxis.label.set_size(8)
        axis.set_ylim(bottom=0.0)
        axis.legend(loc="lower right", fontsize=8)
    np.atleast_1d(axes)[0].set_ylabel("1,000 tokens/s")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="only DeepSeek-V3 beside the baselines")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--smoke", action="store_true", help="small wafers and model, two bandwidths")
    parser.add_argument("--out", type=Path, help="folder for the figure and the object")
    given = parser.parse_args(arguments)
    wafer, models, options, bandwidths = wj.presets.wafers.WATOS_CONFIG_3, MODELS, OPTIONS, BANDWIDTHS
    if given.smoke:
        wafer, bandwidths = replace(wafer, die_rows=2, die_cols=2), PAPER
        models = {"llama2-7b, 8 layers": replace(wj.presets.models.LLAMA2_7B, num_layers=8)}
        options = replace(OPTIONS, global_batch_size=16, micro_batch_sizes=1, recompute="none", optimizer_sharding=1)
    if given.compare:
        found = beside_baselines(wafer, list(models.values())[-1], options, WAFERS)
        print(json.dumps(found, indent=2))
        return 0
    start = time.perf_counter()
    record: dict[str, Any] = {"wafers": WAFERS, "global_batch_size": int(options.global_batch_size), "models": {}}
    for name, model in models.items():
        fabrics = {
            fabric: [point(wafer, model, options, WAFERS, fabric, rate) for rate in bandwidths] for fabric in FABRICS
        }
        record["models"][name] = {"alone": alone(wafer, model, options, WAFERS), "fabrics": fabrics}
        if not given.json:
            show(name, record["models"][name])
    record["seconds"] = time.perf_counter() - start
    if given.out:
        os.makedirs(given.out, exist_ok=True)
        (given.out / "several_wafers.json").write_text(json.dumps(record) + "\n")
        draw_figure(record, given.out / "several_wafers.svg")
    if given.json:
        print(json.dumps(record, indent=2))
    return 0


def show(name: str, found: dict[str, Any]) -> None:
    alone_text = "does not fit one wafer" if found["alone"] is None else f"{found['alone']:,.0f} tokens/s alone"
    print(f"{name} on {WAFERS} wafers, {alone_text}")
    for fabric, points in found["fabrics"].items():
        for one in points:
            head = f"  {fabric:7s}{one['bandwidth'] / 1e12:7.3f} TB/s"
            if one["tokens_per_second"] is None:
                print(f"{head}  nothing fits")
                continue
            degrees = " ".join(f"{key[:6]} {value:g}" for key, value in one["strategy"].items())
            print(f"{head}{one['tokens_per_second']:12,.0f} tokens/s  {degrees}  over wafers: {one['between_wafers']}")


if __name__ == "__main__":
    sys.exit(main())
