"""Shipping: bytes to the nearest DRAM, against all ways of giving whole bytes out; link loads by hand; on the mesh."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from watos_jax.baselines.joint_shipping import least_joint_step
from watos_jax.estimate import estimate
from watos_jax.network.contention import Network
from watos_jax.network.geometry import Geometry, devices
from watos_jax.presets import chips, models, wafers
from watos_jax.search.central import central
from watos_jax.search.placed import can_place, placed, score
from watos_jax.search.space import Options
from watos_jax.shipping import nearest_first, shipments, shipping_seconds
from watos_jax.strategy import Strategy

LINE = replace(wafers.WATOS_CONFIG_3, die_rows=1, die_cols=4)
RATE, LATENCY = float(LINE.d2d.bandwidth), float(LINE.d2d.latency)
DRAM = 1.0 / float(LINE.die.memory.bandwidth)


def least_by_enumeration(sent, room, hops):
    """Least bytes x hops over all whole shipments."""
    senders, helpers = np.flatnonzero(sent), np.flatnonzero(room)
    ways = [[w for w in product(range(int(sent[s]) + 1), repeat=len(helpers)) if sum(w) == sent[s]] for s in senders]
    costs = []
    for way in product(*ways):
        table = np.array(way)
        if (table.sum(0) <= room[helpers]).all():
            costs.append((table * hops[np.ix_(senders, helpers)]).sum())
    return min(costs)


def test_bytes_times_hops_are_least_and_the_greedy_loses_a_little():
    losses = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        hops = rng.integers(1, 9, (5, 5)).astype(float)
        sent = np.array([*rng.integers(1, 4, 2), 0, 0, 0], float)
        room = np.array([0, 0, *rng.integers(1, 4, 3)], float)
        if sent.sum() > room.sum():
            with pytest.raises(ValueError, match=r"sent is .* it must be at most the room of helpers"):
                shipments(sent, room, hops)
            continue
        exact, greedy = (way(sent, room, hops) for way in (shipments, nearest_first))
        for shipped in (exact, greedy):
            assert shipped.sum(1) == pytest.approx(sent) and (shipped.sum(0) <= room + 1e-6).all()
        least = least_by_enumeration(sent, room, hops)
        assert (exact * hops).sum() == pytest.approx(least, rel=1e-6)
        losses.append((greedy * hops).sum() / least - 1.0)
    assert len(losses) > 20 and min(losses) > -1e-6 and 0.0 < np.mean(losses) < 0.2


def seconds(shipped, in_flight=(4.0, 3.0, 2.0, 1.0)):
    network, geometry = Network.of(LINE), Geometry(1, 1, 4)
    return shipping_seconds(LINE.system, network, devices(network, geometry), shipped, np.array(in_flight))


def test_a_sender_waits_for_its_link_and_a_helper_for_its_dram(eps):
    shipped = np.zeros((4, 4))
    shipped[0, 3] = 3e9
    away, back = seconds(shipped)
    each = 1e9  # of four micro-batches in flight three are away in part
    assert away == pytest.approx([each / RATE + 3 * LATENCY, 0, 0, each * DRAM], rel=1e3 * eps)
    assert back == pytest.approx(away)


def test_senders_share_the_links_that_both_take(eps):
    shipped = np.zeros((4, 4))
    shipped[0, 3], shipped[1, 3] = 3e9, 2e9  # 1 GB each per micro-batch, both over the links 1-2 and 2-3
    away, _ = seconds(shipped)
    assert away[:2] == pytest.approx([2e9 / RATE + 3 * LATENCY, 2e9 / RATE + 2 * LATENCY], rel=1e3 * eps)
    assert away[3] == pytest.approx(2e9 * DRAM, rel=1e3 * eps)
    shipped[1, 3], shipped[1, 0], shipped[0, 3] = 0.0, 2e9, 3e9  # one to the left, one to the right: no link shared
    away, _ = seconds(shipped)
    assert away[1] == pytest.approx(1e9 / RATE + LATENCY, rel=1e3 * eps)


def test_nothing_shipped_takes_nothing():
    away, back = seconds(np.zeros((4, 4)))
    assert not away.any() and not back.any()


MODEL = replace(models.LLAMA2_7B, num_layers=6)
SLOW = replace(wafers.WATOS_CONFIG_3.d2d, bandwidth=20e9)


def small_mesh(rows, cols):
    """Dies with slow links, so that ways matter."""
    return replace(wafers.WATOS_CONFIG_3, die_rows=rows, die_cols=cols, d2d=SLOW)


@pytest.fixture(scope="module", params=[(2, 2, 4), (1, 4, 3)], ids=str)
def scored(request):
    """A strategy whose first stage keeps 4 GB at the last, placed, and on every order of a small mesh."""
    rows, cols, stages = request.param
    machine, strategy = (
        small_mesh(rows, cols),
        Strategy(pipeline_parallel=stages, global_batch_size=8, recompute=np.zeros(stages)),
    )
    sent, room = np.zeros(stages), np.zeros(stages)
    sent[0], room[-1] = 4e9, 5e9
    orders = permutations(range(rows * cols), stages)
    every = [score(machine, MODEL, strategy, np.array(order), sent, room) for order in orders]
    return machine, placed(machine, MODEL, strategy, sent, room), every


def test_placing_finds_the_least_step_time_of_all_orders(scored):
    _, found, every = scored
    times = np.array([float(one.step_time) for one in every])
    serpentine = next(one for one in every if one.order.tolist() == list(range(len(one.order))))
    assert times.min() <= float(serpentine.step_time) < times.max()
    assert float(found.step_time) <= times.min() * 1.0005
    assert found.sent[0] == found.held[-1] == pytest.approx(4e9)


def test_step_time_is_the_estimates_with_shipping_on_top(scored):
    machine, found, _ = scored
    plain = estimate(machine, MODEL, found.strategy, layout=found.layout)
    assert float(found.estimate.step_time) == pytest.approx(float(plain.step_time))
    assert float(found.step_time) > float(plain.step_time) * 1.01
    tokens = 8 * float(MODEL.sequence_length)
    assert float(found.tokens_per_second) * float(found.step_time) == pytest.approx(tokens, rel=1e-5)


def test_switches_and_single_groups_have_no_order():
    assert not can_place(chips.DGX_A100, Strategy(pipeline_parallel=8, global_batch_size=8))
    assert not can_place(small_mesh(2, 3), Strategy(tensor_rows=2, tensor_cols=3))
    assert can_place(small_mesh(2, 3), Strategy(pipeline_parallel=6, global_batch_size=8))


@pytest.mark.slow
def test_choosing_all_at_once_is_never_slower_and_little_faster_than_one_after_the_other():
    machine = replace(small_mesh(2, 2), d2d=replace(SLOW, bandwidth=0.5e12))
    model = replace(models.LLAMA2_7B, num_layers=9, num_attention_heads=31, num_kv_heads=31)
    strategy = Strategy(pipeline_parallel=3, global_batch_size=17, optimizer_sharding=0)
    memory = replace(machine.die.memory, stack_bytes=8e9)  # 16 GB a die
    machine = replace(machine, die=replace(machine.die, memory=memory))
    options = Options(
        global_batch_size=17,
        micro_batch_sizes=1,
        virtual_stages=1,
        context_parallel=1,
        sequence_parallel=1,
        optimizer_sharding=0,
        max_pipeline=3,
        least_use=0.75,
    )
    phases = central(machine, model, options=options).best[0]
    joint = least_joint_step(machine, model, strategy)
    assert joint.scored > 50 and (joint.shipped.any() or phases.sent.any())
    assert joint.step_time <= float(phases.step_time) * (1 + 1e-9)
    assert float(phases.step_time) <= joint.step_time * 1.05
    # the same way scored by the schedule's own function
    level = replace(strategy, recompute=joint.level)
    room = 16e9 - np.asarray(estimate(machine, model, level).memory)[:3]
    again = score(machine, model, level, joint.order, np.maximum(-room, 0.0), joint.shipped.sum(axis=0))
    assert float(again.step_time) <= joint.step_time * (1 + 1e-6)
