"""Placement against all orders of small meshes, counted by code of its own; its example; the starts and the routes."""

from itertools import pairwise, permutations, product

import numpy as np
import pytest

from watos_jax.network.contention import Network
from watos_jax.network.geometry import Geometry, rectangles
from watos_jax.network.topology import Fabric, link_loads, snake
from watos_jax.placement import Grid, grid_hops, grid_routes, pipeline_paths, place, starts

MESHES = [(rows, cols) for rows, cols in product(range(1, 4), range(1, 5)) if rows * cols > 1]


def links_of(source, target):
    """Links of the way along the row and then along the column, as pairs of cells."""
    (row, col), (end_row, end_col) = source, target
    cells = [(row, c) for c in range(col, end_col, 1 if end_col > col else -1)] + [(row, end_col)]
    cells += [(r, end_col) for r in range(row, end_row, 1 if end_row > row else -1)][1:] + [(end_row, end_col)]
    cells = list(dict.fromkeys(cells))
    return list(pairwise(cells))


def least_of_all_orders(rows, cols, slots, paths, gamma):
    """Least objective over every way of giving the slots different cells; vectorised over the ways."""
    cells = list(product(range(rows), range(cols)))
    numbers = {}
    for a, b in product(cells, cells):
        for link in links_of(a, b):
            numbers.setdefault(link, len(numbers))
    taken = np.zeros((len(cells), len(cells), len(numbers)), np.int8)
    for (i, a), (j, b) in product(enumerate(cells), enumerate(cells)):
        for link in links_of(a, b):
            taken[i, j, numbers[link]] = 1
    ways = np.array(list(permutations(range(len(cells)), slots)), np.int8)
    load = np.zeros((len(ways), len(numbers)), np.int8)
    for a, b in paths:
        load += taken[ways[:, a], ways[:, b]]
    return float((load.sum(1, dtype=int) + gamma * np.maximum(load - 1, 0).sum(1, dtype=int)).min())


def problems(rows, cols):
    rng = np.random.default_rng(10 * rows + cols)
    for stages in range(2, min(6, rows * cols) + 1):
        paths = [(s, s + 1) for s in range(stages - 1)]
        # early stages send, late ones help
        helpers = [(s, stages - 1 - s) for s in range(stages // 2) if rng.integers(2)]
        yield stages, np.array(paths + helpers)


@pytest.mark.parametrize(("rows", "cols"), MESHES)
def test_it_equals_all_orders_of_small_meshes(rows, cols):
    for stages, paths in problems(rows, cols):
        found = place(Grid(rows, cols), stages, paths)[0]
        assert found.cost == least_of_all_orders(rows, cols, stages, paths, 1.0), (stages, paths)
        assert found.cost == found.hops + found.conflicts


def test_a_sender_beside_its_helper_takes_four_hops_where_the_serpentine_takes_six():
    grid, paths = Grid(2, 4), np.array([(0, 1), (1, 2), (2, 3), (0, 3)])
    hops = grid_hops(grid)
    serpentine = snake(2, 4)[:4]
    assert hops[serpentine[paths[:, 0]], serpentine[paths[:, 1]]].sum() == 6
    found = place(grid, 4, paths)[0]
    assert (found.hops, found.conflicts) == (4.0, 0.0)
    assert sorted(found.order.tolist()) != [0, 1, 2, 3]  # it is not the serpentine


def test_conflicts_are_worth_hops():
    # two paths along a line share a link unless they lie apart: 0 -> 2 and 1 -> 3 on four of six places
    paths = np.array([(0, 2), (1, 3), (0, 3)])
    free = place(Grid(2, 3), 4, paths, gamma=0.0)[0]
    paid = place(Grid(2, 3), 4, paths, gamma=10.0)[0]
    assert paid.conflicts == 0.0 and free.hops <= paid.hops
    assert paid.cost == least_of_all_orders(2, 3, 4, paths, 10.0)


def test_weights_pull_heavy_paths_together():
    paths = np.array([(0, 1), (1, 2), (2, 3), (0, 3)])
    found = place(Grid(1, 5), 4, paths, np.array([1.0, 1.0, 1.0, 10.0]), gamma=0.0)[0]
    assert abs(int(found.order[0]) - int(found.order[3])) == 1


@pytest.mark.parametrize(("rows", "cols"), [(1, 5), (3, 4), (4, 2)])
def test_starts_are_orders_of_all_rectangles(rows, cols):
    for order in starts(Grid(rows, cols)):
        assert sorted(order.tolist()) == list(range(rows * cols))


def test_routes_and_hops_are_those_of_the_network():
    grid = Grid(3, 4)
    routes, hops = grid_routes(grid), grid_hops(grid)
    assert (routes.sum(-1) == hops).all() and routes.any((0, 1)).sum() == 2 * (3 * 3 + 2 * 4)
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 12, (2, 40))
    loads = link_loads(Fabric("mesh", 3, 4), source, target).ravel()
    assert sorted(loads[loads > 0]) == sorted(x for x in routes[source, target].sum(0) if x > 0)


def test_hops_between_rectangles_are_those_of_their_dies():
    network = Network((Fabric("mesh", 6, 8),))
    grid, geometry = Grid(3, 2, 2, 4), Geometry(2, 4, 6)
    dies = rectangles(network, geometry)[np.argsort(snake(3, 2))]
    for a, b in product(range(6), range(6)):
        row, col = np.divmod(dies[a] - 0, 8)
        end_row, end_col = np.divmod(dies[b], 8)
        assert set((np.abs(row - end_row) + np.abs(col - end_col)).tolist()) == {grid_hops(grid)[a, b]}


def test_paths_of_replicas_and_context_parts():
    paths = pipeline_paths(Geometry(1, 1, 3, 2, 2))
    assert len(paths) == 2 * 2 * 2
    assert (paths[:, 1] - paths[:, 0] == 2).all()  # one stage is two context parts
    assert not {5, 4} & set(paths[paths[:, 0] < 4][:, 0].tolist())


def test_too_many_slots_are_refused():
    with pytest.raises(ValueError, match="slots is 5: it must be at most the 4 rectangles"):
        place(Grid(2, 2), 5, np.array([(0, 1)]))
