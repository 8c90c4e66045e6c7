"""Folders of results: what is written, what is refused, and that a killed sweep loses and repeats nothing."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import sweep_space

import watos_jax as wj
from watos_jax import sweeps
from watos_jax.cli import main
from watos_jax.estimate import ROUNDING
from watos_jax.sweeps import points, store

parquet = pytest.importorskip("pyarrow.parquet")
SPACE, KEEP = sweeps.declare(sweep_space.TABLE)
PROGRAM = Path(sweep_space.__file__)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(points, "ANSWER_POINTS", 256)
    monkeypatch.setattr(points, "ROW_POINTS", 256)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep, computed in a process like those that are killed: equal devices, equal precision."""
    path = tmp_path_factory.mktemp("done") / "out"
    _start(path).wait(timeout=300)
    assert (path / "top.parquet").exists()
    return path


def _start(path, pause=0.0):
    settings = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(PROGRAM), str(path), str(pause)]
    return subprocess.Popen(command, env=os.environ | settings, stderr=subprocess.DEVNULL)


def _files(path):
    """Bytes of every result; the manifest, which holds a time, without it."""
    found = {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*.parquet"))}
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("created")
    return found, manifest


def _opened(path):
    return store.Store.open(path, sweeps.build(SPACE, KEEP), chunk=lambda: 64)


# what is written


def test_a_folder_holds_what_memory_would(done):
    result = sweeps.sweep(SPACE, KEEP, chunk=64)
    rows = parquet.read_table(done / "rows").to_pydict()
    assert list(rows) == list(result.rows)
    for name, values in result.rows.items():
        np.testing.assert_array_equal(np.array(rows[name], dtype=values.dtype), values)
    for name in ("top", "pareto", "histogram"):
        table = parquet.read_table(done / f"{name}.parquet").to_pydict()
        for column, values in getattr(result, name).items():
            np.testing.assert_array_equal(np.array(table[column], dtype=values.dtype), values)


def test_columns_carry_units_and_files_their_origin(done):
    schema = parquet.read_schema(done / "rows" / "00000000.parquet")
    assert schema.field("step_time").metadata[b"unit"] == b"s"
    assert schema.field("die.core.clock").metadata[b"unit"] == b"Hz"
    assert sweeps.columns(done)["power"] == "W"
    manifest = json.loads((done / "manifest.json").read_text())
    assert manifest["version"] == wj.__version__ and manifest["seed"] == 0
    assert manifest["device"]["platform"] == jax.default_backend()
    counts = json.loads(parquet.read_schema(done / "parts" / "00000003.parquet").metadata[b"watos_jax"])
    assert counts["digest"] == manifest["digest"] and counts["part"] == 3
    compression = parquet.ParquetFile(done / "rows" / "00000000.parquet").metadata.row_group(0).column(0).compression
    assert compression == "ZSTD"


def test_a_finished_sweep_is_read_and_not_repeated(done):
    before, _ = _files(done)
    times = {file: file.stat().st_mtime_ns for file in done.rglob("*.parquet")}
    result = sweeps.sweep(SPACE, KEEP, out=done)
    assert _files(done)[0] == before
    assert {file: file.stat().st_mtime_ns for file in done.rglob("*.parquet")} == times
    fresh = sweeps.sweep(SPACE, KEEP, chunk=64)
    assert result.feasible == fresh.feasible and result.evaluated == fresh.evaluated
    for name in ("top", "pareto", "histogram"):
        for column, values in getattr(fresh, name).items():
            np.testing.assert_array_equal(getattr(result, name)[column], values)


@pytest.mark.parametrize("reader", ["pyarrow", "duckdb", "polars"])
@pytest.mark.filterwarnings("default")
def test_the_line_of_the_page_reads_the_rows(reader, done, tmp_path, monkeypatch):
    pytest.importorskip(reader)
    page = (PROGRAM.parent.parent / "docs" / "sweeps.md").read_text()
    (code,) = re.findall(rf"^```python\n(import {reader}\b.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "results").symlink_to(done)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "page", "exec"), names)
    rows = parquet.read_table(done / "rows").to_pydict()
    fits = np.array(rows["margin"]) >= -ROUNDING
    times = np.sort(np.array(rows["step_time"], np.float32)[fits])
    if reader == "pyarrow":
        assert names["table"].num_rows == len(fits) and names["table"].column_names == list(rows)
    elif reader == "duckdb":
        assert names["least"].fetchall() == [("llama3-8b", times[0])]
    else:
        best = names["best"].collect()
        assert best.columns == list(rows)
        np.testing.assert_array_equal(best["step_time"].to_numpy(), times[:10])


def test_the_command_answers_in_plain_data(tmp_path, capsys):
    file = tmp_path / "space.toml"
    file.write_text(sweep_space.TEXT)
    jax.devices()  # a command must find JAX running: it may not change the devices of the other tests
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--chunk", "64", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["evaluated"] == len(sweeps.build(SPACE, KEEP)) and len(plain["top"]) == 4
    assert plain["units"]["step_time"] == "s"
    assert plain["top"][0]["tokens_per_second"] >= plain["top"][1]["tokens_per_second"]
    assert main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert f"{plain['feasible']:,} of {plain['evaluated']:,} designs" in shown
    assert f"{plain['top'][0]['index']} " in shown and "Pareto front" in shown


def test_the_command_says_where_nothing_fits(tmp_path, capsys):
    file = tmp_path / "space.toml"
    file.write_text(sweep_space.TEXT.replace("[0.5, 2]", "[40, 60]"))  # stacks beside one die
    assert main(["sweep", str(file), "--chunk", "64"]) == 0
    count = len(sweeps.build(*sweeps.read(file)))
    assert capsys.readouterr().out.startswith(f"0 of {count:,} designs of ")


# what is refused


def test_another_space_over_an_old_folder(done):
    before = _files(done)
    axes = SPACE.axes | {"die.core.clock": [1e9, 3e9]}
    with pytest.raises(sweeps.StoreError, match=r"holds another sweep \(different: space\.axes|different: axes"):
        sweeps.sweep(replace(SPACE, axes=axes), KEEP, out=done)
    with pytest.raises(sweeps.StoreError, match=r"different: keep\.top"):
        sweeps.sweep(SPACE, replace(KEEP, top=5), out=done)
    assert _files(done) == before


def test_a_file_and_a_folder_of_other_things(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(sweeps.StoreError, match="it is a file; it must be a folder"):
        sweeps.sweep(SPACE, KEEP, out=tmp_path / "file")
    with pytest.raises(sweeps.StoreError, match="a part of the path is a file"):
        sweeps.sweep(SPACE, KEEP, out=tmp_path / "file" / "below")
    with pytest.raises(sweeps.StoreError, match="it holds other files"):
        sweeps.sweep(SPACE, KEEP, out=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.ENOSPC, "the disk is full; finished parts are kept"), (errno.EACCES, "it cannot be written to")],
)
def test_a_disk_that_refuses(tmp_path, monkeypatch, number, sentence):
    calls = []
    fsync = os.fsync

    def refusing(file):
        calls.append(file)
        if len(calls) > 12:
            raise OSError(number, os.strerror(number))
        fsync(file)

    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(sweeps.StoreError, match=sentence):
        sweeps.sweep(SPACE, KEEP, out=tmp_path / "out", chunk=64)
    finished = len(list((tmp_path / "out" / "parts").glob("*.parquet")))
    assert 0 < finished < 18
    assert not list((tmp_path / "out").rglob("*.tmp"))
    monkeypatch.setattr(os, "fsync", fsync)
    seen = []
    sweeps.sweep(SPACE, KEEP, out=tmp_path / "out", chunk=64, progress=seen.append)
    assert seen[0].done > 0 and seen[-1].done == seen[-1].total


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(sweeps.StoreError, match="it cannot be written to"):
        sweeps.sweep(SPACE, KEEP, out=tmp_path / "out")


def test_two_processes_do_not_write_one_folder(done, tmp_path):
    held = _opened(tmp_path / "out")
    with pytest.raises(sweeps.StoreError, match="another process is writing it"):
        _opened(tmp_path / "out")
    held.close()
    _opened(tmp_path / "out").close()


def test_another_kind_of_device(tmp_path, monkeypatch):
    _opened(tmp_path / "out").close()
    monkeypatch.setattr(store.jax, "default_backend", lambda: "gpu")
    with pytest.raises(sweeps.StoreError, match="it was started on cpu and this is gpu"):
        sweeps.sweep(SPACE, KEEP, out=tmp_path / "out")


def test_a_folder_goes_on_with_its_tiles_unless_told_otherwise(tmp_path):
    _opened(tmp_path / "out").close()
    said = []
    sweeps.sweep(SPACE, KEEP, out=tmp_path / "out", notice=said.append)
    assert not said
    sweeps.sweep(SPACE, KEEP, out=tmp_path / "out", chunk=32, notice=said.append)
    assert said == ["the folder was started with tiles of 64 points, not 32: last digits may differ"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["chunk"] == 64


def test_a_damaged_part_is_named(done, tmp_path):
    import shutil

    shutil.copytree(done, tmp_path / "out")
    damaged = tmp_path / "out" / "parts" / "00000001.parquet"
    damaged.write_bytes(b"PAR1")
    with pytest.raises(sweeps.StoreError, match=r"00000001\.parquet cannot be read .* delete it"):
        sweeps.sweep(SPACE, KEEP, out=tmp_path / "out")


# killed and started again


def _killed_until_done(path, kills, seconds, seed):
    """Kill the sweep at random moments, start it again each time, and return the number of kills that hit it."""
    chance = random.Random(seed)
    hits, kept = 0, {}
    for _ in range(kills):
        process = _start(path, pause=0.15)
        if chance.random() < 0.8:  # most kills while parts are written, some while the process starts
            known = len(kept)
            limit = time.monotonic() + 120
            while process.poll() is None and len(list(path.glob("parts/[0-9]*.parquet"))) <= known:
                time.sleep(0.01)
                assert time.monotonic() < limit
        time.sleep(chance.random() * seconds)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            hits += 1
        process.wait(timeout=60)
        for file, stamp in kept.items():
            assert file.stat().st_mtime_ns == stamp, f"{file.name} was written again"
        kept = {file: file.stat().st_mtime_ns for file in path.glob("parts/[0-9]*.parquet")}
        if (path / "histogram.parquet").exists():
            break
    assert _start(path).wait(timeout=300) == 0
    return hits


def test_two_kills_change_nothing(done, tmp_path):
    assert _killed_until_done(tmp_path / "out", 2, 0.3, seed=1) == 2
    assert _files(tmp_path / "out") == _files(done)


@pytest.mark.slow
def test_fifty_kills_change_nothing(done, tmp_path):
    hits, seed = 0, 0
    while hits < 50:
        path = tmp_path / f"out-{seed}"
        hits += _killed_until_done(path, 50 - hits, 0.4, seed=seed)
        assert _files(path) == _files(done)
        seed += 1
