"""Settings of the whole suite: precision, checks that the library itself never switches on, and caches.

The suite runs in float64; `WATOS_JAX_TEST_PRECISION=32` runs it in float32 and skips the tests marked `float64`.
"""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import platformdirs
import pytest

from watos_jax import programs

PRECISION = os.environ.get("WATOS_JAX_TEST_PRECISION", "64")


def pytest_configure():
    if PRECISION not in ("32", "64"):
        raise pytest.UsageError(f"WATOS_JAX_TEST_PRECISION is {PRECISION!r}: it must be 32 or 64")
    jax.config.update("jax_enable_x64", PRECISION == "64")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    _compile_quickly()
    _cache_compilations()
    hypothesis.settings.register_profile("watos_jax", derandomize=True, deadline=None, database=None)
    hypothesis.settings.load_profile("watos_jax")


def pytest_report_header():
    return f"watos_jax: float{PRECISION}, compilation cache {jax.config.jax_compilation_cache_dir}"


def pytest_collection_modifyitems(items):
    if PRECISION == "32":
        skip = pytest.mark.skip(reason="needs float64")
        for item in items:
            if item.get_closest_marker("float64"):
                item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    # neighbours stay on one worker, so that what a module compiles or computes once is not done by every worker
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session")
def eps() -> float:
    """Relative spacing of the floats that the suite runs in: tolerances are multiples of it."""
    return float(jnp.finfo(jnp.result_type(float)).eps)


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    # a command that ran in this process keeps programs, which tests that replace a function must not read
    yield
    programs.keep_in(None)


def _compile_quickly() -> None:
    # on a CPU the emitters that `watos_jax.xla` chooses for large kernels, for every function of the suite: most of its
    # time is compilation, and this halves it; a compiler of other releases might not know the flag, and would exit
    if jax.__version_info__[:2] == (0, 10):
        given = os.environ.get("XLA_FLAGS")
        os.environ["XLA_FLAGS"] = f"{given or ''} --xla_cpu_use_fusion_emitters=false"
        jax.devices()  # reads the flags, which processes that tests start do not inherit
        if given is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = given


def _cache_compilations() -> None:
    # compiled code is kept between runs, apart by machine, because it is made for one processor
    folder = Path(platformdirs.user_cache_dir("watos_jax")) / "tests" / f"{platform.node()}-jax-{jax.__version__}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
