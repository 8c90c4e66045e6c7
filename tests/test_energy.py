"""Energy and power: one price at a time against counts by hand, units, and the clock law."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from watos_jax import estimate
from watos_jax.energy import flop_energy, leakage_power, peak_power_per_die, voltage
from watos_jax.hardware import Core, Die, Link, Memory, Technology, Wafer
from watos_jax.model import Transformer
from watos_jax.operators.roofline import attention_cost, matmul_cost
from watos_jax.presets import models, wafers
from watos_jax.relax import HARD, Smooth
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy
from watos_jax.units import BITS_PER_BYTE, GIGA, MIB, MM, MM2, PICO
from watos_jax.workload import attention, elementwise, matmuls, num_parameters

EXACT = 5e-6  # relative; loose enough for float32
FULL = float(RECOMPUTE_LEVELS.index("full"))
FREE = Technology(
    mac_area=0,
    sram_area=0,
    memory_phy_area=0,
    memory_phy_length=0,
    flop_energy=0,
    sram_energy=0,
    dram_energy=0,
    leakage_power_density=0,
    nominal_clock=1e9,
)
WAFER = Wafer(
    die_rows=2,
    die_cols=4,
    die=Die(
        core_rows=4,
        core_cols=4,
        core=Core(num_macs=256, clock=1e9, sram_bytes=1 * MIB, sram_bytes_per_clock=256, noc_bytes_per_clock=256),
        memory=Memory(num_stacks=1, stack_bytes=64e9, stack_bandwidth=1e12, sustained_fraction=1.0),
        width=20 * MM,
        height=25 * MM,
    ),
    d2d=Link(bandwidth=100 * GIGA),
    technology=FREE,
)
MODEL = Transformer(
    num_layers=4,
    hidden_size=256,
    ffn_hidden_size=512,
    num_attention_heads=8,
    num_kv_heads=4,
    head_dim=32,
    sequence_length=1024,
    vocab_size=1000,
)
MIXTURE = replace(MODEL, num_experts=4, experts_per_token=2, moe_ffn_hidden_size=128)


def energy(strategy, model=MODEL, wafer=WAFER, *, link_energy=0.0, **prices):
    """Joules of a step where everything is free but the named prices."""
    wafer = replace(wafer, technology=replace(FREE, **prices), d2d=replace(wafer.d2d, energy=link_energy))
    return float(estimate(wafer, model, strategy).energy)


def per_layer(model):
    mixture = float(model.num_layers) if float(model.num_experts) else 0.0
    dense = float(model.num_layers) - mixture
    return np.array([dense + mixture] * 5 + [dense] * 2 + [mixture] * 5 + [1.0])


def product_flop(model, strategy):
    """Forward FLOP of all products of one micro-batch on one device of a pipeline."""
    shapes = matmuls(model, strategy)
    flop = np.asarray(2 * shapes.rows * shapes.cols * shapes.depth * shapes.count)
    return float((per_layer(model) * flop).sum())


def core_flop(model, strategy):
    """Forward FLOP of all attention cores of one micro-batch on one device of a pipeline."""
    core = attention(model, strategy)
    return float(model.num_layers * 2 * core.queries * core.keys * core.heads * (core.head_dim + core.value_dim))


# ---- one price at a time

STRATEGIES = {
    "one die": Strategy(global_batch_size=4),
    "tensor": Strategy(tensor_cols=4, global_batch_size=4),
    "tensor, stream repeated": Strategy(tensor_cols=4, sequence_parallel=0, global_batch_size=4),
    "pipeline": Strategy(pipeline_parallel=3, global_batch_size=6),
    "replicas": Strategy(data_parallel=4, global_batch_size=8),
    "context": Strategy(context_parallel=2, global_batch_size=2),
    "all": Strategy(tensor_cols=2, pipeline_parallel=2, data_parallel=2, micro_batch_size=2, global_batch_size=8),
}
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


@each_strategy
@pytest.mark.parametrize("model", [MODEL, MIXTURE], ids=["dense", "mixture"])
def test_datapath_pays_for_every_executed_flop(strategy, model):
    # three passes of every product, flash attention's core 2 + 5 halves of its forward pass; all devices
    once = Strategy(micro_batch_size=strategy.global_batch_size, global_batch_size=strategy.global_batch_size)
    executed = 3 * product_flop(model, once) + 3.5 * core_flop(model, once)
    if float(model.num_experts) and not float(strategy.sequence_parallel):  # a tensor group repeats the router
        router = 3 * 2 * float(model.num_layers * model.hidden_size * model.num_experts)
        tokens = float(strategy.global_batch_size * model.sequence_length)
        executed += (float(strategy.tensor_parallel) - 1) * router * tokens
    assert energy(strategy, model, flop_energy=1e-12) == pytest.approx(executed * 1e-12, rel=EXACT)
    # a square array of 256 reads 2 x 16 operands of 2 bytes per 256 MACs: an eighth of a byte per FLOP
    assert energy(strategy, model, sram_energy=1e-12) == pytest.approx(executed * 1e-12 / 8, rel=EXACT)


def test_recomputation_pays_for_one_more_forward_pass_per_layer():
    # a peer's recomputation accumulates over layers, up to 7.6 times the FLOP
    base = Strategy(pipeline_parallel=3, global_batch_size=6)
    again = energy(replace(base, recompute=FULL), flop_energy=1e-12) - energy(base, flop_energy=1e-12)
    once = Strategy(micro_batch_size=6, global_batch_size=6)
    head = 2 * 6 * 1024 * 256 * 1000
    expected = product_flop(MODEL, once) - head + core_flop(MODEL, once)
    assert again == pytest.approx(expected * 1e-12, rel=1e-4)
    levels = [FULL, 0.0, FULL] + [0.0] * 5  # of 1, 2 and 1 layers: the spare one is on stage 1
    half = energy(replace(base, recompute=levels), flop_energy=1e-12) - energy(base, flop_energy=1e-12)
    assert half == pytest.approx(expected / 2 * 1e-12, rel=1e-4)


def dram_bytes(model, strategy):
    """DRAM bytes of products, attention and the layers' element-wise operators of a step on one device."""
    efficiency, m = WAFER.efficiency, float(strategy.num_micro_batches)
    cost = matmul_cost(WAFER.die, efficiency, matmuls(model, strategy), strategy.gradient_bytes, HARD)
    core = attention_cost(WAFER.die, efficiency, attention(model, strategy), HARD)
    groups = jax.tree.map(float, elementwise(model, strategy))
    layer = groups.norms + groups.rotary + groups.residuals
    layer += groups.expert_activation if float(model.num_experts) else groups.activation
    products = (per_layer(model) * np.asarray(cost.forward_bytes + cost.backward_bytes)).sum()
    cores = float(model.num_layers) * float(core.forward_bytes + core.backward_bytes)
    # backward reads a gradient and a saved tensor where forward reads one
    return m * (products + cores + 3 * float(model.num_layers) * layer), m * groups.loss


@pytest.mark.parametrize("model", [MODEL, MIXTURE], ids=["dense", "mixture"])
def test_dram_pays_for_every_byte(model):
    strategy = Strategy(global_batch_size=4)
    moved, loss = dram_bytes(model, strategy)
    optimizer = 30 * float(num_parameters(model))
    found = energy(strategy, model, dram_energy=1e-12) / 1e-12
    assert moved + optimizer < found <= (moved + optimizer + loss) * (1 + EXACT)


def test_dram_pays_for_the_whole_loss():
    strategy = Strategy(global_batch_size=4)
    expected = sum(dram_bytes(MODEL, strategy)) + 30 * float(num_parameters(MODEL))
    assert energy(strategy, dram_energy=1e-12) == pytest.approx(expected * 1e-12, rel=EXACT)


def optimizer_joules(model, **changes):
    """DRAM energy of everything that does not grow with the number of micro-batches, per pJ/byte."""
    few, many = (energy(Strategy(global_batch_size=b, **changes), model, dram_energy=1e-12) / 1e-12 for b in (4, 8))
    return 2 * few - many


@pytest.mark.parametrize("code", [1, 2])
def test_sharded_optimizer_updates_every_parameter_once(code):
    joules = optimizer_joules(MODEL, data_parallel=4, optimizer_sharding=code)
    assert joules == pytest.approx(30 * float(num_parameters(MODEL)), rel=1e-3)


def test_unsharded_optimizer_updates_every_replica():
    joules = optimizer_joules(MODEL, data_parallel=4, optimizer_sharding=0)
    assert joules == pytest.approx(4 * 30 * float(num_parameters(MODEL)), rel=1e-3)


def test_sharded_optimizer_updates_every_expert_once():
    joules = optimizer_joules(MIXTURE, data_parallel=4, expert_parallel=4)
    assert joules == pytest.approx(30 * float(num_parameters(MIXTURE)), rel=1e-3)


def test_tensor_links_pay_for_every_byte_and_hop():
    # two dies side by side: each sends the buffer once per all-reduce; a layer makes 2 forward, 2 backward, 2 halves
    # again; embedding and head one each, and half a one again
    for sequence_parallel, count in ((0, 4 * 4 + 2), (1, 4 * 5 + 2.5)):
        strategy = Strategy(tensor_cols=2, global_batch_size=3, sequence_parallel=sequence_parallel)
        buffer = 2 * 1024 * 256
        expected = 3 * count * 2 * buffer * 1e-12
        assert energy(strategy, link_energy=1e-12) == pytest.approx(expected, rel=EXACT)


def test_pipeline_links_pay_for_every_byte_and_hop():
    strategy = Strategy(pipeline_parallel=3, global_batch_size=6)
    message = 2 * 1024 * 256  # forward and back over two boundaries of one hop
    assert energy(strategy, link_energy=1e-12) == pytest.approx(6 * 2 * 2 * message * 1e-12, rel=EXACT)


def test_interleaved_links_pay_for_every_byte_and_hop():
    strategy = Strategy(pipeline_parallel=2, virtual_stages=2, global_batch_size=2)
    message = 2 * 1024 * 256  # four chunks: three boundaries, each one hop on two neighbours
    assert energy(strategy, link_energy=1e-12) == pytest.approx(2 * 2 * 3 * message * 1e-12, rel=EXACT)


def test_gradient_links_pay_for_every_byte_and_hop_where_sharded():
    strategy = Strategy(data_parallel=2, global_batch_size=2, optimizer_sharding=1, gradient_bytes=4)
    # of two peers each sends half of its gradients, 4 bytes, and half of the weights, 2 bytes
    expected = 2 * (4 + 2) / 2 * float(num_parameters(MODEL)) * 1e-12
    assert energy(strategy, link_energy=1e-12) == pytest.approx(expected, rel=EXACT)


def test_gradient_links_pay_for_every_byte_and_hop_where_not_sharded():
    strategy = Strategy(data_parallel=2, global_batch_size=2, optimizer_sharding=0, gradient_bytes=4)
    expected = 2 * 4 * float(num_parameters(MODEL)) * 1e-12
    assert energy(strategy, link_energy=1e-12) == pytest.approx(expected, rel=EXACT)


def test_experts_on_all_peers_are_not_reduced():
    strategy = Strategy(data_parallel=2, expert_parallel=2, global_batch_size=2)
    experts = 4 * 4 * 3 * 256 * 128
    common = float(num_parameters(MIXTURE)) - experts
    without_gradients = 2 * (4 + 2) / 2 * common * 1e-12
    dispatch = 4 * 4 * 2 * (2 * 1024 * 256 * 2 / 2) * 1e-12  # four all-to-all a layer, half of the tokens leave
    found = energy(strategy, MIXTURE, link_energy=1e-12)
    assert found == pytest.approx(without_gradients + dispatch, rel=EXACT)


def test_leakage_pays_for_the_area_of_all_dies_and_the_whole_step():
    strategy = Strategy(global_batch_size=4)
    density = 0.05 / MM2
    leaking = replace(WAFER, technology=replace(FREE, leakage_power_density=density))
    result = estimate(leaking, MODEL, strategy)
    assert float(result.energy) == pytest.approx(8 * 500 * 0.05 * float(result.step_time), rel=EXACT)
    assert float(result.power) == pytest.approx(8 * 500 * 0.05, rel=EXACT)


def test_prices_add_up():
    prices = {"flop_energy": 1e-12, "sram_energy": 2e-12, "dram_energy": 5e-12, "leakage_power_density": 1e4}
    strategy = STRATEGIES["all"]
    alone = [energy(strategy, **{name: price}) for name, price in prices.items()]
    alone.append(energy(strategy, link_energy=3e-12))
    assert energy(strategy, link_energy=3e-12, **prices) == pytest.approx(sum(alone), rel=EXACT)


# ---- power and units


def test_peak_power_by_hand():
    # configuration 3 of WATOS with DENSE_N7: 708 TFLOP/s x (0.33 + 2 / sqrt(546.3) x 0.656) pJ, 1.8 TB/s of DRAM at
    # 6 pJ/bit, four edges of 1 TB/s at 0.6 pJ/bit, 642.6 mm2 at 0.06 W/mm2, all at the nominal clock
    wafer = wafers.WATOS_CONFIG_3
    watts = 708 * (0.33 + 2 / 546.296**0.5 * 0.656) + 1.8 * 6 * 8 + 4 * 1 * 0.6 * 8 + 642.6 * 0.06
    assert watts == pytest.approx(417.7, abs=0.2)
    assert float(peak_power_per_die(wafer)) == pytest.approx(watts, rel=1e-5)
    margins = estimate(wafer, models.LLAMA3_70B, Strategy(tensor_cols=4, pipeline_parallel=8)).margins
    assert float(margins["power_density"]) == pytest.approx(1 - watts / 642.6 / 1.0, rel=1e-4)


def test_units_of_the_energy_records():
    # a peer multiplies pJ/bit/mm by micrometres: 60 to 821 kW per wafer
    assert pytest.approx(8e-12) == BITS_PER_BYTE * PICO
    for name, wafer in wafers.NAMES.items():
        watts = float(wafer.num_dies) * float(peak_power_per_die(wafer))
        assert 5e3 < watts < 60e3, name


def test_mean_power_is_energy_over_time_and_its_margin_signed():
    strategy = Strategy(tensor_cols=4, pipeline_parallel=8, global_batch_size=64)
    result = estimate(wafers.WATOS_CONFIG_3, models.LLAMA3_70B, strategy)
    watts = float(result.energy) / float(result.step_time)
    assert float(result.power) == pytest.approx(watts, rel=EXACT)
    for limit, sign in ((1.01 * watts, 1), (0.99 * watts, -1)):
        limited = replace(wafers.WATOS_CONFIG_3, power_limit=limit)
        margin = float(estimate(limited, models.LLAMA3_70B, strategy).margins["power"])
        assert margin * sign > 0
        assert margin == pytest.approx(1 - watts / limit, rel=1e-3)


def test_mean_power_stays_below_the_peak_of_all_dies():
    for model in (models.LLAMA3_70B, models.MIXTRAL_8X7B):
        for wafer in wafers.NAMES.values():
            cols = 4 if float(wafer.die_cols) >= 4 else 1
            strategy = Strategy(tensor_cols=cols, pipeline_parallel=4, global_batch_size=64)
            power = float(estimate(wafer, model, strategy).power)
            assert 0 < power < float(wafer.num_dies) * float(peak_power_per_die(wafer))


# ---- the clock law

TECHNOLOGY = replace(FREE, flop_energy=1e-12, leakage_power_density=1e4)


def at_clock(clock, **changes):
    technology = replace(TECHNOLOGY, **changes)
    die = replace(WAFER.die, core=replace(WAFER.die.core, clock=clock))
    return replace(WAFER, die=die, technology=technology)


def test_voltage_by_hand():
    for clock, exponent, floor, expected in (
        (1.5e9, 1.0, 0.6, 1.5),
        (1.5e9, 0.5, 0.6, 1.5**0.5),
        (0.5e9, 1.0, 0.6, 0.6),
        (0.7e9, 1.0, 0.6, 0.7),
        (0.5e9, 0.0, 0.6, 1.0),
    ):
        technology = replace(TECHNOLOGY, voltage_exponent=exponent, minimum_voltage=floor)
        assert float(voltage(technology, clock)) == pytest.approx(expected, rel=EXACT)
        soft = float(voltage(technology, clock, Smooth(50.0)))
        assert expected * (1 - EXACT) <= soft <= expected * 1.02 * (1 + EXACT)


def test_energy_per_flop_grows_with_the_square_of_the_voltage_and_leakage_with_it():
    slow, fast = at_clock(1e9), at_clock(1.5e9)
    assert float(flop_energy(fast.system)) == pytest.approx(1.5**2 * float(flop_energy(slow.system)), rel=EXACT)
    area = 500 * MM2
    watts = [float(leakage_power(w.technology, w.die, area)) for w in (slow, fast)]
    assert watts == pytest.approx([5.0, 7.5], rel=EXACT)
    below = [float(flop_energy(at_clock(clock).system)) for clock in (0.3e9, 0.5e9, 0.6e9)]
    assert below == pytest.approx([0.36e-12] * 3, rel=EXACT)


def test_a_faster_clock_is_no_free_lunch():
    # compute-bound: enough DRAM bandwidth that only the cores matter
    strategy = Strategy(global_batch_size=4, micro_batch_size=4)

    def run(clock):
        wafer = at_clock(clock, leakage_power_density=0)
        memory = replace(wafer.die.memory, stack_bandwidth=1e18)
        return estimate(replace(wafer, die=replace(wafer.die, memory=memory)), MODEL, strategy)

    base = run(1e9)
    for factor in (1.25, 2.0, 4.0):
        result = run(factor * 1e9)
        assert float(result.step_time) * factor == pytest.approx(float(base.step_time), rel=1e-4)
        assert float(result.energy) == pytest.approx(factor**2 * float(base.energy), rel=EXACT)
        assert float(result.power) == pytest.approx(factor**3 * float(base.power), rel=1e-4)


@pytest.mark.parametrize("name", wafers.NAMES)
def test_power_rises_with_the_clock(name):
    wafer = wafers.NAMES[name]
    strategy = Strategy(pipeline_parallel=4, global_batch_size=16)
    powers, densities = [], []
    for factor in (0.5, 0.8, 1.0, 1.2, 2.0):
        core = replace(wafer.die.core, clock=factor * wafer.die.core.clock)
        faster = replace(wafer, die=replace(wafer.die, core=core))
        powers.append(float(estimate(faster, models.LLAMA2_7B, strategy).power))
        densities.append(float(peak_power_per_die(faster)))
    assert powers == sorted(powers)
    assert densities == sorted(densities)
