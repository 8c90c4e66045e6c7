"""Optimisers of other packages as searches of designs: Optuna (TPE), pymoo (mixed-variable GA) and evosax (CMA-ES).

Each is `search(run, seed)`, as those of `watos_jax.baselines.searchers`. They ask for designs in batches, as integers
that are repaired to the nearest candidate, and are imported when they search: the extra `race` installs them.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np

from watos_jax.baselines.searchers import Searcher
from watos_jax.search.genes import GeneSpace
from watos_jax.search.run import Run


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
    """CMA-ES on ranks scaled to 0..1 and rounded, begun anew when nothing changes for 100 generations.

    What it asks for outside is moved to the nearest end before it learns from it: else its mean wanders off.
    """
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
            drawn, state = ask(first, state, settings)
            asked = np.clip(np.asarray(drawn), 0.0, np.float32(1.0 - 1e-6))
            merits = run.merits(np.floor(asked * space.sizes).astype(int))
            state, _ = tell(second, asked, np.asarray(np.minimum(merits, 1e6), np.float32), state, settings)
            best, stalled = min(best, merits.min()), 0 if merits.min() < best else stalled + 1


PACKAGES: dict[str, tuple[str, Searcher]] = {
    "Optuna TPE": ("optuna", optuna_tpe),
    "pymoo GA": ("pymoo", pymoo_ga),
    "evosax CMA-ES": ("evosax", evosax_cma_es),
}
"""By name: the package, the search."""


def _genes(space: GeneSpace) -> list[tuple[str, int]]:
    return list(zip(space.names, space.sizes.tolist(), strict=True))
