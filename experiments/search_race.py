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
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={CORES}"

import jax  # noqa: E402  (devices are counted when jax starts)
import numpy as np  # noqa: E402

import watos_jax as wj  # noqa: E402
from watos_jax.baselines.searchers import SEARCHERS, Searcher  # noqa: E402
from watos_jax.batch import map_chunks  # noqa: E402
from watos_jax.cli.runtime import CompileClock  # noqa: E402
from watos_jax.presets import budgets  # noqa: E402
from watos_jax.search import lattice  # noqa: E402
from watos_jax.search.bounds import exact_times, tangent  # noqa: E402
from watos_jax.search.candidates import OPTIONS, candidates  # noqa: E402
from watos_jax.search.genes import BLOCKS, REPAIRED, GeneSpace  # noqa: E402
from watos_jax.search.genetic import genetic  # noqa: E402
from watos_jax.search.run import Run  # noqa: E402
from watos_jax.units import GIGA, KIB, MM  # noqa: E402

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


def evosax_cma_es(run: Run, seed: int, *, population: int = 128) -> None:
    """CMA-ES on ranks scaled to 0..1 and rounded, begun anew when nothing changes for 100 generations."""
    from evosax.algorithms import CMA_ES

    space, source = run.space, np.random.default_rng(seed)
    strategy = CMA_ES(population_size=population, solution=np.zeros(len(space.sizes)))
    settings = strategy.default_params.replace(std_init=0.2)
    ask, tell, key = jax.jit(strategy.ask), jax.jit(strategy.tell), jax.random.key(seed)
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
    """All but ours."""
    named = {"genetic": genetic, "Optuna TPE": optuna_tpe, "pymoo GA": pymoo_ga, "evosax CMA-ES": evosax_cma_es}
    return SEARCHERS | named


def race(on: Course, seeds: int, time_limit: float, clock: Callable[[], float], chosen: Sequence[str]) -> dict:
    """Every search with every seed; those that draw nothing once."""
    report: dict[str, list[dict]] = {}
    warm(on.space)
    for name, search in {OURS: partial(co_design, on), **others()}.items():
        if chosen and name not in chosen:
            continue
        if name != OURS:
            search(Run(on.space, max_evaluations=WARM.get(name, WARM_OTHERS)), seeds)
        for seed in range(1 if name in (OURS, "exhaustive") else seeds):
            run = Run(on.space, time_limit=time_limit, clock=clock, spent=0.0 if name == OURS else on.spent)
            with CompileClock() as compiling:
                search(run, seed)
            traces = [run.trace]
            if name != OURS and run.evaluations < EVALUATIONS[0] and name != "exhaustive":
                longer = Run(on.space, time_limit=OVERTIME * time_limit, max_evaluations=EVALUATIONS[0], clock=clock)
                search(longer, seed)
                traces.append(longer.trace)
            report.setdefault(name, []).append(
                {
                    "seed": seed,
                    "compile_time": compiling.time,
                    "evaluations": traces[0].evaluations,
                    "time": traces[0].time,
                    "improvements": replayed(on, traces[0].improvements),
                    "longer": replayed(on, traces[1].improvements) if len(traces) > 1 else None,
                }
            )
            last = report[name][-1]["improvements"]
            found = f"{last[-1][2] / on.design.certificate.lower_bound - 1:.2%}" if last else "nothing that fits"
            print(f"  {name:20} seed {seed}: {found}, {run.evaluations:,} evaluations, {run.time:.1f} s", flush=True)
    return report


def warm(space: GeneSpace) -> None:
    """Compile what all but ours use; each compiles its own with a short run."""
    source = np.random.default_rng(0)
    for count in (*REPAIRED, *(CORES * chunk * calls for chunk, calls in BLOCKS)):
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
    """Gap of one search at the time limit and at each count of evaluations, least, median and most of the seeds.

    None where nothing fitted, or where the search had no time for so many evaluations.
    """
    columns: dict[str, list[float]] = {
        f"{time_limit:g} s": [at(one["improvements"], seconds=time_limit) for one in entry]
    }
    for count in EVALUATIONS:
        reached = [one for one in entry if one["evaluations"] >= count or one["longer"] is not None]
        columns[f"{count:,}"] = [
            at(one["improvements"] if one["longer"] is None else one["longer"], evaluations=count) for one in reached
        ]
    return {name: _spread(np.array(values) / lower_bound - 1.0) for name, values in columns.items()}


def _spread(values: np.ndarray) -> list[float | None]:
    three = np.quantile(values, (0.0, 0.5, 1.0), method="nearest") if len(values) else np.full(3, np.inf)
    return [float(one) if np.isfinite(one) else None for one in three]


def draw(report: dict[str, Any], path: Path) -> None:
    """Median gap over time and over evaluations, a row for each budget and model; the spread of the seeds shaded."""
    import matplotlib.pyplot as plt

    rows = report["courses"]
    figure, axes = plt.subplots(len(rows), 2, figsize=(11, 3.4 * len(rows)), squeeze=False, sharey="row")
    names = [OURS, *others()]
    for row, one in zip(axes, rows, strict=True):
        bound = one["lower_bound"]
        for axis, column in zip(row, (0, 1), strict=True):
            for number, name in enumerate(names):
                entry = one["searches"].get(name, [])
                knots = sorted({step[column] for seed in entry for step in seed["improvements"]})
                if not knots:
                    axis.plot([], [], color=f"C{number}", label=f"{name}: nothing fits")
                    continue
                ends = [seed[("time", "evaluations")[column]] for seed in entry]
                knots = np.array([*knots, max(max(ends), knots[-1])])
                limit = "seconds" if column == 0 else "evaluations"
                curves = np.array([[at(seed["improvements"], **{limit: x}) for x in knots] for seed in entry])
                curves = np.maximum(curves / bound - 1.0, 1e-6)
                style = {"color": f"C{number}", "linewidth": 2.2 if name == OURS else 1.2, "drawstyle": "steps-post"}
                middle = np.quantile(curves, 0.5, axis=0, method="nearest")
                axis.plot(knots, np.where(np.isfinite(middle), middle, np.nan), label=name, **style)
                low, high = curves.min(axis=0), np.where(np.isfinite(curves.max(axis=0)), curves.max(axis=0), 10.0)
                if len(entry) > 1:
                    axis.fill_between(knots, low, high, step="post", color=f"C{number}", alpha=0.12, linewidth=0)
            axis.set_yscale("log")
            axis.set_xscale("log")
            axis.set_ylim(5e-7, 5.0)
            axis.set_xlabel(f"{report['clock']} time, s" if column == 0 else "evaluations")
            axis.grid(alpha=0.3)
        row[0].axvline(report["time_limit"], color="black", linewidth=0.6)
        row[0].set_xlim(0.05, None)
        row[0].set_ylabel("gap to the proven bound")
        row[0].set_title(
            f"{one['budget']}, {one['model']}: {one['designs']:.1e} designs, bound proven to {one['proven']:.1e}"
        )
    axes[0][1].legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    figure.savefig(path)


def show(report: dict[str, Any]) -> None:
    """Print the gaps."""
    for one in report["courses"]:
        print(f"\n{one['budget']}, {one['model']}: {one['candidates']:,} candidates, {one['designs']:.2e} designs;")
        print(f"best known {one['best']:.4f} s per step, proven within {one['proven']:.2e}")
        first = next(iter(one["gaps"].values()))
        print(f"{'median gap (least, most)':24}" + "".join(f"{name:>26}" for name in first))
        for name, columns in one["gaps"].items():
            cells = ["" if c[1] is None else f"{c[1]:.2%} ({c[0]:.2%}, {_percent(c[2])})" for c in columns.values()]
            print(f"{name:24}" + "".join(f"{cell or '-':>26}" for cell in cells))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Race, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, choices=["narrow", *budgets.NAMES], metavar="NAME")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--time", type=float, default=10.0, help="s of each search")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu where other programs use the machine")
    parser.add_argument("--searches", nargs="+", default=(), metavar="NAME", help="some of the searches")
    parser.add_argument("--smoke", action="store_true", help="one narrow budget, one seed, two seconds")
    parser.add_argument("--json", action="store_true", help="print one object and nothing else")
    parser.add_argument("--out", type=Path, help="folder for the figure and the object")
    given = parser.parse_args(arguments)
    if given.smoke:
        given.budgets, given.models, given.seeds, given.time = ("narrow",), ("llama3-70b",), 1, 2.0
    clock = CLOCKS[given.clock]
    report: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {CORES} cores, {len(jax.devices())} devices",
        "clock": given.clock,
        "time_limit": given.time,
        "seeds": given.seeds,
        "courses": [],
    }
    for budget in given.budgets:
        for model in given.models:
            on = course(budget, model, clock, PROOF_TIME)
            proof = on.design.certificate
            if not given.json:
                print(f"{budget}, {model}: proven within {proof.gap:.2e} in {on.design.wall_time:.0f} s", flush=True)
            searches = race(on, given.seeds, given.time, clock, given.searches)
            report["courses"].append(
                {
                    "budget": budget,
                    "model": model,
                    "candidates": len(on.space.candidates),
                    "designs": on.space.num_designs,
                    "enumeration_time": on.spent,
                    "best": proof.value,
                    "lower_bound": proof.lower_bound,
                    "proven": proof.gap,
                    "gaps": {name: gaps(entry, proof.lower_bound, given.time) for name, entry in searches.items()},
                    "searches": searches,
                }
            )
            if given.out:  # after every course, so that what is cut short is not lost
                given.out.mkdir(parents=True, exist_ok=True)
                (given.out / "search_race.json").write_text(json.dumps(report) + "\n")
                draw(report, given.out / "search_race.svg")
    if given.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
