"""What do dead dies and dead links cost, and what does it help to know them?

Throughput of Llama 3 70B on WATOS configuration 3 against the share of dies, and of links, that are dead, over that of
the whole wafer: `robust` plans anew for what is left, `naive` keeps strategy and places, and living dies take over the
work of dead ones. Faults are drawn at random; with one seed more faults include fewer, so a plan made for more is tried
where there are fewer, too. Links with two readings of the paper's die-to-die bandwidth. WATOS reports that its robust
mode is 35 % faster than its plain one where 20 % of the dies failed, and 18 % where 20 % of the links did (arXiv
2512.12279).

    python experiments/faults.py --out experiments/results    # tables, figure, JSON
    python experiments/faults.py --json                       # one JSON object
    python experiments/faults.py --smoke                      # a small wafer, one seed
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

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.35)
SEEDS = 4
BATCH = 512
PAPER = {"dies": 1.35, "links": 1.18}
"""Robust over plain at a share of 20 % (arXiv 2512.12279)."""
READINGS = {"1 TB/s per edge": "watos-config-3", "0.5 TB/s per edge": "watos-config-3-d2d-half"}
OPTIONS = wj.Options(
    global_batch_size=BATCH,
    micro_batch_sizes=(1, 2, 4),
    virtual_stages=1,
    context_parallel=1,
    sequence_parallel=1,
    recompute=("none", "norms", "mlp", "projections", "full"),
)


def sweep(
    wafer: wj.Wafer, model: wj.Transformer, options: wj.Options, kind: str, shares: Sequence[float], seeds: int
) -> dict[str, Any]:
    """Throughput over that of the whole wafer, robust and naive: arrays of shape (seeds, shares)."""
    whole = wj.plan(wafer, model, options=options, top=1).best[0]
    full = float(whole.estimate.tokens_per_second)
    ours, theirs = np.zeros((2, seeds, len(shares)))
    for seed in range(seeds):
        for number, share in enumerate(shares):
            if share == 0.0 and seed:  # the same draw
                ours[seed, number], theirs[seed, number] = ours[0, number], theirs[0, number]
                continue
            drawn = wj.faults.draw(wafer, **{kind: share}, seed=seed)
            ours[seed, number] = wj.robust(wafer, model, drawn, options=options).tokens_per_second / full
            theirs[seed, number] = wj.naive(wafer, model, whole.strategy, drawn).tokens_per_second / full
    return {
        "tokens_per_second_whole": full,
        "shares": list(shares),
        "robust": ours.tolist(),
        "naive": theirs.tolist(),
        # a plan for more faults is one for fewer, as long as nothing of it is missing
        "robust_nested": np.maximum.accumulate(ours[:, ::-1], axis=1)[:, ::-1].tolist(),
    }


def rows(found: dict[str, Any]) -> list[dict[str, float]]:
    """Mean and spread over seeds at every share."""
    ours, theirs = np.array(found["robust_nested"]), np.array(found["naive"])
    out = []
    for number, share in enumerate(found["shares"]):
        a, b = ours[:, number], theirs[:, number]
        runs = b > 0.0
        out.append(
            {
                "share": share,
                "robust_mean": float(a.mean()),
                "robust_least": float(a.min()),
                "robust_most": float(a.max()),
                "naive_mean": float(b.mean()),
                "naive_least": float(b.min()),
                "naive_most": float(b.max()),
                "naive_fits": float(runs.mean()),
                "gain_where_naive_fits": float((a[runs] / b[runs]).mean()) if runs.any() else float("nan"),
                "plan_of_more_faults_better": float(np.mean(a > np.array(found["robust"])[:, number] * (1 + 1e-9))),
            }
        )
    return out


def draw_figure(record: dict[str, Any], path: Path) -> None:
    """Mean, and least to most over seeds, of both."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "watos_jax"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(record["sweeps"]), figsize=(4.2 * len(record["sweeps"]), 3.8), sharey=True)
    for axis, (title, found) in zip(np.atleast_1d(axes), record["sweeps"].items(), strict=True):
        shares = 100 * np.array(found["shares"])
        for name, color in (("robust", "#2171b5"), ("naive", "#cb181d")):
            mean, least, most = ([row[f"{name}_{part}"] for row in found["rows"]] for part in ("mean", "least", "most"))
            axis.plot(shares, mean, "o-", color=color, markersize=3, label=name)
            axis.fill_between(shares, least, most, color=color, alpha=0.15, linewidth=0)
        axis.plot(shares, 1 - shares / 100, ":", color="black", linewidth=0.8, label="1 - share")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(f"dead {title.split(',')[0]}, %")
        axis.set_ylim(0, 1.05)
    np.atleast_1d(axes)[0].set_ylabel("throughput over that of the whole wafer")
    np.atleast_1d(axes)[0].legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="draws of every share")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--smoke", action="store_true", help="a small wafer, one seed")
    parser.add_argument("--out", type=Path, help="folder for the figure and the object")
    given = parser.parse_args(arguments)
    model, options, shares, seeds = wj.presets.models.LLAMA3_70B, OPTIONS, SHARES, given.seeds
    machines = {name: wj.presets.wafers.get(wafer) for name, wafer in READINGS.items()}
    if given.smoke:
        model, shares, seeds = replace(wj.presets.models.LLAMA2_7B, num_layers=8), (0.0, 0.2), 1
        options = replace(OPTIONS, global_batch_size=16, micro_batch_sizes=1, recompute="none")
        machines = {"1 TB/s per edge": replace(machines["1 TB/s per edge"], die_rows=2, die_cols=4)}
    start, record = time.perf_counter(), {"global_batch_size": BATCH, "seeds": seeds, "paper": PAPER, "sweeps": {}}
    cases = [("dies", next(iter(machines)))] + [("links", name) for name in machines]
    for kind, name in cases:
        found = sweep(machines[name], model, options, kind, shares, seeds)
        found["rows"] = rows(found)
        record["sweeps"][f"{kind}, {name}"] = found
        if not given.json:
            show(f"dead {kind}, {name}", found, PAPER[kind])
    record["seconds"] = time.perf_counter() - start
    if given.out:
        os.makedirs(given.out, exist_ok=True)
        (given.out / "faults.json").write_text(json.dumps(record) + "\n")
        draw_figure(record, given.out / "faults.svg")
    if given.json:
        print(json.dumps(record, indent=2))
    return 0


def show(title: str, found: dict[str, Any], paper: float) -> None:
    print(f"{title}: throughput over that of the whole wafer, {found['tokens_per_second_whole']:,.0f} tokens/s")
    print(f"  {'share':>6}  {'robust':>22}  {'naive':>22}  naive fits  robust / naive")
    for row in found["rows"]:
        cells = (
            f"{row[f'{name}_mean']:.3f} ({row[f'{name}_least']:.3f} to {row[f'{name}_most']:.3f})"
            for name in ("robust", "naive")
        )
        told = f"  (paper {paper:.2f})" if row["share"] == 0.2 else ""
        print(
            f"  {row['share']:6.0%}  " + "  ".join(f"{cell:>22}" for cell in cells) + f"  {row['naive_fits']:10.0%}"
            f"  {row['gain_where_naive_fits']:14.3f}{told}"
        )


if __name__ == "__main__":
    sys.exit(main())
