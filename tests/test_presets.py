"""Presets: every constant has a source, every total is the published one, every name is found."""

import ast
import inspect
import math

import pytest

from watos_jax.fabrication import fabrication_ratios
from watos_jax.hardware import Budget, Knobs, Wafer
from watos_jax.presets import budgets, chips, models, prices, technologies, wafers
from watos_jax.units import GIGA, MIB, MM, MM2, TERA

MODULES = (technologies, wafers, chips, models, budgets, prices)
SOURCES = [
    *(
        "arXiv",
        "ISCA",
        "HPCA",
        "NVIDIA",
        "Tesla",
        "LLMCompass",
        "CATCH",
        "JEDEC",
        "Micron",
        "DeepFlow",
        "OpenTallas",
        "Actuary",
        "ttm-cas",
    ),
    *("data sheet", "B200", "TX8", "Cerebras", "OURS", "`"),
]


def _documented(module):
    """Names of a module's public constants, each with the docstring under it (or None)."""
    body = ast.parse(inspect.getsource(module)).body
    for node, below in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper():
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            yield node.target.id, below.value.value if is_text else None


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_constant_names_its_source(module):
    records = {name.upper().replace("-", "_") for name in module.NAMES}
    if module is technologies:
        records |= {name.upper().replace("-", "_") for name in {**module.LINKS, **module.MEMORIES}}
    documented = dict(_documented(module))
    assert records <= documented.keys()
    for name, text in documented.items():
        assert text, f"{name} has no docstring"
        if name in records:
            assert any(source in text for source in SOURCES), f"{name} names no source"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_name_is_found_and_others_are_refused_with_near_matches(module):
    for name, record in module.NAMES.items():
        assert module.get(name) is record
        assert module.get(name.upper().replace("-", "_")) is record
    name = next(iter(module.NAMES))
    with pytest.raises(ValueError, match=f"perhaps.*{name}"):
        module.get(name[:-1])
    for wrong in ("", "no such thing at all"):
        with pytest.raises(ValueError, match="must be one of"):
            module.get(wrong)


def test_names_are_the_documented_ones():
    for module, name in (
        (models, "llama3-70b"),
        (models, "gpt3-175b"),
        (models, "mixtral-8x7b"),
        (wafers, "watos-config-3"),
        (technologies, "demonstrated-n7"),
        (budgets, "default"),
        (chips, "dgx-h100"),
    ):
        assert name in module.NAMES


# ---- wafers and nodes: number of dies, then one die's FLOP/s, memory bytes, peak bytes/s, SRAM bytes; tolerance

PUBLISHED_DIES = [
    (wafers.WATOS_CONFIG_3, 56, 708 * TERA, 70 * GIGA, 2 * TERA, 18 * 18 * 1.25 * MIB, 1e-6),
    (wafers.WSC_LLM_54, 54, 261 * TERA, 64 * GIGA, 2 * TERA, None, 0.005),
    (wafers.TEMP_6X8, 48, 1800 * TERA, 72 * GIGA, None, 80 * MIB, 1e-6),
    (wafers.DOJO_TILE, 25, 362 * TERA, 160 * GIGA / 25, 4 * TERA / 25, 11e9 / 25, 0.06),
    (chips.DGX_A100, 8, 312 * TERA, 80 * GIGA, 2039 * GIGA, 40 * MIB, 0.001),
    (chips.DGX_H100, 8, 989 * TERA, 80 * GIGA, 3.35 * TERA, 50 * MIB, 0.001),
    (chips.DGX_B200, 8, 2250 * TERA, 180 * GIGA, 8 * TERA, 126 * MIB, 0.001),
    (chips.DGX_B300, 8, 2250 * TERA, 288 * GIGA, 8 * TERA, 126 * MIB, 0.001),
    (chips.DGX_H200, 8, 989 * TERA, 141 * GIGA, 4.8 * TERA, 50 * MIB, 0.001),
    (chips.GB200_NVL72, 72, 2500 * TERA, 186 * GIGA, 8 * TERA, 126 * MIB, 0.001),
    (chips.GB300_NVL72, 72, 2500 * TERA, 288 * GIGA, 8 * TERA, 126 * MIB, 0.001),
]


@pytest.mark.parametrize(("machine", "dies", "flop_rate", "capacity", "bandwidth", "sram", "tolerance"), PUBLISHED_DIES)
def test_machines_have_their_published_totals(machine, dies, flop_rate, capacity, bandwidth, sram, tolerance):
    die = machine.die
    assert float(machine.num_dies) == dies
    assert float(die.flop_rate) == pytest.approx(flop_rate, rel=tolerance)
    assert float(die.memory.capacity) == pytest.approx(capacity, rel=tolerance)
    if bandwidth is not None:
        peak = die.memory.num_stacks * die.memory.stack_bandwidth
        assert float(peak) == pytest.approx(bandwidth, rel=tolerance)
        assert float(die.memory.bandwidth) == pytest.approx(0.9 * bandwidth, rel=tolerance)
    if sram is not None:
        assert float(die.sram_bytes) == pytest.approx(sram, rel=tolerance)


def test_a_wrong_published_total_fails():
    with pytest.raises(AssertionError):
        test_machines_have_their_published_totals(wafers.WATOS_CONFIG_3, 56, 700 * TERA, 70 * GIGA, None, None, 1e-6)


def test_watos_config_3_totals():
    wafer = wafers.WATOS_CONFIG_3
    assert float(wafer.num_dies * wafer.die.flop_rate) == pytest.approx(39_648 * TERA)
    assert float(wafer.num_dies * wafer.die.memory.capacity) == pytest.approx(3_920 * GIGA)
    per_edge = [
        float(w.d2d.bandwidth) / TERA for w in (wafers.WATOS_CONFIG_3_D2D_HALF, wafer, wafers.WATOS_CONFIG_3_D2D_4TB)
    ]
    assert per_edge == [0.5, 1.0, 4.0]


def test_watos_configurations_lie_in_the_ranges_of_the_paper():
    # 48-96 GB, 1-2.5 TB/s, 4-4.5 TB/s; configuration 1 has most compute, 4 most memory
    table = [getattr(wafers, f"WATOS_CONFIG_{number}") for number in (1, 2, 3, 4)]
    memory = [float(wafer.die.memory.capacity) for wafer in table]
    rate = [float(wafer.die.memory.num_stacks * wafer.die.memory.stack_bandwidth) for wafer in table]
    link = [4.0 * float(wafer.d2d.bandwidth) for wafer in table]
    compute = [float(wafer.num_dies * wafer.die.flop_rate) for wafer in table]
    for values, low, high in ((memory, 48 * GIGA, 96 * GIGA), (rate, TERA, 2.5 * TERA), (link, 4 * TERA, 4.5 * TERA)):
        assert min(values) >= low * (1 - 1e-9)
        assert max(values) <= high * (1 + 1e-9)
    assert compute[0] == max(compute) > compute[2]
    assert memory[3] == max(memory)
    # the paper counts dies by area: what 56 dies leave of 198 x 198 mm is memory, 70 GB each
    per_byte = (0.198**2 / 56 - 25.5e-3 * 25.2e-3) / 70e9
    for wafer, capacity in zip(table, memory, strict=True):
        share = float(wafer.die.width * wafer.die.height) + per_byte * capacity
        assert float(wafer.num_dies) == pytest.approx(0.198**2 / share, rel=0.02)


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("watos-config-3", {"edge_vertical": 1.017}),
        ("watos-config-3-d2d-half", {}),
        ("watos-config-3-198", {"edge_vertical": 1.017, "window_area": 1.109}),
        ("watos-config-1", {}),
        ("watos-config-2", {"edge_vertical": 1.039}),
        ("watos-config-4", {"edge_vertical": 1.017}),
        ("wsc-llm-54", {}),
        ("temp-6x8", {"die_area": 1.716, "edge_vertical": 1.067}),
        ("dojo-tile", {}),
    ],
)
def test_wafers_fit_but_for_the_limits_that_their_docstrings_name(name, over):
    ratios = fabrication_ratios(wafers.NAMES[name])
    exceeded = {limit: float(ratio) for limit, ratio in ratios.items() if ratio > 1 + 1e-9}
    assert exceeded == pytest.approx(over, rel=0.01)


def test_cluster_multiplies_nodes_and_refuses_fractions():
    assert float(chips.cluster(chips.DGX_H100, 16).num_dies) == 128
    for wrong in (0, -1, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="num_nodes"):
            chips.cluster(chips.DGX_H100, wrong)


# ---- technologies


def _ga100_area(technology):
    """Area of the full GA100: 128 cores of 1,024 MACs, 192 KB; 48 MB of L2, six stacks, twelve NVLinks."""
    logic = 128 * 1024 * technology.mac_area
    sram = (128 * 192 * 1024 + 48 * MIB) * technology.sram_area
    memory = 6 * technology.memory_phy_area
    nvlink = 300 * GIGA * technologies.NVLINK3.phy_area
    crossbar = 128 * technologies.GPU_CROSSBAR_AREA_N7
    return logic + sram + memory + nvlink + crossbar


def test_gpu_n7_reproduces_ga100_within_3_percent():
    assert float(_ga100_area(technologies.GPU_N7)) == pytest.approx(826 * MM2, rel=0.03)


@pytest.mark.parametrize("name", ["dense-n7", "demonstrated-n7", "gpu-n5"])
def test_ga100_area_tells_the_technologies_apart(name):
    assert float(_ga100_area(technologies.NAMES[name])) != pytest.approx(826 * MM2, rel=0.03)


@pytest.mark.parametrize(
    ("name", "die", "logic", "sram"),
    [
        ("gpu-n7", wafers.WATOS_CONFIG_3.die, 621, 960),
        ("gpu-n7", wafers.DOJO_TILE.die, 317, 1049),
        ("dense-n7", wafers.WATOS_CONFIG_3.die, 358, 116),
        ("dense-n7", wafers.DOJO_TILE.die, 183, 127),
    ],
)
def test_logic_sets_disagree_as_stated(name, die, logic, sram):
    technology = technologies.NAMES[name]
    assert float(die.num_cores * die.core.num_macs * technology.mac_area) == pytest.approx(logic * MM2, rel=0.01)
    assert float(die.sram_bytes * technology.sram_area) == pytest.approx(sram * MM2, rel=0.01)


def test_demonstrated_n7_is_fitted_to_dojo_d1_and_nothing_else():
    technology, die, d2d = technologies.DEMONSTRATED_N7, wafers.DOJO_TILE.die, wafers.DOJO_TILE.d2d
    assert 1.0 < technologies.DEMONSTRATED_FACTOR <= 2.08
    logic = die.num_cores * die.core.num_macs * technology.mac_area
    area = logic + die.sram_bytes * technology.sram_area + 4 * d2d.bandwidth * d2d.phy_area
    assert float(area) == pytest.approx(645 * MM2, rel=1e-5)
    ratio = technology.mac_area / technologies.DENSE_N7.mac_area
    assert float(technology.sram_area / technologies.DENSE_N7.sram_area) == pytest.approx(float(ratio))


def test_link_classes_trade_reach_for_density():
    links = [technologies.D2D_UCIE_A, technologies.D2D_UCIE_S, technologies.D2D_DOJO]
    density = [float(link.shoreline_density) * MM / GIGA for link in links]
    assert density == pytest.approx([658, 112, 79], rel=0.01)
    assert [float(link.max_length) / MM for link in links] == pytest.approx([2, 25, 50])
    assert [float(link.energy) for link in links] == sorted(float(link.energy) for link in links)


# ---- models


def _count(m):
    """Parameters, written out independently of the library."""
    attention = m.hidden_size * m.head_dim * (2 * m.num_attention_heads + 2 * m.num_kv_heads)
    if m.kv_lora_rank:
        rope, nope = m.qk_rope_head_dim, m.head_dim - m.qk_rope_head_dim
        heads, value = m.num_attention_heads, m.v_head_dim
        queries = m.q_lora_rank * (m.hidden_size + heads * m.head_dim)
        keys = m.hidden_size * (m.kv_lora_rank + rope) + m.kv_lora_rank * heads * (nope + value)
        attention = queries + keys + heads * value * m.hidden_size
    matrices = 3 if m.gated_mlp else 2
    expert_layers = (m.num_layers - m.num_dense_layers) // m.moe_layer_interval if m.num_experts else 0
    experts = m.num_experts + m.num_shared_experts
    expert_layer = m.hidden_size * (matrices * m.moe_ffn_hidden_size * experts + m.num_experts)
    dense_layer = matrices * m.hidden_size * m.ffn_hidden_size
    tables = m.vocab_size * (1 if m.tied_embeddings else 2) + m.learned_positions * m.sequence_length
    layers = m.num_layers * attention + expert_layers * expert_layer + (m.num_layers - expert_layers) * dense_layer
    return layers + tables * m.hidden_size


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama2-7b", 6.74),
        ("llama2-13b", 13.02),
        ("llama2-30b", 32.5),
        ("llama2-70b", 68.98),
        ("llama3-8b", 8.03),
        ("llama3-70b", 70.6),
        ("llama3-405b", 405.9),
        ("gpt3-175b", 175),
        ("megatron-22b", 22),
        ("megatron-530b", 530),
        ("megatron-1t", 1008),
        ("gshard-137b", 137),
        ("mixtral-8x7b", 46.7),
        ("deepseek-v2", 236),
        ("deepseek-v3", 671),
        ("qwen3-32b", 32.8),
    ],
)
def test_models_count_to_their_published_parameters(name, billions):
    assert float(_count(models.NAMES[name])) / 1e9 == pytest.approx(billions, rel=0.01)


def test_every_model_is_counted():
    marks = test_models_count_to_their_published_parameters.pytestmark
    assert {row[0] for row in marks[0].args[1]} == set(models.NAMES)


# ---- budgets


@pytest.mark.parametrize("name", budgets.NAMES)
def test_budget_lattices_hold_whole_steps_and_ten_million_points(name):
    budget: Budget = budgets.NAMES[name]
    points = 1.0
    for knob in Knobs.__dataclass_fields__:
        low, high, step = (float(getattr(side, knob)) for side in (budget.low, budget.high, budget.step))
        steps = (high - low) / step
        assert steps == pytest.approx(round(steps), abs=1e-6), knob
        points *= round(steps) + 1
    assert points >= 1e7


@pytest.mark.parametrize("name", budgets.NAMES)
def test_budget_corners_build_wafers_with_a_port_on_every_edge(name):
    budget = budgets.NAMES[name]
    for knobs in (budget.low, budget.high):
        wafer = budget.build(knobs, 2.0, 3.0, (0.0, 1.0))
        assert isinstance(wafer, Wafer)
        assert float(wafer.d2d.bandwidth) >= float(budget.wafer.d2d.bandwidth)
        assert float(wafer.d2d.bandwidth / wafer.d2d.shoreline_density) <= 33 * MM
