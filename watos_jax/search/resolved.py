"""Prices by searching again: what a little more or less of an allowance does to the best design there is.

`shadow` prices are slopes of one strategy with relaxed knobs. Here the budget is changed by a stated share, up and
down, and the whole search repeated on the lattice, from the design and with a proof: whole cores, stacks and steps of
the die's size count, and so does another strategy or die grid that wins. Both one-sided slopes stand beside the local
price; where they are far apart, the price holds on neither side.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import equinox as eqx
import jax
import numpy as np

from watos_jax.hardware import Budget
from watos_jax.model import Transformer
from watos_jax.search.candidates import OPTIONS, Infeasible
from watos_jax.search.codesign import codesign
from watos_jax.search.design import Design
from watos_jax.search.lattice import NAMES
from watos_jax.search.shadow import ALLOWANCES, shadow_prices
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy

CHANGE: Final = 0.02
"""Share of an allowance that is added and taken away."""
GAP: Final = 1e-4
"""Proven gap at which each search ends; a slope is off by up to this over the change."""


@dataclass(frozen=True)
class Side:
    """The best design on one side of the budget.

    Attributes:
        value: objective of the best design, by the proof's replayed schedule where there is a proof; infinite where
            nothing fits.
        one_percent: per cent that the value falls per per cent more of the allowance, as `Worth.one_percent`.
        gap: proven; None without a proof.
        changed: knobs, fields of the strategy, "die_rows" and the like that differ from the design.
    """

    value: float
    one_percent: float
    gap: float | None
    changed: tuple[str, ...]

    @property
    def same_choice(self) -> bool:
        """Whether die grid, edges with memory, stacks and strategy are those of the design."""
        return not set(self.changed) - (set(NAMES) - {"dram_stacks"})


@dataclass(frozen=True)
class ResolvedPrice:
    """One allowance: the local price, and the slopes on both sides.

    Attributes:
        local: `Worth.one_percent` of the relaxed optimum.
        less: the budget with less of it.
        more: the budget with more of it.
    """

    local: float
    less: Side
    more: Side


def resolved_prices(
    design: Design,
    model: Transformer,
    budget: Budget,
    *,
    allowances: Iterable[str] = tuple(ALLOWANCES),
    change: float = CHANGE,
    options: Options = OPTIONS,
    gap: float = GAP,
    time_limit: float = 60.0,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, ResolvedPrice]:
    """Search again with a little less and a little more of each allowance.

    Args:
        design: what `codesign` returned for this model and budget, with these options.
        model: the transformer.
        budget: the budget.
        allowances: names in `shadow.ALLOWANCES`.
        change: share of the allowance that is taken away and added; steps of the lattice are 2 to 6 % of a die's side.
        options: what strategies may choose from.
        gap: proven gap at which each search ends.
        time_limit: s, of each search.
        progress: called with the allowance and the share of all searches that is done.

    Returns:
        A price per allowance; two searches each, and one of the unchanged budget where the design is proven to a larger
        gap only.

    Raises:
        ValueError: an unknown allowance, or a change that is not between 0 and 1.
    """
    names = tuple(allowances)
    for name in names:
        if name not in ALLOWANCES:
            raise ValueError(f"allowances has {name!r}: it must be one of {', '.join(ALLOWANCES)}")
    if not 0.0 < change < 1.0:
        raise ValueError(f"change is {change:g}: it must be above 0 and below 1")

    def search(changed: Budget) -> Design | None:
        try:
            return codesign(
                model,
                changed,
                options=options,
                objective=design.objective,
                gap=gap,
                time_limit=time_limit,
                start=design,
            )
        except Infeasible:
            return None

    report = progress or (lambda name, share: None)
    local = shadow_prices(design, model, budget).allowances
    base = design
    if design.certificate is not None and design.certificate.gap > gap:
        report("budget", 0.0)
        base = min((search(budget) or design, design), key=_value)
    found = {}
    for number, name in enumerate(names):
        sides = []
        for turn, factor in enumerate((1.0 - change, 1.0 + change)):
            report(name.replace("_", " "), (1 + 2 * number + turn) / (1 + 2 * len(names)))
            sides.append(_side(base, search(_scaled(budget, name, factor)), factor))
        found[name] = ResolvedPrice(local[name].one_percent, *sides)
    return found


def _scaled(budget: Budget, name: str, factor: float) -> Budget:
    for path, power in ALLOWANCES[name].powers.items():

        def field(at: Budget, path: str = path) -> Any:
            leaf: Any = at.wafer
            for part in path.split("."):
                leaf = getattr(leaf, part)
            return leaf

        budget = eqx.tree_at(field, budget, float(field(budget)) * factor**power)
    return budget


def _side(base: Design, there: Design | None, factor: float) -> Side:
    if there is None:
        return Side(np.inf, np.inf if factor < 1.0 else 0.0, None, ())
    slope = -np.log(_value(there) / _value(base)) / np.log(factor)
    gap = None if there.certificate is None else there.certificate.gap
    return Side(_value(there), float(slope), gap, _changed(base, there))


def _value(design: Design) -> float:
    return design.value if design.certificate is None else design.certificate.value


def _changed(base: Design, there: Design) -> tuple[str, ...]:
    def choices(design: Design) -> dict[str, float]:
        fields = {name: getattr(design.strategy, name) for name in Strategy.__dataclass_fields__}
        grid = {"die_rows": design.wafer.die_rows, "die_cols": design.wafer.die_cols}
        sides = dict(zip(("horizontal_sides", "vertical_sides"), design.sides, strict=True))
        knobs = {name: getattr(design.knobs, name) for name in NAMES}
        return jax.tree.map(float, grid | sides | knobs | fields)

    before, after = choices(base), choices(there)
    return tuple(name for name in before if not np.isclose(before[name], after[name], rtol=1e-9))
