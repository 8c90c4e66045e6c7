"""A sweep from its declaration to its answers: here or on a cluster, in memory or in a folder, begun or begun again."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax

from watos_jax.sweeps.answers import Answers, Sweep
from watos_jax.sweeps.build import build
from watos_jax.sweeps.declare import read
from watos_jax.sweeps.keep import Keep
from watos_jax.sweeps.points import Plan
from watos_jax.sweeps.run import CHUNKS, Outcome, outcomes, tune
from watos_jax.sweeps.space import Space
from watos_jax.sweeps.store import Store

TUNED_FROM = 500_000_000
"""Points from which the chunk is tuned, which takes three further compilations."""


class Progress(NamedTuple):
    """How far a sweep is.

    Attributes:
        done: points, those of an earlier run included.
        total: all points.
        rate: points per second of this run.
        time_left: s; infinite before the first part.
        best: best value so far of the metric that `keep.by` names; None before the first feasible point.
        feasible: feasible points so far.
    """

    done: int
    total: int
    rate: float
    time_left: float
    best: float | None
    feasible: int


def sweep(
    space: Space | Plan | str | Path,
    keep: Keep | None = None,
    *,
    out: str | Path | None = None,
    cluster: str | None = None,
    chunk: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Sweep:
    """Evaluate every point of a space, in constant memory, on every local device or on a cluster.

    Args:
        space: a declared space, a plan, or the path of a TOML file with one.
        keep: what to answer; that of the file or plan where None, else the ten fastest points.
        out: folder for Parquet files; a run that was interrupted goes on where it was. In memory where None.
        cluster: address of a Dask scheduler whose workers see the same folder `out`; this process where None.
        chunk: points of a tile; tuned, or that of the kind of device, where None.
        progress: called after each part.
        notice: called with a sentence when memory or places ran out and the sweep went on with others; a warning
            where None.

    Returns:
        The answers.

    Raises:
        ValueError: a field of the space breaks a rule; or, as `StoreError`, the folder cannot be used.
    """
    plan = _planned(space, keep)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk!r}: it must be a whole number, at least 1")
    if cluster is not None and out is None:
        raise ValueError("out is None: a cluster needs a folder that all its workers see")
    answers = Answers(plan)
    if out is None:
        meter = _Meter(plan, answers, progress)
        for outcome in outcomes(plan, range(plan.num_parts), chunk=_chunk(plan, chunk), notice=notice):
            answers.add(outcome, hold_rows=True)
            meter.tell()
        return answers.finish()
    store = Store.open(out, plan, chunk=lambda: _chunk(plan, chunk))
    try:
        finished = store.finished()
        for number in sorted(finished):
            answers.add(store.outcome(number))
        meter = _Meter(plan, answers, progress)
        left = [number for number in range(plan.num_parts) if number not in finished]
        tile = chunk or store.manifest["chunk"]
        _tell_changes(store, tile, cluster is not None, notice)
        if cluster is None:
            written: Iterator[Outcome] = _written(store, outcomes(plan, left, chunk=tile, notice=notice))
        else:
            from watos_jax.sweeps.cluster import distribute

            written = distribute(store, left, cluster, chunk=tile)
        for outcome in written:
            answers.add(outcome)
            meter.tell()
        result = answers.finish(store.path)
        store.write_answers(result)
    finally:
        store.close()
    return result


def _tell_changes(store: Store, tile: int, is_cluster: bool, notice: Callable[[str], None] | None) -> None:
    # another number of devices or points of a tile is another program
    begun, devices = store.manifest, len(jax.local_devices())
    say = notice or (lambda text: warnings.warn(text, RuntimeWarning, stacklevel=4))
    then = begun["device"]["count"]
    if then != devices and not is_cluster:
        say(f"the folder was started on {then} devices and this process has {devices}: last digits may differ")
    if begun["chunk"] != tile:
        say(f"the folder was started with tiles of {begun['chunk']} points, not {tile}: last digits may differ")


def _planned(space: Space | Plan | str | Path, keep: Keep | None) -> Plan:
    if isinstance(space, Plan):
        return space if keep is None else build(space.space, keep)
    if isinstance(space, Space):
        return build(space, keep or Keep())
    declared, asked = read(space)
    return build(declared, keep or asked)


def _chunk(plan: Plan, chunk: int | None) -> int:
    if chunk is not None:
        return chunk
    return tune(plan) if len(plan) >= TUNED_FROM else CHUNKS.get(jax.default_backend(), 4096)


def _written(store: Store, computed: Iterator[Outcome]) -> Iterator[Outcome]:
    # write one part while the devices compute the next ones; each is passed on once it is on the disk
    waiting: deque[tuple[Outcome, Future]] = deque()
    with ThreadPoolExecutor(1) as writer:
        for outcome in computed:
            waiting.append((outcome, writer.submit(store.write, outcome)))
            if len(waiting) > 1:
                yield _done(*waiting.popleft())
        while waiting:
            yield _done(*waiting.popleft())


def _done(outcome: Outcome, written: Future) -> Outcome:
    written.result()
    return outcome._replace(rows=None)


class _Meter:
    # rate and time left, of this run alone

    def __init__(self, plan: Plan, answers: Answers, progress: Callable[[Progress], None] | None):
        self.plan, self.answers, self.progress = plan, answers, progress
        self.began, self.before = time.perf_counter(), answers.evaluated
        if progress is not None:
            self.tell()

    def tell(self) -> None:
        if self.progress is None:
            return
        done, total = self.answers.evaluated, len(self.plan)
        rate = (done - self.before) / max(time.perf_counter() - self.began, 1e-9)
        left = (total - done) / rate if rate else float("inf") if done < total else 0.0
        self.progress(Progress(done, total, rate, left, self.answers.best, self.answers.feasible))
