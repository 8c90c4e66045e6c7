"""Several wafers: their tier, what bandwidth between them does, weight streaming over them, the whole comparison."""

from dataclasses import replace

import numpy as np
import pytest

from watos_jax.baselines.comparison import compare
from watos_jax.baselines.streamed_wafer import num_wafers, stream_through, streaming_system
from watos_jax.estimate import estimate
from watos_jax.hardware import Link, several
from watos_jax.network.layout import layout, placement_map
from watos_jax.presets import models, wafers
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy

WAFER = replace(wafers.WATOS_CONFIG_3, die_rows=2, die_cols=4)
MODEL = replace(models.LLAMA2_7B, num_layers=8)
FAST = Link(bandwidth=1e30)


@pytest.mark.parametrize(
    ("count", "fabric", "grid", "bandwidth"),
    [
        (4, "mesh", (2, 2), 8.0),
        (6, "mesh", (2, 3), 8.0),
        (3, "mesh", (1, 3), 8.0),
        (4, "ring", (1, 4), 8.0),
        (4, "switch", (1, 4), 1.0),  # eight dies share the way into the switch
    ],
)
def test_wafers_are_a_tier_round_the_mesh(count, fabric, grid, bandwidth):
    system = several(WAFER, count, Link(bandwidth=8.0), fabric=fabric)
    outer = system.tiers[1]
    assert (float(outer.rows), float(outer.cols), float(outer.link.bandwidth)) == (*grid, bandwidth)
    assert float(system.num_dies) == 8 * count and num_wafers(system) == count
    assert system.tiers[0] == WAFER.system.tiers[0] and num_wafers(WAFER) == 1


def test_experts_stay_on_a_wafer_where_all_replicas_of_its_stages_fit():
    system = several(WAFER, 4, Link(bandwidth=1e11))
    spread = Strategy(pipeline_parallel=8, data_parallel=4, expert_parallel=4, global_batch_size=32)
    found = layout(system, spread)
    assert found.expert.volume[1] == found.data.volume[1] == 0.0 < found.expert.volume[0]
    assert np.flatnonzero(found.pipeline_volume[:, 1]).tolist() == [1, 3, 5]  # two stages a wafer
    rows = placement_map(system, spread).reshape(4, -1)
    assert [sorted({int(s) % 8 for s in wafer}) for wafer in rows] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    # without experts a replica has a wafer of its own, and with more replicas than fit experts span wafers
    whole = layout(system, replace(spread, expert_parallel=1))
    assert whole.data.volume[1] > 0.0 and not whole.pipeline_volume[:, 1].any()
    many = layout(system, Strategy(pipeline_parallel=2, data_parallel=16, expert_parallel=16, global_batch_size=32))
    assert many.expert.volume[1] > 0.0


def test_wrong_wafers_are_refused():
    with pytest.raises(ValueError, match=r"several.count is 0: it must be a whole number, at least 1"):
        several(WAFER, 0, FAST)
    with pytest.raises(ValueError, match="fabric is 'torus': it must be mesh, ring or switch"):
        several(WAFER, 2, FAST, fabric="torus")


def step(bandwidth, fabric="mesh", **degrees):
    system = several(WAFER, 4, Link(bandwidth=bandwidth, latency=0.0), fabric=fabric)
    return estimate(system, MODEL, Strategy(global_batch_size=32, **degrees))


@pytest.mark.parametrize("fabric", ["mesh", "ring", "switch"])
@pytest.mark.parametrize(
    "degrees", [{"pipeline_parallel": 8, "tensor_cols": 4}, {"data_parallel": 4, "tensor_cols": 4}]
)
def test_more_bandwidth_between_wafers_is_never_slower(fabric, degrees):
    times = [float(step(rate, fabric, **degrees).step_time) for rate in (1e10, 1e11, 1e12, 1e13)]
    assert times == sorted(times, reverse=True) and times[0] > 1.01 * times[-1]


def test_replicas_on_wafers_without_limits_are_one_wafer_each(eps):
    degrees = {"tensor_cols": 4, "pipeline_parallel": 2, "optimizer_sharding": 0}
    spread = step(1e30, data_parallel=4, **degrees)
    single = estimate(WAFER, MODEL, Strategy(global_batch_size=8, **degrees))
    assert float(spread.step_time) == pytest.approx(float(single.step_time), rel=64 * eps)
    assert float(spread.tokens_per_second) == pytest.approx(4 * float(single.tokens_per_second), rel=64 * eps)


def test_streaming_over_wafers_without_limits_is_each_with_its_part_of_the_batch(eps):
    many = stream_through(several(WAFER, 4, FAST), MODEL, global_batch_size=32)
    one = stream_through(WAFER, MODEL, global_batch_size=8)
    assert float(many.streamed.step_time) == pytest.approx(float(one.streamed.step_time), rel=64 * eps)
    update, alone = (x.step_time - float(x.streamed.step_time) for x in (many, one))
    assert update == pytest.approx(alone / 4, rel=1e3 * eps)
    # weights come over two links of the mesh, three quarters of them from other wafers
    slow = streaming_system(several(WAFER, 4, Link(bandwidth=1e9)), "dram")
    assert float(slow.tiers[0].link.bandwidth) == pytest.approx(2e9 * 4 / 3)
    with pytest.raises(ValueError, match="global_batch_size is 6: it must be a multiple of the 4 wafers"):
        stream_through(several(WAFER, 4, FAST), MODEL, global_batch_size=6)


@pytest.mark.slow
def test_a_mixture_on_four_wafers_is_compared_with_the_baselines():
    mixture = replace(models.DEEPSEEK_V3, num_layers=8, num_experts=16)
    few = Options(
        global_batch_size=16,
        micro_batch_sizes=1,
        virtual_stages=1,
        context_parallel=1,
        sequence_parallel=1,
        optimizer_sharding=1,
        least_use=0.5,
    )
    answer = compare(several(WAFER, 4, Link(bandwidth=1.8e12, latency=1e-6)), mixture, options=few)
    assert answer.ours.answer.best[0].order is None  # one mesh only has orders to choose from
    for side in (answer.baselines | answer.variants).values():
        assert side.tokens_per_second is None or side.tokens_per_second > 0.0
    assert answer.speedup(answer.baselines["megatron_on_wafer"]) >= 1.0 - 1e-6
    assert float(answer.baselines["megatron_on_gpu"].machine.num_dies) == 32
