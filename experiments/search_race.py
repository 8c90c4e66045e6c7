"""A race of searches: co-design beside eight that know nothing of wafers, at equal time and at equal evaluations.

All choose among the same designs (die grid, memory edges, strategy, every knob on its lattice), with the same hard
model, in which one estimate is one evaluation; a gradient of ours counts once and takes the time of about two. What
fits is better than what does not, and what does not is judged by its excess. Strategies are enumerated once and the
time of it counts for all; compilation counts for none. All but exhaustive search begin at the same first guesses of the
knobs. The gap is that of the replayed step time over the lower bound that `codesign(gap=0)` proves.

Optuna (TPE), pymoo (mixed-variable GA) and evosax (CMA-ES) ask for designs in batches, as integers that are repaired
to the nearest candidate: the extra `race` installs them. `narrow` is `default` with few values of each knob, so that
exhaustive search can finish.

    python experiments/search_race.py --out experiments/results                       # in full, some 3 h
    python experiments/search_race.py --smoke                                         # a tiny one
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import harness  # sets the devices before JAX starts
import jax
import numpy as np

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
FLOOR = 1e-5
"""Least gap of the figure."""
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


# searches of others


def optuna_tpe(run: Run, seed: int, *, batch: int = 16) -> None:
    """Tree-structured Parzen estimator, constant liar within a batch."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    space = run.space
    genes = {name: optuna.distributions.IntDistribution(0, int(size) - 1) for name, size in _genes(space)}
    for start in space.starts(np.random.default_rng(seed), 4 * batch).tolist():
        study.enqueue_trial(dict(zip(space.names, start, strict=True)))
    while not run.is_over():
        trials = [study.ask(genes) for _ in range(batch)]
        designs = np.array([[trial.params[name] for name in space.names] for trial in trials])
        for trial, merit in zip(trials, run.merits(designs), strict=True):
            study.tell(trial, float(min(merit, 1e6)))


def pymoo_ga(run: Run, seed: int, *, population: int = 100) -> None:
    """The mixed-variable genetic algorithm, begun anew when nothing changes for 100 generations."""
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.mixed import MixedVariableGA
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.core.termination import NoTermination
    from pymoo.core.variable import Integer
    from pymoo.problems.static import StaticProblem

    space, source = run.space, np.random.default_rng(seed)
    genes = {name: Integer(bounds=(0, int(size) - 1)) for name, size in _genes(space) if size > 1}
    problem, fixed = Problem(vars=genes), dict.fromkeys(space.names, 0)
    while not run.is_over():
        starts = [
            {name: rank for name, rank in zip(space.names, start, strict=True) if name in genes}
            for start in space.starts(source, population).tolist()
        ]
        algorithm = MixedVariableGA(pop_size=population, sampling=Population.new("X", np.array(starts)))
        algorithm.setup(problem, termination=NoTermination(), seed=int(source.integers(2**31)))
        best, stalled = np.inf, 0
        while stalled < 100 and not run.is_over():
            asked = algorithm.ask()
            designs = np.array([[(fixed | dict(one))[name] for name in space.names] for one in asked.get("X")])
            merits = run.merits(designs)
            Evaluator().eval(StaticProblem(problem, F=np.minimum(merits, 1e6)[:, None]), asked)
            algorithm.tell(infills=asked)
            best, stalled = min(best, merits.min()), 0 if merits.min() < best else stalled + 1


@cache
def _cma_es(population: int, genes: int) -> tuple[Any, Callable, Callable]:
    # compiled once for all seeds
    from evosax.algorithms import CMA_ES

    strategy = CMA_ES(population_size=population, solution=np.zeros(genes))
    return strategy, jax.jit(strategy.ask), jax.jit(strategy.tell)


def evosax_cma_es(run: Run, seed: int, *, population: int = 128) -> None:
    """CMA-ES on ranks scaled to 0..1 and rounded, begun anew when nothing changes for 100 generations."""
    space, source = run.space, np.random.default_rng(seed)
    strategy, ask, tell = _cma_es(population, len(space.sizes))
    settings, key = strategy.default_params.replace(std_init=0.2), jax.random.key(seed)
    while not run.is_over():
        starts = space.starts(source, population)
        mean = (starts[run.merits(starts).argmin()] + 0.5) / space.sizes
        key, once = jax.random.split(key)
        state, best, stalled = strategy.init(once, np.asarray(mean, np.float32), settings), np.inf, 0
        while stalled < 100 and not run.is_over():
            key, first, second = jax.random.split(key, 3)
            asked, state = ask(first, state, settings)
            merits = run.merits(np.floor(np.asarray(asked) * space.sizes).astype(int))
            state, _ = tell(second, asked, np.asarray(np.minimum(merits, 1e6), np.float32), state, settings)
            best, stalled = min(best, merits.min()), 0 if merits.min() < best else stalled + 1


PACKAGES = {
    "Optuna TPE": ("optuna", optuna_tpe),
    "pymoo GA": ("pymoo", pymoo_ga),
    "evosax CMA-ES": ("evosax", evosax_cma_es),
}


def _genes(space: GeneSpace) -> list[tuple[str, int]]:
    return list(zip(space.names, space.sizes.tolist(), strict=True))


# the race


@dataclass(frozen=True)
class Course:
    """One budget and model: its designs, and the proven best."""

    budget: str
    model: str
    space: GeneSpace
    options: wj.Options
    spent: float
    design: wj.Design


def course(budget: str, model: str, clock: Callable[[], float], proof_time: float) -> Course:
    """Enumerate, and prove the best."""
    chosen, options = narrow() if budget == "narrow" else (budgets.get(budget), OPTIONS)
    transformer = wj.presets.models.get(model)
    began = clock()
    found = candidates(transformer, chosen, options=options)
    spent = clock() - began
    design = wj.codesign(transformer, chosen, options=options, gap=0.0, time_limit=proof_time)
    return Course(budget, model, GeneSpace(found), options, spent, design)


def co_design(on: Course, run: Run, seed: int) -> None:
    """Ours; it draws nothing, and cannot be stopped by evaluations."""
    shared = on.space.candidates.shared
    limit = min(run.time_limit, 1e6)
    wj.codesign(shared.model, shared.budget, options=on.options, gap=0.0, time_limit=limit, improved=run.note)


def others() -> dict[str, Searcher]:
    """All but ours; those of other packages where they are installed."""
    installed = {name: search for name, (package, search) in PACKAGES.items() if find_spec(package)}
    return SEARCHERS | {"genetic": genetic} | installed


def race(on: Course, seeds: int, time_limit: float, clock: Callable[[], float], say: Callable[[str], None]) -> dict:
    """Every search with every seed; those that draw nothing once."""
    report: dict[str, list[dict]] = {}
    warm(on.space)
    for name, search in {OURS: partial(co_design, on), **others()}.items():
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
            gap = f"{found[-1][2] / on.design.certificate.lower_bound - 1:.2%}" if found else "nothing that fits"
            say(f"  {name:20} seed {seed}: {gap}, {trace.evaluations:,} evaluations, {trace.time:.1f} s")
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


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """Every budget with every model."""
    if options.smoke:
        options.budgets, options.models, options.seeds, options.time = ("narrow",), ("llama3-70b",), 1, 2.0
    clock, courses = CLOCKS[options.clock], []
    say = (lambda text: None) if options.json else partial(print, flush=True)
    for budget in options.budgets:
        for model in options.models:
            on = course(budget, model, clock, PROOF_TIME)
            proof = on.design.certificate
            say(f"{budget}, {model}: proven within {proof.gap:.2e} in {on.design.wall_time:.0f} s")
            searches = race(on, options.seeds, options.time, clock, say)
            courses.append(
                {
                    "budget": budget,
                    "model": model,
                    "candidates": len(on.space.candidates),
                    "designs": on.space.num_designs,
                    "enumeration_time": on.spent,
                    "best": proof.value,
                    "lower_bound": proof.lower_bound,
                    "proven": proof.gap,
                    "gaps": {name: gaps(entry, proof.lower_bound, options.time) for name, entry in searches.items()},
                    "searches": searches,
                }
            )
    limits = {"clock": options.clock, "time_limit": options.time, "seeds": options.seeds}
    return limits | {"devices": len(jax.devices()), "courses": courses}


def draw(record: dict[str, Any], plt: Any) -> Any:
    """Median gap over time and over evaluations, a row for each budget and model; the spread of the seeds shaded."""
    rows = record["courses"]
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(11, 3.6 * len(rows)), squeeze=False, sharey="row", layout="constrained"
    )
    for row, one in zip(axes, rows, strict=True):
        for axis, limit in zip(row, ("seconds", "evaluations"), strict=True):
            for name, (colour, dashes) in ((name, LINES[name]) for name in LINES if name in one["searches"]):
                style = {"color": colour, "ls": dashes, "lw": 2.4 if name == OURS else 1.3, "drawstyle": "steps-post"}
                curve = _curve(one["searches"][name], limit, one["lower_bound"])
                if curve is None:
                    axis.plot([], [], label=f"{name}: nothing fits", **style)
                    continue
                knots, low, middle, high = curve
                axis.plot(knots, middle, label=name, **style)
                if len(one["searches"][name]) > 1:
                    axis.fill_between(knots, low, high, step="post", color=colour, alpha=0.12, lw=0)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_ylim(0.7 * FLOOR, 5.0)
            axis.set_xlabel(f"{record['clock']} time (s)" if limit == "seconds" else "evaluations")
        row[0].axvline(record["time_limit"], color="black", lw=0.6)
        row[1].set_xlim(left=100)
        row[0].set_ylabel(f"gap to the proven bound (at least {FLOOR:g})")
        row[0].set_title(f"{one['budget']}, {one['model']}: {one['designs']:.1e} designs")
        row[1].set_title(f"the best design proven within {one['proven']:.2%}")
        row[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _curve(entry: list[dict], limit: str, bound: float) -> tuple[np.ndarray, ...] | None:
    # where anything changes, and least, median and most of the gaps there; what has nothing yet is at the top
    number = 0 if limit == "seconds" else 1
    knots = sorted({step[number] for seed in entry for step in seed["improvements"]})
    if not knots:
        return None
    knots.append(max(*knots, *(seed[("time", "evaluations")[number]] for seed in entry)))
    values = np.array([[at(seed["improvements"], **{limit: x}) for x in knots] for seed in entry])
    curves = np.maximum(values / bound - 1.0, FLOOR)
    middle = np.quantile(curves, 0.5, axis=0, method="higher")
    known = np.where(np.isfinite(middle), middle, np.nan)
    return np.array(knots), curves.min(axis=0), known, np.minimum(curves.max(axis=0), 10.0)


def show(record: dict[str, Any]) -> None:
    """Print the gaps."""
    for one in record["courses"]:
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
    parser = harness.arguments(__doc__ or "")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, choices=["narrow", *budgets.NAMES], metavar="NAME")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=sorted(models.NAMES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--time", type=float, default=10.0, metavar="S", help="of each search")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu where other programs use the machine")
    missing = [package for package, _ in PACKAGES.values() if not find_spec(package)]
    if missing and not parser.parse_args(arguments).smoke:
        parser.error(f"{', '.join(missing)} not installed: only a smoke run does without the extra `race`")
    return harness.run(parser, arguments, answer, show, draw)


if __name__ == "__main__":
    sys.exit(main())
