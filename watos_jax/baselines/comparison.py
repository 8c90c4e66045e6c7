"""Our schedule of a model on a wafer beside what others make of the same wafer, or of GPUs of the same peak.

Every side is searched exhaustively by its own rules, and nothing is fitted to a ratio. All run at the wafer's own
efficiency.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from watos_jax.baselines.gpu_cluster import EQUAL_GPUS, equal_gpus, nearest_b300
from watos_jax.baselines.megatron import megatron
from watos_jax.baselines.streamed_wafer import StreamedWafer, num_wafers, stream_through
from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.search.central import Schedule, central
from watos_jax.search.plan import Plan
from watos_jax.search.space import Options

BASELINES: Final = ("megatron_on_wafer", "megatron_on_gpu", "weight_streaming")
"""What we are compared with: Megatron-LM's choice on the same wafer, and on eight GPUs a wafer of equal peak, memory
and DRAM bandwidth; weights streamed through the same wafer."""
VARIANTS: Final = ("megatron_on_wafer_equal_stages", "megatron_on_b300")
"""Further ones: with equal stages only, as older versions of Megatron-LM want them; on the number of B300 whose peak is
nearest."""


@dataclass(frozen=True)
class Side:
    """One baseline.

    Attributes:
        machine: what it runs on.
        answer: the best that its rules can do.
    """

    machine: System | Wafer
    answer: Plan | StreamedWafer

    @property
    def fits(self) -> bool:
        """Whether its best fits its memory (and power)."""
        return bool(self.answer.best) if isinstance(self.answer, Plan) else self.answer.memory_margin >= 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Of its best; None where nothing fits."""
        if not self.fits:
            return None
        if isinstance(self.answer, Plan):
            return float(self.answer.best[0].estimate.tokens_per_second)
        return self.answer.tokens_per_second


@dataclass(frozen=True)
class Comparison:
    """Ours, and the others.

    Attributes:
        ours: the central scheduler's best, with GCMR.
        baselines: those of `BASELINES`, by name.
        variants: those of `VARIANTS`, by name.
    """

    ours: Schedule
    baselines: dict[str, Side]
    variants: dict[str, Side]

    @property
    def tokens_per_second(self) -> float | None:
        """Ours; None where nothing fits."""
        return float(self.ours.best[0].tokens_per_second) if self.ours.best else None

    def speedup(self, side: Side) -> float | None:
        """Ours over a baseline in tokens per second; None where either does not fit."""
        ours, theirs = self.tokens_per_second, side.tokens_per_second
        return None if ours is None or theirs is None else ours / theirs


def compare(
    wafer: System | Wafer,
    model: Transformer,
    *,
    options: Options | None = None,
    global_batch_size: int = 512,
    progress: Callable[[str, float], None] = lambda phase, share: None,
) -> Comparison:
    """Compare our schedule with the baselines.

    Args:
        wafer: the wafer, concrete; or several, as `hardware.several` joins them.
        model: the transformer, concrete.
        options: what strategies may choose from on every side; all options of the model where None. Weight streaming
            has its micro-batch alone to choose.
        global_batch_size: sequences per optimizer step, where `options` is None.
        progress: called with the name of each side as it is begun, and the share that is done.

    Raises:
        ValueError: no strategy of a side is legal.
    """
    batch = global_batch_size if options is None else int(options.global_batch_size)

    def of_megatron(machine: System | Wafer, equal_stages: bool = False) -> Side:
        found = megatron(machine, model, options=options, global_batch_size=batch, equal_stages=equal_stages)
        return Side(machine, found)

    sides: dict[str, Callable[[], Side]] = {
        "megatron_on_wafer": lambda: of_megatron(wafer),
        "megatron_on_gpu": lambda: of_megatron(equal_gpus(wafer, EQUAL_GPUS * num_wafers(wafer))),
        "weight_streaming": lambda: Side(wafer, stream_through(wafer, model, global_batch_size=batch)),
        "megatron_on_wafer_equal_stages": lambda: of_megatron(wafer, equal_stages=True),
        "megatron_on_b300": lambda: of_megatron(nearest_b300(wafer)),
    }
    progress("ours", 0.0)
    ours = central(wafer, model, options=options, global_batch_size=batch)
    found = {}
    for number, (name, search) in enumerate(sides.items(), 1):
        progress(name.replace("_", " "), number / (len(sides) + 1))
        found[name] = search()
    return Comparison(ours, *({name: found[name] for name in names} for names in (BASELINES, VARIANTS)))
