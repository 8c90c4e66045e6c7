"""The command line: what it prints, what it refuses and how, and what it leaves alone."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import jax
import jax.monitoring
import pytest

import watos_jax as wj
from watos_jax.cli import entry, main
from watos_jax.cli.documentation import meanings
from watos_jax.cli.options import spelled
from watos_jax.cli.presets import KINDS
from watos_jax.cli.runtime import CompileClock, num_cores
from watos_jax.report.text import digits, quantity, seconds
from watos_jax.search import codesign as search
from watos_jax.search import lattice, resolved, shadow
from watos_jax.search import plan as plans
from watos_jax.search.objective import OBJECTIVES
from watos_jax.search.space import Options

WAFER = ["--wafer", "watos-config-3"]
FITTING = ["estimate", "llama3-70b", *WAFER, "--tensor-cols", "4", "--pipeline-parallel", "14"]
CLUSTER = ["estimate", "gpt3-175b", "--system", "dgx-a100", "--nodes", "8", "--tensor-cols", "8"]
CLUSTER += ["--pipeline-parallel", "8", "--global-batch-size", "64", "--recompute", "full"]
CONFIGS = Path(__file__).parent / "data" / "configs"
ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("estimate", "plan", "codesign", "presets")
ARCHITECTURE = {
    "die_rows",
    "die_cols",
    "die_width",
    "die_height",
    "core_rows",
    "core_cols",
    "sram_bytes_per_core",
    "dram_stacks",
    "dram_bytes_per_die",
    "dram_bandwidth_per_die",
    "d2d_bandwidth_per_edge_per_direction",
    "clock",
}


@pytest.fixture(scope="module", autouse=True)
def _backend():
    # a command must find JAX running: it may not change the devices of the other tests
    jax.devices()


@pytest.fixture
def watos(capfd):
    """Run the command line in this process; returns exit status, standard output, standard error."""

    def run(*words):
        capfd.readouterr()
        status = main([str(word) for word in words])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def answer(watos):
    """Run a command with `--json`; returns the object."""

    def run(*words):
        status, out, err = watos(*words, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture(scope="module")
def design():
    """A design as a search would return it, without the search."""
    budget, model = wj.presets.budgets.DEFAULT, wj.presets.models.LLAMA3_70B
    knobs = replace(budget.low, core_rows=19, core_cols=20, dram_stacks=2, die_width=26e-3, die_height=31.5e-3)
    knobs = replace(knobs, d2d_bandwidth=18 * float(budget.low.d2d_bandwidth), clock=2.2e9)
    wafer = budget.build(jax.tree.map(float, knobs), 5.0, 8.0, (0.0, 1.0))
    strategy = wj.Strategy(tensor_cols=4, pipeline_parallel=5, context_parallel=2, global_batch_size=512)
    estimate = wj.estimate(wafer, model, strategy)
    return wj.Design(
        wafer=wafer,
        knobs=knobs,
        sides=(0, 1),
        strategy=strategy,
        estimate=estimate,
        objective=OBJECTIVES["tokens-per-second"],
        value=float(estimate.step_time),
        relaxed_value=0.98 * float(estimate.step_time),
        evaluations=1000,
        candidates=10,
        lattice_points=1e9,
        wall_time=12.0,
        phases={"enumerate": 1.0, "guess": 2.0, "descend": 7.0, "round": 2.0},
    )


def returns(value):
    """A search that takes no time."""

    def codesign(model, budget, *, options, objective, gap, time_limit, refine, progress):
        progress("descend", 0.5)
        if isinstance(value, BaseException):
            raise value
        return value

    return codesign


def check_estimate(record):
    """What must hold of every estimate that is printed."""
    stages = record["strategy"]["pipeline_parallel"]
    assert len(record["memory"]) == stages
    assert sum(record["breakdown"].values()) == pytest.approx(record["step_time"], rel=1e-4)
    for stage, total in enumerate(record["memory"]):
        assert sum(part[stage] for part in record["memory_parts"].values()) == pytest.approx(total, rel=1e-5)
    assert record["binding"] == min(record["margins"], key=record["margins"].get)
    assert record["feasible"] == (record["margins"][record["binding"]] >= 0)
    assert record["energy"] == pytest.approx(record["power"] * record["step_time"], rel=1e-5)
    assert set(record["strategy"]) == set(wj.Strategy.__dataclass_fields__)
    assert all(isinstance(value, int) for value in record["strategy"].values())
    assert record["strategy_names"]["recompute"] in ("none", "norms", "activation", "mlp", "projections", "full")


def check_design(record):
    """What must hold of every design that is printed."""
    check_estimate(record)
    assert record["feasible"]
    assert set(record["architecture"]) >= ARCHITECTURE
    assert set(record["area_fractions"]) == {"compute", "sram", "dram", "d2d", "other"}
    assert sum(record["area_fractions"].values()) == pytest.approx(1.0)
    assert all(0.0 <= part <= 1.0 for part in record["area_fractions"].values())
    assert record["step_time"] == pytest.approx(record["relaxed_step_time"] * (1.0 + record["rounding_gap"]))
    assert record["compile_time"] >= 0.0
    assert record["evaluations"] > 0


@pytest.fixture(autouse=True)
def prices(monkeypatch):
    """Shadow prices as they would be found, without solving for them."""
    found = wj.ShadowPrices(
        value=69.0,
        limits={"die_area": 0.97},
        bounds={"clock high": 0.9},
        constants={"technology.mac_area": 0.8, "die_gap": 1e-9},
        allowances={"window": shadow.Worth("mm2", 46225.0, 1.2, 0.0026), "power": shadow.Worth("W", 23e3, 0.0, 0.0)},
        residual=1e-9,
    )
    monkeypatch.setattr(shadow, "shadow_prices", lambda *_: found)
    monkeypatch.setattr(resolved, "resolved_prices", lambda *_, **__: {})
    return found


@pytest.fixture
def planned(monkeypatch):
    """A search over few strategies, as `watos plan` would make it over all."""
    few = Options(global_batch_size=32, micro_batch_sizes=(1,), recompute=("none", "full"), virtual_stages=(1,))
    monkeypatch.setattr(plans, "every_option", lambda model, batch: replace(few, global_batch_size=batch))


# what commands print


def test_estimate_is_that_of_the_library(answer):
    record = answer(*FITTING)
    strategy = wj.Strategy(tensor_cols=4, pipeline_parallel=14, global_batch_size=512)
    estimate = wj.estimate(wj.presets.wafers.WATOS_CONFIG_3, wj.presets.models.LLAMA3_70B, strategy)
    check_estimate(record)
    assert record["step_time"] == pytest.approx(float(estimate.step_time))
    assert record["margins"] == pytest.approx({name: float(part) for name, part in estimate.margins.items()})
    assert (record["num_dies"], record["num_dies_used"]) == (56, 56)
    assert not record["feasible"]


def test_estimate_of_a_cluster(answer):
    record = answer(*CLUSTER)
    check_estimate(record)
    assert set(record["margins"]) == {"memory"}
    assert record["strategy_names"] == {"recompute": "full", "schedule": "1f1b", "tensor_collective": "ring"}
    assert record["strategy"]["recompute"] == 7


def test_estimate_of_a_configuration(answer):
    words = ("estimate", CONFIGS / "llama-3-8b.json", "--sequence-length", "4096", "--wafer", "dojo-tile")
    record = answer(*words, "--tensor-cols", "4", "--pipeline-parallel", "5", "--global-batch-size", "64")
    check_estimate(record)
    assert record["tokens_per_second"] == pytest.approx(64 * 4096 / record["step_time"])


def test_sequence_length_of_a_preset(answer):
    half = answer(*FITTING, "--sequence-length", "4096")
    assert half["tokens_per_second"] == pytest.approx(512 * 4096 / half["step_time"])


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["--no-sequence-parallel"], {"sequence_parallel": 0}),
        (["--no-flash-attention"], {"flash_attention": 0}),
        (["--schedule", "gpipe"], {"schedule": 1}),
        (["--tensor-collective", "row_column"], {"tensor_collective": 1}),
        (["--gradient-bytes", "2", "--optimizer-sharding", "0"], {"gradient_bytes": 2, "optimizer_sharding": 0}),
        (["--micro-batch-size", "2", "--recompute", "mlp"], {"micro_batch_size": 2, "recompute": 4}),
    ],
)
def test_options_reach_the_strategy(answer, words, fields):
    strategy = answer(*FITTING, *words)["strategy"]
    assert {name: strategy[name] for name in fields} == fields


def test_estimate_of_another_operator_model(answer, watos):
    bound, found = (answer(*FITTING, "--fidelity", name) for name in ("roofline", "predictor"))
    assert (bound["fidelity"], found["fidelity"], found["outside"]) == ("roofline", "predictor", 0)
    assert bound["step_time"] < found["step_time"]
    # micro-batches of eight tokens are fewer than any that the predictor was trained on
    beyond = [*FITTING, "--sequence-length", "8"]
    assert "roofline for 100.0 % of the time" in watos(*beyond, "--fidelity", "predictor")[1]


def test_estimate_prints_tables(watos):
    status, out, err = watos(*FITTING)
    assert (status, err) == (0, "")
    for words in ("llama3-70b on watos-config-3", "tokens per second", "matmul", "total", "activations", "mean power"):
        assert words in out
    (marked,) = [line for line in out.splitlines() if "binding" in line]
    assert marked.startswith("edge vertical") and "DOES NOT FIT" in marked and "-1.7 %" in marked


def test_plan_prints_one_object(answer, planned):
    record = answer("plan", "megatron-22b", "--system", "dgx-a100", "--global-batch-size", "32", "--top", "3")
    assert len(record["best"]) == 3 and record["nearest"] is None
    assert record["evaluated"] == record["feasible"] + sum(record["exceeded"].values())
    times = [choice["step_time"] for choice in record["best"]]
    assert times == sorted(times) and all(choice["feasible"] for choice in record["best"])
    assert "--tensor-model-parallel-size" in record["megatron_arguments"]


def test_plan_prints_tables(watos, planned):
    status, out, err = watos("plan", "megatron-22b", "--system", "dgx-a100")
    assert (status, err) == (0, "")
    assert "Fastest strategies that fit" in out and "--pipeline-model-parallel-size" in out
    status, out, err = watos("plan", "gpt3-175b", "--system", "dgx-a100")
    assert (status, err) == (0, "")
    assert re.search(r"None fits; the nearest exceeds memory by [\d.,]+ %", out)


def test_codesign_prints_one_object(answer, design, monkeypatch):
    monkeypatch.setattr(search, "codesign", returns(design))
    record = answer("codesign", "llama3-70b")
    check_design(record)
    assert (record["model"], record["budget"], record["wall_time"]) == ("llama3-70b", "default", 12.0)
    assert record["strategy"]["global_batch_size"] == 512


def test_codesign_prints_what_is_proven(answer, watos, design, monkeypatch):
    proof = wj.Certificate(50.0, 49.0, 2000, 300, 40, 5000, 1e9, 3.0)
    monkeypatch.setattr(search, "codesign", returns(replace(design, certificate=proof)))
    record = answer("codesign", "llama3-70b")["certificate"]
    assert record.pop("gap") == pytest.approx(50.0 / 49.0 - 1.0)
    assert record == vars(proof) | {"shared_lower_bound": None, "shared_gap": None}
    assert re.search(r"proven gap +2.0 % [(]40 strategies in 300 boxes[)]", watos("codesign", "llama3-70b")[1])
    monkeypatch.setattr(search, "codesign", returns(design))
    assert answer("codesign", "llama3-70b")["certificate"] is None


def test_codesign_prints_tables(watos, design, monkeypatch):
    monkeypatch.setattr(search, "codesign", returns(design))
    status, out, err = watos("codesign", "llama3-70b")
    assert (status, err) == (0, "")
    for words in ("5 x 8", "26.0 x 31.5 mm", "compute", "tensor cols", "rounding gap", "of it compilation", "binding"):
        assert words in out


def test_codesign_scores_the_wafer_again(answer, watos, design, monkeypatch):
    asked = {}

    def plan(wafer, model, *, options, top, fidelity):
        asked.update(wafer=wafer, batch=options.global_batch_size, top=top, fidelity=fidelity)
        slower = replace(design.estimate, fidelity=fidelity)
        return plans.Plan((plans.Choice(design.strategy, slower),), None, 1, 1)

    monkeypatch.setattr(search, "codesign", returns(design))
    monkeypatch.setattr("watos_jax.cli.codesign.plan", plan)
    assert answer("codesign", "llama3-70b")["rescored"] is None and not asked
    record = answer("codesign", "llama3-70b", "--fidelity", "mapper")
    assert asked == {"wafer": design.wafer, "batch": 512, "top": 1, "fidelity": "mapper"}
    assert (record["fidelity"], record["rescored"]["fidelity"]) == ("roofline", "mapper")
    out = watos("codesign", "llama3-70b", "--fidelity", "mapper")[1]
    assert "best strategy by this model" in out and re.search(r"operator model +mapper", out)


WORDS = [["--budget", "dense-198"], ["--global-batch-size", "1024"], ["--objective", "tokens-per-joule"]]
WORDS += [["--objective", "tokens-per-dollar", "--prices", "ttm-n7"], ["--gap", "0.02", "--time-limit", "5"]]


def test_codesign_prices_what_it_is_asked(answer, watos, design, prices, monkeypatch):
    monkeypatch.setattr(search, "codesign", returns(design))
    assert answer("codesign", "llama3-70b")["prices"] == asdict(prices)
    worth = (r"window +46,225 mm2 +[+]0.0026 +[+]1.2000", r"power +23,000 W +0 +0")
    out = watos("codesign", "llama3-70b")[1]
    assert all(re.search(words, out) for words in worth)
    assert "mac_area" not in out
    out = watos("codesign", "llama3-70b", "--shadow-prices")[1]
    assert all(re.search(words, out) for words in worth)
    for words in ("limit die area +-0.970", "budget clock high +-0.900", r"technology[.]mac_area +[+]0.800"):
        assert re.search(words, out)
    assert "die_gap" not in out


def test_codesign_prices_on_both_sides(answer, watos, design, monkeypatch):
    less = resolved.Side(71.0, 1.6, 1e-5, ("die_rows", "clock", "tensor_rows"))
    nothing = resolved.Side(float("inf"), float("inf"), None, ())
    found = {"window": resolved.ResolvedPrice(1.2, less, resolved.Side(69.0, 1.1, 1e-5, ()))}
    found["dram_capacity"] = resolved.ResolvedPrice(0.0, nothing, resolved.Side(70.0, -0.0, 0.0, ("dram_stacks",)))
    asked = {}
    monkeypatch.setattr(search, "codesign", returns(design))
    monkeypatch.setattr(resolved, "resolved_prices", lambda *_, **options: asked.update(options) or found)
    assert answer("codesign", "llama3-70b")["resolved_prices"] is None
    record = answer("codesign", "llama3-70b", "--resolve-prices", "0.05")["resolved_prices"]
    assert asked["change"] == record["change"] == 0.05
    assert record["allowances"]["window"]["less"]["changed"] == ["die_rows", "clock", "tensor_rows"]
    assert record["allowances"]["dram_capacity"]["less"]["value"] is None
    out = watos("codesign", "llama3-70b", "--resolve-prices", "0.05")[1]
    for words in (
        r"local +5 % less +5 % more",
        r"window +[+]1.200 +[+]1.600 +[+]1.100 +grid, strategy, knobs",
        r"dram capacity +[+]0.000 +- +[+]0.000 +nothing fits +stacks",
    ):
        assert re.search(words, out), words


@pytest.mark.parametrize("words", WORDS)
def test_codesign_searches_what_it_is_asked(watos, design, monkeypatch, words):
    asked = {}

    def codesign(model, budget, *, options, objective, gap, time_limit, refine, progress):
        asked.update(budget=budget, options=options, objective=objective, gap=gap, time_limit=time_limit, refine=refine)
        return design

    monkeypatch.setattr(search, "codesign", codesign)
    assert watos("codesign", "mixtral-8x7b", *words)[0] == 0
    assert asked["options"].least_use == search.OPTIONS.least_use
    expected = wj.presets.budgets.NAMES["dense-198" if "--budget" in words else "default"]
    assert asked["budget"] is expected
    assert asked["options"].global_batch_size == (1024 if "--global-batch-size" in words else 512)
    assert asked["gap"] == (0.02 if "--gap" in words else search.GAP)
    assert asked["time_limit"] == (5.0 if "--time-limit" in words else search.TIME_LIMIT)
    name = words[1] if "--objective" in words else "tokens-per-second"
    prices = wj.presets.prices.TTM_N7 if "--prices" in words else wj.presets.prices.ACTUARY_N7
    assert asked["objective"] == replace(OBJECTIVES[name], prices=prices)


def test_codesign_without_an_answer(watos, monkeypatch):
    sentence = "no design of this budget fits: the nearest one exceeds memory by 12%; DRAM would have to grow by 12%"
    monkeypatch.setattr(search, "codesign", returns(wj.Infeasible(sentence)))
    # as if the search had raised it
    monkeypatch.setitem(returns.__globals__, "__name__", "watos_jax.search.codesign")
    assert watos("codesign", "megatron-1t", "--json") == (2, "", f"watos: {sentence}\n")


@pytest.mark.slow
def test_codesign_of_the_readme():
    """The whole command in a process of its own: the picture of the README shows its answer."""
    done = process("codesign", "llama3-70b", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    check_design(record)
    assert record["compile_time"] <= record["wall_time"]
    assert record["wall_time"] == pytest.approx(sum(record["phases"].values()), rel=0.05)
    budget = wj.presets.budgets.DEFAULT
    index = lattice.nearest(budget, lattice.to_array(knobs(record)))
    assert lattice.values_at(budget, index) == pytest.approx(lattice.to_array(knobs(record)))
    drawn = re.search(r"([\d,]+) tokens/s", (ROOT / "docs" / "codesign.svg").read_text())
    message = "the picture is out of date: python docs/draw_codesign.py"
    assert float(drawn[1].replace(",", "")) == pytest.approx(record["tokens_per_second"], rel=0.01), message


def knobs(record):
    """The knobs of a printed design."""
    names = {"d2d_bandwidth": "d2d_bandwidth_per_edge_per_direction"}
    return wj.Knobs(**{name: record["architecture"][names.get(name, name)] for name in wj.Knobs.__dataclass_fields__})


# presets


def test_presets_lists_every_name(watos):
    status, out, err = watos("presets")
    assert (status, err) == (0, "")
    listed = {line.split()[0] for line in out.splitlines() if line.strip()}
    assert listed >= {name for kind in KINDS.values() for name in kind.names}
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


@pytest.mark.parametrize("kind", KINDS)
def test_presets_of_one_kind(watos, answer, kind):
    assert set(answer("presets", kind)[kind]) == set(KINDS[kind].names)
    out = watos("presets", kind)[1]
    assert out.split()[0] == kind
    assert all(name in out for name in KINDS[kind].names)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in KINDS[kind].names])
def test_preset_has_numbers_and_a_source(watos, answer, kind, name):
    record = answer("presets", kind, name)
    assert record["name"] == name
    assert len(record["source"]) > 30
    assert set(record["values"]) == set(KINDS[kind].names[name].__dataclass_fields__)
    out = watos("presets", kind, name)[1]
    assert " ".join(out.split()).endswith(" ".join(record["source"].split()))


def test_preset_shows_what_numbers_mean(watos):
    out = watos("presets", "systems", "DGX_H100")[1]
    (line,) = [line for line in out.splitlines() if line.startswith("tiers[1].link.bandwidth")]
    assert "5e+10" in line and "payload bytes/s" in line


def test_meanings_are_those_of_the_docstring():
    texts = meanings(wj.Strategy)
    assert set(texts) == set(wj.Strategy.__dataclass_fields__)
    assert texts["pipeline_parallel"] == "pipeline stages."


# help


@pytest.mark.parametrize("command", [command.__name__ for command in entry.COMMANDS])
def test_help_teaches(watos, command):
    status, out, err = watos(command, "--help")
    assert (status, err) == (0, "")
    assert out.count(f"watos {command}") >= 3, "usage and at least two examples"
    assert "--json" in out


def test_help_has_every_field_of_a_strategy(watos):
    out = watos("estimate", "--help")[1]
    for name in wj.Strategy.__dataclass_fields__:
        assert spelled(name) in out


def test_help_of_all(watos):
    status, out, err = watos("--help")
    assert (status, err) == (0, "")
    for command in COMMANDS:
        (summary,) = re.findall(rf"^  {command} +(\S.*)$", out, re.MULTILINE)
        assert not summary.endswith("..."), "it is cut"
    assert watos() == (0, out, "")


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_examples_of_the_help_are_accepted(watos, design, planned, prices, monkeypatch, slow):
    monkeypatch.setattr(search, "codesign", returns(design))
    monkeypatch.chdir(CONFIGS)
    for command in COMMANDS:
        text = re.sub(r"\\\n +", "", watos(command, "--help")[1]).replace("path/to/config.json", "llama-3-8b.json")
        examples = re.findall(rf"^    watos ({command}\b.*?)(?: >.*|  .*)?$", text, re.MULTILINE)
        assert len(examples) >= 2
        for example in examples:
            if ("--fidelity" in example) is slow:  # other operator models compile for long
                assert watos(*example.split())[0] == 0, example


def test_version(watos):
    assert watos("--version") == (0, f"{version('watos_jax')}\n", "")


# what is refused

BAD = [
    (["estimate"], "--wafer is missing"),
    ([*FITTING, "--fidelity", "magic"], "--fidelity is 'magic': it must be one of roofline, mapper, predictor"),
    (["estimate", *WAFER], "MODEL is missing"),
    (["codesign"], "MODEL is missing"),
    (["estimate", "llama3-70"] + WAFER, "MODEL is 'llama3-70'.*llama3-70b.*config.json .did you mean llama3-70b"),
    (["codesign", ""], "MODEL is ''"),
    (["codesign", "x" * 5000], "MODEL is 'xxx.*[.][.][.]'"),
    (["estimate", "llama3-70b"], "--wafer is missing"),
    (
        ["estimate", "llama3-70b", "--wafer", "watos-config-5"],
        "--wafer is 'watos-config-5'.*did you mean watos-config-4",
    ),
    (["estimate", "llama3-70b", "--system", "dgx"], "--system is 'dgx'.*dgx-a100"),
    (["estimate", "llama3-70b", *WAFER, "--system", "dgx-a100"], "--system 'dgx-a100': only one"),
    (["estimate", "llama3-70b", *WAFER, "--nodes", "2"], "--nodes is '2'.*only be given with --system"),
    *(
        (["estimate", "llama3-70b", "--system", "dgx-a100", "--nodes", n], f"--nodes is '{n}'")
        for n in ("0", "1e9", "x")
    ),
    *(
        (["estimate", "llama3-70b", *WAFER, "--tensor-rows", n], f"--tensor-rows is '{n}': .*whole number from 1 to")
        for n in ("0", "-1", "1.5", "nan", "inf", "-inf", "1e3", "99999999999999999999999", "two", "", " ", "\u0663")
    ),
    (["estimate", "llama3-70b", *WAFER, "--global-batch-size", "10000001"], "--global-batch-size is '10000001'"),
    (["estimate", "llama3-70b", *WAFER, "--sequence-length", "0"], "--sequence-length is '0'"),
    (["codesign", "llama3-70b", "--sequence-length", "-8"], "--sequence-length is '-8'"),
    (["codesign", "llama3-70b", "--gap", "-1"], "--gap is '-1': it must be a number from 0 to 1,000,000"),
    (["codesign", "llama3-70b", "--resolve-prices", "2"], "--resolve-prices is '2': it must be a number from 0 to 0.5"),
    (["codesign", "llama3-70b", "--time-limit", "soon"], "--time-limit is 'soon': it must be a number from 0"),
    (["codesign", "llama3-70b", "--global-batch-size", "0.5"], "--global-batch-size is '0.5'"),
    (["codesign", "llama3-70b", "--budget", "defaults"], "--budget is 'defaults'.*did you mean default"),
    (["codesign", "llama3-70b", "--objective", "tokens"], "--objective is 'tokens'.*tokens-per-second"),
    (["codesign", "llama3-70b", "--prices", "ttm"], "--prices is 'ttm'.*did you mean ttm-n"),
    (["estimate", "llama3-70b", *WAFER, "--recompute", "some"], "--recompute is 'some'.*selective"),
    (["estimate", "llama3-70b", *WAFER, "--recompute", "3"], "--recompute is '3'"),
    (["estimate", "llama3-70b", *WAFER, "--schedule", "gpip"], "--schedule is 'gpip'.*did you mean gpipe"),
    (["estimate", "llama3-70b", *WAFER, "--gradient-bytes", "3"], "--gradient-bytes is '3': it must be one of 2, 4"),
    (["estimate", "llama3-70b", *WAFER, "--optimizer-sharding", "4"], "--optimizer-sharding is '4'"),
    (["estimate", "llama3-70b", *WAFER, "--tensor-rows", "8"], "tensor_rows is 8: .*7 rows"),
    (["estimate", "llama3-70b", *WAFER, "--tensor-cols", "3"], "tensor_parallel is 3: .*divide num_attention_heads"),
    (["estimate", "llama3-70b", *WAFER, "--pipeline-parallel", "57"], "the strategy needs 57 dies"),
    (["estimate", "llama3-70b", *WAFER, "--pipeline-parallel", "81"], "pipeline_parallel is 81: .*num_layers"),
    (["estimate", "llama3-70b", *WAFER, "--micro-batch-size", "3"], "global_batch_size is 512: .*multiple"),
    (["estimate", "llama3-70b", *WAFER, "--expert-parallel", "2"], "expert_parallel is 2"),
    (["estimate", "llama3-70b", *WAFER, "--virtual-stages", "3"], "virtual_stages is 3"),
    (["estimate", "llama3-70b", *WAFER, "--tensor-row", "1"], "no such option: --tensor-row"),
    (["estimate", "llama3-70b", *WAFER, "--tensor-rows"], "--tensor-rows"),
    (["estimate", "llama3-70b", "mixtral-8x7b", *WAFER], "unexpected extra argument"),
    (["estimate", "llama3-70b", *WAFER, "--json=yes"], "--json"),
    (["estimate", "none.json", *WAFER], "none.json.*cannot be read"),
    (["estimate", str(CONFIGS), *WAFER], "directory"),
    (["estimate", __file__, *WAFER], "not valid JSON"),
    (["codesign", str(CONFIGS / "gpt2.json"), "--sequence-length", "4096"], "n_positions is 1024"),
    (["plan", "llama3-70b"], "--wafer is missing"),
    (["plan", "llama3-70b", *WAFER, "--top", "0"], "--top is '0': .*whole number from 1 to"),
    (["plan", "megatron-1t", "--system", "dgx-a100", "--global-batch-size", "x"], "--global-batch-size is 'x'"),
    (["presets", "model"], "KIND is 'model'.*did you mean models"),
    (["presets", "models", "llama"], "NAME is 'llama'"),
    (["presets", "models", "llama3-70b", "more"], "unexpected extra argument"),
    (["presets", "--verbose"], "no such option: --verbose"),
    (["codesing"], "no such command 'codesing', did you mean 'codesign'"),
    (["--jsn"], "no such option: --jsn"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words)[:60] for words, _ in BAD])
def test_bad_input_is_refused_in_one_sentence(watos, words, message):
    status, out, err = watos(*words)
    assert (status, out) == (2, "")
    assert err.startswith("watos: ") and err.count("\n") == 1 and err.endswith("\n")
    assert "Traceback" not in err and "Usage" not in err and len(err) < 1100
    assert re.search(message, err), err


def test_a_path_is_printed_on_one_line(watos, tmp_path):
    path = tmp_path / "two\nlines\x1b[31m.json"
    path.write_text("{}")
    status, out, err = watos("estimate", path, *WAFER)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "\x1b" not in err


def test_a_preset_comes_before_a_file(answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama3-70b").write_text("{}")
    assert answer(*FITTING)["model"] == "llama3-70b"


def test_a_defect_keeps_its_traceback(watos, monkeypatch):
    monkeypatch.setattr(search, "codesign", returns(ValueError("raised outside the library")))
    with pytest.raises(ValueError, match="outside the library"):
        watos("codesign", "llama3-70b")


# the end of the output


def test_interrupt_is_quiet(watos, monkeypatch):
    monkeypatch.setattr(search, "codesign", returns(KeyboardInterrupt()))
    assert watos("codesign", "llama3-70b") == (130, "", "")


def test_reader_that_went_away_is_quiet():
    watched = f"{executable()} presets --json | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", watched], env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{141\n", "")


def test_closed_output(watos, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    status, _, err = watos("presets")
    assert (status, err.count("\n")) == (1, 1)
    assert "standard output is closed" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [executable(), "presets", "memories"], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left on device" in done.stderr


# the process


def executable():
    """The installed command."""
    return str(Path(sys.executable).with_name("watos"))


def environment(**extra):
    """The environment of a user, with the compilation cache of the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return kept | {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir or "")} | extra


def process(*words):
    """Run the installed command."""
    return subprocess.run([executable(), *words], env=environment(), capture_output=True, text=True)


def test_installed_command(answer):
    done = process(*FITTING, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["step_time"] == pytest.approx(answer(*FITTING)["step_time"], rel=1e-4)


@pytest.mark.parametrize(
    ("extra", "devices"),
    [
        ({}, num_cores()),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),
        ({"JAX_NUM_CPU_DEVICES": "1"}, 1),
    ],
)
def test_devices_and_cache(tmp_path, extra, devices):
    report = "import jax; print(jax.local_device_count(), jax.config.jax_compilation_cache_dir)"
    code = f"from watos_jax.cli.runtime import prepare; prepare(); {report}"
    env = environment(XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path), **extra)
    del env["JAX_COMPILATION_CACHE_DIR"]
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    count, folder = done.stdout.split()
    assert int(count) == devices
    assert folder.startswith(str(tmp_path)) and Path(folder).is_dir()


def test_compile_clock_counts_time_once():
    with CompileClock() as clock:
        for event, start, stop in (
            ("/jax/core/compile/jaxpr_trace_duration", 10.0, 14.0),
            ("/jax/core/compile/jaxpr_trace_duration", 11.0, 12.0),
            ("/jax/core/compile/backend_compile_duration", 13.0, 16.0),
            ("/jax/core/compile/backend_compile_duration", 20.0, 21.0),
            ("/jax/something/else", 30.0, 40.0),
        ):
            jax.monitoring.record_event_time_span(event, start, stop)
    jax.monitoring.record_event_time_span("/jax/core/compile/backend_compile_duration", 50.0, 60.0)
    assert clock.time == pytest.approx(7.0)


def test_compile_clock_hears_a_compilation():
    with CompileClock() as clock:
        jax.jit(lambda x: x * 3.0 + 1.0)(2.0).block_until_ready()
    assert clock.time > 0.0


# numbers


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (856.1e12, "FLOP/s", "856.1 TFLOP/s"),
        (1.8e12, "B/s", "1.800 TB/s"),
        (0.0, "J", "0.000 J"),
        (2.5e-9, "J", "2.500 nJ"),
        (-17160.0, "W", "-17.16 kW"),
        (None, "W", "-"),
    ],
)
def test_quantity(value, unit, shown):
    assert quantity(value, unit) == shown


def test_seconds_have_no_large_prefix():
    assert (seconds(7166.0), seconds(0.0123), seconds(0.0)) == ("7,166 s", "12.30 ms", "0.000 s")


def test_digits():
    assert [digits(value) for value in (0.5, 9.9994, 12.347, 123.46, 1234.6)] == "0.500 9.999 12.35 123.5 1,235".split()
