"""Parts of a plan on every local device: in what tiles, how far ahead, and what is done when a tile does not fit.

A tile is some hardware points times some strategies. Where a hardware point has many strategies a tile has one of
them, so that all arithmetic on hardware alone is scalar. Tiles of one shape share one compilation; wafers of another
packing, or cells with few strategies beside cells with many, add one each. Equal runs on equal devices are equal bit
for bit; another number of devices is another program, which may round the last digit of a few points another way.
"""

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from watos_jax.sweeps import merge, reduce
from watos_jax.sweeps.columns import Rows
from watos_jax.sweeps.kernel import Job, Kernel, compiled
from watos_jax.sweeps.metrics import fits
from watos_jax.sweeps.points import Cell, Part, Plan

CHUNKS: Final = {"cpu": 4096, "gpu": 32768, "tpu": 32768}
"""Points of a tile before tuning. On a CPU each of the many loops of a tile has a fixed cost, which 4096 points make
small; what is best beyond that depends on the stages and on the caches."""
LEAST_CHUNK: Final = 8
"""Points below which a tile is not halved when memory runs out."""
FRONT: Final = 256
"""Places of the Pareto front on a device; doubled when they run out."""
MOST_FRONT: Final = 2**15
"""Places above which a front is given up."""
AHEAD: Final = 2
"""Parts that devices work on while an earlier one is written."""


@dataclass(frozen=True)
class Shape:
    """What a compilation depends on besides the plan.

    Attributes:
        chunk: points of a tile.
        front: places of the Pareto front.
    """

    chunk: int
    front: int


class Outcome(NamedTuple):
    """What is known of one part.

    Attributes:
        part: the part.
        evaluated: its points.
        feasible: points that exceed no limit.
        histogram: feasible points per bin, int64; of length 0 where none is asked.
        best: rows of the best points, best first.
        front: rows of the Pareto front, in the order of their numbers.
        rows: the rows kept besides, in the order of their numbers; None where none is.
    """

    part: Part
    evaluated: int
    feasible: int
    histogram: np.ndarray
    best: Rows
    front: Rows
    rows: Rows | None


def outcomes(
    plan: Plan,
    numbers: Iterable[int],
    *,
    chunk: int | None = None,
    notice: Callable[[str], None] | None = None,
) -> Iterator[Outcome]:
    """Work through some parts of a plan, in their order, on every local device.

    Args:
        plan: the sweep.
        numbers: of the parts.
        chunk: points of a tile; that of the device's kind where None.
        notice: called with a sentence when a tile or a front had to change its size; a warning where None.
    """
    say = notice or (lambda text: warnings.warn(text, RuntimeWarning, stacklevel=2))
    runner = _Runner(plan, Shape(chunk or CHUNKS.get(jax.default_backend(), 4096), FRONT), say)
    waiting: deque[tuple[Part, Any, Shape]] = deque()
    for number in numbers:
        part = plan.part(number)
        waiting.append((part, runner.launch(part), runner.shape))
        if len(waiting) >= AHEAD:
            yield runner.collect(*waiting.popleft())
    while waiting:
        yield runner.collect(*waiting.popleft())


def tune(plan: Plan, *, seconds: float = 0.5) -> int:
    """Chunk that is fastest here among that of the device's kind and its neighbours, each a compilation.

    Args:
        plan: the sweep; its first part is the work.
        seconds: s that each choice is timed for.
    """
    default = CHUNKS.get(jax.default_backend(), 4096)
    rates = {}
    for chunk in (default // 2, default, 2 * default, 4 * default):
        runner = _Runner(plan, Shape(chunk, FRONT), lambda text: None)
        part = plan.part(0)
        cell = plan.cells[part.cell]
        hardware = max(1, min(part.size, 32 * chunk // cell.strategies))
        small, spent, points = part._replace(size=hardware), 0.0, 0
        runner.collect(small, runner.launch(small), runner.shape)
        while not points or spent < seconds:
            began = time.perf_counter()
            jax.block_until_ready(runner.launch(small))
            spent += time.perf_counter() - began
            points += hardware * cell.strategies
        rates[chunk] = points / spent
    return max(rates, key=lambda chunk: rates[chunk])


def tile_shape(plan: Plan, cell: Cell, chunk: int) -> tuple[int, int]:
    """Hardware points and strategies of a tile: one hardware point where it has at least half a chunk of strategies.

    Args:
        plan: the sweep; cells that have many strategies share a shape, and so do cells that have few.
        cell: whose tiles.
        chunk: points of a tile.
    """
    counts = [other.strategies for other in plan.cells]
    if cell.strategies > chunk // 2:
        many = [count for count in counts if count > chunk // 2]
        blocks = [-(-count // chunk) for count in many]
        balanced = {min(chunk, 8 * -(-count // (8 * number))) for count, number in zip(many, blocks, strict=True)}
        return 1, min(balanced | {chunk}, key=lambda size: (sum(-(-count // size) * size for count in many), -size))
    few = max(count for count in counts if count <= chunk // 2)
    most = max(c.hardware for c in plan.cells if c.strategies <= chunk // 2)
    return max(1, min(chunk // few, most)), few


class _Runner:
    # tables on the devices, the present shape of a tile, and what is done when it does not fit

    def __init__(self, plan: Plan, shape: Shape, say: Callable[[str], None]):
        self.plan, self.shape, self.say = plan, shape, say
        self.devices = len(jax.local_devices())
        self.dtype = np.dtype(np.float32 if plan.space.precision == 32 else np.float64)
        self.first_strategies = np.cumsum([0] + [len(table) for table in plan.tables])
        self.first_layouts = np.cumsum([0] + [len(table.layouts.pipeline_volume) for table in plan.tables])
        self._load()

    def _load(self) -> None:
        # rows after the last are there for the last tile, which may read past it
        plan = self.plan
        spare = max(tile_shape(plan, cell, self.shape.chunk)[1] for cell in plan.cells)
        stacked = jax.tree.map(
            lambda *leaves: np.concatenate([*leaves, np.repeat(leaves[-1][-1:], spare, axis=0)]),
            *(table.strategies for table in plan.tables),
        )
        layouts = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(table.layouts for table in plan.tables))
        geometry = np.concatenate([table.geometry for table in plan.tables] + [np.zeros(spare, int)]).astype(np.int32)
        tables = (
            plan.wafers,
            plan.models,
            stacked,
            layouts,
            tuple(plan.space.axes[name] for name in plan.axes),
        )
        with self._precision():
            numbers = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), self.dtype), tables)
            # on every device once, not copied there by every call
            mesh = Mesh(np.array(jax.local_devices()[: self.devices]), ("device",))
            self.shared = jax.device_put((*numbers, jnp.asarray(geometry)), NamedSharding(mesh, PartitionSpec()))

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        # whatever the process is set to
        return jax.enable_x64(self.plan.space.precision == 64)

    def _kernel(self, cell: Cell) -> Kernel:
        plan = self.plan
        shape = tile_shape(plan, cell, self.shape.chunk)
        template = next(iter(plan.space.wafers.values()))
        structure = jax.tree.structure(replace(template, packing=cell.packing))
        keep = plan.keep
        return Kernel(
            replace(keep, per=(), rows="none" if keep.rows == "none" else "all"),  # the host does the rest
            plan.space.fidelity,
            *shape,
            -(-self._most_tiles(shape, cell) // self.devices),
            self.devices,
            self.shape.front,
            structure,
            plan.positions,
            cell.sizes,
            plan.seed,
        )

    def _most_tiles(self, shape: tuple[int, int], cell: Cell) -> int:
        return self.plan.most_tiles(shape, cell.packing) if self.plan.keep.rows != "none" else 1

    def launch(self, part: Part) -> Any:
        """Start a part; halve the tile for as long as memory runs out."""
        cell = self.plan.cells[part.cell]
        while True:
            try:
                return self._call(part, cell)
            except Exception as error:
                self._halve(error)

    def _halve(self, error: Exception) -> None:
        if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
            raise error
        if self.shape.chunk // 2 < LEAST_CHUNK:
            raise MemoryError(f"a tile of {self.shape.chunk} points does not fit the device's memory") from error
        self.say(
            f"out of memory with tiles of {self.shape.chunk} points: going on with {self.shape.chunk // 2}; "
            "later points may differ in their last digit"
        )
        self.shape = replace(self.shape, chunk=self.shape.chunk // 2)
        self._load()

    def _call(self, part: Part, cell: Cell) -> Any:
        kernel = self._kernel(cell)
        tiles = -(-part.size // kernel.hardware) * -(-cell.strategies // kernel.strategies)
        share = -(-tiles // self.devices)
        first = np.minimum(np.arange(self.devices) * share, tiles).astype(np.int32)
        stop = np.minimum(first + share, tiles).astype(np.int32)
        job = Job(
            self.plan.base(cell, part.first),
            np.int32(part.size),
            np.int32(cell.strategies),
            np.int32(self.first_strategies[cell.table]),
            np.int32(self.first_layouts[cell.table]),
            np.int32(cell.template),
            np.int32(cell.model_row),
        )
        with self._precision():
            return compiled()(kernel, self.shared, job, first, stop)

    def collect(self, part: Part, launched: Any, shape: Shape) -> Outcome:
        """Wait for a part, and repeat it where memory or the front's places ran out meanwhile."""
        while True:
            try:
                state = jax.tree.map(np.asarray, launched)
                if not state.overflow.any():
                    return self._outcome(part, state, shape)
                if shape.front >= MOST_FRONT:
                    raise ValueError(
                        f"keep.pareto is {', '.join(self.plan.keep.pareto)}: its front has more than {MOST_FRONT} "
                        f"points in part {part.number}; it must name fewer metrics"
                    )
                self.shape = replace(self.shape, front=max(self.shape.front, 2 * shape.front))
                self.say(f"the Pareto front outgrew {shape.front} points: going on with {self.shape.front}")
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                self._halve(error)
            launched = self.launch(part)
            shape = self.shape

    def _outcome(self, part: Part, state: reduce.State, shape: Shape) -> Outcome:
        cell, keep = self.plan.cells[part.cell], self.plan.keep
        best, front = (self._kept(part, kept) for kept in (state.best, state.front))
        best = merge.best(best, keep.by, keep.top)
        if keep.pareto:
            front = merge.front(front, keep.pareto)
            front = merge.taken(front, np.argsort(front["index"]))
        return Outcome(
            part,
            part.size * cell.strategies,
            int(state.feasible.sum()),
            np.asarray(state.histogram).astype(np.int64).sum(axis=0),
            best,
            front,
            None if keep.rows == "none" else self._rows(part, state, shape),
        )

    def _kept(self, part: Part, kept: reduce.Kept) -> Rows:
        hardware, strategy = np.asarray(kept.hardware), np.asarray(kept.strategy)
        there = strategy >= 0
        metrics = {name: np.asarray(values)[there] for name, values in kept.metrics.items()}
        return self.plan.rows(part, hardware[there], strategy[there], metrics)

    def _rows(self, part: Part, state: reduce.State, shape: Shape) -> Rows:
        # tiles lie one after another: bring points into the order of their numbers, without the padding
        cell = self.plan.cells[part.cell]
        hardware, strategies = tile_shape(self.plan, cell, shape.chunk)
        across, along = -(-part.size // hardware), -(-cell.strategies // strategies)
        share = -(-across * along // self.devices)

        def ordered(values: np.ndarray) -> np.ndarray:
            tiles = values[:, :share].reshape(-1, hardware * strategies)[: across * along]
            tiles = tiles.reshape(across, along, hardware, strategies).swapaxes(1, 2)
            tiles = tiles.reshape(across * hardware, along * strategies)
            return tiles[: part.size, : cell.strategies].reshape(-1)

        metrics = {name: ordered(np.asarray(values)) for name, values in state.rows.items()}
        number = np.arange(part.size * cell.strategies, dtype=np.int32)
        if self.plan.keep.rows == "feasible":
            number = number[fits(metrics["margin"])]
            metrics = {name: values[number] for name, values in metrics.items()}
        return self.plan.rows(part, number // cell.strategies, number % cell.strategies, metrics)
