"""Operator predictor: its weights and manifest, what it promises, and how far it is from the mapper on new samples."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import watos_jax as wj
from watos_jax import HARD, Smooth, Strategy
from watos_jax.learn import label
from watos_jax.learn.draw import Samples, sample_products
from watos_jax.operators import predictor
from watos_jax.operators.features import ATTENTION_BOX, PRODUCT_BOX, attention_features, product_features
from watos_jax.presets import models, wafers
from watos_jax.workload import Matmuls, attention

WAFER = wafers.WATOS_CONFIG_3
MODEL = models.LLAMA3_70B
STRATEGY = Strategy(tensor_cols=4, pipeline_parallel=14, global_batch_size=64)
MANIFEST = json.loads((predictor.FOLDER / "manifest.json").read_text())


def test_weights_are_plain_arrays_in_the_range_of_the_manifest():
    for name, columns in (("products", PRODUCT_BOX), ("attention", ATTENTION_BOX)):
        trained = predictor.load(name)
        stated = np.array([MANIFEST[name]["range"][column] for column in columns])
        np.testing.assert_allclose(np.exp(np.stack([trained.low, trained.high], axis=1)), stated, rtol=1e-3)


def test_the_manifest_states_the_errors_on_samples_held_out():
    for subject in ("products", "attention"):
        errors = MANIFEST[subject]["errors"]
        assert all(error["median"] <= 0.02 for error in errors.values())
        for error in (e for name, e in errors.items() if name.startswith("time")):
            assert error["p95"] <= 0.08
            assert error["median"] <= 0.5 * error["roofline_median"]
            assert error["p95"] <= 0.5 * error["roofline_p95"]


def test_new_samples_are_as_close_as_the_manifest_says():
    drawn = sample_products(np.random.default_rng(123), 60, many=False)
    samples = Samples(*(jnp.asarray(rows) for rows in drawn))
    truth = jax.jit(jax.vmap(lambda dies, sizes: label.label_products(None, Samples(dies, sizes))))(*samples)

    def one(dies, sizes):
        die, (shapes, width) = label.die_of(dies), label.shapes_of(sizes)
        features = product_features(die, shapes, width, HARD)
        return predictor.ratios(predictor.load("products"), features)

    found = jax.jit(jax.vmap(one))(*samples)
    inside = np.asarray(found.outside)[:, 0] == 0
    assert inside.mean() > 0.9
    off = np.abs(np.asarray(found.forward)[:, 0] / np.asarray(truth.forward) - 1)[inside]
    assert np.median(off) < 0.03
    bound = np.abs(1 / np.asarray(truth.forward) - 1)[inside]
    assert np.median(off) < 0.5 * np.median(bound)


@pytest.fixture(scope="module")
def placed():
    return wj.layout(WAFER, STRATEGY)


def test_an_estimate_of_the_predictor_is_that_of_the_mapper_within_its_error(placed):
    times = {
        name: float(wj.estimate(WAFER, MODEL, STRATEGY, fidelity=name, layout=placed).step_time)
        for name in ("roofline", "mapper", "predictor")
    }
    assert times["roofline"] <= times["predictor"]
    assert times["predictor"] == pytest.approx(times["mapper"], rel=0.04)
    assert abs(times["predictor"] / times["mapper"] - 1) < 0.5 * abs(times["roofline"] / times["mapper"] - 1)


def test_outside_its_range_it_is_the_roofline_and_says_so(placed):
    tiny = replace(WAFER, die=replace(WAFER.die, core=replace(WAFER.die.core, sram_bytes=2.0**12)))
    inside, outside, bound = (
        wj.estimate(wafer, MODEL, STRATEGY, fidelity=name, layout=placed)
        for wafer, name in ((WAFER, "predictor"), (tiny, "predictor"), (tiny, "roofline"))
    )
    assert float(inside.outside) == 0
    assert float(outside.outside) == pytest.approx(1)
    assert float(outside.step_time) == pytest.approx(float(bound.step_time), rel=1e-6)


@pytest.mark.parametrize("relax", [HARD, pytest.param(Smooth(20.0), marks=pytest.mark.slow)], ids=["hard", "smooth"])
def test_predictions_have_gradients(relax):
    shape = Matmuls(*(jnp.asarray([size]) for size in (4096.0, 7168.0, 8192.0, 1.0)))
    scores = jax.tree.map(jnp.asarray, attention(MODEL, STRATEGY))

    @jax.jit
    @jax.grad
    def slopes(die):
        features = product_features(die, shape, jnp.asarray(4.0), relax), attention_features(die, scores, relax)
        found = map(predictor.ratios, map(predictor.load, ("products", "attention")), features)
        return sum(jnp.log(jnp.sum(ratio)) for ratios in found for ratio in ratios[:4])

    found = slopes(jax.tree.map(lambda leaf: jnp.asarray(float(leaf)), WAFER.die))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(found))
    assert float(found.core.sram_bytes) != 0


def test_more_clock_is_quicker_at_the_rate_that_differences_show(placed):
    wafer = jax.tree.map(lambda leaf: jnp.asarray(float(leaf)), WAFER)

    def step(log_clock):
        faster = replace(wafer.die, core=replace(wafer.die.core, clock=wafer.die.core.clock * jnp.exp(log_clock)))
        changed = replace(wafer, die=faster)
        return jnp.log(wj.estimate(changed, MODEL, STRATEGY, fidelity="predictor", layout=placed).step_time)

    compiled = jax.jit(lambda x: jax.jvp(step, (x,), (jnp.ones_like(x),)))
    value, slope = compiled(jnp.asarray(0.0))
    assert -1 < float(slope) < 0
    width = 0.01
    ahead, behind = (float(compiled(jnp.asarray(x))[0]) for x in (width, -width))
    assert float(slope) == pytest.approx((ahead - behind) / 2 / width, rel=0.02)
    assert behind > float(value) > ahead


def test_weights_survive_a_file(tmp_path):
    trained = predictor.load("attention")
    predictor.save(trained, "copy", tmp_path)
    again = predictor.load("copy", tmp_path)
    for one, other in zip(jax.tree.leaves(trained), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
