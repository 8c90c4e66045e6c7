"""The relaxed hardware problem against a geometric program that shares no formula with the library."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import pytest

import watos_jax as wj
from watos_jax.batch import map_chunks
from watos_jax.presets import budgets, models
from watos_jax.search import lattice
from watos_jax.search.descend import Candidate, Point, Shared, descend
from watos_jax.search.objective import STEP_TIME
from watos_jax.search.relaxed import Relaxed, relaxed_optimum

cp = pytest.importorskip("cvxpy")
from geometric_program import Program  # noqa: E402

BASE = budgets.DEFAULT


def limited(**limits):
    """The default budget with other limits of the wafer."""
    return replace(BASE, wafer=replace(BASE.wafer, **limits))


class Case(NamedTuple):
    """A strategy on a grid; the limits that must bind at its optimum, so that the case is about them."""

    budget: wj.Budget
    model: wj.Transformer
    strategy: wj.Strategy
    grid: tuple[int, int]
    sides: tuple[int, int]
    stacks: float
    binding: set[str]


LLAMA_70B = wj.Strategy(tensor_rows=2, tensor_cols=2, pipeline_parallel=6, context_parallel=2, global_batch_size=512)
CASES = {
    "window": Case(BASE, models.LLAMA3_70B, LLAMA_70B, (6, 8), (0, 1), 2.0, {"die_area", "window_area"}),
    "power": Case(limited(power_limit=14e3), models.LLAMA3_70B, LLAMA_70B, (6, 8), (0, 1), 2.0, {"die_area", "power"}),
    "density": Case(
        limited(power_density_limit=0.5e6),
        models.LLAMA2_7B,
        wj.Strategy(tensor_rows=4, pipeline_parallel=7, global_batch_size=64, recompute=5, optimizer_sharding=2),
        (4, 7),
        (0, 2),
        4.0,
        {"power_density"},
    ),
    "edges": Case(
        BASE,
        models.LLAMA2_7B,
        wj.Strategy(tensor_cols=8, pipeline_parallel=5, global_batch_size=64, recompute=4, micro_batch_size=2),
        (5, 8),
        (1, 0),
        3.0,
        {"stacks_horizontal", "reticle"},
    ),
    "repeated": Case(
        BASE,
        models.LLAMA3_8B,
        wj.Strategy(
            tensor_rows=2,
            tensor_cols=2,
            pipeline_parallel=4,
            data_parallel=2,
            global_batch_size=64,
            recompute=7,
            sequence_parallel=0,
            optimizer_sharding=0,
        ),
        (5, 8),
        (0, 2),
        2.0,
        {"die_area"},
    ),
}
QUICK = ("window", "power", "edges")


def relaxed_problem(case):
    return Relaxed(case.budget, case.model, case.strategy, case.grid, case.sides)


def solved(case):
    guess = lattice.first_guesses(case.budget, *case.grid, case.sides)[0]
    start = replace(lattice.from_array(guess), dram_stacks=case.stacks)
    return relaxed_optimum(relaxed_problem(case), start)


def estimated(case, knobs):
    return wj.estimate(relaxed_problem(case).build(knobs), case.model, case.strategy)


@pytest.mark.float64
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CASES]
)
def test_the_relaxed_optimum_is_that_of_a_geometric_program(name):
    case = CASES[name]
    ours = solved(case)
    program = Program(relaxed_problem(case), case.stacks)
    witness = program.solve(upright=ours.knobs.die_width <= ours.knobs.die_height)
    # no time is added to spread the energy: the program is the problem, not a relaxation of it
    assert witness.slack < 1e-6
    assert ours.value == pytest.approx(witness.value, rel=1e-4)
    # the hard model at our knobs and at theirs
    exact = estimated(case, ours.knobs)
    assert float(exact.step_time) == pytest.approx(witness.value, rel=1e-5)
    theirs = replace(ours.knobs, **witness.knobs)
    there = estimated(case, theirs)
    assert float(there.step_time) == pytest.approx(witness.value, rel=1e-6)
    for answer in (exact, there):
        assert min(float(margin) for margin in answer.margins.values()) > -1e-5
    assert case.binding <= {name for name, margin in there.margins.items() if float(margin) < 1e-5}
    # rows and columns of cores, SRAM to spare, and the clock at the least voltage are not unique
    here, other = (relaxed_problem(case).build(knobs) for knobs in (ours.knobs, theirs))
    for of in (lambda w: w.d2d.bandwidth, lambda w: w.die.width, lambda w: w.die.height, lambda w: w.die.flop_rate):
        assert float(of(here)) == pytest.approx(float(of(other)), rel=1e-3)


@pytest.mark.float64
def test_what_no_geometric_program_can_hold_is_noticed():
    """Its guard can fail: mean power as energy over time is no posynomial."""
    case = CASES["window"]
    program = Program(relaxed_problem(case), case.stacks)
    problem = program.problem(upright=False)
    assert problem.is_dgp()
    power = program.joules / program.seconds
    assert not cp.Problem(problem.objective, [*problem.constraints, power <= case.budget.wafer.power_limit]).is_dgp()


@pytest.mark.slow
@pytest.mark.float64
@pytest.mark.parametrize("name", [name for name in CASES if name != "density"])
def test_descent_comes_near_the_optimum_of_the_geometric_program(name):
    """Within 0.2 %, for it ends after a fixed number of steps; in the case left out it still exceeds a limit by 2.5 %.

    `codesign` rounds what it reaches and goes on from there by the hard model.
    """
    case = CASES[name]
    wafer = relaxed_problem(case).build(case.budget.low)
    placed = wj.layout(wafer, case.strategy, max_stages=8)
    budget = replace(
        case.budget,
        low=replace(case.budget.low, dram_stacks=case.stacks),
        high=replace(case.budget.high, dram_stacks=case.stacks),
    )
    table = Shared(budget, case.model, STEP_TIME, _stacked(placed, 1))
    guesses = lattice.first_guesses(budget, *case.grid, case.sides)
    count = len(guesses)
    place = (np.full(count, float(part)) for part in (*case.grid, *case.sides))
    candidate = Candidate(*place, _stacked(case.strategy, count), np.zeros(count, np.int32))
    knobs, reached = map_chunks(descend, table, Point(candidate, guesses), chunk=8, chunks_per_call=1)
    best = np.where(reached.excess < 2e-3, reached.value, np.inf).argmin()
    reached_knobs = lattice.from_array(knobs[best])
    program = Program(relaxed_problem(case), case.stacks)
    witness = program.solve(upright=reached_knobs.die_width <= reached_knobs.die_height)
    assert reached.excess[best] < 2e-3
    assert reached.value[best] == pytest.approx(witness.value, rel=2e-3)


def _stacked(tree, count):
    return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf, float)[None], count, axis=0), tree)
