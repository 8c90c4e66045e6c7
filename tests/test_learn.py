"""Training of operator predictors: what is drawn, that it is repeatable, what the manifest says, measured kernels."""

import csv
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from watos_jax.learn import draw, fit, measured, train
from watos_jax.learn.label import Table
from watos_jax.operators import predictor
from watos_jax.presets import chips
from watos_jax.units import FLOP_PER_MAC

MANIFEST = json.loads((predictor.FOLDER / "manifest.json").read_text())


def test_the_manifest_is_that_of_this_code():
    assert MANIFEST["command"] == train.command(0, fit.STEPS)
    assert MANIFEST["drawn"] == json.loads(json.dumps(draw.RANGES))
    for subject, parts in train.PARTS.items():
        count = sum(part.size for part in parts)
        assert MANIFEST[subject]["held_out"] == pytest.approx(train.HELD_OUT * count)
        assert MANIFEST[subject]["samples"] + MANIFEST[subject]["held_out"] == count
        assert MANIFEST[subject]["steps"] == fit.STEPS
        drawn = {part.name: train.means(train.draw(part, 0)) for part in parts}
        for name, found in drawn.items():
            np.testing.assert_allclose(MANIFEST[subject]["means"][name], found, rtol=1e-5)


def test_draws_are_repeatable_whole_and_of_the_stated_ranges():
    for part in train.PARTS["products"] + train.PARTS["attention"]:
        some = part._replace(size=200)
        one, two, other = train.draw(some, 3), train.draw(some, 3), train.draw(some, 4)
        np.testing.assert_array_equal(one.sizes, two.sizes)
        np.testing.assert_array_equal(one.dies, two.dies)
        assert not np.array_equal(one.sizes, other.sizes)
        assert (one.sizes[:, :3] > 0).all() and np.isfinite(one.sizes).all()
    sizes = train.draw(train.PARTS["products"][0]._replace(size=2000), 0).sizes
    for column, name in zip(sizes.T, ("rows", "cols", "depth"), strict=False):
        low, high = draw.SIZES[name]
        assert low <= column.min() and column.max() <= high
        assert (column == np.ceil(column)).all()


def test_training_is_bit_equal_and_learns(monkeypatch):
    monkeypatch.setattr(fit, "BATCH", 64)
    monkeypatch.setattr(fit, "MONOTONE_BATCH", 8)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(512, 5)).astype(np.float32)
    targets = np.abs(features[:, :4])
    slopes, roofline = np.zeros((512, 7, 5), np.float32), -np.ones((512, 7, 2), np.float32)
    table = Table(features, features, targets, slopes, roofline)
    first, second = (fit.fit(table, 3, 1000) for _ in range(2))
    for one, other in zip(jax.tree.leaves(first.parameters), jax.tree.leaves(second.parameters), strict=True):
        np.testing.assert_array_equal(one, other)
    times, moved = ([e for name, e in fit.errors(first, table).items() if name.startswith(k)] for k in ("time", "byte"))
    assert all(error["median"] < 0.2 for error in times) and all(error["median"] < 0.6 for error in moved)


@pytest.mark.slow
def test_a_whole_short_training_is_bit_equal(monkeypatch, tmp_path):
    small = {name: tuple(part._replace(size=40) for part in parts) for name, parts in train.PARTS.items()}
    monkeypatch.setattr(train, "PARTS", small)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        train.train_all(folder, seed=5, steps=1000)
    for subject in small:
        with np.load(folders[0] / f"{subject}.npz") as one, np.load(folders[1] / f"{subject}.npz") as other:
            assert set(one.files) == set(other.files)
            for name in one.files:
                np.testing.assert_array_equal(one[name], other[name])
    assert (folders[0] / "manifest.json").read_text() == (folders[1] / "manifest.json").read_text()


def test_more_of_a_resource_seldom_lengthens_a_prediction():
    for subject, parts in train.PARTS.items():
        stated = MANIFEST[subject]["rising"]
        assert max(stated.values()) <= 0.05 and np.mean(list(stated.values())) <= 0.02
        samples = train.draw(parts[0]._replace(size=2000), 77)
        found = fit.rising(predictor.load(subject), samples, subject, 77)
        for name, share in found.items():
            # three standard errors of a share of about 2,000 pairs
            assert share <= stated[name] + 3.0 * np.sqrt(max(stated[name], 1e-3) / 1500.0), (subject, name)


# ---- measured kernels


def times_by_tiles(m, n, k):
    """s of a made-up chip that computes whole waves of 128 x 256 tiles at four fifths of the peak of a B200."""
    waves = np.ceil(np.ceil(m / 128) * np.ceil(n / 256) / 148)
    return waves * 148 * 128 * 256 * k * FLOP_PER_MAC / (0.8 * float(chips.DGX_B200.die.flop_rate)) + 3e-6


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("measured") / "products.csv"
    rng = np.random.default_rng(0)
    with open(path, "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow("chip dtype kind batch m n k layout accumulate out_dtype tflops time_us".split())
        for number in range(120):
            m, n, k = (float(size) for size in rng.choice([512, 1024, 1536, 2048, 3072, 4096, 6144, 8192], 3))
            slower = 1.0 + 0.2 * (number % 2)
            seconds = slower * times_by_tiles(m, n, k)
            layout = ("NN", "TN")[number % 2]
            repeats = (0.99, 1.01) if number % 10 == 0 else (1.0,)
            for off in repeats:
                rows.writerow(["B200", "bf16", "matmul", 1, m, n, k, layout, False, "bf16", "", off * seconds * 1e6])
    return path


def test_a_network_learns_tiles_and_layouts_of_shapes_that_it_has_not_seen(file, monkeypatch):
    monkeypatch.setattr(measured, "MEMBERS", 2)
    monkeypatch.setattr(measured, "STEPS", 600)
    report = measured.cross_validate(file, "b200")
    assert report["kernels"] <= 120 and report["repeats"]["rows"] >= 20
    assert report["repeats"]["median"] == pytest.approx(0.01, rel=0.05)
    assert report["median_ape"] < 0.04
    assert report["median_ape"] < 0.4 * report["naive_median_ape"]


def test_files_and_chips_that_cannot_be_used_are_refused(file, tmp_path):
    with pytest.raises(ValueError, match="--chip is 'H900': it must be one of B200"):
        measured.cross_validate(file, "H900")
    other = tmp_path / "other.csv"
    other.write_text("chip,length\nB200,3\n")
    with pytest.raises(ValueError, match="no columns of products or attention cores"):
        measured.cross_validate(other, "B200")
    few = tmp_path / "few.csv"
    few.write_text("\n".join(Path(file).read_text().splitlines()[:3]))
    with pytest.raises(ValueError, match="cross-validation needs at least 5"):
        measured.cross_validate(few, "B200")


DATA = os.environ.get("WATOS_JAX_DATA")
MEASURED = (("gemm", "B200", 0.06), ("gemm", "A100-PCIe-80GB", 0.06)) + tuple(
    ("attention", chip, 0.08) for chip in ("B200", "A100-PCIe-80GB")
)


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="WATOS_JAX_DATA is not set")
@pytest.mark.parametrize(("kind", "chip", "limit"), MEASURED)
def test_measured_kernels_of_unseen_shapes(kind, chip, limit):
    report = measured.cross_validate(Path(str(DATA)) / "kernels" / f"{kind}_measured.csv", chip)
    assert report["median_ape"] <= limit
    assert report["median_ape"] < report["naive_median_ape"]
