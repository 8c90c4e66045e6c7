"""Faults: the whole wafer where nothing is lost, detours against a search of its own, packings, who takes over."""

import json
from collections import deque
from dataclasses import replace
from itertools import product

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watos_jax.cli import main
from watos_jax.estimate import estimate
from watos_jax.faults import Faults, Pace, damaged, draw, no_faults, paces, slowed, taken_over
from watos_jax.network.contention import Network
from watos_jax.network.detours import Damage, routes
from watos_jax.network.geometry import Geometry, devices, misfit, num_rectangles, rectangles
from watos_jax.network.layout import layout_of
from watos_jax.network.tiling import corners, usable
from watos_jax.network.topology import Fabric, hops, link_loads
from watos_jax.presets import models, wafers
from watos_jax.search.draws import DrawPlan, plan_for_draws, study_draws
from watos_jax.search.plan import plan
from watos_jax.search.robust import naive, orders_on, robust, survivor, ways_left
from watos_jax.search.space import Options, strategies
from watos_jax.strategy import Strategy

SIDES = st.tuples(st.integers(1, 4), st.integers(1, 5))


def wafer(rows, cols):
    return replace(wafers.WATOS_CONFIG_3, die_rows=rows, die_cols=cols)


def dead(machine, *dies):
    cores = np.ones(int(machine.num_dies))
    cores[list(dies)] = 0.0
    return replace(no_faults(machine), cores=cores.reshape(int(machine.die_rows), int(machine.die_cols)))


MODEL = replace(models.LLAMA2_7B, num_layers=8)
SMALL = wafer(2, 4)
FEW = Options(
    global_batch_size=16,
    micro_batch_sizes=1,
    virtual_stages=1,
    context_parallel=1,
    sequence_parallel=1,
    optimizer_sharding=0,
    recompute=("none", "full"),
)


def joined(rows, cols, links):
    """Neighbours of every node over living links."""
    left = np.reshape(links, (2, rows, cols))
    beside = {node: set() for node in range(rows * cols)}
    for row, col in product(range(rows), range(cols)):
        for axis, (down, right) in enumerate(((0, 1), (1, 0))):
            if row + down < rows and col + right < cols and left[axis, row, col] > 0:
                a, b = row * cols + col, (row + down) * cols + col + right
                beside[a].add(b)
                beside[b].add(a)
    return beside


def distances(beside, start):
    """Breadth-first search."""
    found, queue = {start: 0}, deque([start])
    while queue:
        here = queue.popleft()
        for there in beside[here] - found.keys():
            found[there] = found[here] + 1
            queue.append(there)
    return found


def random_links(rows, cols, share, seed):
    return (np.random.default_rng(seed).random(2 * rows * cols) >= share).astype(float)


# detours


@given(sides=SIDES, share=st.sampled_from((0.1, 0.3, 0.6)), seed=st.integers(0, 999))
def test_detours_are_as_short_as_a_breadth_first_search_finds(sides, share, seed):
    rows, cols = sides
    links = random_links(rows, cols, share, seed)
    ways, beside = routes(rows, cols, tuple(links.tolist())), joined(rows, cols, links)
    for start in range(rows * cols):
        near = distances(beside, start)
        assert ways.hops[start].tolist() == [near.get(node, -1) for node in range(rows * cols)]


def ends_of(rows, cols, number):
    """Nodes at both ends of a directed link by its number."""
    nodes = rows * cols
    axis, rest = divmod(number, 2 * nodes)
    back, place = divmod(rest, nodes)
    line, position = divmod(place, rows if axis else cols)
    pair = [(position + i) * cols + line if axis else line * cols + position + i for i in (0, 1)]
    return pair[::-1] if back else pair


@given(sides=SIDES, share=st.sampled_from((0.0, 0.2, 0.5)), seed=st.integers(0, 999))
def test_every_route_is_a_chain_of_living_links(sides, share, seed):
    rows, cols = sides
    links = random_links(rows, cols, share, seed)
    ways, beside = routes(rows, cols, tuple(links.tolist())), joined(rows, cols, links)
    for source, target in product(range(rows * cols), repeat=2):
        chain = [n for n in ways.links[source, target].tolist() if n < 4 * rows * cols]
        assert len(chain) == max(ways.hops[source, target], 0)
        here = source
        for number in chain:
            start, here_next = ends_of(rows, cols, number)
            assert start == here and here_next in beside[start]
            here = here_next
        assert not chain or here == target


@given(sides=SIDES, seed=st.integers(0, 999))
@settings(max_examples=25)
def test_damage_without_a_dead_link_is_the_whole_mesh(sides, seed):
    rows, cols = sides
    whole, same = Fabric("mesh", rows, cols), Fabric("mesh", rows, cols, Damage((1.0,) * (2 * rows * cols)))
    rng = np.random.default_rng(seed)
    source, target, weight = *rng.integers(0, rows * cols, (2, 30)), rng.random(30)
    assert (hops(whole, source, target) == hops(same, source, target)).all()
    np.testing.assert_allclose(
        link_loads(whole, source, target, weight), link_loads(same, source, target, weight), atol=1e-12
    )
    for height, width in product(range(1, rows + 1), range(1, cols + 1)):
        shape = Geometry(height, width)
        assert rectangles(Network((whole,)), shape).tolist() == rectangles(Network((same,)), shape).tolist()


@pytest.mark.parametrize("geometry", [Geometry(1, 4, 14), Geometry(2, 2, 6, 2), Geometry(1, 2, 3, 2, 2, 4, True)])
def test_layouts_of_damage_without_a_dead_link_are_those_of_the_whole_mesh(geometry, eps):
    damage = Damage((1.0,) * 112)
    fine, same = (layout_of(Network((Fabric("mesh", 7, 8, one),)), geometry) for one in (None, damage))
    for a, b in zip(jax.tree.leaves(fine), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=8 * eps)


def test_a_dead_link_is_gone_round_and_a_narrow_one_takes_longer():
    links = np.ones((2, 2, 3))
    links[0, 0, 0] = 0.0
    loads = link_loads(Fabric("mesh", 2, 3, Damage(tuple(links.ravel()))), np.array([0]), np.array([1]))
    assert loads.sum() == 3  # down, along and up
    links[0, 0, 0] = 0.25
    loads = link_loads(Fabric("mesh", 2, 3, Damage(tuple(links.ravel()))), np.array([0]), np.array([1]))
    assert loads.sum() == loads[0, 0, 0] == 4.0


@given(seed=st.integers(0, 99), fewer=st.floats(0.0, 0.3), more=st.floats(0.0, 0.3))
@settings(max_examples=30)
def test_more_faults_never_shorten_a_way_nor_leave_room_for_more_rectangles(seed, fewer, more):
    machine = wafer(5, 6)
    small, large = (draw(machine, dies=x, links=x, seed=seed) for x in (fewer, fewer + more))
    assert small.within(large)
    few, many = (routes(5, 6, one.links).hops for one in (small, large))
    kept = many >= 0
    assert (few[kept] >= 0).all() and (few[kept] <= many[kept]).all()
    for shape in ((1, 1), (1, 3), (2, 2)):
        for sound in (False, True):
            counts = [num_rectangles(damaged(machine, one, sound=sound), Geometry(*shape)) for one in (small, large)]
            assert counts[0] >= counts[1]


# rectangles on what is left


def most_by_trying(free, shape, cols):
    """Largest packing by trying every place of the first free die, or leaving it."""
    rows = len(free) // cols
    if not any(free):
        return 0
    first = free.index(True)
    row, col = divmod(first, cols)
    rest = list(free)
    rest[first] = False
    best = most_by_trying(rest, shape, cols)
    if row + shape[0] <= rows and col + shape[1] <= cols:
        dies = [(row + i) * cols + col + j for i in range(shape[0]) for j in range(shape[1])]
        if all(free[die] for die in dies):
            left = [alive and die not in dies for die, alive in enumerate(free)]
            best = max(best, 1 + most_by_trying(left, shape, cols))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 2)])
def test_as_many_rectangles_as_any_packing(seed, shape):
    rows, cols = 4, 4
    faults = draw(wafer(rows, cols), dies=0.2, seed=seed)
    fabric = damaged(wafer(rows, cols), faults).fabrics[0]
    free = [die in usable(fabric) for die in range(rows * cols)]
    found = rectangles(Network((fabric,)), Geometry(*shape))
    assert len(found) == most_by_trying(free, shape, cols)
    assert len(set(found.ravel().tolist())) == found.size and all(free[die] for die in found.ravel())


def test_sound_rectangles_have_no_dead_link_inside_and_others_as_few_as_possible():
    machine = wafer(2, 4)
    east = np.ones((2, 4))
    east[0, 0] = 0.0
    faults = replace(no_faults(machine), east=east)
    loose, sound = (damaged(machine, faults, sound=x) for x in (False, True))
    assert corners(loose.fabrics[0], 1, 2) == (0, 2, 6, 4)
    assert corners(sound.fabrics[0], 1, 2) == (2, 6, 4)
    assert corners(loose.fabrics[0], 2, 2) == (0, 2) and corners(sound.fabrics[0], 2, 2) == (2,)
    assert corners(sound.fabrics[0], 1, 3) == (1, 4) == corners(loose.fabrics[0], 1, 3)


def test_dies_that_are_cut_off_take_no_work_and_the_reason_is_named():
    faults = dead(SMALL, 1, 3, 5)  # two dies to the left, three in a corner and a row to the right
    network = damaged(SMALL, faults)
    assert usable(network.fabrics[0]) == (2, 6, 7)
    rule = "the strategy needs 4 dies: it must need at most the 3 that live and are joined"
    assert misfit(network, Geometry(1, 1, 4)) == rule
    assert "at most the 0 that tile the living dies" in misfit(network, Geometry(1, 3))
    with pytest.raises(ValueError, match="dies 0 and 2 must talk: no living links join them"):
        hops(network.fabrics[0], np.array([0]), np.array([2]))
    gone = robust(SMALL, MODEL, dead(SMALL, *range(8)), options=FEW)
    assert gone.best is None and gone.reasons == ("no die lives",)


@pytest.mark.slow
def test_where_nothing_fits_what_is_left_the_limit_is_named():
    faults = dead(SMALL, 1, 3, 5)
    nothing = robust(SMALL, replace(models.GPT3_175B, num_layers=8), faults, options=FEW)
    assert nothing.best is None and nothing.tokens_per_second == 0.0 and nothing.usable == 3
    assert "on 3 dies none fits: memory" in nothing.reasons[0]


# draws


def test_draws_are_seeded_whole_numbers_and_nested():
    machine = wafer(7, 8)
    some = draw(machine, dies=0.1, links=0.2, harvested=0.25, seed=3)
    assert some.num_dead_dies == round(0.1 * 56)
    assert draw(machine, links=0.2, seed=3).num_dead_links == round(0.2 * 97)
    assert (some.cores == 0.75).sum() + ((some.cores == 0.0) & (some.memory < 1.0)).sum() == 14
    assert jax.tree.all(jax.tree.map(np.array_equal, some, draw(machine, dies=0.1, links=0.2, harvested=0.25, seed=3)))
    assert not np.array_equal(some.cores, draw(machine, dies=0.1, links=0.2, harvested=0.25, seed=4).cores)
    assert some.within(draw(machine, dies=0.3, links=0.2, harvested=0.25, seed=3))
    assert no_faults(machine).within(some) and not some.within(no_faults(machine))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: draw(wafer(2, 2), dies=1.5), "draw.dies is 1.5: it must be at least 0, at most 1"),
        (lambda: draw(wafer(2, 2), left=0.0), "draw.left is 0: it must be above 0, at most 1"),
        (
            lambda: Faults(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 2))),
            "Faults.east has shape (2, 3): it must be (rows, cols), that of cores",
        ),
        (
            lambda: damaged(wafer(2, 3), no_faults(wafer(2, 2))),
            "faults are of (2, 2) dies: the wafer has (2, 3)",
        ),
    ],
)
def test_bad_faults_are_refused(call, sentence):
    with pytest.raises(ValueError) as error:
        call()
    assert sentence in str(error.value)


# who takes over


def test_spares_take_over_first_then_the_group_then_neighbours():
    machine = wafer(2, 4)
    geometry = Geometry(1, 2, 3)  # dies 0 1 | 2 3 | 6 7; 4 and 5 idle
    held = devices(Network.of(machine), geometry)
    network, load = taken_over(machine, dead(machine, 1), held)
    assert devices(network, geometry).ravel().tolist() == [0, 5, 2, 3, 6, 7] and load.max() == 1.0
    network, load = taken_over(machine, dead(machine, 3, 4, 5), held)  # no spare left
    assert devices(network, geometry).ravel().tolist() == [0, 1, 2, 2, 6, 7]
    assert load.tolist() == [[1.0, 1.0, 2.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    assert layout_of(network, geometry).tensor.volume[0] > 0.0  # the others still talk
    network, load = taken_over(machine, dead(machine, 0, 1, 5), held)  # a whole group dead, and die 4 cut off
    assert devices(network, geometry).ravel().tolist() == [2, 3, 2, 3, 6, 7]
    assert load.tolist() == [[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]]
    wide = Geometry(1, 4, 2)
    _, load = taken_over(machine, dead(machine, 3), devices(Network.of(machine), wide))
    assert load.ravel()[:4].tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 3, 0.0])


def test_a_stage_goes_at_the_pace_of_its_weakest_die():
    machine = wafer(2, 4)
    held = devices(Network.of(machine), Geometry(1, 2, 2, 2))
    faults = draw(machine, harvested=0.13, left=0.5, seed=0)
    weak = int(np.flatnonzero(faults.cores.ravel() == 0.5)[0])
    found = paces(faults, held, np.ones((2, 4)))
    assert [pace == Pace(0.5, 0.5, 1.0) for pace in found] == [weak in held[:, stage] for stage in range(2)]
    die = slowed(machine, Pace(0.5, 0.5, 2.0)).die
    assert float(die.flop_rate) == pytest.approx(float(machine.die.flop_rate) / 4)
    assert float(die.memory.bandwidth) == pytest.approx(float(machine.die.memory.bandwidth) / 4)
    assert float(die.memory.capacity) == pytest.approx(float(machine.die.memory.capacity) / 4)
    assert slowed(machine, Pace()) is machine


# step times


@pytest.fixture(scope="module")
def whole():
    return plan(SMALL, MODEL, options=FEW, top=1).best[0]


def test_without_faults_both_are_the_plain_model_to_the_last_bit(whole):
    time = float(whole.estimate.step_time)
    assert float(robust(SMALL, MODEL, no_faults(SMALL), options=FEW).best.step_time) == time
    assert float(naive(SMALL, MODEL, whole.strategy, no_faults(SMALL)).step_time) == time


def test_a_die_that_does_two_dies_work_makes_its_stage_take_twice_as_long():
    strategy = Strategy(pipeline_parallel=8, global_batch_size=64, recompute=0)
    plain = estimate(SMALL, MODEL, strategy, layout=layout_of(Network.of(SMALL), Geometry.of(strategy)))
    found = naive(SMALL, MODEL, strategy, dead(SMALL, 4))  # the last stage, with the LM head, the slowest
    operators = float(sum(plain.breakdown[name] for name in ("matmul", "attention", "elementwise")))
    assert float(found.step_time) > float(plain.step_time) + 0.95 * operators
    assert float(found.step_time) < 2.1 * float(plain.step_time)


def test_robust_is_no_slower_than_naive_and_weak_dies_slow_the_wafer(whole):
    full = float(whole.estimate.tokens_per_second)
    for faults in (dead(SMALL, 2), dead(SMALL, 1, 6), draw(SMALL, harvested=0.4, left=0.5, seed=1)):
        new, old = robust(SMALL, MODEL, faults, options=FEW), naive(SMALL, MODEL, whole.strategy, faults)
        assert old.tokens_per_second <= new.tokens_per_second * (1 + 1e-6) and new.tokens_per_second < full
        assert not set(new.best.dies.ravel().tolist()) & set(np.flatnonzero(faults.cores == 0.0).tolist())


def test_each_stage_at_its_own_pace_is_between_all_fast_and_all_slow(whole):
    strategy = Strategy(pipeline_parallel=8, global_batch_size=16)
    faults = draw(SMALL, harvested=0.3, left=0.5, seed=2)
    mixed = survivor(SMALL, MODEL, strategy, faults, Network.of(SMALL))
    built = layout_of(Network.of(SMALL), Geometry.of(strategy))
    fast, slow = (
        float(estimate(slowed(SMALL, pace), MODEL, strategy, layout=built).step_time)
        for pace in (Pace(), Pace(0.5, 0.5))
    )
    assert fast < float(mixed.step_time) < slow
    assert float(mixed.estimate.step_time) == slow


# one plan for many draws

GRID = wafer(2, 3)
LAYERS = replace(models.LLAMA2_7B, num_layers=6)
PLAIN = replace(FEW, global_batch_size=12, recompute="none")


@pytest.fixture(scope="module")
def drawn():
    """Another die and another link are dead; the second draw is twice as likely."""
    one, other = (draw(GRID, dies=1 / 6, links=1 / 7, seed=seed) for seed in (1, 3))
    return [one, other, other]


@pytest.fixture(scope="module")
def tried(drawn):
    """Step times of every strategy of the wafer in every draw: all ways and orders, and with its places kept."""
    space, found = strategies(GRID, LAYERS, PLAIN), {}
    for row in range(len(space)):
        strategy = space.strategy(row)
        geometry, times = Geometry.of(strategy), []
        for faults in drawn[:2]:
            every = [naive(GRID, LAYERS, strategy, faults)]
            for network, _ in ways_left(GRID, faults):
                if misfit(network, geometry) is None:
                    orders = orders_on(network, geometry)
                    every += [survivor(GRID, LAYERS, strategy, faults, network, order=o, max_stages=8) for o in orders]
            times.append(min(float(one.step_time) for one in every))
        found[row] = [times[0], times[1], times[1]]
    return np.array(list(found.values())), space


@pytest.mark.parametrize("objective", ["worst", "mean"])
def test_one_plan_for_all_draws_is_the_best_that_trying_every_strategy_finds(drawn, tried, objective, eps):
    times, space = tried
    values = times.max(axis=1) if objective == "worst" else times.mean(axis=1)
    best = int(values.argmin())
    found = plan_for_draws(GRID, LAYERS, drawn, options=PLAIN, objective=objective)
    assert found.value == pytest.approx(float(values[best]), rel=64 * eps)
    np.testing.assert_allclose(found.step_times, times[best], rtol=64 * eps)
    assert jax.tree.leaves(found.strategy) == jax.tree.leaves(space.strategy(best))
    # what is best for one draw is best neither for the other nor for the worst of both
    if objective == "worst":
        assert all(values[times[:, one].argmin()] > 1.005 * values[best] for one in (0, 1))
    else:
        assert times.max(axis=1)[best] > 1.005 * times.max(axis=1).min()


@pytest.fixture(scope="module")
def studied(drawn):
    return study_draws(GRID, LAYERS, drawn[:2], options=PLAIN)


def test_who_knows_the_draw_is_no_slower_and_who_keeps_its_plan_no_quicker(studied):
    times = studied.step_times
    assert (times["robust"] <= times["one_plan"]).all() and (times["robust"] <= times["naive"]).all()
    assert times["one_plan"].max() <= times["naive"].max() and times["robust"].max() < times["one_plan"].max()
    assert float(studied.whole.estimate.step_time) < times["robust"].min()


def test_where_no_strategy_fits_every_draw_there_is_no_plan(drawn):
    large = replace(models.GPT3_175B, num_layers=24)
    found = plan_for_draws(GRID, large, drawn[:1], options=PLAIN)
    assert found.strategy is None and found.value == np.inf and found.feasible == 0 < found.evaluated
    with pytest.raises(ValueError, match=r"none of \d+ strategies fits the wafer without faults: memory \(\d+\)"):
        study_draws(GRID, large, drawn[:1], options=PLAIN)
    with pytest.raises(ValueError, match="objective is 'best': it must be one of worst, mean"):
        plan_for_draws(GRID, LAYERS, drawn, objective="best")
    with pytest.raises(ValueError, match="draws is empty: there must be at least one"):
        plan_for_draws(GRID, LAYERS, [])


def test_the_command_prints_every_draw_and_the_worst(studied, monkeypatch, capfd):
    asked = {}

    def found(machine, model, draws, **options):
        asked.update(options, draws=draws)
        return studied

    monkeypatch.setattr("watos_jax.search.draws.study_draws", found)
    words = "faults llama2-7b --wafer watos-config-3 --dead-dies 0.1 --dead-links 0.05 --draws 2 --seed 7".split()
    assert main([*words, "--json"]) == 0
    record = json.loads(capfd.readouterr()[0])
    expected = [draw(wafers.WATOS_CONFIG_3, dies=0.1, links=0.05, seed=seed) for seed in (7, 8)]
    assert jax.tree.all(jax.tree.map(np.array_equal, asked["draws"], expected)) and asked["objective"] == "worst"
    times = studied.step_times
    for way, each in times.items():
        assert [one[way]["step_time"] for one in record["draws"]] == pytest.approx(each.tolist())
        assert record["step_time"][way]["worst"] == pytest.approx(each.max())
        assert record["step_time"][way]["median"] == pytest.approx(float(np.median(each)))
        for one in record["draws"]:
            assert one[way]["tokens_per_second"] * one[way]["step_time"] == pytest.approx(12 * 4096)
    assert record["one_plan"]["value"] == record["step_time"]["one_plan"]["worst"]
    assert main(words) == 0
    out = capfd.readouterr()[0]
    assert "one plan, least worst step" in out and "median" in out and "anew for draw 2" in out
    lost = replace(studied, plan=DrawPlan(None, (), "worst", 3, 0))
    monkeypatch.setattr("watos_jax.search.draws.study_draws", lambda *_, **__: lost)
    assert main([*words, "--json"]) == 0
    record = json.loads(capfd.readouterr()[0])
    assert record["one_plan"]["strategy"] is record["step_time"]["one_plan"]["worst"] is None
    assert main(words) == 0 and "DOES NOT FIT" in capfd.readouterr()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dead-dies 0.1", "--wafer is missing: it must be a wafer such as watos-config-3"),
        ("--wafer dojo", "--wafer is 'dojo': it must be one of"),
        (
            "--wafer dojo-tile",
            "--dead-dies is 0: it, --dead-links or --harvested must be above 0, such as --dead-dies 0.1",
        ),
        ("--wafer dojo-tile --dead-dies 1.5", "--dead-dies is '1.5': it must be a number from 0 to 1"),
        ("--wafer dojo-tile --dead-dies 1", "--dead-dies is '1': it must leave at least one of 25 dies"),
        ("--wafer dojo-tile --harvested 0.1 --left 0", "--left is '0': it must be a number above 0, at most 1"),
        ("--wafer dojo-tile --dead-links 0.1 --draws 0", "--draws is '0': it must be a whole number from 1 to 1,000"),
        ("--wafer dojo-tile --dead-links 0.1 --objective best", "--objective is 'best': it must be one of worst, mean"),
        ("--wafer dojo-tile --dead-links half", "--dead-links is 'half': it must be a number from 0 to 1"),
    ],
)
def test_bad_words_of_the_command_are_one_sentence(words, message, capfd):
    assert main(["faults", "llama2-7b", *words.split()]) == 2
    out, err = capfd.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
