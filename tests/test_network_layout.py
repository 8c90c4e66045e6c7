"""Layouts: what neighbours, rings, node boundaries and misfits look like on wafers and clusters."""

from collections import Counter
from dataclasses import replace
from time import perf_counter

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_network_topology import walk

from watos_jax.hardware import Link, System, Tier
from watos_jax.network.contention import Network
from watos_jax.network.geometry import Geometry, devices, misfit
from watos_jax.network.layout import fits, layout, layout_of, layouts, placement_map
from watos_jax.network.topology import Fabric
from watos_jax.presets.wafers import WATOS_CONFIG_3
from watos_jax.strategy import Collective, Strategy

LINK = Link(bandwidth=1e11, latency=1e-7)
SMALL = st.integers(1, 4)
COLLECTIVES = ("tensor", "data", "context", "expert", "expert_data")


def wafer(rows, cols):
    return replace(WATOS_CONFIG_3, die_rows=rows, die_cols=cols)


def tiers(*fabrics):
    system = WATOS_CONFIG_3.system
    levels = tuple(Tier(rows=rows, cols=cols, link=LINK, fabric=kind) for kind, rows, cols in fabrics)
    return System(die=system.die, tiers=levels, technology=system.technology)


def cluster(nodes):
    return tiers(("switch", 1, 8), ("switch", 1, nodes))


def numbers(collective):
    return [np.asarray(part).tolist() for part in (collective.volume, collective.steps, collective.traffic)]


def test_one_die_sends_nothing():
    alone = layout(wafer(3, 3), Strategy())
    for name in COLLECTIVES:
        assert numbers(getattr(alone, name)) == [[0.0]] * 3
    assert alone.pipeline_volume.shape == (8, 1)
    assert not alone.pipeline_volume.any()
    assert not alone.pipeline_steps.any()


@given(rows=st.integers(2, 7), cols=st.integers(1, 8))
def test_stages_of_whole_rows_are_one_hop_apart(rows, cols):
    strategy = Strategy(tensor_cols=cols, pipeline_parallel=rows)
    found = layout(wafer(rows, cols), strategy)
    assert found.pipeline_steps[:, 0].tolist() == [1.0] * (rows - 1) + [0.0] * (found.max_stages - rows + 1)
    assert found.pipeline_volume[:, 0].tolist() == [1.0] * (rows - 1) + [0.0] * (found.max_stages - rows + 1)


@given(rows=st.integers(1, 7), cols=st.integers(1, 8))
def test_single_dies_follow_a_serpentine(rows, cols):
    if rows * cols == 1:
        return
    found = layout(wafer(rows, cols), Strategy(pipeline_parallel=rows * cols), max_stages=64)
    assert set(found.pipeline_steps[: rows * cols - 1, 0].tolist()) == {1.0}
    assert set(found.pipeline_volume[: rows * cols - 1, 0].tolist()) == {1.0}
    drawing = placement_map(wafer(rows, cols), Strategy(pipeline_parallel=rows * cols))
    assert drawing[0].tolist() == list(range(cols))
    if rows > 1:
        assert drawing[1].tolist() == list(range(2 * cols - 1, cols - 1, -1))


def test_placement_leaves_dies_over_idle():
    drawing = placement_map(wafer(5, 5), Strategy(tensor_rows=2, tensor_cols=2, pipeline_parallel=2, data_parallel=2))
    assert drawing.tolist() == [
        [0, 0, 1, 1, -1],
        [0, 0, 1, 1, -1],
        [3, 3, 2, 2, -1],
        [3, 3, 2, 2, -1],
        [-1, -1, -1, -1, -1],
    ]


@pytest.mark.parametrize(
    ("rows", "cols", "volume", "steps"),
    [
        (2, 2, 3 / 4, 6),  # a cycle of neighbours, both ways round
        (2, 3, 5 / 6, 10),
        (1, 4, 3 / 2, 9),  # a line folded into a ring: two dies up, two dies down
        (1, 2, 1, 2),
    ],
)
def test_tensor_ring(rows, cols, volume, steps):
    found = layout(wafer(7, 8), Strategy(tensor_rows=rows, tensor_cols=cols, pipeline_parallel=2))
    assert found.tensor.volume[0] == pytest.approx(volume)
    assert found.tensor.steps[0] == steps


def test_rows_and_columns_take_fewer_steps_than_a_ring():
    ring, dimensions = (
        layout(wafer(8, 8), Strategy(tensor_rows=8, tensor_cols=8, tensor_collective=code)).tensor for code in (0, 1)
    )
    assert dimensions.steps[0] < ring.steps[0]
    assert dimensions.volume[0] > ring.volume[0]


@given(rows=SMALL, cols=SMALL, pipeline=SMALL, data=SMALL, context=st.integers(1, 2), interleaved=st.booleans())
def test_pipeline_loads_are_a_walk_of_all_boundaries(rows, cols, pipeline, data, context, interleaved):
    network = Network((Fabric("mesh", 7, 8),))
    geometry = Geometry(rows, cols, pipeline, data, context, interleaved=interleaved)
    if misfit(network, geometry) is not None or pipeline == 1:
        return
    held = devices(network, geometry)
    boundaries = [(s, (s + 1) % pipeline) for s in range(pipeline - 1 + interleaved)]
    routes = {}
    for a, b in boundaries:
        pairs = zip(held[:, a].ravel().tolist(), held[:, b].ravel().tolist(), strict=True)
        routes[a] = [walk("mesh", 7, 8, source, target) for source, target in pairs]
    loads = Counter(link for paths in routes.values() for path in paths for link in path)
    found = layout_of(network, geometry)
    for a, paths in routes.items():
        assert found.pipeline_volume[a, 0] == pytest.approx(max(loads[link] for path in paths for link in path))
        assert found.pipeline_steps[a, 0] == max(len(path) for path in paths)
    assert not found.pipeline_volume[len(boundaries) :].any()


@given(data=st.integers(2, 4), context=st.integers(1, 2), pipeline=SMALL, tensor=st.integers(1, 2))
def test_the_data_ring_is_a_walk_of_all_rings(data, context, pipeline, tensor):
    network, geometry = Network((Fabric("mesh", 6, 6),)), Geometry(tensor, 1, pipeline, data, context)
    if misfit(network, geometry) is not None:
        return
    held = devices(network, geometry)
    one, two = Counter(), Counter()
    for stage in range(pipeline):
        for share in range(tensor):
            ring = held[:, stage, :, share].ravel().tolist()
            for source, target in zip(ring, ring[1:] + ring[:1], strict=True):
                there, back = walk("mesh", 6, 6, source, target), walk("mesh", 6, 6, target, source)
                one.update(there)
                two.update(there + back)
    peers = data * context
    load = min(max(one.values()), max(two.values()) / 2)
    assert layout_of(network, geometry).data.volume[0] == pytest.approx(2 * (peers - 1) / peers * load)


def test_experts_share_the_peers_with_data():
    found = layout(wafer(4, 4), Strategy(data_parallel=8, context_parallel=2, expert_parallel=4))
    assert found.expert.volume[0] == pytest.approx(1.0)  # rows of four: 2 x 2 pairs over the middle link
    assert found.expert_data.volume[0] < 4 * found.data.volume[0]
    plain = layout(wafer(4, 4), Strategy(data_parallel=8, context_parallel=2))
    assert numbers(plain.expert_data) == numbers(plain.data) == numbers(found.data)
    whole = layout(wafer(4, 4), Strategy(data_parallel=16, expert_parallel=16))
    assert numbers(whole.expert_data) == [[0.0]] * 3


def test_context_passes_on_to_the_next_part():
    found = layout(wafer(2, 4), Strategy(context_parallel=4, pipeline_parallel=2))
    assert found.context.volume[0] == 1
    assert found.context.steps[0] == 3  # the last part sends back to the first


def test_a_cluster_numbers_ranks_as_megatron():
    found = layout(cluster(4), Strategy(tensor_rows=8, pipeline_parallel=2, data_parallel=2))
    assert found.tensor.volume.tolist() == pytest.approx([2 * 7 / 8, 0])
    assert found.data.volume.tolist() == pytest.approx([0, 1])  # each GPU has its own adapter
    assert found.data.steps.tolist() == [0, 2]
    assert found.pipeline_volume[0].tolist() == [0, 1]
    inside = layout(cluster(4), Strategy(tensor_cols=2, data_parallel=8, pipeline_parallel=2, expert_parallel=4))
    assert inside.data.volume.tolist() == pytest.approx([2 * 3 / 4, 2 * 1 / 2 / 4])
    assert inside.expert.volume.tolist() == pytest.approx([3 / 4, 0])
    assert inside.expert_data.volume.tolist() == pytest.approx([0, 1])
    spanning = layout(cluster(4), Strategy(tensor_rows=16, pipeline_parallel=2))
    assert spanning.tensor.volume.tolist() == pytest.approx([2 * 7 / 8, 2 * 1 / 2 / 8])


def test_wafers_under_a_switch_hold_whole_replicas():
    wafers = tiers(("mesh", 2, 4), ("switch", 1, 2))
    found = layout(wafers, Strategy(tensor_rows=2, pipeline_parallel=4, data_parallel=2))
    assert found.tensor.volume[1] == 0
    assert not found.pipeline_volume[:, 1].any()
    assert found.data.volume.tolist() == [0, 1]
    long = layout(wafers, Strategy(tensor_rows=2, pipeline_parallel=8))
    assert long.pipeline_volume[3].tolist() == [0, 1]  # from the last rectangle of a wafer to the next wafer
    assert long.pipeline_steps[:7].tolist() == [[1, 0]] * 3 + [[0, 1]] + [[1, 0]] * 3
    three = layout(wafers, Strategy(pipeline_parallel=2, data_parallel=6))
    assert three.data.volume[1] == pytest.approx(2 * 1 / 2 / 3)  # three replicas on each wafer
    drawing = placement_map(wafers, Strategy(pipeline_parallel=2, data_parallel=6))
    assert drawing.shape == (4, 4)
    assert sorted(drawing[:2].ravel().tolist()) == [-1, -1, 0, 1, 2, 3, 4, 5]


def test_interleaving_wraps_from_the_last_stage_to_the_first():
    strategy = Strategy(pipeline_parallel=4, virtual_stages=2, global_batch_size=4)
    found = layout(wafer(1, 4), strategy)
    assert found.pipeline_steps[:5, 0].tolist() == [1, 1, 1, 3, 0]


def test_an_order_of_slots_may_be_given():
    strategy = Strategy(pipeline_parallel=4)
    found = layout(wafer(1, 4), strategy, order=[0, 2, 1, 3])
    assert found.pipeline_steps[:3, 0].tolist() == [2, 1, 2]
    assert placement_map(wafer(1, 4), strategy, order=[0, 2, 1, 3]).tolist() == [[0, 2, 1, 3]]
    with pytest.raises(ValueError, match="order has 3 different rectangles: it must have 4"):
        layout(wafer(1, 4), strategy, order=[0, 1, 2, 2])
    with pytest.raises(ValueError, match="order reaches from 1 to 4: it must stay in 0 to 3"):
        layout(wafer(1, 4), strategy, order=[1, 2, 3, 4])


@pytest.mark.parametrize(
    ("system", "strategy", "sentence"),
    [
        (wafer(7, 8), Strategy(tensor_rows=16), "tensor_rows is 16: it must be at most the 7 rows of dies"),
        (wafer(7, 8), Strategy(tensor_cols=9), "tensor_cols is 9: it must be at most the 8 columns of dies"),
        (
            wafer(7, 8),
            Strategy(tensor_cols=8, pipeline_parallel=14),
            "the strategy needs 112 dies: it must need at most the 56 of the system",
        ),
        (
            wafer(7, 8),
            Strategy(tensor_rows=4, pipeline_parallel=14),
            "the strategy needs 14 rectangles of 4 x 1 dies: it must need at most the 8 that tile the system "
            "(1 x 4 would do)",
        ),
        (
            cluster(2),
            Strategy(tensor_rows=8, data_parallel=4),
            "the strategy needs 32 dies: it must need at most the 16 of the system",
        ),
        (
            wafer(7, 8),
            Strategy(data_parallel=6, expert_parallel=4),
            "expert_parallel is 4: it must divide data_parallel * context_parallel = 6",
        ),
        (
            wafer(7, 8),
            Strategy(tensor_collective=2),
            "tensor_collective is 2: it must be 0 (ring) or 1 (row_column)",
        ),
    ],
)
def test_misfits_are_told_in_one_sentence(system, strategy, sentence):
    assert fits(system, strategy) == sentence
    for function in (layout, placement_map):
        with pytest.raises(ValueError) as error:
            function(system, strategy)
        assert str(error.value) == sentence


def test_what_fits_has_no_reason():
    assert fits(wafer(7, 8), Strategy(tensor_cols=4, pipeline_parallel=14)) is None
    with pytest.raises(ValueError, match="max_stages is 8: it must be at least the 14 pipeline stages"):
        layout(wafer(7, 8), Strategy(tensor_cols=4, pipeline_parallel=14), max_stages=8)


def test_traced_hardware_needs_a_layout():
    def from_rows(rows):
        return layout(wafer(rows, 8), Strategy()).tensor.volume

    with pytest.raises(ValueError, match=r"traced or stacked rows and cols: pass layout=\.\.\. explicitly"):
        jax.jit(from_rows)(7.0)
    with pytest.raises(ValueError, match=r"strategy.pipeline_parallel is traced or stacked"):
        jax.jit(lambda p: layout(wafer(7, 8), Strategy(pipeline_parallel=p)).tensor.volume)(2.0)

    def from_bandwidth(bandwidth):  # bandwidths may be traced
        traced = replace(WATOS_CONFIG_3, d2d=replace(WATOS_CONFIG_3.d2d, bandwidth=bandwidth))
        return layout(traced, Strategy(tensor_cols=2)).tensor.volume / bandwidth

    assert jax.jit(from_bandwidth)(2.0) == pytest.approx(0.5)


def test_layouts_stack_and_share():
    system = wafer(7, 8)
    strategies = [Strategy(tensor_cols=cols, pipeline_parallel=9) for cols in (1, 2, 4)]
    stacked = layouts(system, strategies)
    assert stacked.pipeline_volume.shape == (3, 16, 1)
    assert stacked.tensor.volume.shape == (3, 1)
    for number, strategy in enumerate(strategies):
        alone = layout(system, strategy, max_stages=16)
        assert stacked.tensor.volume[number].tolist() == alone.tensor.volume.tolist()
        assert layout(system, strategy, max_stages=16) is alone
    assert isinstance(stacked.tensor, Collective)
    with pytest.raises(ValueError, match="read-only"):
        layout(system, strategies[0]).tensor.volume[0] = 1.0


def test_layouts_are_quick():
    network = Network((Fabric("mesh", 7, 8),))
    grid = [
        Geometry(rows, cols, pipeline, data, tensor_collective=code)
        for rows in range(1, 4)
        for cols in range(1, 5)
        for pipeline in range(1, 9)
        for data in range(1, 5)
        for code in (0, 1)
    ]
    legal = [geometry for geometry in grid if misfit(network, geometry) is None]
    start = perf_counter()
    for geometry in legal:
        layout_of(network, geometry)
    assert perf_counter() - start < 10e-3 * len(legal)  # far above the usual time: the machine may be busy
