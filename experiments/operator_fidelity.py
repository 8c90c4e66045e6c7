"""Roofline and predictor beside the mapper: errors per class of operator, ranking of wafers, the best wafer.

The roofline bounds the mapper's time from below; how far it is off depends on the operator. What matters to a designer
is whether the *ranking of wafers* changes between the rungs: a set of random wafers inside the limits of a budget is
estimated on every rung, each with its best strategy of a short list as that rung sees it.

    python experiments/operator_fidelity.py --out experiments/results
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import watos_jax as wj

RUNGS = ("roofline", "predictor", "mapper")
PARTS = ("matmul", "attention", "elementwise")
MODELS = {"llama3-70b": wj.presets.models.LLAMA3_70B, "gpt3-175b": wj.presets.models.GPT3_175B}
STRATEGIES = ((1, 56), (2, 28), (4, 14), (8, 7))
"""Columns of a tensor group and stages, on 7 x 8 dies."""


def architectures(count: int, seed: int = 0) -> wj.Wafer:
    """Wafers of 7 x 8 dies with cores, SRAM, memory stacks, clock and link inside the limits of a budget, stacked."""
    rng = np.random.default_rng(seed)
    budget = wj.presets.budgets.DENSE_215
    base = wj.presets.wafers.WATOS_CONFIG_3
    made = []
    for _ in range(count):
        low, high = budget.low, budget.high

        def draw(name: str, low: wj.Knobs = low, high: wj.Knobs = high) -> float:
            return float(np.exp(rng.uniform(np.log(float(getattr(low, name))), np.log(float(getattr(high, name))))))

        core = replace(budget.wafer.die.core, sram_bytes=draw("sram_bytes_per_core"), clock=draw("clock"))
        memory = replace(base.die.memory, num_stacks=round(draw("dram_stacks")))
        die = replace(
            base.die, core=core, memory=memory, core_rows=round(draw("core_rows")), core_cols=round(draw("core_cols"))
        )
        made.append(replace(base, die=die, d2d=replace(base.d2d, bandwidth=draw("d2d_bandwidth"))))
    return jax.tree.map(lambda *leaves: jnp.asarray([float(leaf) for leaf in leaves]), *made)


@cache
def mapped(fidelity: str) -> Any:
    """Step time and its operator parts of many wafers, compiled once for all models and strategies."""

    def all_of(wafers: wj.Wafer, model: wj.Transformer, strategy: wj.Strategy, layout: wj.Layout) -> Any:
        def one(wafer: wj.Wafer) -> Any:
            result = wj.estimate(wafer, model, strategy, fidelity=fidelity, layout=layout)
            return {"step_time": result.step_time} | {part: result.breakdown[part] for part in PARTS}

        return jax.lax.map(one, wafers, batch_size=None if fidelity == "mapper" else 8)

    return jax.jit(all_of)


def evaluate(model: wj.Transformer, wafers: wj.Wafer, fidelity: str) -> dict[str, np.ndarray]:
    """Step time and its operator parts of every wafer with every strategy: arrays of shape (strategies, wafers)."""
    base = wj.presets.wafers.WATOS_CONFIG_3
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("step_time", *PARTS)}
    for tensor, stages in STRATEGIES:
        strategy = wj.Strategy(tensor_cols=tensor, pipeline_parallel=stages, global_batch_size=512)
        layout = wj.layout(base, strategy, max_stages=56)
        leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), (model, strategy, layout))
        for name, values in mapped(fidelity)(wafers, *leaves).items():
            rows[name].append(np.asarray(values))
    return {name: np.stack(values) for name, values in rows.items()}


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's rank correlation of two rankings without ties."""
    pairs = np.triu_indices(len(a), 1)
    return float(np.mean(np.sign(a[pairs[0]] - a[pairs[1]]) * np.sign(b[pairs[0]] - b[pairs[1]])))


def compare(count: int) -> dict[str, Any]:
    """Errors, rankings and best wafers of every model."""
    wafers = architectures(count)
    report: dict[str, Any] = {"wafers": count, "strategies": len(STRATEGIES), "models": {}}
    for name, model in MODELS.items():
        found = {rung: evaluate(model, wafers, rung) for rung in RUNGS}
        best = {rung: values["step_time"].min(axis=0) for rung, values in found.items()}
        truth = best["mapper"]
        entry: dict[str, Any] = {}
        for rung in RUNGS[:2]:
            off = {part: found[rung][part] / found["mapper"][part] - 1 for part in ("step_time", *PARTS)}
            chosen = int(np.argmin(best[rung]))
            entry[rung] = {
                "errors": {
                    part: {"median": float(np.median(np.abs(x))), "p95": float(np.quantile(np.abs(x), 0.95))}
                    for part, x in off.items()
                },
                "tau": kendall(best[rung], truth),
                "best_wafer_moves": bool(chosen != int(np.argmin(truth))),
                "regret": float(truth[chosen] / truth.min() - 1),
                "other_strategy": float(
                    np.mean(found[rung]["step_time"].argmin(axis=0) != found["mapper"]["step_time"].argmin(axis=0))
                ),
            }
        report["models"][name] = entry | {"step_times": {rung: best[rung].tolist() for rung in RUNGS}}
    return report


def draw(report: dict[str, Any], path: Path) -> None:
    """Step times of roofline and predictor over those of the mapper."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(MODELS), figsize=(9, 4), sharey=True)
    for axis, (name, entry) in zip(axes, report["models"].items(), strict=True):
        times = {rung: np.array(values) for rung, values in entry["step_times"].items()}
        for rung in RUNGS[:2]:
            axis.scatter(
                times["mapper"], times[rung] / times["mapper"], s=8, label=f"{rung}, tau {entry[rung]['tau']:.3f}"
            )
        axis.axhline(1.0, linewidth=0.5, color="black")
        axis.set_xscale("log")
        axis.set_title(name)
        axis.set_xlabel("step time of the mapper, s")
        axis.legend(loc="lower center")
        axis.set_ylim(0.65, 1.1)
    axes[0].set_ylabel("over the mapper")
    figure.tight_layout()
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wafers", type=int, default=300, help="architectures")
    parser.add_argument("--smoke", action="store_true", help="eight wafers")
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--out", type=Path, help="folder for the figure and the object")
    options = parser.parse_args(arguments)
    report = compare(8 if options.smoke else options.wafers)
    if options.out:
        os.makedirs(options.out, exist_ok=True)
        (options.out / "operator_fidelity.json").write_text(json.dumps(report) + "\n")
        draw(report, options.out / "operator_fidelity.svg")
    if options.json:
        print(json.dumps(report))
        return
    for name, entry in report["models"].items():
        for rung in RUNGS[:2]:
            part = entry[rung]
            cells = "  ".join(
                f"{key} {error['median']:.1%} ({error['p95']:.1%})" for key, error in part["errors"].items()
            )
            print(f"{name:12} {rung:10} tau {part['tau']:.3f}  regret {part['regret']:.2%}  {cells}")


if __name__ == "__main__":
    main()
