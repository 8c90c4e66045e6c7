"""Routes, link loads and orders of fabrics, against a walk of every path hop by hop."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from watos_jax.network.topology import (
    EAST,
    NORTH,
    SOUTH,
    WEST,
    Fabric,
    folded,
    hamiltonian_cycle,
    has_hamiltonian_cycle,
    hops,
    link_loads,
    row_major,
    snake,
)

STEPS = {EAST: (0, 1), WEST: (0, -1), SOUTH: (1, 0), NORTH: (-1, 0)}
SIZES = st.integers(1, 7)


def walk(kind, rows, cols, start, stop):
    """Links (direction, row, col) of the XY route from one node to another, one hop at a time."""
    row, col = divmod(start, cols)
    end_row, end_col = divmod(stop, cols)
    route = []

    def towards(position, goal, size):
        if kind == "torus" and size > 2:
            ahead = 0
            while (position + ahead) % size != goal:
                ahead += 1
            return 1 if ahead <= size - ahead else -1
        return 1 if goal > position else -1

    while col != end_col:
        step = towards(col, end_col, cols)
        route.append((EAST if step > 0 else WEST, row, col))
        col = (col + step) % cols
    while row != end_row:
        step = towards(row, end_row, rows)
        route.append((SOUTH if step > 0 else NORTH, row, col))
        row = (row + step) % rows
    return route


@given(
    kind=st.sampled_from(["mesh", "torus"]),
    rows=SIZES,
    cols=SIZES,
    flows=st.lists(st.tuples(st.integers(0, 48), st.integers(0, 48), st.integers(1, 5)), min_size=1, max_size=30),
)
def test_loads_and_hops_equal_a_walk_of_every_route(kind, rows, cols, flows):
    size = rows * cols
    source = np.array([a % size for a, _, _ in flows])
    target = np.array([b % size for _, b, _ in flows])
    weight = np.array([w for _, _, w in flows], float)
    expected, lengths = Counter(), []
    for a, b, w in zip(source, target, weight, strict=True):
        route = walk(kind, rows, cols, int(a), int(b))
        lengths.append(len(route))
        expected.update(dict.fromkeys(route, w))
    loads = link_loads(Fabric(kind, rows, cols), source, target, weight)
    assert loads.shape == (4, rows, cols)
    for link in np.ndindex(loads.shape):
        assert loads[link] == pytest.approx(expected[link], abs=1e-9)
    assert hops(Fabric(kind, rows, cols), source, target).tolist() == lengths


def test_a_switch_loads_the_links_of_its_ends():
    switch = Fabric("switch", 1, 4)
    loads = link_loads(switch, np.array([0, 0, 1, 3]), np.array([1, 2, 2, 3]))
    assert loads[0, 0].tolist() == [2, 1, 0, 0]
    assert loads[1, 0].tolist() == [0, 1, 2, 0]
    assert hops(switch, np.array([0, 3]), np.array([2, 3])).tolist() == [1, 0]


@given(rows=SIZES, cols=SIZES)
def test_orders_visit_every_node_once(rows, cols):
    orders = [row_major(rows, cols), snake(rows, cols), folded(snake(rows, cols))]
    if has_hamiltonian_cycle(rows, cols):
        orders.append(hamiltonian_cycle(rows, cols))
    for order in orders:
        assert sorted(order.tolist()) == list(range(rows * cols))


@given(rows=SIZES, cols=SIZES)
def test_neighbours_follow_one_another(rows, cols):
    mesh = Fabric("mesh", rows, cols)
    path = snake(rows, cols)
    assert (hops(mesh, path[:-1], path[1:]) == 1).all()
    assert (hops(mesh, folded(path)[:-1], folded(path)[1:]) <= 2).all()
    if has_hamiltonian_cycle(rows, cols):
        cycle = hamiltonian_cycle(rows, cols)
        assert (hops(mesh, cycle, np.roll(cycle, -1)) == 1).all()


@pytest.mark.parametrize(("rows", "cols", "exists"), [(2, 2, True), (3, 4, True), (3, 3, False), (1, 4, False)])
def test_a_hamiltonian_cycle_needs_an_even_side(rows, cols, exists):
    assert has_hamiltonian_cycle(rows, cols) is exists
    if not exists:
        with pytest.raises(ValueError, match="one must be even and both at least 2"):
            hamiltonian_cycle(rows, cols)


def test_two_nodes_have_no_wrap_around_link():
    loads = link_loads(Fabric("torus", 1, 2), np.array([0, 1]), np.array([1, 0]))
    assert loads.sum() == 2
    assert loads[EAST, 0].tolist() == [1, 0]
    assert loads[WEST, 0].tolist() == [0, 1]
