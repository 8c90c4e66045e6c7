"""What a search makes small: time, energy and money of one step, each to a power.

The weights are leaves, so one compilation serves every objective. With one weight of 1 the value is seconds, joules or
dollars per step; the tokens of a step are fixed, so tokens per second, per joule or per dollar are then at their most.
"""

from typing import Final

import equinox as eqx
import jax.numpy as jnp

from watos_jax.cost import step_cost
from watos_jax.estimate import Estimate
from watos_jax.hardware import Wafer
from watos_jax.presets.prices import ACTUARY_N7
from watos_jax.prices import Prices
from watos_jax.units import Leaf, Scalar, as_leaf, check_range


class Objective(eqx.Module):
    """`step_time**time * energy**energy * cost**cost`: its logarithm is a weighted sum, convex where the parts are.

    Attributes:
        time: weight of the step time.
        energy: weight of the energy of a step.
        cost: weight of the dollars of a step.
        prices: what dollars are counted with.
    """

    time: Leaf = eqx.field(converter=as_leaf, default=1.0)
    energy: Leaf = eqx.field(converter=as_leaf, default=0.0)
    cost: Leaf = eqx.field(converter=as_leaf, default=0.0)
    prices: Prices = ACTUARY_N7

    def __check_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("time", "energy", "cost")}
        check_range("Objective", weights)
        check_range("Objective", {"time + energy + cost": sum(weights.values())}, open_low=True)

    def value(self, wafer: Wafer, estimate: Estimate) -> Scalar:
        """The value to be made small.

        Args:
            wafer: the design.
            estimate: its estimate, hard or smooth.
        """
        dollars = step_cost(wafer, self.prices, estimate.step_time, estimate.energy)
        parts = ((self.time, estimate.step_time), (self.energy, estimate.energy), (self.cost, dollars))
        return jnp.exp(sum(weight * jnp.log(part) for weight, part in parts))


STEP_TIME: Final = Objective()
"""Seconds per step."""
OBJECTIVES: Final = {
    "tokens-per-second": STEP_TIME,
    "tokens-per-joule": Objective(time=0.0, energy=1.0),
    "tokens-per-dollar": Objective(time=0.0, cost=1.0),
}
"""Objectives by name."""
