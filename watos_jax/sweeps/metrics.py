"""The numbers that a sweep can keep of each point, with their units and which way is better."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax.numpy as jnp

from watos_jax.estimate import ROUNDING, Estimate
from watos_jax.hardware import Wafer
from watos_jax.units import Scalar

MARGINS: Final = (
    "memory",
    "die_area",
    "edge_horizontal",
    "edge_vertical",
    "stacks_horizontal",
    "stacks_vertical",
    "window_area",
    "window_width",
    "window_height",
    "reticle",
    "link_length",
    "d2d_port",
    "power",
    "power_density",
)
"""Names that the column `binding` takes; a limit that is not among them is `other`."""


class Metric(NamedTuple):
    """One column.

    Attributes:
        unit: SI unit; "1" for a count or a ratio.
        larger_is_better: which way answers look.
        of: value from a wafer and its estimate.
        is_code: whether the value is an index into `MARGINS`.
    """

    unit: str
    larger_is_better: bool
    of: Callable[[Wafer, Estimate], Scalar]
    is_code: bool = False

    @property
    def sign(self) -> float:
        """What makes of the value a goal, of which less is better."""
        return -1.0 if self.larger_is_better else 1.0


def _margin(wafer: Wafer, result: Estimate) -> Scalar:
    return jnp.min(jnp.stack(list(result.margins.values())))


def _binding(wafer: Wafer, result: Estimate) -> Scalar:
    named = [result.margins[name] for name in MARGINS if name in result.margins]
    codes = [MARGINS.index(name) for name in MARGINS if name in result.margins]
    others = [value for name, value in result.margins.items() if name not in MARGINS]
    codes += [len(MARGINS)] * len(others)
    values = jnp.stack(named + others)
    return jnp.asarray(codes, values.dtype)[jnp.argmin(values)]


METRICS: Final[dict[str, Metric]] = {
    "step_time": Metric("s", False, lambda wafer, result: result.step_time),
    "tokens_per_second": Metric("1/s", True, lambda wafer, result: result.tokens_per_second),
    "model_flop_utilisation": Metric("1", True, lambda wafer, result: result.model_flop_utilisation),
    "power": Metric("W", False, lambda wafer, result: result.power),
    "energy": Metric("J", False, lambda wafer, result: result.energy),
    "tokens_per_joule": Metric("1/J", True, lambda wafer, result: result.tokens_per_second / result.power),
    "memory": Metric("B", False, lambda wafer, result: jnp.max(result.memory)),
    "die_area": Metric("m2", False, lambda wafer, result: wafer.num_dies * wafer.die.width * wafer.die.height),
    "margin": Metric("1", True, _margin),
    "binding": Metric("1", True, _binding, is_code=True),
}
"""Every metric by name: s per step; tokens/s; share of peak FLOP; mean W of all dies; J per step; tokens/J; most bytes
of any die; m2 of all compute dies; smallest margin; name of the limit with the smallest margin."""


def fits(margin: Any) -> Any:
    """Whether points with these smallest margins are feasible, as `Estimate.feasible` says: rounding is no excess."""
    return margin >= -ROUNDING
