"""The process that runs a command: its devices, its compilation cache, its clock, its progress on standard error."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import jax
import jax.monitoring
import platformdirs
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from watos_jax import programs

COMPILATION: Final = "/jax/core/compile/"
"""Prefix of JAX's events for tracing, lowering and compiling; a compilation read from the cache is one, too."""


def prepare() -> None:
    """Use every core as a device, and keep compiled code between processes, unless the user has set either.

    The cache lies in the user's cache directory, apart by machine because code is compiled for one processor;
    `JAX_COMPILATION_CACHE_DIR` puts it elsewhere, and `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.
    """
    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_set and jax.config.values["jax_num_cpu_devices"] < 0:
        with suppress(RuntimeError):  # a program that calls `main` may have computed already
            jax.config.update("jax_num_cpu_devices", num_cores())
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = Path(platformdirs.user_cache_dir("watos_jax")) / f"{platform.node()}-jax-{jax.__version__}"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES" not in os.environ:
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if jax.config.values["jax_enable_compilation_cache"]:
        _keep_programs(jax.config.values["jax_compilation_cache_dir"])


def _keep_programs(cache_folder: str | None) -> None:
    # beside compiled code, which may also lie in a store that is no folder
    if cache_folder is None:
        return
    folder = Path(cache_folder) / "programs"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        programs.keep_in(folder)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CompileClock:
    """Wall time that JAX spends on tracing, lowering and compiling (or reading compiled code) inside `with`.

    JAX reports the start and end of each; the time is the length of their union, so that what runs inside another
    counts once.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> "CompileClock":
        jax.monitoring.register_event_time_span_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._listen)

    def _listen(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event.startswith(COMPILATION):
            self._spans.append((start_time, end_time))

    @property
    def time(self) -> float:
        """Seconds so far."""
        elapsed, reached = 0.0, float("-inf")
        for start, stop in sorted(self._spans):
            elapsed += max(0.0, stop - max(start, reached))
            reached = max(reached, stop)
        return elapsed


@contextmanager
def progress(what: str) -> Iterator[Callable[[str, float], None]]:
    """Show on standard error, if it is a terminal, what is being done and for how long.

    Args:
        what: what is being done.

    Yields:
        A function that takes the name of a phase and the share of it that is done.
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda phase, share: bar.update(task, description=f"{what}: {phase}" + (f" {share:.0%}" if share else ""))
