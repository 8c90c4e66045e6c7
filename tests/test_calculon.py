"""Calculon's training time and memory, put together from our public functions: each term agrees to 0.1 %.

`data/calculon.csv` is eleven runs of Calculon (Isaev, McDonald, Dennison, Vuduc, "Calculon: a methodology and tool for
high-level co-design of systems and large language models", SC 2023; calculon-ai/calculon at caa4b11): a layer on one
GPU, tensor, sequence, pipeline and data parallelism one by one (A1 to A7), and trillion-parameter runs on
wafer-like nodes (E1 to E4).
"""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from watos_jax import Efficiency, Strategy, layout
from watos_jax.baselines import calculon
from watos_jax.hardware import Link, System, Tier
from watos_jax.network.times import slope_and_latency
from watos_jax.presets.chips import DGX_A100
from watos_jax.strategy import RECOMPUTE_LEVELS

AGREEMENT = 1e-3
TEXT = ("point", "recompute")
with open(Path(__file__).parent / "data" / "calculon.csv", newline="") as file:
    POINTS = [{name: x if name in TEXT else float(x) for name, x in row.items()} for row in csv.DictReader(file)]
each_point = pytest.mark.parametrize("point", POINTS, ids=[point["point"] for point in POINTS])


def slope(members, kind):
    """Bytes that an all-reduce over one kind of group sends per byte, alone behind a switch."""
    tier = Tier(rows=1, cols=members, link=Link(bandwidth=1.0), fabric="switch")
    strategies = {
        "tensor": Strategy(tensor_cols=members),
        "data": Strategy(data_parallel=members, global_batch_size=members),
    }
    system = System(die=DGX_A100.die, tiers=(tier,), technology=DGX_A100.technology)
    collective = jax.tree.map(jnp.asarray, getattr(layout(system, strategies[kind]), kind))
    return float(slope_and_latency(system, Efficiency(), collective)[0])


def run_of(point):
    own = {name: point[name] for name in calculon.Point._fields if name in point}
    own |= {f"{kind}_slope": slope(point[kind], kind) for kind in ("tensor", "data")}
    return calculon.Point(**own | {"recompute": float(RECOMPUTE_LEVELS.index(point["recompute"]))})


@pytest.fixture(scope="module")
def terms():
    """All terms of any run, compiled once."""
    both = jax.jit(lambda run: (calculon.times(run), calculon.memory(run)))
    return lambda point: both(run_of(point))


def disagreements(found, point):
    return {
        name: (float(value), point[name])
        for name, value in found.items()
        if float(value) != pytest.approx(point[name], rel=AGREEMENT, abs=1e-12)
    }


@pytest.mark.float64  # the bubble is a difference of two long times
@each_point
def test_every_term_of_the_step_time_agrees(point, terms):
    assert not disagreements(terms(point)[0], point)


@each_point
def test_every_term_of_the_memory_agrees(point, terms):
    assert not disagreements(terms(point)[1], point)


def test_a_wrong_figure_is_noticed(terms):
    point = next(point for point in POINTS if point["point"] == "E2")
    found = terms(point)
    for name in ("bubble_time", "act_space"):
        wrong = point | {name: 1.002 * point[name]}
        assert name in disagreements(found[0] | found[1], wrong)
