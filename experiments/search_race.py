"""A race of searches: co-design beside eight that know nothing of wafers, at equal time and at equal evaluations.

All choose among the same designs (die grid, memory edges, strategy, every knob on its lattice), with the same hard
model, in which one estimate is one evaluation, of a design asked for again as well; a gradient of ours counts once and
takes the time of about two. What fits is better than what does not, and what does not is judged by its excess.
Strategies are enumerated once and the time of it counts for all; compilation counts for none. All but exhaustive search
begin at the same first guesses of the knobs. The gap is that of the replayed step time over the lower bound that
`codesign(gap=0)` proves.

Optuna, pymoo and evosax are installed by the extra `race`. `narrow` is `default` with few values of each knob, so that
exhaustive search can finish. With `--out` every course is kept as soon as it is there: the command given again takes
up after an end, and others add courses to the same record. `--again NAME` races one search anew in courses that are
kept.

    python experiments/search_race.py --out experiments/results --anew                # in full, some 3 h
    python experiments/search_race.py --out DIR --budgets narrow --models gpt3-175b   # one course more, kept in DIR
    python experiments/search_race.py --smoke                                         # a tiny one
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import harness  # sets the devices before JAX starts
import jax
import numpy as np
from harness.optimisers import PACKAGES

import watos_jax as wj
from watos_jax.baselines.searchers import SEARCHERS, Searcher
from watos_jax.batch import map_chunks
from watos_jax.cli.runtime import CompileClock
from watos_jax.presets import budgets, models
from watos_jax.search import lattice
from watos_jax.search.bounds import exact_times, tangent
from watos_jax.search.candidates import OPTIONS, candidates
from watos_jax.search.genes import BLOCKS, REPAIRED, GeneSpace
from watos_jax.search.genetic import genetic
from watos_jax.search.run import Run
from watos_jax.units import GIGA, KIB, MM

OURS = "co-design"
BUDGETS = ("default", "narrow", "dense-215")
MODELS = ("llama3-70b", "gpt3-175b", "mixtral-8x7b", "gshard-137b")
Say = Callable[[str], None]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
EVALUATIONS = (500, 10_000, 100_000, 1_000_000)
"""Counts at which all are compared; the first is reached by every search, if need be after its time."""
OVERTIME = 4.0
"""Times the time limit in which a search may reach the first of them."""
WARM = {"genetic": 600, "evosax CMA-ES": 300}
"""Evaluations that compile and import everything before a search is timed, where they are not `WARM_OTHERS`."""
WARM_OTHERS = 100
PROOF_TIME = 400.0
"""Seconds for the proof."""
FLOOR, CEILING = 1e-3, 10.0
"""Least and most gap of the figure."""
APART = 1.15
"""Ratio of the places where the spreads of two searches stand."""
SEEN = 0.97
"""Ratio of gaps, of times or of evaluations that the figure can show."""
LINES = {
    OURS: (harness.COLOURS[7], "-"),
    "exhaustive": (harness.COLOURS[6], "--"),
    "random": (harness.COLOURS[4], "--"),
    "coordinate descent": (harness.COLOURS[5], "--"),
    "numeric gradient": (harness.COLOURS[1], "--"),
    "genetic": (harness.COLOURS[1], "-"),
    "Optuna TPE": (harness.COLOURS[2], "-"),
    "pymoo GA": (harness.COLOURS[3], "-"),
    "evosax CMA-ES": (harness.COLOURS[0], "-"),
}
"""Colour and dashes of each search."""


def narrow() -> tuple[wj.Budget, wj.Options]:
    """`default` with two or three values of each knob, two die grids and fewer options."""
    base = budgets.DEFAULT
    link = float(base.low.d2d_bandwidth)

    def knobs(*values: float) -> wj.Knobs:
        return lattice.from_array(np.array(values))

    return replace(
        base,
        low=knobs(16, 16, 256 * KIB, 2, 5 * link, 24.5 * MM, 24.5 * MM, 1.4 * GIGA),
        high=knobs(22, 22, 512 * KIB, 4, 13 * link, 33 * MM, 33 * MM, 2.2 * GIGA),
        step=knobs(3, 3, 256 * KIB, 1, 4 * link, 8.5 * MM, 8.5 * MM, 0.4 * GIGA),
        die_rows=(5, 6),
        die_cols=(6, 6),
        memory_sides=((0, 1), (1, 0)),
    ), replace(
        OPTIONS,
        micro_batch_sizes=(1, 2),
        recompute=("norms", "activation", "mlp"),
        virtual_stages=(1,),
        context_parallel=(1,),
        sequence_parallel=(1,),
        optimizer_sharding=(1,),
    )


@dataclass(frozen=True)
class Course:
    """One budget and model: its designs, and the time of their enumeration."""

    space: GeneSpace
    options: wj.Options
    spent: float


def course(budget: str, model: str, clock: Callable[[], float]) -> Course:
    """Enumerate."""
    chosen, options = narrow() if budget == "narrow" else (budgets.get(budget), OPTIONS)
    began = clock()
    found = candidates(models.get(model), chosen, options=options)
    spent = clock() - began
    return Course(GeneSpace(found), options, spent)


def proven(on: Course) -> dict[str, Any]:
    """The proven best."""
    shared = on.space.candidates.shared
    design = wj.codesign(shared.model, shared.budget, options=on.options, gap=0.0, time_limit=PROOF_TIME)
    proof = design.certificate
    return {"best": proof.value, "lower_bound": proof.lower_bound, "proven": proof.gap}


def co_design(on: Course, run: Run, seed: int) -> None:
    """Ours; it draws nothing, and cannot be stopped by evaluations."""
    shared = on.space.candidates.shared
    limit = min(run.time_limit, 1e6)
    wj.codesign(shared.model, shared.budget, options=on.options, gap=0.0, time_limit=limit, improved=run.note)


def others() -> dict[str, Searcher]:
    """All but ours; those of other packages where they are installed."""
    installed = {name: search for name, (package, search) in PACKAGES.items() if find_spec(package)}
    return SEARCHERS | {"genetic": genetic} | installed


def race(
    on: Course, searches: dict[str, Searcher], seeds: int, time_limit: float, clock: Callable[[], float], say: Say
) -> dict[str, list[dict]]:
    """Searches with every seed; those that draw nothing once."""
    report: dict[str, list[dict]] = {}
    warm(on.space)
    for name, search in searches.items():
        if name != OURS:
            search(Run(on.space, max_evaluations=WARM.get(name, WARM_OTHERS)), seeds)
        report[name] = []
        for seed in range(1 if name in (OURS, "exhaustive") else seeds):
            run = Run(on.space, time_limit=time_limit, clock=clock, spent=0.0 if name == OURS else on.spent)
            with CompileClock() as compiling:
                search(run, seed)
            trace, longer = run.trace, None
            if name not in (OURS, "exhaustive") and trace.evaluations < EVALUATIONS[0]:
                longer = Run(on.space, time_limit=OVERTIME * time_limit, max_evaluations=EVALUATIONS[0], clock=clock)
                search(longer, seed)
            found = replayed(on, trace.improvements)
            report[name].append(
                {
                    "seed": seed,
                    "compile_time": compiling.time,
                    "evaluations": trace.evaluations,
                    "time": trace.time,
                    "improvements": found,
                    "longer": None if longer is None else replayed(on, longer.trace.improvements),
                }
            )
            best = f"{found[-1][2]:.4f} s" if found else "nothing that fits"
            say(f"  {name:20} seed {seed}: {best}, {trace.evaluations:,} evaluations, {trace.time:.1f} s")
    return report


def warm(space: GeneSpace) -> None:
    """Compile what all but ours use; each compiles its own with a short run."""
    source = np.random.default_rng(0)
    for count in (*REPAIRED, *(len(jax.devices()) * chunk * calls for chunk, calls in BLOCKS)):
        Run(space).merits(source.integers(0, space.sizes, (count, len(space.sizes))))


def replayed(on: Course, improvements: Sequence[Any]) -> list[tuple[float, int, float]]:
    """(s, evaluations, step time with the schedule replayed in double precision) of every better design."""
    if not improvements:
        return []
    points = jax.tree.map(lambda *rows: np.concatenate(rows), *(one.point for one in improvements))
    with jax.enable_x64(True):
        touched = map_chunks(tangent, on.space.candidates.shared, points, chunk=512, chunks_per_call=8)
        times = exact_times(points.candidate.strategy, touched)
    return [(one.time, one.evaluations, float(value)) for one, value in zip(improvements, times, strict=True)]


def at(improvements: Sequence[Sequence[float]], *, seconds: float = np.inf, evaluations: float = np.inf) -> float:
    """Value known by then; infinite where nothing fitted yet."""
    values = [value for when, count, value in improvements if when <= seconds and count <= evaluations]
    return values[-1] if values else np.inf


def gaps(entry: dict, lower_bound: float, time_limit: float) -> dict[str, list[float | None]]:
    """Gap of one search at the time limit and at each count of evaluations: least, upper median and most of the seeds.

    None where nothing fitted, or where the search had no time for so many evaluations.
    """
    columns: dict[str, list[float]] = {
        f"{time_limit:g} s": [at(one["improvements"], seconds=time_limit) for one in entry]
    }
    for count in EVALUATIONS:
        columns[f"{count:,}"] = [
            at(one["improvements"] if one["evaluations"] >= count else one["longer"], evaluations=count)
            for one in entry
            if one["evaluations"] >= count or (one["longer"] is not None and count == EVALUATIONS[0])
        ]
    return {name: _spread(np.array(values) / lower_bound - 1.0) for name, values in columns.items()}


def _spread(values: np.ndarray) -> list[float | None]:
    three = np.quantile(values, (0.0, 0.5, 1.0), method="higher") if len(values) else np.full(3, np.inf)
    return [float(one) if np.isfinite(one) else None for one in three]


def raced(budget: str, model: str, options: argparse.Namespace, kept: dict[str, Any] | None) -> dict[str, Any]:
    """One course: the proof, and every search; of one that is kept the searches of `--again`."""
    clock = CLOCKS[options.clock]
    say: Say = (lambda text: None) if options.json else partial(print, flush=True)
    on = course(budget, model, clock)
    if kept is None:
        known = {"budget": budget, "model": model, "candidates": len(on.space.candidates)}
        known |= {"designs": on.space.num_designs, "enumeration_time": on.spent, **proven(on), "searches": {}}
        chosen = {OURS: partial(co_design, on), **others()}
    else:
        known, chosen = kept, {name: others()[name] for name in options.again}
    say(f"{budget}, {model}: {known['best']:.4f} s, proven within {known['proven']:.2e}")
    searches = known["searches"] | race(on, chosen, options.seeds, options.time, clock, say)
    found = {name: gaps(entry, known["lower_bound"], options.time) for name, entry in searches.items()}
    return known | {"gaps": found, "searches": searches}


def answer(options: argparse.Namespace) -> harness.Parts:
    """Every budget with every model."""
    if options.smoke:
        options.budgets, options.models, options.seeds, options.time = ("narrow",), ("llama3-70b",), 1, 2.0
    settings = {"clock": options.clock, "time_limit": options.time, "seeds": options.seeds}
    courses = product(options.budgets, options.models)
    return harness.Parts(
        settings | {"devices": len(jax.devices())},
        {f"{budget}, {model}": partial(raced, budget, model, options) for budget, model in courses},
        again=bool(options.again),
    )


def draw(record: dict[str, Any], plt: Any) -> Any:
    """Median gap over time, then over evaluations, a panel for each budget (down) and model (across).

    Right of the time limit: median, least and most of the seeds there.
    """
    courses = {(one["budget"], one["model"]): one for one in record["parts"].values()}
    rows = _in_order({budget for budget, _ in courses}, BUDGETS)
    columns = _in_order({model for _, model in courses}, MODELS)
    figure = plt.figure(figsize=(max(1.0 + 2.6 * len(columns), 9.0), 1.0 + 4.0 * len(rows)), layout="constrained")
    most = max(seed["evaluations"] for one in courses.values() for entry in one["searches"].values() for seed in entry)
    ends = {
        "seconds": (record["time_limit"] / 100, record["time_limit"] * APART ** (1 + len(LINES))),
        "evaluations": (min(EVALUATIONS) / 5, most),
    }
    for half, (limit, xlim) in zip(figure.subfigures(2, 1), ends.items(), strict=True):
        axes = half.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
        half.supxlabel(f"{record['clock']} time (s)" if limit == "seconds" else "evaluations", fontsize=9)
        for budget, row in zip(rows, axes, strict=True):
            row[0].set_ylabel(f"{budget}\ngap to the proven bound")
            for model, axis in zip(columns, row, strict=True):
                if (budget, model) in courses:
                    _panel(axis, courses[budget, model], limit, record["time_limit"])
                    axis.set_xlim(xlim)
                else:
                    axis.set_axis_off()
        for model, axis in zip(columns, axes[0], strict=True):
            axis.set_title(model)
    lines = [plt.Line2D([], [], label=name, **_style(name)) for name in LINES]
    figure.legend(handles=lines, loc="outside lower center", ncols=(len(lines) + 1) // 2)
    return figure


def _in_order(names: set[str], known: Sequence[str]) -> list[str]:
    return [*(name for name in known if name in names), *sorted(names.difference(known))]


def _style(name: str) -> dict[str, Any]:
    colour, dashes = LINES[name]
    return {"color": colour, "ls": dashes, "lw": 2.2 if name == OURS else 1.1, "zorder": 3 if name == OURS else 2}


def _panel(axis: Any, one: dict, limit: str, time_limit: float) -> None:
    axis.set(xscale="log", yscale="log", ylim=(0.8 * FLOOR, 1.25 * CEILING))
    axis.set_yticks([FLOOR, 0.01, 0.1, 1.0, CEILING], [f"≤ {FLOOR:.1%}", "1%", "10%", "100%", f"≥ {CEILING:.0%}"])
    axis.minorticks_off()
    axis.axhline(max(one["proven"], FLOOR), color="black", lw=0.8, ls=":")
    shown = [name for name in LINES if name in one["searches"]]
    for name in shown:
        curve = _curve(one["searches"][name], limit, one["lower_bound"], time_limit)
        if len(curve):
            x, gap = curve.T
            axis.plot(x, np.minimum(gap, CEILING), drawstyle="steps-post", **_style(name))
    if limit == "evaluations":
        return
    axis.axvline(time_limit, color="black", lw=0.6)
    for number, name in enumerate(shown):
        known = one["gaps"][name][f"{time_limit:g} s"]
        if known[0] is not None:
            low, middle, high = np.clip([CEILING if gap is None else gap for gap in known], FLOOR, CEILING)
            place = time_limit * APART ** (1 + number)
            axis.plot([place, place], [low, high], color=LINES[name][0], lw=1.1)
            axis.plot([place], [middle], ".", color=LINES[name][0], ms=5)


def _curve(entry: list[dict], limit: str, bound: float, time_limit: float) -> np.ndarray:
    # rows of (time or evaluations, median gap) from where most seeds have something; what cannot be seen is left out
    number = ("seconds", "evaluations").index(limit)
    found: list[tuple[float, float]] = []
    for x in sorted({step[number] for seed in entry for step in seed["improvements"] if step[0] <= time_limit}):
        values = [at(seed["improvements"], **{limit: x}) for seed in entry]
        gap = max(np.quantile(values, 0.5, method="higher") / bound - 1.0, FLOOR)
        if not np.isfinite(gap) or (found and gap > SEEN * found[-1][1]):
            continue
        if found and x < found[-1][0] / SEEN:
            x, _ = found.pop()
        found.append((x, gap))
    if found:
        end = max(seed[("time", "evaluations")[number]] for seed in entry)
        found.append((min(end, time_limit) if limit == "seconds" else end, found[-1][1]))
    return np.array(found)


def show(record: dict[str, Any]) -> None:
    """Print the gaps."""
    for one in record["parts"].values():
        print(f"\n{one['budget']}, {one['model']}: {one['candidates']:,} candidates, {one['designs']:.2e} designs;")
        print(f"best known {one['best']:.4f} s per step, proven within {one['proven']:.2%}; {record['clock']} time")
        print(f"{'median gap (least, most)':24}" + "".join(f"{name:>26}" for name in next(iter(one["gaps"].values()))))
        for name, columns in one["gaps"].items():
            print(f"{name:24}" + "".join(f"{_cell(*column):>26}" for column in columns.values()))


def _cell(low: float | None, middle: float | None, high: float | None) -> str:
    shown = ["-" if value is None else f"{value:.2%}" for value in (middle, low, high)]
    return f"{shown[0]} ({shown[1]}, {shown[2]})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = harness.arguments(__doc__ or "", in_parts=True)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, choices=["narrow", *budgets.NAMES], metavar="NAME")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=sorted(models.NAMES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--time", type=float, default=10.0, metavar="S", help="of each search")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu where other programs use the machine")
    parser.add_argument("--again", nargs="+", default=(), choices=others(), metavar="NAME", help="in courses kept")
    missing = [package for package, _ in PACKAGES.values() if not find_spec(package)]
    if missing and not parser.parse_args(arguments).smoke:
        parser.error(f"{', '.join(missing)} not installed: only a smoke run does without the extra `race`")
    return harness.run(parser, arguments, answer, show, draw)


if __name__ == "__main__":
    sys.exit(main())
