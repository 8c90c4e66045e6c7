"""How tight are the lower bounds that co-design proves its answers with?

Strategies are drawn from all of a budget and a model. What each can reach on the whole lattice is found by local search
for that strategy alone, from the first guess of the hardware, and then proven by branch and bound to within `GAP`.
Beside it stand

* root: the first bound, of the whole lattice, by the tangent at the first guess of the hardware over the boxes that
  branch and bound begins with; and the same of one box of everything, as if nothing shared a die;
* leaf: the bound of the best lattice point alone, by the same tangent and by one that touches there, over the time of
  the replayed schedule.

    python experiments/proof.py --out experiments/results    # every case is kept as soon as it is there
    python experiments/proof.py --smoke                      # a coarse run
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import harness  # sets the devices before JAX starts
import jax
import numpy as np

from watos_jax.batch import placed
from watos_jax.presets import budgets, models
from watos_jax.search import lattice
from watos_jax.search.bounds import reciprocals
from watos_jax.search.boxes import AXES, Boxes, Grids
from watos_jax.search.candidates import OPTIONS, Candidates, candidates, take
from watos_jax.search.certificate import HALVED, certify
from watos_jax.search.climb import Climber, place_of
from watos_jax.search.local import Local

CASES = (("default", "llama3-70b"), ("default", "gpt3-175b"), ("default", "mixtral-8x7b"), ("dense-215", "llama3-70b"))
GAP = 1e-4
"""To which what a strategy can reach is proven."""
STRATEGIES = 24
"""Strategies of each case that fit somewhere."""
TRIED = 12
"""Times as many are drawn at most: most fit nowhere."""
SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)
"""Of strategies below the printed ratios."""
KINDS = {"root": "-", "root, one box": "--", "leaf": "-", "leaf, touched": "--"}
"""Bounds, with their dashes in the figure."""


def ratios(budget_name: str, model_name: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Bounds over what strategies can reach, least first, by kind of bound."""
    began = time.process_time()
    budget = budgets.get(budget_name)
    table = candidates(models.get(model_name), budget, options=OPTIONS)
    table = Candidates(placed(table.shared), table.every, table.group, table.guesses, table.pruned)
    found: dict[str, list[float]] = {name: [] for name in KINDS}
    tried = 0
    for row in np.random.default_rng(seed).permutation(len(table))[: TRIED * count]:
        if len(found["root"]) == count:
            break
        tried += 1
        for name, value in _of_strategy(table, int(row)).items():
            found[name].append(value)
    return {
        "strategies": len(found["root"]),
        "drawn": tried,
        "of": len(table),
        "ratios": {name: sorted(values) for name, values in found.items()},
        "cpu_seconds": time.process_time() - began,
    }


def _of_strategy(table: Candidates, row: int) -> dict[str, float]:
    # nothing where it fits nowhere
    own = Candidates(table.shared, take(table.every, np.array([row])), np.zeros(1, int), [])
    problem, budget = Local(table.shared), table.shared.budget
    place, guess = place_of(own.every), np.asarray(own.every.knobs)[0]
    with jax.enable_x64(True):
        first = problem.touch(own.every)
        grids = Grids(budget, np.array([place]))
        low = np.zeros((1, len(AXES)), int)
        end = grids.sizes[[lattice.NAMES.index(name) for name in AXES]] - 1
        whole = grids.boxes(np.zeros(1, int), low, low + end)
        cover = grids.cover()
        for _ in range(HALVED):
            cover = grids.split(cover)
        roots = {"root": _bound(problem, first, cover), "root, one box": _bound(problem, first, whole)}
    if not np.isfinite(roots["root"]):
        return {}
    climber = Climber([own])
    best = climber.climb(climber.choose(place, lattice.nearest(budget, guess)))
    if best.rank[0] > 0.0:
        return {}
    start = own.every._replace(knobs=lattice.values_at(budget, best.knobs)[None])
    proven, point = certify(problem, own.every, start, gap=GAP, time_limit=60.0)
    with jax.enable_x64(True):
        here, there = reciprocals(np.asarray(point.knobs)), problem.touch(point)
    leaves = {name: float(np.sum(one.weights * here)) for name, one in (("leaf", first), ("leaf, touched", there))}
    return {name: bound / proven.value for name, bound in (roots | leaves).items()}


def _bound(problem: Local, touched: Any, boxes: Boxes) -> float:
    every = jax.tree.map(lambda leaf: leaf[:, None], touched)
    return float(problem.bound(every, boxes).min(initial=np.inf))


def answer(options: argparse.Namespace) -> harness.Parts:
    """Every case, or the one of the options."""
    cases = CASES if options.budget is None else ((options.budget, options.model),)
    count = 2 if options.smoke else STRATEGIES
    wanted = cases[:1] if options.smoke else cases
    make = {f"{budget}, {model}": lambda _, case=(budget, model): ratios(*case, count) for budget, model in wanted}
    return harness.Parts({"strategies": count, "proven_within": GAP}, make)


def show(record: dict[str, Any]) -> None:
    """Print shares of the strategies."""
    for title, found in record["parts"].items():
        fit = f"{found['strategies']} of {found['drawn']} strategies fit"
        print(f"{title}: {fit}; bound / best; {found['cpu_seconds']:.0f} s of CPU time")
        print(" " * 18 + "".join(f"{share:8.0%}" for share in SHARES))
        for name, values in found["ratios"].items():
            print(f"  {name:16s}" + "".join(f"{value:8.4f}" for value in np.quantile(values or [np.nan], SHARES)))


def draw(record: dict[str, Any], plt: Any) -> Any:
    """Share of the strategies against bound over best, a panel for each case."""
    size = (2.6 * len(record["parts"]) + 1.6, 3.2)
    figure, axes = plt.subplots(
        1, len(record["parts"]), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for axis, (title, found) in zip(axes[0], record["parts"].items(), strict=True):
        for (name, dashes), colour in zip(KINDS.items(), np.repeat(harness.COLOURS[:2], 2), strict=True):
            values = found["ratios"][name]
            shares = np.arange(len(values) + 1) / max(len(values), 1)
            axis.step([*values, 1.0], shares, where="pre", color=colour, ls=dashes, label=name)
        axis.set(title=title, xlabel="lower bound / best of a strategy")
    axes[0, 0].set_ylabel("share of strategies at or below")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def main(given: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = harness.arguments(__doc__ or "", in_parts=True)
    parser.add_argument("--budget", choices=budgets.NAMES, help="one budget in place of all cases; with --model")
    parser.add_argument("--model", choices=sorted(models.NAMES), help="one model")
    options = parser.parse_args(given)
    if (options.budget is None) != (options.model is None):
        parser.error("--budget and --model: both or neither must be given")
    return harness.run(parser, given, answer, show, draw)


if __name__ == "__main__":
    sys.exit(main())
