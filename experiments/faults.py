"""What do dead dies and dead links cost, and what does it help to know them?

Throughput of Llama 3 70B on WATOS configuration 3 against the share of dies, and of links, that are dead, over that of
the whole wafer: `robust` plans anew for what is left, `naive` keeps strategy and places, and living dies take over the
work of dead ones. Faults are drawn at random; with one seed more faults include fewer, so a plan made for more is tried
where there are fewer, too. Links with two readings of the paper's die-to-die bandwidth. WATOS reports that its robust
mode is 35 % faster than its plain one where 20 % of the dies failed, and 18 % where 20 % of the links did (arXiv
2512.12279). Ours gains more where dies fail, for `naive` must recompute more for the work that it takes over, and
hardly anything where links do: the plain mode of the paper is not published, and our `naive` goes round dead links by
the same shortest ways as `robust`, over links that the best strategy leaves far from full.

    python experiments/faults.py --out experiments/results    # tables, figure, JSON
    python experiments/faults.py --json                       # one JSON object
    python experiments/faults.py --smoke                      # a small wafer, one seed
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import harness
import numpy as np

import watos_jax as wj
from watos_jax.presets import models, wafers

SHARES = (0.0, 0.05, 0.1, 0.2, 0.35)
SEEDS = 4
BATCH = 512
PAPER = {"dies": 1.35, "links": 1.18}
"""Robust over plain at a share of 20 % (arXiv 2512.12279)."""
READINGS = {"1 TB/s per edge": "watos-config-3", "0.5 TB/s per edge": "watos-config-3-d2d-half"}
LABELS = {"robust": "robust", "naive": "naive, 0 where memory does not fit"}
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


def answer(options: argparse.Namespace) -> harness.Answer:
    model, chosen, shares, seeds = models.LLAMA3_70B, OPTIONS, SHARES, options.seeds
    machines = {name: wafers.get(wafer) for name, wafer in READINGS.items()}
    if options.smoke:
        model, shares, seeds = replace(models.LLAMA2_7B, num_layers=8), (0.0, 0.2), 1
        chosen = replace(OPTIONS, global_batch_size=16, micro_batch_sizes=1, recompute="none")
        machines = {"1 TB/s per edge": replace(machines["1 TB/s per edge"], die_rows=2, die_cols=4)}
    found = {}
    for kind, name in [("dies", next(iter(machines)))] + [("links", name) for name in machines]:
        one = sweep(machines[name], model, chosen, kind, shares, seeds)
        found[f"{kind}, {name}"] = one | {"rows": rows(one), "paper": PAPER[kind]}
    return {"global_batch_size": int(chosen.global_batch_size), "seeds": seeds, "sweeps": found}


def draw(record: harness.Answer, plt: Any) -> Any:
    """Mean, and least to most over seeds, of both."""
    figure, axes = plt.subplots(1, len(record["sweeps"]), figsize=(11, 3.6), sharey=True, squeeze=False)
    for axis, (title, found) in zip(axes[0], record["sweeps"].items(), strict=True):
        shares = 100 * np.array(found["shares"])
        for name, color in zip(("robust", "naive"), harness.COLOURS, strict=False):
            mean, least, most = ([row[f"{name}_{part}"] for row in found["rows"]] for part in ("mean", "least", "most"))
            axis.plot(shares, mean, "o-", color=color, markersize=3, label=LABELS[name])
            axis.fill_between(shares, least, most, color=color, alpha=0.15, linewidth=0)
        if title.startswith("dies"):
            axis.plot(shares, 1 - shares / 100, ":", color="black", linewidth=0.8, label="dies that live")
        axis.set(title=title, xlabel=f"dead {title.split(',')[0]}, %", ylim=(0, 1.05))
    axes[0, 0].set_ylabel("throughput over that of the whole wafer")
    axes[0, 0].legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    return figure


def show(record: harness.Answer) -> None:
    for title, found in record["sweeps"].items():
        print(f"dead {title}: throughput over {found['tokens_per_second_whole']:,.0f} tokens/s of the whole wafer")
        print(f"  {'share':>6}  {'robust':>22}  {'naive':>22}  naive fits  robust / naive")
        for row in found["rows"]:
            cells = (
                f"{row[f'{name}_mean']:.3f} ({row[f'{name}_least']:.3f} to {row[f'{name}_most']:.3f})"
                for name in ("robust", "naive")
            )
            gain = "-" if row["gain_where_naive_fits"] is None else f"{row['gain_where_naive_fits']:.3f}"
            told = f"  (paper {found['paper']:.2f})" if row["share"] == 0.2 else ""
            print(
                f"  {row['share']:6.0%}  "
                + "  ".join(f"{cell:>22}" for cell in cells)
                + f"  {row['naive_fits']:10.0%}  {gain:>14}{told}"
            )


def main(given: Sequence[str] | None = None) -> int:
    parser = harness.arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="draws of every share")
    return harness.run(parser, given, answer, show, draw)


if __name__ == "__main__":
    sys.exit(main())
