"""The discrete side of the search: every legal strategy of a model on a grid of dies, as stacked records.

Degrees are enumerated over all rectangles that tile the mesh; what they rule out is counted by reason. Options that
do not change the layout (micro-batch, recomputation, sharding) multiply the list without another layout.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final

import equinox as eqx
import jax
import numpy as np

from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.network.contention import Network
from watos_jax.network.geometry import Geometry, misfit, num_rectangles, num_usable
from watos_jax.network.layout import layout_of, padded
from watos_jax.strategy import FEW_VALUES, RECOMPUTE_LEVELS, SCHEDULES, Layout, Strategy, chunks_are_equal

_NAMES: Final = {"recompute": RECOMPUTE_LEVELS, "schedule": SCHEDULES}
_FEW: Final = {name: (allowed, rule) for name, allowed, rule in FEW_VALUES}
_SINGLE: Final = ("global_batch_size", "max_pipeline", "least_use")
ROOM: Final = 2048
"""`StrategySpace.roomy_layouts` has room for a multiple of this many: spaces up to that size share a compilation."""


class NoStrategy(ValueError):
    """No strategy is legal, whatever its speed; the message counts the reasons."""


@dataclass(frozen=True)
class Options:
    """What a search may choose from, besides the degrees of parallelism; one value may stand for a list of one.

    Attributes:
        global_batch_size: sequences per optimizer step.
        micro_batch_sizes: sequences per micro-batch.
        recompute: names of `RECOMPUTE_LEVELS`.
        virtual_stages: chunks per stage.
        context_parallel: parts that each sequence is cut into.
        sequence_parallel: whether norms are split over the tensor group, allowed values.
        optimizer_sharding: allowed levels where there is more than one replica.
        schedule: names of `SCHEDULES`.
        gradient_bytes: bytes per gradient element.
        flash_attention: whether attention scores stay on the die, allowed values.
        max_pipeline: most stages.
        least_use: least share of the dies that a strategy occupies.
    """

    global_batch_size: Any = 512
    micro_batch_sizes: Any = (1, 2, 4, 8)
    recompute: Any = ("none", "norms", "activation", "mlp", "projections", "attention", "full")
    virtual_stages: Any = (1, 2, 4)
    context_parallel: Any = (1, 2, 4)
    sequence_parallel: Any = (0, 1)
    optimizer_sharding: Any = (0, 1)
    schedule: Any = ("1f1b",)
    gradient_bytes: Any = (4,)
    flash_attention: Any = (1,)
    max_pipeline: Any = 64
    least_use: Any = 0.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            given = getattr(self, name)
            several = tuple(given) if isinstance(given, list | tuple) else (given,)
            if name not in _SINGLE:
                object.__setattr__(self, name, several)
                if not several:
                    raise ValueError(f"{name} is empty: it must hold at least one")
            for value in (given,) if name in _SINGLE else several:
                rule = _broken_rule(name, value)
                if rule is not None:
                    raise ValueError(f"{name} is {value!r}: it must be {rule}")


def _broken_rule(name: str, value: Any) -> str | None:
    # of one value of an option
    if name in _NAMES:
        return None if value in _NAMES[name] else f"one of {', '.join(_NAMES[name])}"
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        return "a number"
    if name in _FEW:
        allowed, rule = _FEW[name]
        return None if value in allowed else rule
    if name == "least_use":
        return None if 0.0 <= value <= 1.0 else "from 0 to 1"
    return None if value >= 1 and float(value).is_integer() else "a whole number, at least 1"


@dataclass(frozen=True)
class StrategySpace:
    """Strategies stacked along a first axis, with the layout of each and the counts of what was ruled out.

    Attributes:
        strategies: record of arrays, shape (n,).
        layouts: one per distinct geometry, arrays of shape (geometries, ...).
        geometry: index into `layouts` of each strategy, shape (n,).
        pruned: number of candidate geometries ruled out, by reason.
    """

    strategies: Strategy
    layouts: Layout
    geometry: np.ndarray
    pruned: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.geometry)

    def strategy(self, index: int) -> Strategy:
        """One strategy of the list."""
        return jax.tree.map(lambda leaf: float(leaf[index]), self.strategies)

    def layout(self, index: int) -> Layout:
        """The layout of one strategy of the list."""
        return jax.tree.map(lambda leaf: leaf[self.geometry[index]], self.layouts)

    def where(self, kept: np.ndarray, reason: str) -> "StrategySpace":
        """The strategies that are kept, the others counted by a reason.

        Args:
            kept: which, shape (n,).
            reason: why the others are not.

        Raises:
            NoStrategy: none is kept.
        """
        if not kept.any():
            raise NoStrategy(f"no strategy is left of {len(self)}: {reason}")
        pruned = self.pruned | {reason: int(np.sum(~kept))}
        return replace(
            self,
            strategies=jax.tree.map(lambda leaf: leaf[kept], self.strategies),
            geometry=self.geometry[kept],
            pruned=pruned,
        )

    @property
    def roomy_layouts(self) -> Layout:
        """`layouts` and copies of the last up to a multiple of `ROOM`: one shape for models and machines alike."""
        count = len(self.layouts.pipeline_volume)
        rows = np.minimum(np.arange(-(-count // ROOM) * ROOM), count - 1)
        return jax.tree.map(lambda leaf: leaf[rows], self.layouts)

    @property
    def stacked_layouts(self) -> Layout:
        """The layout of every strategy, stacked."""
        return jax.tree.map(lambda leaf: leaf[self.geometry], self.layouts)


def strategies(
    system: System | Wafer,
    model: Transformer,
    options: Options = Options(),
    *,
    max_stages: int | None = None,
    network: Network | None = None,
) -> StrategySpace:
    """List every legal strategy of a model on a system.

    Args:
        system: the hardware; only the shape of its network is read.
        model: the transformer.
        options: what may be chosen.
        max_stages: padded number of stages; the longest pipeline rounded up to a multiple of 8 where None.
        network: what to lay strategies on, such as `faults.damaged`; the system's own, whole, where None.

    Returns:
        The stacked strategies in a fixed order, small tensor groups first.

    Raises:
        NoStrategy: no strategy is legal.
    """
    pruned: Counter[str] = Counter()
    network = Network.of(system) if network is None else network
    blocks: dict[str, list[np.ndarray]] = {}
    geometries: list[Geometry] = []
    owners = []
    for geometry in _geometries(network, model, options, pruned):
        block = _options_of(geometry, model, options)
        if not len(block["micro_batch_size"]):
            pruned["micro-batches do not divide the batch"] += 1
            continue
        owners.append(np.full(len(block["micro_batch_size"]), len(geometries)))
        geometries.append(geometry)
        for name, values in block.items():
            blocks.setdefault(name, []).append(values)
    if not geometries:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in pruned.most_common())
        raise NoStrategy(f"no strategy is legal on {num_usable(network)} dies: {reasons}")
    longest = max(geometry.pipeline for geometry in geometries)
    stages = padded(longest) if max_stages is None else max_stages
    rows = [layout_of(network, geometry, max_stages=stages) for geometry in geometries]
    return StrategySpace(
        strategies=_stack({name: np.concatenate(values) for name, values in blocks.items()}),
        layouts=jax.tree.map(lambda *leaves: np.stack(leaves), *rows),
        geometry=np.concatenate(owners),
        pruned=dict(pruned),
    )


def _geometries(network: Network, model: Transformer, options: Options, pruned: Counter[str]) -> Iterator[Geometry]:
    # distinct (tensor rectangle, collective, pipeline, data, context, expert, wraps); small tensor groups first
    fabric, dies = network.fabrics[0], num_usable(network)
    heads, kv_heads = int(model.num_attention_heads), int(model.num_kv_heads)
    layers, experts = int(model.num_layers), int(model.num_experts)
    rows, cols = (1, dies) if fabric.is_switch else (fabric.rows, fabric.cols)
    rectangles = sorted(product(range(1, rows + 1), range(1, cols + 1)), key=lambda side: (side[0] * side[1], side))
    for r, c in rectangles:
        if heads % (r * c):
            pruned["tensor group does not divide the heads"] += 1
            continue
        if kv_heads % (r * c) and (r * c) % kv_heads:
            pruned["tensor group neither divides the key and value heads nor repeats them"] += 1
            continue
        tiles = dies // (r * c) if fabric.is_switch else num_rectangles(network, Geometry(r, c))
        for stages, context in product(range(1, tiles + 1), options.context_parallel):
            if stages > min(layers, options.max_pipeline):
                pruned["more stages than layers, or than max_pipeline"] += 1
                continue
            if stages * context > tiles:
                pruned["stages and context parts take more than all dies"] += 1
                continue
            for replicas in range(1, tiles // (stages * context) + 1):
                if options.global_batch_size % replicas:
                    pruned["replicas do not divide the batch"] += 1
                elif r * c * stages * context * replicas < options.least_use * dies:
                    pruned["too few dies used"] += 1
                else:
                    base = Geometry(r, c, stages, replicas, context)
                    for geometry in _variants(base, layers, experts, options):
                        if misfit(network, geometry) is None:
                            yield geometry
                        else:
                            pruned["does not tile the mesh"] += 1


def _variants(base: Geometry, layers: int, experts: int, options: Options) -> Iterator[Geometry]:
    # the same degrees with every expert parallelism, collective and (where layers allow) interleaving
    peers = base.data * base.context
    degrees = [e for e in range(1, peers + 1) if peers % e == 0 and experts % e == 0] if experts else [1]
    wraps = base.pipeline > 1 and any(
        v > 1 and chunks_are_equal(layers, base.pipeline, v) for v in options.virtual_stages
    )
    collectives = (0, 1) if base.tensor_rows > 1 and base.tensor_cols > 1 else (0,)
    plain = (False,) if 1 in options.virtual_stages else ()
    for expert, collective, interleaved in product(degrees, collectives, plain + ((True,) if wraps else ())):
        yield base._replace(expert=expert, tensor_collective=collective, interleaved=interleaved)


def _options_of(geometry: Geometry, model: Transformer, options: Options) -> dict[str, np.ndarray]:
    # every combination of the options that share this geometry, and that are legal with it
    replicated = geometry.data * geometry.context > 1
    choices = (
        options.micro_batch_sizes,
        [RECOMPUTE_LEVELS.index(name) for name in options.recompute],
        options.sequence_parallel if geometry.tensor > 1 else (0,),
        options.optimizer_sharding if replicated else options.optimizer_sharding[:1],
        [v for v in options.virtual_stages if v > 1] if geometry.interleaved else (1,),
        # one stage has no order to choose, and interleaving is 1F1B
        [SCHEDULES.index(name) for name in options.schedule] if _has_schedules(geometry) else (0,),
        options.gradient_bytes,
        options.flash_attention,
    )
    columns = np.array(list(product(*choices)), float).T
    micro, recompute, sequence, sharding, virtual, schedule, gradient_bytes, flash = columns
    batches = options.global_batch_size / (micro * geometry.data)
    equal = chunks_are_equal(float(model.num_layers), geometry.pipeline, virtual)
    rounds = (virtual == 1) | equal & (np.mod(batches, geometry.pipeline) == 0)
    # flash attention keeps no scores, so dropping them alone is another name for keeping everything
    repeats = (flash == 1.0) & (recompute == RECOMPUTE_LEVELS.index("selective")) & ("none" in options.recompute)
    legal = (batches == np.floor(batches)) & rounds & ~repeats
    fixed = {
        "tensor_rows": geometry.tensor_rows,
        "tensor_cols": geometry.tensor_cols,
        "pipeline_parallel": geometry.pipeline,
        "data_parallel": geometry.data,
        "context_parallel": geometry.context,
        "expert_parallel": geometry.expert,
        "tensor_collective": geometry.tensor_collective,
        "global_batch_size": options.global_batch_size,
    }
    varied = {
        "micro_batch_size": micro,
        "recompute": recompute,
        "sequence_parallel": sequence,
        "optimizer_sharding": sharding,
        "virtual_stages": virtual,
        "schedule": schedule,
        "gradient_bytes": gradient_bytes,
        "flash_attention": flash,
    }
    constant = {name: np.full(micro.shape, float(value)) for name, value in fixed.items()}
    return {name: values[legal] for name, values in (constant | varied).items()}


def _has_schedules(geometry: Geometry) -> bool:
    return geometry.pipeline > 1 and not geometry.interleaved


def _stack(columns: dict[str, np.ndarray]) -> Strategy:
    # one record of arrays; what is not enumerated keeps its default
    default, count = Strategy(), len(columns["micro_batch_size"])
    names = tuple(Strategy.__dataclass_fields__)
    values = tuple(columns.get(name, np.full(count, getattr(default, name))) for name in names)
    return eqx.tree_at(lambda record: tuple(getattr(record, name) for name in names), default, values)
