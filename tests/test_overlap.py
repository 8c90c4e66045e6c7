"""Communication beside computation, and sharded weights: laws, hand counts, gradients."""

from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from watos_jax import HARD, Smooth, Strategy, estimate, layout
from watos_jax.hardware import Overlap
from watos_jax.presets import chips, models, wafers
from watos_jax.units import GIGA
from watos_jax.waits import exposed
from watos_jax.workload import num_parameters, parameters

EXACT = 5e-6  # relative; loose enough for float32
NODES = chips.cluster(chips.DGX_H100, 4)
MODEL = models.LLAMA3_8B
STRATEGIES = {
    "sharded weights": Strategy(data_parallel=16, optimizer_sharding=3, global_batch_size=32, recompute=7),
    "replicas": Strategy(tensor_cols=2, data_parallel=8, global_batch_size=16),
    "plain gradients": Strategy(data_parallel=8, global_batch_size=8, optimizer_sharding=0),
    "stages": Strategy(tensor_cols=4, pipeline_parallel=8, global_batch_size=16),
    "gpipe": Strategy(tensor_cols=2, pipeline_parallel=8, global_batch_size=16, schedule=1),
    "interleaved": Strategy(pipeline_parallel=4, virtual_stages=4, data_parallel=2, global_batch_size=16),
}
each = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
positive = st.floats(1e-9, 1e3)


def step(strategy, overlap, system=NODES, model=MODEL):
    return float(estimate(replace(system, overlap=overlap), model, strategy).step_time)


def slowed(system, factor):
    """The same machine with every link slower by a factor."""
    tiers = tuple(
        replace(tier, link=replace(tier.link, bandwidth=tier.link.bandwidth / factor)) for tier in system.tiers
    )
    return replace(system, tiers=tiers)


@settings(max_examples=60)
@given(communication=positive, computation=positive, share=st.floats(0.0, 1.0))
def test_two_things_at_once_take_the_longer_at_least_and_the_sum_at_most(communication, computation, share):
    together = computation + float(exposed(communication, share, computation, HARD))
    assert together >= max(communication, computation) * (1.0 - EXACT)
    assert together <= (communication + computation) * (1.0 + EXACT)


@each
def test_more_overlap_is_never_slower_and_never_beats_free_communication(strategy):
    system = slowed(NODES, 4.0)
    times = [step(strategy, Overlap(share, share), system) for share in (0.0, 0.25, 0.5, 1.0)]
    assert times[0] == pytest.approx(step(strategy, None, system), rel=EXACT)
    assert all(later <= sooner * (1.0 + EXACT) for sooner, later in pairwise(times))
    assert times[-1] < times[0]
    assert times[-1] >= step(strategy, None, slowed(NODES, 1e-6)) * (1.0 - EXACT)


@each
def test_the_breakdown_still_adds_up(strategy):
    for overlap in (None, Overlap(1.0, 1.0), Overlap(0.5)):
        result = estimate(replace(NODES, overlap=overlap), MODEL, strategy)
        parts = {name: float(part) for name, part in result.breakdown.items()}
        assert sum(parts.values()) == pytest.approx(float(result.step_time), rel=EXACT)
        assert all(part >= -EXACT * float(result.step_time) for part in parts.values()), parts


def test_a_reduction_that_fits_behind_the_backward_pass_leaves_its_last_layer():
    strategy = Strategy(data_parallel=8, global_batch_size=8, optimizer_sharding=0)
    parts = [
        estimate(replace(NODES, overlap=overlap), MODEL, strategy).breakdown["data_parallel"]
        for overlap in (None, Overlap(1.0))
    ]
    latency = float(NODES.tiers[0].link.latency) * 14  # a ring of eight
    alone, left = (float(part) - latency for part in parts)
    assert left == pytest.approx(alone / float(MODEL.num_layers), rel=0.02)


def test_tensor_collectives_are_exposed_unless_it_is_stated():
    strategy = Strategy(tensor_cols=8, global_batch_size=1)
    plain, independent, stated = (
        float(estimate(replace(NODES, overlap=overlap), MODEL, strategy).breakdown["tensor_parallel"])
        for overlap in (None, Overlap(1.0), Overlap(1.0, 0.5))
    )
    assert independent == pytest.approx(plain, rel=EXACT)
    assert stated < 0.9 * plain


def test_sends_hide_in_steady_state_but_not_in_fill_and_drain():
    system = slowed(NODES, 30.0)
    few, many = (Strategy(pipeline_parallel=4, global_batch_size=batch) for batch in (1, 64))
    assert step(few, Overlap(1.0), system) == pytest.approx(step(few, None, system), rel=0.02)
    gained = step(many, None, system) - step(many, Overlap(1.0), system)
    sent = float(estimate(system, MODEL, many).breakdown["pipeline_parallel"])
    assert gained > 0.9 * sent * 63 / 64


# ---- sharded weights


def test_sharded_weights_by_hand():
    # without overlap: per micro-batch two gatherings of 2 bytes and a scattering of 4, each half an all-reduce; tables
    # are gathered once
    counts = parameters(MODEL, Strategy())
    layers = float(MODEL.num_layers) * float(counts.attention + counts.mlp)
    tables = 2.0 * float(counts.embedding)
    assert layers + tables == pytest.approx(float(num_parameters(MODEL)), rel=EXACT)
    no_latency = replace(
        NODES, tiers=tuple(replace(tier, link=replace(tier.link, latency=0.0)) for tier in NODES.tiers)
    )
    plain, sharded = (
        float(
            estimate(
                no_latency,
                MODEL,
                Strategy(data_parallel=16, global_batch_size=48, optimizer_sharding=level, gradient_bytes=4),
            ).breakdown["data_parallel"]
        )
        for level in (0, 3)
    )
    per_byte = plain / 4.0 / (layers + tables)
    assert sharded == pytest.approx(3 * per_byte * (layers * (1 + 1 + 2) + tables * (1 + 2)), rel=1e-4)


def test_sharded_weights_are_held_once_with_two_layers_gathered():
    model = replace(MODEL, vocab_size=1000)  # logits are no more than a layer
    parts = [
        estimate(NODES, model, Strategy(data_parallel=8, global_batch_size=8, optimizer_sharding=level)).memory_parts
        for level in (0, 3)
    ]
    for part in ("weights", "gradients", "optimizer"):
        whole, share = (float(getattr(one, part)[0]) for one in parts)
        assert share == pytest.approx(whole / 8, rel=EXACT)
    counts = parameters(model, Strategy())
    layer, tables = float(counts.attention + counts.mlp), 2.0 * float(counts.embedding)
    gathered = 2.0 * 7 / 8 * (2.0 * layer + tables) + 4.0 * layer
    assert float(parts[1].working[0] - parts[0].working[0]) == pytest.approx(gathered, rel=EXACT)


def test_llama_8b_fits_one_node_when_its_weights_are_sharded():
    plain, sharded = (
        float(
            np.max(
                estimate(
                    NODES,
                    MODEL,
                    Strategy(data_parallel=8, global_batch_size=8, optimizer_sharding=level, recompute=7),
                ).memory
            )
        )
        for level in (0, 3)
    )
    assert plain > 80 * GIGA > sharded


@pytest.mark.parametrize("relax", [HARD, Smooth(20.0)], ids=["hard", "smooth"])
def test_gradients_are_finite_and_of_the_right_sign(relax):
    strategy = Strategy(tensor_cols=2, pipeline_parallel=2, data_parallel=4, global_batch_size=32, optimizer_sharding=3)
    wafer = replace(wafers.WATOS_CONFIG_3, overlap=Overlap(0.05, 0.03))  # a part stays exposed, so more would help
    placed = layout(wafer, strategy)

    def time(hardware):
        return estimate(hardware, MODEL, strategy, layout=placed, relax=relax).step_time

    slope = jax.grad(time)(wafer)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert float(slope.overlap.independent) < -0.1 and float(slope.overlap.tensor) < -0.1
    assert float(slope.d2d.bandwidth) < 0 and float(slope.die.core.clock) < 0


def test_shares_beyond_one_are_refused():
    with pytest.raises(ValueError, match=r"Overlap\.independent is 1\.5: it must be at least 0, at most 1"):
        Overlap(1.5)


# ---- the context ring


def test_the_context_ring_hides_behind_the_core_of_all_parts_but_the_last():
    strategy = Strategy(context_parallel=4, global_batch_size=4, optimizer_sharding=0)
    slow = replace(NODES, tiers=tuple(replace(tier, link=replace(tier.link, bandwidth=2e9)) for tier in NODES.tiers))
    alone, beside = (
        estimate(replace(slow, overlap=overlap), MODEL, strategy).breakdown for overlap in (None, Overlap())
    )
    assert float(alone["context_parallel"]) > float(alone["attention"])
    hidden = 3 / 4 * float(alone["attention"])
    assert float(alone["context_parallel"] - beside["context_parallel"]) == pytest.approx(hidden, rel=1e-4)
    quick = estimate(replace(NODES, overlap=Overlap()), MODEL, strategy).breakdown
    assert float(quick["context_parallel"]) <= 1e-3 * float(quick["attention"])
