"""Is the fastest wafer also a good one? Fronts, two models, unknown technology, uncertain constants, dead dies.

* fronts: tokens per second against tokens per joule and per dollar, Llama 3 70B on the default budget;
* models: one wafer for Llama 3 70B and Llama 3 8B, geometric mean;
* technologies: the best worst case over the three sets of 7 nm constants;
* constants: 4,096 draws of the constants inside the spread of what is published, and a tenth of that spread; the
  pool of designs grows until designs made for single draws gain less than 2 % in the mean.
* faults: hardware and strategy for the worst of four draws of dead dies, beside the wafer designed without faults and
  planned for the same draws.

Strategies are fewer than `watos codesign` looks at (`OPTIONS`), so that all parts take minutes.

    python experiments/objectives.py --out experiments/results
    python experiments/objectives.py --part constants
    python experiments/objectives.py --smoke       # two by three small dies
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from harness import COLOURS, command

import watos_jax as wj

OPTIONS = wj.Options(
    micro_batch_sizes=(1, 2),
    recompute=("none", "full"),
    virtual_stages=1,
    context_parallel=(1, 2),
    sequence_parallel=1,
    optimizer_sharding=1,
    least_use=0.9,
)
TECHNOLOGIES = ("demonstrated-n7", "dense-n7", "gpu-n7")
AGAINST = ("tokens-per-joule", "tokens-per-dollar")
SCALES = (0.1, 1.0)
"""Of the published spread."""
DEAD = (0.02, 0.05)
"""Shares of dies that are dead: of 48 dies one, and two."""


class Problem:
    """Models, budget, options and how much is searched."""

    def __init__(self, smoke: bool):
        models, budget = wj.presets.models, wj.presets.budgets.DEFAULT
        self.models = {"llama3-70b": models.LLAMA3_70B, "llama3-8b": models.LLAMA3_8B}
        self.budget, self.options, self.weights = budget, OPTIONS, 7
        self.draws, self.designs, self.checked = 4096, 512, 64
        self.against, self.technologies, self.time_limit = AGAINST, TECHNOLOGIES, 60.0
        self.dead, self.seeds = DEAD, 4
        if smoke:
            self.models = {"llama3-8b": models.LLAMA3_8B, "llama2-7b": models.LLAMA2_7B}
            side, coarse = (
                3 * 27e-3,
                replace(budget.step, core_rows=4.0, core_cols=4.0, die_width=4e-3, die_height=4e-3),
            )
            wafer = replace(budget.wafer, window_width=side, window_height=side)
            self.budget = replace(budget, wafer=wafer, step=coarse, die_rows=(2, 2), die_cols=(3, 3))
            self.options = replace(OPTIONS, global_batch_size=32, recompute="full", max_pipeline=8)
            self.weights, self.draws, self.designs, self.checked = 2, 256, 3, 2
            self.against, self.technologies, self.time_limit = AGAINST[:1], TECHNOLOGIES[:2], 1.0
            self.dead, self.seeds = (0.17,), 2

    @property
    def model(self) -> wj.Transformer:
        """The first one."""
        return next(iter(self.models.values()))


def place(one: Any) -> str:
    """A design in a few words."""
    return wafer_in_words(one, one.knobs)


def wafer_in_words(grid: Any, knobs: Any) -> str:
    """What has rows and columns of dies, with its knobs, in a few words."""
    return (
        f"{grid.die_rows:g} x {grid.die_cols:g} dies of {1e3 * knobs.die_width:g} x {1e3 * knobs.die_height:g} mm, "
        f"{knobs.core_rows:g} x {knobs.core_cols:g} cores, {knobs.sram_bytes_per_core / 2**10:g} KiB, "
        f"{knobs.dram_stacks:g} stacks, {knobs.clock / 1e9:.1f} GHz"
    )


def degrees(strategy: wj.Strategy | None) -> dict[str, float] | None:
    """A strategy as numbers."""
    return (
        None if strategy is None else {name: float(getattr(strategy, name)) for name in strategy.__dataclass_fields__}
    )


def fronts(problem: Problem) -> dict[str, Any]:
    """Both fronts."""
    found = {}
    for other in problem.against:
        pair = ("tokens-per-second", other)
        front = wj.pareto(
            problem.model, problem.budget, objectives=pair, options=problem.options, weights=problem.weights
        )
        found[other] = {
            "rates": [point.rates for point in front.points],
            "designs": [place(point) for point in front.points],
            "hypervolume": front.hypervolume,
            "searched": front.searched,
            "evaluations": front.evaluations,
            "wall_time": front.wall_time,
        }
    return found


def models(problem: Problem) -> dict[str, Any]:
    """One wafer for two models."""
    cases = [
        wj.Case(model, problem.budget, options=problem.options, name=name) for name, model in problem.models.items()
    ]
    return _compromise(cases, "geometric", problem.time_limit)


def technologies(problem: Problem) -> dict[str, Any]:
    """One wafer that is made in any of three technologies."""
    cases = []
    for name in problem.technologies:
        wafer = replace(problem.budget.wafer, technology=wj.presets.technologies.NAMES[name])
        cases.append(wj.Case(problem.model, replace(problem.budget, wafer=wafer), options=problem.options, name=name))
    return _compromise(cases, "worst", problem.time_limit)


def _compromise(cases: list[wj.Case], mean: str, time_limit: float) -> dict[str, Any]:
    found = wj.compromise(cases, mean=mean, time_limit=time_limit)
    return {
        "mean": mean,
        "cases": [case.name for case in cases],
        "value": found.value,
        "upper_bound": found.upper_bound,
        "gap": found.gap,
        "rates": found.rates,
        "own_rates": found.own_rates,
        "shares": found.shares,
        "knobs": {name: float(getattr(found.knobs, name)) for name in found.knobs.__dataclass_fields__},
        "dies": [float(found.wafers[0].die_rows), float(found.wafers[0].die_cols)],
        "own_knobs": [
            {name: float(getattr(one.knobs, name)) for name in one.knobs.__dataclass_fields__} for one in found.own
        ],
        "own_dies": [[float(one.wafer.die_rows), float(one.wafer.die_cols)] for one in found.own],
        "own_gaps": [None if one.certificate is None else one.certificate.gap for one in found.own],
        "evaluations": found.evaluations,
        "wall_time": found.wall_time,
    }


def constants(problem: Problem) -> dict[str, Any]:
    """The pool of designs under draws, for each scale of the published spread."""
    found = {}
    for scale in SCALES[: 1 if problem.draws < 1000 else None]:
        deviations = {name: scale * size for name, size in wj.presets.uncertainties.PUBLISHED_N7.items()}
        answer = wj.uncertainty(
            problem.model,
            problem.budget,
            deviations=deviations,
            draws=problem.draws,
            designs=problem.designs,
            checked=problem.checked,
            options=problem.options,
        )
        found[f"{scale:g}"] = {
            "draws": answer.draws,
            "none_fits": answer.none_fits,
            "best_rates": answer.best_rates,
            "tolerance": answer.tolerance,
            "searched": answer.searched,
            "gains": answer.gains,
            "shortfalls": answer.shortfalls,
            "shortfall": answer.shortfall,
            "safest": answer.pool.index(answer.safest),
            "pool": [
                {"design": place(one)}
                | {name: getattr(one, name) for name in ("fits", "wins", "mean_rate", "rates", "regret")}
                for one in answer.pool
            ],
            "evaluations": answer.evaluations,
            "wall_time": answer.wall_time,
        }
    return found


def faults(problem: Problem) -> dict[str, Any]:
    """The wafer for the worst of several draws of dead dies, for each share of them."""
    found, tokens = {}, float(problem.options.global_batch_size) * float(problem.model.sequence_length)
    for share in problem.dead:

        def draws_of(wafer: wj.Wafer, share: float = share) -> list[wj.faults.Faults]:
            return [wj.faults.draw(wafer, dies=share, seed=seed) for seed in range(problem.seeds)]

        answer = wj.codesign_for_draws(
            problem.model, problem.budget, draws_of, options=problem.options, time_limit=2.0 * problem.time_limit
        )
        own, healthy = answer.laid, answer.healthy
        found[f"{share:g}"] = {
            "dead_dies": [one.num_dead_dies for one in answer.draws],
            "design": wafer_in_words(own.wafer, own.knobs),
            "laid": tokens / own.value,
            "upper_bound": tokens / answer.certificate.lower_bound,
            "gap": answer.certificate.gap,
            "planned": tokens / answer.plan.value,
            "strategy": degrees(answer.plan.strategy),
            "healthy_design": wafer_in_words(healthy.wafer, healthy.knobs),
            "healthy_dead_dies": [one.num_dead_dies for one in draws_of(healthy.wafer)],
            "healthy_whole": tokens / healthy.value,
            "healthy_laid": None if answer.healthy_laid is None else tokens / answer.healthy_laid.value,
            "healthy_planned": tokens / answer.healthy_plan.value,
            "healthy_strategy": degrees(answer.healthy_plan.strategy),
            "evaluations": answer.evaluations,
            "wall_time": answer.wall_time,
        }
    return found


PARTS: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "fronts": fronts,
    "models": models,
    "technologies": technologies,
    "constants": constants,
    "faults": faults,
}


def draw(report: dict[str, Any], plt: Any) -> Any:
    """The fronts, and who fits and wins under the draws."""
    shown = [*report.get("fronts", {}).items()], [*report.get("constants", {}).items()]
    panels = max(1, sum(map(len, shown)) + ("faults" in report))
    figure, axes = plt.subplots(-(-panels // 3), min(panels, 3), figsize=(3.8 * min(panels, 3), 3.4 * -(-panels // 3)))
    axes = np.atleast_1d(axes).ravel()
    for axis in axes[panels:]:
        axis.set_axis_off()
    for axis, (name, front) in zip(axes, shown[0], strict=False):
        large = np.max(front["rates"], axis=0)[1] >= 1e6
        rates = np.array(front["rates"]) / (1e3, 1e6 if large else 1.0)
        axis.step(rates[:, 0], rates[:, 1], where="post", linewidth=0.8)
        axis.plot(rates[:, 0], rates[:, 1], "o", markersize=3)
        axis.set_xlabel("thousand tokens per second")
        axis.set_ylabel(("million " if large else "") + name.replace("-", " "))
        axis.set_title(f"{len(rates)} designs, hypervolume {front['hypervolume']:.3f}")
    for axis, (scale, part) in zip(axes[len(shown[0]) :], shown[1], strict=False):
        fits, means = (np.array([one[name] for one in part["pool"]]) for name in ("fits", "mean_rate"))
        wins = np.array([one["wins"] for one in part["pool"]])
        axis.scatter(
            100 * fits,
            means / 1e3,
            4 + 2000 * wins,
            alpha=0.4,
            linewidth=0,
            rasterized=True,
            label="a design, area by wins",
        )
        for row, mark, word in ((0, "x", "nominal"), (part["safest"], "+", "safest")):
            axis.plot(100 * fits[row], means[row] / 1e3, mark, color="black", label=word)
        axis.set_xlabel("fits in % of the draws")
        axis.set_ylabel("mean thousand tokens per second")
        axis.set_title(f"{float(scale):g} of the spread, {len(wins)} designs, short {part['shortfall'][0]:.1%}")
        axis.legend(loc="lower right")
    if "faults" in report:
        _draw_faults(axes[panels - 1], report["faults"])
    figure.tight_layout()
    return figure


def _draw_faults(axis: Any, found: dict[str, Any]) -> None:
    bars = {
        "designed without faults, whole": "healthy_whole",
        "the same wafer, planned for the draws": "healthy_planned",
        "wafer designed for the draws": "planned",
        "no wafer above (serpentine)": "upper_bound",
    }
    at = np.arange(len(found))
    for number, (label, name) in enumerate(bars.items()):
        axis.bar(
            at + 0.2 * (number - 1.5),
            [one[name] / 1e3 for one in found.values()],
            0.2,
            color=COLOURS[number],
            label=label,
        )
    axis.set_xticks(at, [f"{float(share):.0%}" for share in found])
    axis.set_xlabel("share of the dies that are dead")
    axis.set_ylabel("thousand tokens per second, worst draw")
    axis.set_ylim(0.0, 1.55 * max(one["healthy_whole"] for one in found.values()) / 1e3)
    axis.legend(loc="upper center", fontsize=7)
    axis.set_title("wafers for dead dies")


def show(report: dict[str, Any]) -> None:
    """The report in words."""
    said = []
    for name, front in report.get("fronts", {}).items():
        (fast, less), (slow, more) = front["rates"][0], front["rates"][-1]
        said += [
            f"tokens per second against {name.replace('-', ' ')}: {len(front['rates'])} designs, hypervolume "
            f"{front['hypervolume']:.3f}",
            f"  from {fast:,.0f}/s and {less:,.4g} ({front['designs'][0]})",
            f"  to {slow:,.0f}/s and {more:,.4g} ({front['designs'][-1]})",
        ]
    for part in ("models", "technologies"):
        if part in report:
            one = report[part]
            gap = "no bound" if one["gap"] is None else f"proven within {one['gap']:.1%}"
            said.append(f"{part}, {one['mean']}: {one['value']:,.0f} tokens/s, {gap}")
            for row in zip(one["cases"], one["rates"], one["own_rates"], one["shares"], strict=True):
                said.append("  {}: {:,.0f} of its own {:,.0f} tokens/s, {:.1%}".format(*row))
    for scale, part in report.get("constants", {}).items():
        nominal, safest = part["pool"][0], part["pool"][part["safest"]]
        short, wins = part["shortfall"], sorted((one["wins"] for one in part["pool"]), reverse=True)
        said += [
            f"constants, {float(scale):g} of the published spread, {part['draws']:,} draws: none of {len(wins)} "
            f"designs fits in {part['none_fits']:.1%}; the most frequent winner has {wins[0]:.1%} of draws, ten have "
            f"{sum(wins[:10]):.0%}",
            f"  pool of {part['searched']} draws, short by {short[0]:.2%} +- {short[1]:.2%} of searches for "
            f"{len(part['shortfalls'])} further ones, by batch while it grew: "
            + ", ".join(f"{mean:.1%}" for mean, _ in part["gains"]),
        ]
        for word, one in (("nominal", nominal), ("safest", safest)):
            regret = "-" if one["regret"] is None else f"{one['regret'][2]:.1%}"
            said.append(
                f"  {word}: fits in {one['fits']:.1%}, wins {one['wins']:.1%}, median regret where it fits {regret}, "
                f"mean {one['mean_rate']:,.0f} tokens/s ({one['design']})"
            )
    for share, one in report.get("faults", {}).items():
        laid = "none" if one["healthy_laid"] is None else f"{one['healthy_laid']:,.0f}"
        gain = f"{one['planned'] / one['healthy_planned'] - 1.0:+.1%}" if one["healthy_planned"] else "which fits none"
        said += [
            f"faults, {float(share):.0%} of the dies dead, worst of {len(one['dead_dies'])} draws: "
            f"{one['planned']:,.0f} tokens/s, {gain} against the wafer designed without",
            f"  designed for them: {one['design']}; {one['laid']:,.0f} on serpentines, no wafer above "
            f"{one['upper_bound']:,.0f} (gap {one['gap']:.2%})",
            f"  designed without: {one['healthy_design']}; {laid} on serpentines, "
            f"planned {one['healthy_planned']:,.0f}, whole {one['healthy_whole']:,.0f}",
        ]
    print("\n".join(said))


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """All parts that were asked for."""
    problem = Problem(options.smoke)
    return {name: PARTS[name](problem) for name in options.part or PARTS}


main = command(__doc__, answer, show, draw, part=PARTS)

if __name__ == "__main__":
    sys.exit(main())
