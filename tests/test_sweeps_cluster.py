"""A Dask cluster of two processes, one of which is killed by its own process id."""

import os
import signal
import time

import jax
import pytest
import sweep_space

from watos_jax import sweeps
from watos_jax.sweeps import points

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.filterwarnings("default")
SPACE, KEEP = sweeps.declare(sweep_space.TABLE)


def _slow_parts(pause):
    """Make parts small and slow in a worker."""
    sweep_space.small_parts()
    write = sweeps.drive.Store.write

    def slow(self, outcome):
        time.sleep(pause)
        write(self, outcome)

    sweeps.drive.Store.write = slow


def test_a_killed_worker_costs_only_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "ANSWER_POINTS", 256)
    monkeypatch.setattr(points, "ROW_POINTS", 256)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir or "")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(sweep_space.__file__))
    expected = sweeps.sweep(SPACE, KEEP, chunk=64)
    written = {}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_worker_callbacks(_Slow(0.1))
        pids = client.run(os.getpid)
        assert len(set(pids.values())) == 2
        victim = next(iter(pids.values()))

        def kill(now):
            if len(written) == 0 and now.done > 0:
                written.update({file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("parts/*.parquet")})
                os.kill(victim, signal.SIGKILL)

        result = sweeps.sweep(
            SPACE, KEEP, out=tmp_path / "out", cluster=cluster.scheduler_address, chunk=64, progress=kill
        )
    assert written, "the worker was killed too late"
    for file, stamp in written.items():
        assert file.stat().st_mtime_ns == stamp, f"{file.name} was written again"
    assert result.evaluated == expected.evaluated and result.feasible == expected.feasible
    assert list(result.top["index"]) == list(expected.top["index"])
    assert list(result.pareto["index"]) == list(expected.pareto["index"])
    assert list(result.histogram["count"]) == list(expected.histogram["count"])


class _Slow:
    """Callback of a worker's start, restarted workers included."""

    def __init__(self, pause):
        self.pause = pause

    def __call__(self):
        _slow_parts(self.pause)


def test_a_cluster_needs_a_folder():
    with pytest.raises(ValueError, match="out is None: a cluster needs a folder that all its workers see"):
        sweeps.sweep(SPACE, KEEP, cluster="tcp://127.0.0.1:1")


@pytest.mark.parametrize("address", ["nowhere", "tcp://127.0.0.1:1"])
def test_a_cluster_must_answer(address, tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(sweeps.StoreError, match=f"cluster is '{address}': it must be the address of a Dask scheduler"),
    ):
        sweeps.sweep(SPACE, KEEP, out=tmp_path / "out", cluster=address, chunk=64)
