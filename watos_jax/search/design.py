"""What a co-design answers: a wafer with its strategy, how good they are, and how that is known."""

from dataclasses import dataclass, field

from watos_jax.estimate import Estimate
from watos_jax.hardware import Knobs, Wafer
from watos_jax.search.certificate import Certificate
from watos_jax.search.descend import Point
from watos_jax.search.objective import Objective
from watos_jax.search.refine import Refined
from watos_jax.strategy import Strategy


@dataclass(frozen=True)
class Design:
    """A co-designed wafer with its strategy.

    Attributes:
        wafer: the hardware.
        knobs: its lattice values.
        sides: (horizontal, vertical) die edges that carry memory.
        strategy: the training strategy.
        estimate: the hard model's answer.
        objective: what was made small.
        value: the objective of the design.
        relaxed_value: the least objective of its strategy, die grid and stacks where the other knobs need not lie on
            the lattice (`relaxed.relaxed_optimum`); not above the value.
        evaluations: estimates made, a gradient counted once.
        candidates: discrete choices enumerated.
        lattice_points: hardware points per discrete choice.
        wall_time: s.
        phases: s of each phase.
        pruned: candidate geometries ruled out, by reason.
        at_bound: knobs at an end of their lattice, "low" or "high"; a wider budget may do better.
        certificate: what is proven about the best step time; None for other objectives, and where communication
            overlaps.
        relaxed: the best relaxed design of each die grid and choice of edges that was descended, best first: where
            further searches may start.
        refined: the design with memory shared and stages placed, its hardware solved again; None where it was not
            asked for.
    """

    wafer: Wafer
    knobs: Knobs
    sides: tuple[int, int]
    strategy: Strategy
    estimate: Estimate
    objective: Objective
    value: float
    relaxed_value: float
    evaluations: int
    candidates: int
    lattice_points: float
    wall_time: float
    phases: dict[str, float] = field(default_factory=dict)
    pruned: dict[str, int] = field(default_factory=dict)
    at_bound: dict[str, str] = field(default_factory=dict)
    certificate: Certificate | None = None
    relaxed: Point | None = None
    refined: Refined | None = None

    @property
    def rounding_gap(self) -> float:
        """Value over the relaxed one, minus 1."""
        return self.value / self.relaxed_value - 1.0


def least_change(answer: Estimate, wafer: Wafer) -> str:
    """Why a design does not fit, and the least change of its worst limit that would make it fit."""
    name = answer.binding
    excess = -float(answer.margins[name])
    changes = {
        "memory": f"DRAM per die would have to grow by {excess:.1%} (stacks, stack capacity or die edge)",
        "power": f"power_limit would have to grow by {excess:.1%}, to {float(wafer.power_limit) * (1 + excess):,.0f} W",
        "power_density": f"power_density_limit would have to grow by {excess:.1%}",
        "window_area": f"the window's area would have to grow by {excess:.1%}",
        "window_width": f"window_width would have to grow by {excess:.1%}",
        "window_height": f"window_height would have to grow by {excess:.1%}",
    }
    change = changes.get(name, f"the allowance behind it would have to grow by {excess:.1%}")
    return f"no design of this budget fits: the nearest one exceeds {name} by {excess:.1%}; {change}"
