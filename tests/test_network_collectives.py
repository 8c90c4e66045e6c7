"""Coefficients of collectives: laws, closed forms, and worst link loads from a second opinion."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_network_topology import walk

from watos_jax.network.bounds import bound_all_reduce, bound_of_messages
from watos_jax.network.collectives import (
    Transport,
    half,
    hierarchical_all_reduce,
    ring_all_reduce,
)
from watos_jax.network.contention import Network
from watos_jax.network.exchanges import (
    all_to_all,
    halving_doubling,
    in_steps,
    pairwise,
    point_to_point,
    recursive_doubling,
    rotation,
)
from watos_jax.network.rectangles import best_ring_all_reduce, pipelined, row_column
from watos_jax.network.topology import Fabric

SIZES = st.integers(1, 6)


def one_tier(kind, rows, cols):
    return Network((Fabric(kind, rows, cols),))


def everyone(network):
    return np.arange(network.num_devices)[None]


def values(operation):
    return [np.asarray(part).tolist() for part in (operation.volume, operation.steps, operation.traffic)]


@pytest.mark.parametrize("kind", ["mesh", "torus", "ring", "switch"])
def test_a_group_of_one_sends_nothing(kind):
    network = Network((Fabric(kind, 1, 4), Fabric("switch", 1, 2)))
    alone = np.arange(8)[:, None]
    zeros = [[0.0, 0.0]] * 3
    for operation in (ring_all_reduce, hierarchical_all_reduce, all_to_all):
        assert values(operation(network, alone)) == zeros
    assert values(row_column(network, alone, 1, 1)) == zeros
    assert values(bound_all_reduce(Fabric(kind, 1, 1))) == [[0.0]] * 3


@given(kind=st.sampled_from(["mesh", "torus"]), rows=SIZES, cols=SIZES, seed=st.integers(0, 99))
def test_ring_volume_is_the_load_of_the_worst_link(kind, rows, cols, seed):
    order = np.random.default_rng(seed).permutation(rows * cols)
    members = len(order)
    if members == 1:
        return
    pairs = list(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    one, two = Counter(), Counter()
    for a, b in pairs:
        one.update(walk(kind, rows, cols, a, b))
        two.update(walk(kind, rows, cols, a, b) + walk(kind, rows, cols, b, a))
    share = 2 * (members - 1) / members
    for directions, load in (("one", max(one.values())), ("two", max(two.values()) / 2)):
        ring = ring_all_reduce(one_tier(kind, rows, cols), order[None], directions=directions)
        assert ring.volume[0] == pytest.approx(share * load)
    lengths = np.array([len(walk(kind, rows, cols, a, b)) for a, b in pairs])
    chains = [sum(lengths[(start + k) % members] for k in range(2 * members - 2)) for start in range(members)]
    assert ring.steps[0] == max(chains)
    assert ring.traffic[0] == pytest.approx(share * lengths.mean())


@given(rows=st.integers(2, 6), cols=st.integers(2, 6))
def test_a_ring_of_neighbours_moves_the_optimal_volume(rows, cols):
    network, members = one_tier("mesh", rows, cols), rows * cols
    ring = best_ring_all_reduce(network, everyone(network), rows, cols)
    if members % 2 == 0:
        assert ring.volume[0] == pytest.approx((members - 1) / members)
        assert ring.steps[0] == 2 * (members - 1)
    else:
        assert ring.volume[0] >= 2 * (members - 1) / members / 2
        assert ring.steps[0] > 2 * (members - 1)


@given(size=st.integers(2, 64))
def test_ring_on_a_switch_and_on_a_line(size):
    share = 2 * (size - 1) / size
    switch = ring_all_reduce(one_tier("switch", 1, size), np.arange(size)[None])
    assert values(switch) == [[pytest.approx(share)], [2.0 * (size - 1)], [pytest.approx(share)]]
    line = ring_all_reduce(one_tier("mesh", 1, size), np.arange(size)[None])
    assert line.volume[0] == pytest.approx(share)  # the way back uses the links the other way


def test_concurrent_groups_share_links():
    network = one_tier("mesh", 1, 8)
    apart = ring_all_reduce(network, np.array([[0, 1, 2, 3], [4, 5, 6, 7]]))
    mixed = ring_all_reduce(network, np.array([[0, 2, 4, 6], [1, 3, 5, 7]]))
    assert mixed.volume[0] == pytest.approx(2 * apart.volume[0])


def test_whole_messages_stored_and_forwarded_take_the_chain():
    network = one_tier("mesh", 1, 8)
    ring = ring_all_reduce(
        network, everyone(network), directions="one", transport=Transport(chunks=1, store_and_forward=True)
    )
    assert ring.volume[0] == pytest.approx(ring.steps[0] / 8)
    many = ring_all_reduce(network, everyone(network), transport=Transport(chunks=10**6, store_and_forward=True))
    assert many.volume[0] == pytest.approx(2 * 7 / 8, rel=1e-4)


@given(rows=st.integers(2, 6), cols=st.integers(2, 6))
def test_dimension_by_dimension_in_turn_moves_what_a_one_way_ring_does(rows, cols):
    network, members = one_tier("mesh", rows, cols), rows * cols
    in_turn = row_column(network, everyone(network), rows, cols, transport=Transport(chunks=1))
    overlapped = row_column(network, everyone(network), rows, cols)
    assert in_turn.volume[0] == pytest.approx(2 * (members - 1) / members)
    assert 2 * (cols - 1) / cols <= overlapped.volume[0] <= in_turn.volume[0] + 1e-12
    assert overlapped.volume[0] >= bound_all_reduce(network.fabrics[0]).volume[0] - 1e-12
    parts = [
        row_column(network, everyone(network), rows, cols, operation=name, transport=Transport(chunks=1))
        for name in ("reduce_scatter", "all_gather")
    ]
    for part in parts:
        assert part.volume[0] == pytest.approx(in_turn.volume[0] / 2)
        assert part.steps[0] == in_turn.steps[0] / 2


@given(
    volumes=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)),
    rounds=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    chunks=st.integers(1, 20),
)
def test_two_phases_of_a_pipeline_have_a_closed_form(volumes, rounds, chunks):
    (first, second), (turns, _) = volumes, rounds
    entry = first * ((turns - 1) * chunks + 1) / (turns * chunks)
    expected = max(entry + second, first + second / chunks)
    assert pipelined(volumes, rounds, chunks) == pytest.approx(expected)


@given(
    phases=st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(1, 5)), min_size=1, max_size=4),
    chunks=st.integers(1, 20),
)
def test_a_pipeline_lies_between_its_longest_phase_and_their_sum(phases, chunks):
    volumes, rounds = (tuple(column) for column in zip(*phases, strict=True))
    time = pipelined(volumes, rounds, chunks)
    assert max(volumes) - 1e-12 <= time <= sum(volumes) + 1e-12
    assert pipelined(volumes, rounds, 1) == pytest.approx(sum(volumes))
    assert pipelined((0.0, *volumes), (0, *rounds), chunks) == time


def test_a_group_over_nodes_uses_the_adapters_of_all_its_members():
    network = Network((Fabric("switch", 1, 8), Fabric("switch", 1, 4)))
    whole = hierarchical_all_reduce(network, np.arange(32)[None])
    assert whole.volume.tolist() == pytest.approx([2 * 7 / 8, 2 * 3 / 4 / 8])
    assert whole.steps.tolist() == [14, 6]
    across = hierarchical_all_reduce(network, np.arange(32).reshape(4, 8).T)
    assert across.volume.tolist() == pytest.approx([0, 2 * 3 / 4])
    shuffled = np.random.default_rng(0).permutation(32)[None]
    assert hierarchical_all_reduce(network, shuffled).volume.tolist() == pytest.approx(whole.volume.tolist())


def test_an_uneven_group_falls_back_to_one_ring():
    network = Network((Fabric("switch", 1, 4), Fabric("switch", 1, 2)))
    uneven = hierarchical_all_reduce(network, np.array([[0, 1, 2, 4]]))
    assert uneven.volume.tolist() == pytest.approx([0, 2 * 3 / 4])
    assert uneven.steps.tolist() == [4, 4]


def test_devices_of_a_child_share_the_links_of_an_outer_mesh():
    network = Network((Fabric("switch", 1, 4), Fabric("mesh", 1, 3)))
    source = np.arange(4)
    assert point_to_point(network, source, source + 4).volume.tolist() == [0, 4]
    assert point_to_point(network, source, source + 8).steps.tolist() == [0, 2]


@given(half_side=st.integers(1, 4))
def test_all_to_all_on_a_square_mesh_meets_the_bisection_bound(half_side):
    side = 2 * half_side
    network = one_tier("mesh", side, side)
    crossing = (side * side / 2) ** 2 / side  # ordered pairs one way over the links of the cut
    operation = all_to_all(network, everyone(network))
    assert operation.volume[0] == pytest.approx(crossing / side**2)
    assert operation.steps[0] == 2 * (side - 1)


@given(kind=st.sampled_from(["mesh", "torus"]), rows=st.integers(1, 4), cols=st.integers(1, 4))
def test_all_to_all_is_a_walk_of_all_pairs(kind, rows, cols):
    network, size = one_tier(kind, rows, cols), rows * cols
    loads = Counter(link for a in range(size) for b in range(size) for link in walk(kind, rows, cols, a, b))
    expected = max(loads.values(), default=0) / size
    assert all_to_all(network, everyone(network)).volume[0] == pytest.approx(expected)


def test_all_to_all_counts_peers_by_tier():
    network = Network((Fabric("switch", 1, 4), Fabric("switch", 1, 4)))
    operation = all_to_all(network, np.arange(16).reshape(2, 8))
    assert operation.volume.tolist() == pytest.approx([3 / 8, 4 / 8])
    assert operation.steps.tolist() == [1, 1]
    wafers = Network((Fabric("mesh", 1, 4), Fabric("switch", 1, 4)))
    mixed = all_to_all(wafers, np.arange(16).reshape(2, 8))
    assert mixed.volume.tolist() == pytest.approx([4 / 8, 4 / 8])


def test_algorithms_in_steps_on_a_switch():
    network, group = one_tier("switch", 1, 8), np.arange(8)[None]
    expected = {
        pairwise: (7 / 8, 7),
        rotation: (7 / 8, 7),
        recursive_doubling: (3.0, 3),
        halving_doubling: (2 * 7 / 8, 6),
    }
    for algorithm, (volume, steps) in expected.items():
        operation = in_steps(network, group, algorithm(8))
        assert (operation.volume[0], operation.steps[0]) == (pytest.approx(volume), steps)
    for algorithm in (pairwise, recursive_doubling, halving_doubling):
        with pytest.raises(ValueError, match="members is 6: it must be a power of two"):
            algorithm(6)


@given(kind=st.sampled_from(["mesh", "torus"]), rows=SIZES, cols=SIZES, chunks=st.integers(1, 64))
def test_no_ring_beats_the_bound(kind, rows, cols, chunks):
    fabric = Fabric(kind, rows, cols)
    network = Network((fabric,))
    bound = bound_all_reduce(fabric)
    assert best_ring_all_reduce(network, everyone(network), rows, cols).volume[0] >= bound.volume[0] - 1e-12
    messages = bound_of_messages(fabric, chunks)
    assert messages.volume[0] >= bound.volume[0] - 1e-12


def test_half_of_an_all_reduce():
    network = one_tier("mesh", 4, 4)
    ring = ring_all_reduce(network, everyone(network))
    assert values(half(ring)) == [[x / 2 for x in part] for part in values(ring)]
