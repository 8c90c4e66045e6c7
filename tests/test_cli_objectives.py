"""The commands of several objectives: what they ask of the search, what they print, what they refuse."""

from importlib import import_module

import pytest
from test_cli import answer, design, watos  # noqa: F401

import watos_jax as wj
from watos_jax.search import lattice
from watos_jax.search.pareto import FrontPoint
from watos_jax.search.uncertainty import Contender

SEARCHES = {
    "watos_jax.cli.compromise": "find",
    "watos_jax.cli.pareto": "find",
    "watos_jax.search.uncertainty": "uncertainty",
}


@pytest.fixture
def asked(monkeypatch, design):  # noqa: F811
    """Searches that take no time; what they were asked for."""
    calls = {}
    shared = {"die_rows": 5, "die_cols": 8, "sides": (0, 1), "knobs": design.knobs, "strategy": design.strategy}
    rates = float(design.estimate.tokens_per_second), float(512 * 8192 / design.estimate.energy)

    def found_compromise(cases, *, mean, **options):
        calls["compromise"] = (cases, mean, options)
        count = len(cases)
        return wj.Compromise(
            wafers=(design.wafer,) * count,
            knobs=design.knobs,
            sides=design.sides,
            strategies=(design.strategy,) * count,
            estimates=(design.estimate,) * count,
            rates=(rates[0],) * count,
            value=rates[0],
            mean=mean,
            upper_bound=None,
            own=(design,) * count,
            own_rates=(rates[0],) * count,
            evaluations=1000,
            wall_time=1.0,
        )

    def found_front(model, budget, *, objectives, **options):
        calls["pareto"] = (objectives, options)
        points = tuple(FrontPoint(rates=(rates[0] - i, rates[1] + i), **shared) for i in range(30))
        return wj.Front(objectives, points, hypervolume=0.9, searched=7, evaluations=1000, wall_time=1.0)

    def found_uncertainty(model, budget, *, deviations, draws, **options):
        calls["uncertainty"] = (deviations, draws, options)
        five = (0.0,) * 5
        pool = (
            Contender(fits=0.5, wins=0.25, mean_rate=1.0, rates=five, regret=five, **shared),
            Contender(fits=0.0, wins=0.0, mean_rate=2.0, rates=None, regret=None, **shared),
        )
        return wj.Uncertainty(
            dict(deviations),
            draws,
            pool,
            None,
            0.75,
            options["tolerance"],
            ((0.5, 0.1),),
            64,
            (0.01, 0.03, None),
            9,
            1.0,
        )

    found = (found_compromise, found_front, found_uncertainty)
    for (module, name), search in zip(SEARCHES.items(), found, strict=True):
        monkeypatch.setattr(import_module(module), name, search)
    return calls


def test_every_model_on_every_technology_is_a_case(answer, asked):  # noqa: F811
    words = ["llama3-70b", "llama3-8b", "--weights", "1,3", "--technology", "gpu-n7,dense-n7", "--mean", "worst"]
    record = answer("compromise", *words, "--global-batch-size", "64")
    cases, mean, _ = asked["compromise"]
    assert mean == "worst" and [one.weight for one in cases] == [1.0, 1.0, 3.0, 3.0]
    assert [one.name for one in cases][:2] == ["llama3-70b gpu-n7", "llama3-70b dense-n7"]
    assert {one.options.global_batch_size for one in cases} == {64}
    first = cases[0].budget
    assert first.wafer.technology == wj.presets.technologies.GPU_N7
    assert (lattice.counts(first) == lattice.counts(wj.presets.budgets.DEFAULT)).all()
    assert [one["name"] for one in record["cases"]] == [one.name for one in cases]
    assert record["gap"] is None and record["architecture"]["die_cols"] == 8


def test_a_front_is_printed_whole_as_json_and_thinned_as_a_table(answer, watos, asked):  # noqa: F811
    record = answer("pareto", "llama3-70b", "--objectives", "tokens-per-second,tokens-per-dollar")
    assert asked["pareto"][0] == ("tokens-per-second", "tokens-per-dollar")
    assert len(record["points"]) == 30 and set(record["points"][0]["rates"]) == set(record["objectives"])
    status, out, err = watos("pareto", "llama3-70b")
    assert (status, err) == (0, "") and out.count("5x8") == 11


def test_deviations_are_scaled(answer, watos, asked):  # noqa: F811
    limits = ["--tolerance", "0.05", "--designs", "64", "--checked", "3"]
    record = answer("uncertainty", "llama3-70b", "--scale", "0.5", "--draws", "100", *limits)
    deviations, draws, options = asked["uncertainty"]
    assert (options["tolerance"], options["designs"], options["checked"]) == (0.05, 64, 3)
    assert record["shortfall"] == pytest.approx([0.02, 0.01]) and record["winners"]["dies"] == [40.0] * 5
    published = wj.presets.uncertainties.PUBLISHED_N7
    assert draws == 100 and deviations == {name: 0.5 * size for name, size in published.items()}
    assert (record["nominal"], record["safest"]) == (0, 1) and record["pool"][1]["regret"] is None
    status, out, err = watos("uncertainty", "llama3-70b")
    assert (status, err) == (0, "") and "nominal" in out and "75.0 %" in out and "2.0 % +- 1.0 %" in out


def test_tables_of_a_compromise(watos, asked):  # noqa: F811
    status, out, err = watos("compromise", "llama3-70b", "llama3-8b")
    assert (status, err) == (0, "") and "not proven" in out and "100.0 %" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compromise"], "MODEL is missing: there must be at least one"),
        (["compromise", "llama3-8b", "--weights", "1,2"], "--weights is '1,2': it must hold a number above 0 for each"),
        (["compromise", "llama3-8b", "--weights", "0"], "--weights is '0': it must hold a number above 0 for each"),
        (["compromise", "llama3-8b", "--mean", "middle"], "--mean is 'middle': it must be one of arithmetic"),
        (["compromise", "llama3-8b", "--technology", "wood"], "--technology is 'wood': it must be one of"),
        (["pareto", "llama3-8b", "--objectives", "tokens-per-second"], "it must be two different names"),
        (["pareto", "llama3-8b", "--weights", "1"], "--weights is '1': it must be a whole number from 2"),
        (["uncertainty", "llama3-8b", "--draws", "0"], "--draws is '0': it must be a whole number from 1"),
        (
            ["uncertainty", "llama3-8b", "--tolerance", "0"],
            "--tolerance is '0': it must be a number above 0, at most 0.5",
        ),
        (["uncertainty", "llama3-8b", "--spread", "wide"], "--spread is 'wide': it must be one of published-n7"),
    ],
)
def test_refusals_are_one_sentence(watos, words, sentence):  # noqa: F811
    status, out, err = watos(*words)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert sentence in err
