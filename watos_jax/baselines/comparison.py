"""Our schedule of a model on a wafer beside what others make of the same wafer, or of GPUs of the same peak.

Every side is searched exhaustively by its own rules, and nothing is fitted to a ratio. All run at the wafer's own
efficiency.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from watos_jax.baselines.gpu_cluster import EQUAL_GPUS, equal_gpus, nearest_b300
from watos_jax.baselines.megatron import megatron
from watos_jax.baselines.streamed_wafer import StreamedWafer, num_wafers, stream_through
from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.search.central import Schedule, central
from watos_jax.search.plan import LIMITS, Choice, Plan
from watos_jax.search.space import NoStrategy, Options

BASELINES: Final = ("megatron_on_wafer", "megatron_on_gpu", "weight_streaming")
"""What we are compared with: Megatron-LM's choice on the same wafer, and on eight GPUs a wafer of equal peak, memory
and DRAM bandwidth; weights streamed through the same wafer."""
VARIANTS: Final = ("megatron_on_wafer_equal_stages", "megatron_on_b300")
"""Further ones: with equal stages only, as older versions of Megatron-LM want them; on the number of B300 whose peak is
nearest."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: ours, or a baseline.

    Attributes:
        machine: what it runs on.
        answer: the best that its rules can do; None where they allow no strategy at all.
        refusal: why they allow none.
    """

    machine: System | Wafer
    answer: Schedule | Plan | StreamedWafer | None
    refusal: str = ""

    @property
    def fits(self) -> bool:
        """Whether there is a best, and it fits its memory (and power)."""
        if isinstance(self.answer, StreamedWafer):
            return self.answer.memory_margin >= 0.0
        return self.answer is not None and bool(self.answer.best)

    @property
    def tokens_per_second(self) -> float | None:
        """Of its best; None where nothing fits."""
        if self.answer is None or not self.fits:
            return None
        if isinstance(self.answer, StreamedWafer):
            return self.answer.tokens_per_second
        best = self.answer.best[0]
        return float(best.estimate.tokens_per_second if isinstance(best, Choice) else best.tokens_per_second)

    @property
    def reason(self) -> str | None:
        """Why it has no throughput, with what binds and counts; None where it has one."""
        if self.answer is None:
            return self.refusal
        if self.fits:
            return None
        if isinstance(self.answer, StreamedWafer):
            return f"none of {self.answer.evaluated:,} ways fits: the nearest exceeds memory by " + _percent(
                -self.answer.memory_margin
            )
        counts = ", ".join(f"{limit} ({count:,})" for limit, count in self.answer.exceeded.items())
        words = f"none of {self.answer.evaluated:,} strategies fits: {counts or 'power'}"
        nearest = self.answer.nearest if isinstance(self.answer, Plan) else None
        if nearest is None:
            return words
        margins = nearest.estimate.margins
        margin, limit = min((float(margins[name]), name) for name in LIMITS if name in margins)
        return f"{words}; the nearest exceeds {limit} by {_percent(-margin)}"


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"


@dataclass(frozen=True)
class Comparison:
    """Ours, and the others.

    Attributes:
        ours: the central scheduler, with GCMR.
        baselines: those of `BASELINES`, by name.
        variants: those of `VARIANTS`, by name.
    """

    ours: Side
    baselines: dict[str, Side]
    variants: dict[str, Side]

    @property
    def tokens_per_second(self) -> float | None:
        """Ours; None where nothing fits."""
        return self.ours.tokens_per_second

    @property
    def sides(self) -> dict[str, Side]:
        """All of them by name."""
        return {"ours": self.ours} | self.baselines | self.variants

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
    """Compare our schedule with the baselines; a side without a legal strategy says why, and stops no other.

    Args:
        wafer: the wafer, concrete; or several, as `hardware.several` joins them.
        model: the transformer, concrete.
        options: what strategies may choose from on every side; all options of the model where None. Weight streaming
            has its micro-batch alone to choose.
        global_batch_size: sequences per optimizer step, where `options` is None.
        progress: called with the name of each side as it is begun, and the share that is done.
    """
    batch = global_batch_size if options is None else int(options.global_batch_size)

    among: dict[str, Any] = {"options": options, "global_batch_size": batch}
    gpus, b300 = equal_gpus(wafer, EQUAL_GPUS * num_wafers(wafer)), nearest_b300(wafer)
    sides: dict[str, tuple[System | Wafer, Callable[[], Schedule | Plan | StreamedWafer]]] = {
        "ours": (wafer, lambda: central(wafer, model, **among)),
        "megatron_on_wafer": (wafer, lambda: megatron(wafer, model, **among)),
        "megatron_on_gpu": (gpus, lambda: megatron(gpus, model, **among)),
        "weight_streaming": (wafer, lambda: stream_through(wafer, model, global_batch_size=batch)),
        "megatron_on_wafer_equal_stages": (wafer, lambda: megatron(wafer, model, equal_stages=True, **among)),
        "megatron_on_b300": (b300, lambda: megatron(b300, model, **among)),
    }
    found = {}
    for number, (name, (machine, search)) in enumerate(sides.items()):
        progress(name.replace("_", " "), number / len(sides))
        try:
            found[name] = Side(machine, search())
        except NoStrategy as error:
            found[name] = Side(machine, None, str(error))
    return Comparison(found["ours"], *({name: found[name] for name in names} for names in (BASELINES, VARIANTS)))
