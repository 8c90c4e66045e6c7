"""Programs kept between processes: the same numbers, read where nothing changed, made again where something did."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from watos_jax import programs
from watos_jax.batch import map_chunks
from watos_jax.programs import returned

TRACED = []


@returned
class Pair(NamedTuple):
    """What the function below returns."""

    total: object
    parts: object


def of_the_package(shared, point):
    """A function that says when it is traced."""
    TRACED.append(1)
    return Pair(shared["scale"] * jnp.sum(point), (jnp.sin(point), point > 0.5))


of_the_package.__module__ = "watos_jax.imagined"


@pytest.fixture
def folder(tmp_path):
    programs.keep_in(tmp_path)
    TRACED.clear()
    yield tmp_path
    programs.keep_in(None)


def again(points=None, *, scale=2.0, chunk=4):
    """Apply the function as a new process would, and say how often it was traced."""
    points = np.linspace(0.0, 1.0, 30).reshape(10, 3) if points is None else points
    before = len(TRACED)
    programs._read.clear()
    return map_chunks(of_the_package, {"scale": np.asarray(scale)}, points, chunk=chunk), len(TRACED) - before


def test_a_program_that_is_read_gives_the_same_and_is_not_traced(folder):
    first, traced = again()
    assert traced == 1 and len(list(folder.iterdir())) == 1
    second, traced = again()
    assert traced == 0
    for one, other in zip(first.parts + (first.total,), second.parts + (second.total,), strict=True):
        assert (one == other).all()
    programs.keep_in(None)
    plain, traced = again()
    assert traced == 1
    assert (plain.total == second.total).all() and isinstance(second, Pair)
    assert second.total == pytest.approx(2.0 * np.linspace(0.0, 1.0, 30).reshape(10, 3).sum(axis=1))


def test_numbers_are_not_part_of_a_program_but_shapes_and_chunks_are(folder):
    again()
    other, traced = again(scale=3.0)
    assert traced == 0 and other.total[1] == pytest.approx(3.0 * np.linspace(0.0, 1.0, 30)[3:6].sum())
    assert again(np.zeros((10, 4)))[1] == 1
    assert again(chunk=5)[1] == 1
    assert len(list(folder.iterdir())) == 3


def test_another_package_makes_another_program(folder, monkeypatch):
    again()
    monkeypatch.setattr(programs, "_digest", lambda: b"after a change")
    assert again()[1] == 1
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:40] + b"x" + data[41:], lambda _: b""])
def test_a_damaged_file_is_made_again(folder, damage):
    whole, _ = again()
    (file,) = folder.iterdir()
    intact = file.read_bytes()
    file.write_bytes(damage(intact))
    mended, traced = again()
    assert traced == 1 and (mended.total == whole.total).all()
    assert again()[1] == 0


def test_functions_of_others_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr(of_the_package, "__module__", "mine")
    again()
    assert not list(folder.iterdir())
