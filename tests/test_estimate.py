"""One estimate: its parts, its margins, what it refuses, and steps that can be counted by hand."""

import inspect
import re
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schedules import all_forward_all_backward, interleaved, one_forward_one_backward, play

from watos_jax import HARD, Efficiency, Smooth, Strategy, estimate, layout
from watos_jax.hardware import Core, Die, Link, Memory, System, Tier
from watos_jax.model import Transformer
from watos_jax.presets import chips, models, technologies, wafers
from watos_jax.strategy import RECOMPUTE_LEVELS, violation
from watos_jax.units import GIGA, MIB, MM
from watos_jax.workload import attention, elementwise, matmuls, model_flop, num_parameters

EXACT = 5e-6  # relative; loose enough for float32
FULL = float(RECOMPUTE_LEVELS.index("full"))
WAFER = wafers.WATOS_CONFIG_3_D2D_HALF
MODEL = models.LLAMA2_7B
STRATEGY = Strategy(tensor_cols=4, pipeline_parallel=4, global_batch_size=16)
STRATEGIES = {
    "one die": Strategy(global_batch_size=4),
    "tensor and pipeline": STRATEGY,
    "everything": Strategy(
        tensor_cols=2, pipeline_parallel=4, data_parallel=2, context_parallel=2, global_batch_size=16, recompute=4
    ),
    "interleaved": Strategy(tensor_cols=4, pipeline_parallel=4, virtual_stages=2, global_batch_size=16),
    "gpipe, materialised": Strategy(
        tensor_cols=4, pipeline_parallel=4, schedule=1, flash_attention=0, sequence_parallel=0, global_batch_size=16
    ),
}
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
EVERY_MODEL = ["llama2-7b", "mixtral-8x7b", "deepseek-v3", "gshard-137b", "gpt3-175b"]
EVERY_PAIR = [
    pytest.param(models.NAMES[name], strategy, id=f"{name}-{label}")
    for name in EVERY_MODEL
    for label, strategy in STRATEGIES.items()
    if violation(models.NAMES[name], strategy) is None
]
every_pair = pytest.mark.parametrize(("model", "strategy"), EVERY_PAIR)

TINY = Transformer(
    num_layers=4,
    hidden_size=256,
    ffn_hidden_size=512,
    num_attention_heads=8,
    num_kv_heads=8,
    head_dim=32,
    sequence_length=1024,
    vocab_size=1000,
)


def system(*, clock=1e30, bandwidth=1e30, link=1e30, latency=0.0, cols=4, efficiency=None, fabric="mesh", tiers=None):
    """Dies in a row that take no time but for what is given."""
    die = Die(
        core_rows=4,
        core_cols=4,
        core=Core(num_macs=256, clock=clock, sram_bytes=2**40, sram_bytes_per_clock=64, noc_bytes_per_clock=1e6),
        memory=Memory(num_stacks=1, stack_bytes=1e15, stack_bandwidth=bandwidth, sustained_fraction=1.0),
    )
    if tiers is None:
        tiers = (Tier(rows=1, cols=cols, link=Link(bandwidth=link, latency=latency), fabric=fabric),)
    return System(die=die, tiers=tiers, technology=technologies.DENSE_N7, efficiency=efficiency or Efficiency())


def seconds(hardware, strategy, model=TINY):
    return float(estimate(hardware, model, strategy).step_time)


# ---- parts


@every_pair
@pytest.mark.parametrize("relax", [HARD, Smooth(20.0)], ids=["hard", "smooth"])
def test_breakdown_adds_up_to_the_step(model, strategy, relax):
    result = estimate(WAFER, model, strategy, relax=relax)
    parts = {cause: float(x) for cause, x in result.breakdown.items()}
    assert sum(parts.values()) == pytest.approx(float(result.step_time), rel=1e-6 if _double() else 1e-5)
    assert all(x >= -1e-6 * float(result.step_time) for x in parts.values()), parts


@each_strategy
def test_step_is_the_pipeline_then_reduction_and_optimizer(strategy):
    result = estimate(WAFER, MODEL, strategy)
    forward, backward = np.asarray(result.stage_forward), np.asarray(result.stage_backward)
    stages, chunks = int(strategy.pipeline_parallel), float(strategy.virtual_stages)
    assert (forward[:stages] > 0).all()
    assert (backward[:stages] > forward[:stages]).all()
    both = forward + backward
    slowest = forward.max() + backward.max() if strategy.schedule else both.max()
    pipeline = float(strategy.num_micro_batches) * slowest + (both.sum() - slowest) / chunks
    after = float(result.breakdown["data_parallel"] + result.breakdown["optimizer"])
    assert float(result.step_time) == pytest.approx(pipeline + after, rel=EXACT)


@each_strategy
def test_exact_step_time_puts_the_played_schedule_in_place_of_the_closed_form(strategy):
    result = estimate(WAFER, MODEL, strategy)
    p, m, v = (int(x) for x in (strategy.pipeline_parallel, strategy.num_micro_batches, strategy.virtual_stages))
    interleaves, gpipe = interleaved(p, m, v), all_forward_all_backward(p, m)
    orders = interleaves if v > 1 else gpipe if strategy.schedule else one_forward_one_backward(p, m)
    times = (np.asarray(x, float)[:p] for x in (result.stage_forward, result.stage_backward))
    after = float(result.breakdown["data_parallel"] + result.breakdown["optimizer"])
    exact = float(result.exact_step_time(strategy))
    assert exact == pytest.approx(play(orders, *times, v).time + after, rel=EXACT)


@pytest.mark.parametrize("label", STRATEGIES)
def test_padding_takes_no_time(label):
    result = estimate(WAFER, MODEL, STRATEGIES[label])
    stages = int(STRATEGIES[label].pipeline_parallel)
    for times in (result.stage_forward, result.stage_backward):
        assert (np.asarray(times)[stages:] == 0).all()


@every_pair
def test_throughput_and_utilisation_are_what_they_say(model, strategy):
    result = estimate(WAFER, model, strategy)
    step, tokens = float(result.step_time), float(strategy.global_batch_size * model.sequence_length)
    assert float(result.tokens_per_second) == pytest.approx(tokens / step, rel=EXACT)
    peak = float(strategy.num_dies * WAFER.die.flop_rate)
    utilisation = float(model_flop(model, strategy)) / step / peak
    assert float(result.model_flop_utilisation) == pytest.approx(utilisation, rel=EXACT)
    assert 0 < utilisation < 1


def test_a_wafer_is_accepted_as_a_system_of_one_mesh():
    as_wafer, as_system = (estimate(hardware, MODEL, STRATEGY) for hardware in (WAFER, WAFER.system))
    assert float(as_wafer.step_time) == float(as_system.step_time)
    assert set(as_system.margins) == {"memory"}
    assert set(as_system.margins) < set(as_wafer.margins)
    np.testing.assert_array_equal(as_wafer.memory, as_system.memory)


def test_a_layout_that_is_passed_is_the_one_that_is_computed():
    passed = estimate(WAFER, MODEL, STRATEGY, layout=layout(WAFER, STRATEGY))
    assert float(passed.step_time) == float(estimate(WAFER, MODEL, STRATEGY).step_time)
    wide = estimate(WAFER, MODEL, STRATEGY, layout=layout(WAFER, STRATEGY, max_stages=16))
    assert wide.memory.shape == (16,)
    assert float(wide.step_time) == pytest.approx(float(passed.step_time), rel=EXACT)
    assert (np.asarray(wide.memory)[8:] == 0).all()


@pytest.mark.parametrize("level", [0, 3, 7])
def test_one_recomputation_level_per_stage_is_the_scalar_when_constant(level):
    for name in ("llama2-7b", "deepseek-v3"):
        scalar = estimate(WAFER, models.NAMES[name], replace(STRATEGY, recompute=level))
        array = estimate(WAFER, models.NAMES[name], replace(STRATEGY, recompute=[level] * 8))
        for a, b in zip(jax.tree.leaves(scalar), jax.tree.leaves(array), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=EXACT, atol=1e-9)


def test_one_recomputation_level_per_existing_stage_is_enough():
    scalar = estimate(WAFER, MODEL, replace(STRATEGY, recompute=2))
    array = estimate(WAFER, MODEL, replace(STRATEGY, recompute=[2] * 4))
    assert float(array.step_time) == pytest.approx(float(scalar.step_time), rel=EXACT)


def test_a_wrong_number_of_recomputation_levels_is_refused():
    with pytest.raises(ValueError, match="recompute"):
        estimate(WAFER, MODEL, replace(STRATEGY, recompute=[0, 1, 2]))


# ---- what is refused

ILLEGAL = [
    ({"tensor_cols": 3}, "tensor_parallel is 3: it must divide num_attention_heads (32)"),
    ({"pipeline_parallel": 40}, "pipeline_parallel is 40: it must be at most num_layers (32)"),
    ({"data_parallel": 3}, "global_batch_size is 16: it must be a multiple of micro_batch_size x data_parallel (3)"),
    (
        {"virtual_stages": 3},
        "virtual_stages is 3: pipeline_parallel x virtual_stages (12) must divide num_layers (32), "
        "or two more where pipeline_parallel does not",
    ),
    (
        {"virtual_stages": 2, "global_batch_size": 6},
        "virtual_stages is 2: the number of micro-batches (6) must be a multiple of pipeline_parallel (4)",
    ),
    ({"virtual_stages": 2, "pipeline_parallel": 1}, "virtual_stages is 2: it needs pipeline_parallel above 1"),
    ({"expert_parallel": 2}, "expert_parallel is 2: it must divide num_experts (0)"),
    ({"recompute": 8}, "recompute is 8.0: it must be below 8"),
    ({"schedule": 2}, "schedule is 2: it must be below 2"),
    ({"optimizer_sharding": 4}, "optimizer_sharding is 4: it must be 0, 1, 2 or 3"),
    ({"tensor_collective": 2}, "tensor_collective is 2: it must be 0 (ring) or 1 (row_column)"),
    ({"tensor_rows": 8, "tensor_cols": 1}, "tensor_rows is 8: it must be at most the 7 rows of dies"),
    ({"tensor_cols": 16}, "tensor_cols is 16: it must be at most the 8 columns of dies"),
    ({"data_parallel": 4}, "the strategy needs 64 dies: it must need at most the 56 of the system"),
]


@pytest.mark.parametrize(("changes", "message"), ILLEGAL, ids=lambda x: "-".join(x) if isinstance(x, dict) else "")
def test_illegal_strategies_are_refused_with_argument_value_and_rule(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        estimate(WAFER, MODEL, replace(STRATEGY, **changes))


def test_heads_shared_by_queries_are_split_evenly_or_repeated_evenly():
    model = replace(MODEL, num_attention_heads=24, num_kv_heads=6)
    with pytest.raises(ValueError, match=r"tensor_parallel is 4: it must divide num_kv_heads \(6\) or be a multiple"):
        estimate(WAFER, model, replace(STRATEGY, tensor_rows=1, tensor_cols=4))


def test_experts_must_divide_peers():
    with pytest.raises(ValueError, match="expert_parallel is 4: it must divide data_parallel x context_parallel"):
        strategy = Strategy(data_parallel=2, expert_parallel=4, global_batch_size=4)
        estimate(WAFER, models.MIXTRAL_8X7B, strategy)


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence_parallel": 2},
        {"flash_attention": 2},
        {"gradient_bytes": 3},
        {"schedule": 1, "virtual_stages": 2},
        {"context_parallel": 3, "tensor_cols": 1},
    ],
    ids="-".join,
)
def test_codes_and_degrees_without_meaning_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        estimate(WAFER, MODEL, replace(STRATEGY, **changes))


@pytest.mark.parametrize("batch", [0, -1, 16.5, float("nan")])
def test_numbers_out_of_range_are_refused_when_a_record_is_built(batch):
    with pytest.raises(ValueError, match=r"Strategy\.global_batch_size is .*: it must be a whole number, at least 1"):
        replace(STRATEGY, global_batch_size=batch)


@pytest.mark.parametrize("field", ["num_stacks", "stack_bandwidth", "sustained_fraction"])
def test_a_die_without_memory_is_refused(field):
    with pytest.raises(ValueError, match=f"Memory.{field}"):
        replace(WAFER.die.memory, **{field: 0})


def test_a_technology_without_a_clock_is_refused():
    with pytest.raises(ValueError, match=r"Technology\.nominal_clock"):
        replace(WAFER.technology, nominal_clock=0)


def test_unknown_fidelity_is_refused():
    with pytest.raises(ValueError, match=r"fidelity is 'magic': it must be one of .*roofline"):
        # as without the type checker of the tests
        inspect.unwrap(estimate)(WAFER, MODEL, STRATEGY, fidelity="magic")


def test_traced_hardware_needs_a_layout():
    def step(wafer):
        return estimate(wafer, MODEL, STRATEGY).step_time

    for transform in (jax.grad, jax.jit, lambda f: lambda w: jax.vmap(f)(jax.tree.map(lambda x: jnp.ones(2) * x, w))):
        with pytest.raises(ValueError, match="traced"):
            transform(step)(WAFER)


def test_a_traced_strategy_needs_a_layout():
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda strategy: estimate(WAFER, MODEL, strategy).step_time)(STRATEGY)


# ---- margins

FITS = replace(WAFER, d2d=replace(WAFER.d2d, module_bandwidth=64 * GIGA), power_limit=23e3, power_density_limit=1e6)
BREAKS = {
    "memory": lambda w: _memory(w, stack_bytes=1 * GIGA),
    "power": lambda w: replace(w, power_limit=1e3),
    "power_density": lambda w: replace(w, power_density_limit=1e5),
    "die_area": lambda w: _core(w, sram_bytes=4 * MIB),
    "edge_horizontal": lambda w: _memory(w, horizontal_sides=2, vertical_sides=0, num_stacks=6),
    "edge_vertical": lambda w: replace(w, d2d=replace(w.d2d, shoreline_density=w.d2d.shoreline_density / 4)),
    "stacks_horizontal": lambda w: _memory(w, horizontal_sides=1, vertical_sides=0, stack_length=14 * MM),
    "stacks_vertical": lambda w: _memory(w, stack_length=14 * MM),
    "window_area": lambda w: replace(w, window_height=160 * MM),
    "window_width": lambda w: replace(w, window_width=200 * MM),
    "window_height": lambda w: replace(w, window_height=200 * MM),
    "reticle": lambda w: replace(w, reticle_width=25 * MM),
    "link_length": lambda w: replace(w, d2d=replace(w.d2d, max_length=5 * MM)),
    "d2d_port": lambda w: replace(w, d2d=replace(w.d2d, module_bandwidth=600 * GIGA)),
}


def _memory(wafer, **changes):
    return replace(wafer, die=replace(wafer.die, memory=replace(wafer.die.memory, **changes)))


def _core(wafer, **changes):
    return replace(wafer, die=replace(wafer.die, core=replace(wafer.die.core, **changes)))


def test_a_design_that_fits_has_no_negative_margin():
    result = estimate(FITS, MODEL, STRATEGY)
    assert result.feasible
    assert all(0 <= float(margin) <= 1 for margin in result.margins.values())
    assert set(result.margins) == set(BREAKS)


@pytest.mark.parametrize("limit", BREAKS)
def test_each_limit_that_is_broken_is_a_negative_margin_and_no_exception(limit):
    result = estimate(BREAKS[limit](FITS), MODEL, STRATEGY)
    margins = {name: float(margin) for name, margin in result.margins.items()}
    assert margins[limit] < 0
    assert not result.feasible
    assert result.binding == min(margins, key=margins.get)
    assert margins[result.binding] == min(margins.values())
    assert np.isfinite(float(result.step_time))


def test_binding_names_the_least_margin_of_every_preset():
    for wafer in wafers.NAMES.values():
        result = estimate(wafer, MODEL, Strategy(pipeline_parallel=4, global_batch_size=8))
        margins = {name: float(margin) for name, margin in result.margins.items()}
        assert margins[result.binding] == min(margins.values())
        assert result.feasible == (min(margins.values()) >= 0)


def test_a_model_that_does_not_fit_is_a_margin():
    result = estimate(FITS, models.MEGATRON_1T, replace(STRATEGY, global_batch_size=4))
    assert float(result.margins["memory"]) < -1
    assert result.binding == "memory"


# ---- steps by hand: everything takes no time but one thing


def test_compute_by_hand():
    # 16 cores of 256 MACs at 1 GHz; three passes of every product, 7 halves of flash attention's forward pass
    strategy = Strategy(global_batch_size=6, micro_batch_size=2)
    tokens, rate = 6 * 1024, 16 * 256 * 2 * 1e9
    weights = 4 * (4 * 256 * 256 + 3 * 256 * 512) + 256 * 1000
    core = 4 * 2 * 512 * 2 * 256
    expected = tokens * (6 * weights + 3.5 * core) / rate
    assert seconds(system(clock=1e9), strategy) == pytest.approx(expected, rel=1e-4)
    again = tokens * (2 * (weights - 256 * 1000) + core) / rate
    full = seconds(system(clock=1e9), replace(strategy, recompute=FULL))
    assert full == pytest.approx(expected + again, rel=1e-4)


def test_memory_traffic_by_hand():
    strategy = Strategy(global_batch_size=6, micro_batch_size=2)
    shapes = jax.tree.map(np.asarray, matmuls(TINY, strategy))
    sizes = shapes.rows * shapes.depth + shapes.rows * shapes.cols + shapes.cols * shapes.depth
    layers = np.array([4] * 12 + [1])
    products = (layers * shapes.count * (3 * 2 * sizes + 2 * 4 * shapes.cols * shapes.depth)).sum()
    core = attention(TINY, strategy)
    cores = 4 * 3 * 2 * float(core.queries) * 4 * 256
    groups = jax.tree.map(float, elementwise(TINY, strategy))
    layer = groups.norms + groups.rotary + groups.residuals + groups.activation
    moved = 3 * (products + cores + 3 * 4 * layer + groups.loss) + 30 * float(num_parameters(TINY))
    assert seconds(system(bandwidth=1e12), strategy) == pytest.approx(moved / 1e12, rel=1e-4)


def test_tensor_parallel_by_hand():
    # two dies: an all-reduce sends the buffer once; 2 forward and 2 backward per layer, and two halves under sequence
    # parallelism; one for the embedding and one for the head, which gathers its input once more
    buffer = 2 * 1024 * 256
    for sequence_parallel, count in ((0, 4 * 4 + 2), (1, 4 * 5 + 2.5)):
        strategy = Strategy(tensor_cols=2, global_batch_size=3, sequence_parallel=sequence_parallel)
        assert seconds(system(link=1e9), strategy) == pytest.approx(3 * count * buffer / 1e9, rel=1e-4)
        recomputed = seconds(system(link=1e9), replace(strategy, recompute=FULL))
        assert recomputed == pytest.approx(3 * (count + 4 * 2) * buffer / 1e9, rel=1e-4)


def test_embedding_and_head_wait_for_their_tensor_group():
    # buffers of each stage beyond its one layer's: the embedding's output forward, the head's input backward
    edges = {0: ([1, 0, 0, 0], [0, 0, 0, 1]), 1: ([0.5, 0, 0, 0.5], [0.5, 0, 0, 1])}
    for sequence_parallel, (ahead, back) in edges.items():
        strategy = Strategy(
            tensor_cols=2, pipeline_parallel=4, global_batch_size=8, sequence_parallel=sequence_parallel
        )
        result = estimate(system(link=1e9, cols=8, fabric="switch"), TINY, strategy)
        buffer = 2 * 1024 * 256 / 1e9
        sent = buffer / (1 + sequence_parallel)  # each stage sends its activations, and waits for its own alone
        forward = np.asarray(result.stage_forward)[:4] - np.array([sent, sent, sent, 0])
        backward = np.asarray(result.stage_backward)[:4] - np.array([0, sent, sent, sent])
        np.testing.assert_allclose(forward / buffer, 2 + np.array(ahead), atol=1e-3)
        np.testing.assert_allclose(backward / buffer, 2 + sequence_parallel + np.array(back), atol=1e-3)


def test_pipeline_sends_by_hand():
    # each stage waits for its own sends: the middle one of three forwards one message and one gradient
    strategy = Strategy(pipeline_parallel=3, global_batch_size=5)
    message = 2 * 1024 * 256 / 1e9
    result = estimate(system(link=1e9), TINY, strategy)
    np.testing.assert_allclose(np.asarray(result.stage_forward)[:3] / message, [1, 1, 0], atol=1e-4)
    np.testing.assert_allclose(np.asarray(result.stage_backward)[:3] / message, [0, 1, 1], atol=1e-4)
    assert float(result.step_time) == pytest.approx((1 + 1 + 5 * 2) * message, rel=1e-4)


def test_interleaved_sends_by_hand():
    # two stages of two chunks: the first sends two, the second one (from chunk 0 back to the first); gradients reverse
    strategy = Strategy(pipeline_parallel=2, virtual_stages=2, global_batch_size=4)
    message = 2 * 1024 * 256 / 1e9
    result = estimate(system(link=1e9, cols=2), TINY, strategy)
    np.testing.assert_allclose(np.asarray(result.stage_forward)[:2] / message, [2, 1], atol=1e-4)
    np.testing.assert_allclose(np.asarray(result.stage_backward)[:2] / message, [1, 2], atol=1e-4)


def test_gradient_reduction_by_hand():
    # two peers exchange halves: 4 bytes of gradient down, and up 2 bytes of weight (sharded) or 4 of gradient
    weights = float(num_parameters(TINY))
    for sharding, returned in ((0, 4), (1, 2), (2, 2)):
        strategy = Strategy(data_parallel=2, global_batch_size=2, optimizer_sharding=sharding)
        expected = weights * (4 + returned) / 2 / 1e9
        assert seconds(system(link=1e9), strategy) == pytest.approx(expected, rel=1e-4)


def test_a_reduce_scatter_and_an_all_gather_cost_one_all_reduce():
    # a peer prices them 1.5 to 2 times as high; on a ring they are the same bytes
    whole, halves = (
        seconds(system(link=1e9, cols=4), Strategy(data_parallel=4, global_batch_size=4, gradient_bytes=2, **kind))
        for kind in ({"optimizer_sharding": 0}, {"optimizer_sharding": 1})
    )
    assert halves == pytest.approx(whole, rel=1e-4)


def test_optimizer_traffic_is_30_bytes_per_parameter():
    # a peer reads 12
    weights = float(num_parameters(TINY))
    for sharding, share in ((0, 1), (1, 4), (2, 4)):
        strategy = Strategy(data_parallel=4, global_batch_size=4, optimizer_sharding=sharding)
        optimizer = float(estimate(system(bandwidth=1e12), TINY, strategy).breakdown["optimizer"])
        assert optimizer == pytest.approx(30 * weights / share / 1e12, rel=1e-4)


def test_latency_grows_with_the_group_and_the_hops():
    # a peer charges one latency whatever the size of the group
    times = [
        seconds(system(latency=1e-3, cols=8), Strategy(tensor_cols=cols, global_batch_size=1)) for cols in (1, 2, 4, 8)
    ]
    assert times[0] == pytest.approx(0, abs=1e-9)
    assert all(b > 1.5 * a for a, b in pairwise(times[1:]))
    near = seconds(system(latency=1e-3, cols=4), Strategy(pipeline_parallel=2, global_batch_size=1))
    assert near == pytest.approx(2e-3, rel=1e-4)  # one hop forward, one back


def test_a_group_over_two_nodes_is_held_up_by_the_network_between_them():
    # a peer's tier is one flat number: 16 ways over two nodes of 8
    cluster = chips.cluster(chips.DGX_A100, 2)
    inside, across = (
        float(estimate(cluster, models.GPT3_175B, Strategy(tensor_cols=cols)).breakdown["tensor_parallel"])
        for cols in (8, 16)
    )
    assert across > 1.3 * inside


def test_launches_and_collective_latencies_by_hand():
    launch = Efficiency(launch_time=1e-3)
    # four products and core, norms 2, rotary, residuals 2, activation; LM head and loss; twice backward but the loss
    layer = 4 + 1 + 6
    head = 1 + 2 + 1
    expected = (4 * 3 * layer + head) * 1e-3
    assert seconds(system(efficiency=launch), Strategy()) == pytest.approx(expected, rel=1e-4)
    call = Efficiency(collective_latency=1e-3)
    strategy = Strategy(tensor_cols=2, sequence_parallel=0)
    assert seconds(system(efficiency=call), strategy) == pytest.approx((4 * 4 + 2) * 1e-3, rel=1e-4)
    assert seconds(system(efficiency=call), Strategy()) == pytest.approx(0, abs=1e-9)


def test_inefficiency_of_transfers_by_hand():
    slow = Efficiency(network_overhead=0.5, memory_overhead=0.25)
    for hardware, strategy, factor in (
        ({"link": 1e9}, Strategy(tensor_cols=2), 1.5),
        ({"link": 1e9}, Strategy(pipeline_parallel=2, global_batch_size=2), 1.5),
        ({"bandwidth": 1e12}, Strategy(), 1.25),
    ):
        ideal, real = (seconds(system(efficiency=e, **hardware), strategy) for e in (None, slow))
        assert real == pytest.approx(factor * ideal, rel=1e-4)


def test_context_parallel_passes_keys_and_values_around():
    # four parts: three steps forward and six backward per layer, each 2 bytes x tokens x two heads' widths
    strategy = Strategy(context_parallel=2, global_batch_size=1, optimizer_sharding=0)
    result = estimate(system(link=1e9, cols=2), TINY, strategy)
    step = 2 * 512 * 2 * 256 / 1e9
    assert float(result.breakdown["context_parallel"]) == pytest.approx(4 * 3 * step, rel=1e-4)


def test_expert_parallel_by_hand():
    # two dies: half of the dispatched tokens leave, in each of four all-to-alls
    model = replace(TINY, num_experts=4, experts_per_token=2, moe_ffn_hidden_size=128)
    strategy = Strategy(data_parallel=2, expert_parallel=2, global_batch_size=2)
    result = estimate(system(link=1e9, cols=2), model, strategy)
    dispatched = 2 * 1024 * 256 * 2
    assert float(result.breakdown["expert_parallel"]) == pytest.approx(4 * 4 * dispatched / 2 / 1e9, rel=1e-4)


def _double():
    return jax.config.jax_enable_x64
