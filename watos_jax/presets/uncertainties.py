"""How uncertain the constants of a budget's wafer are: standard deviations of their natural logarithms.

Published values of one constant disagree; half the logarithm of the ratio of two of them is taken as one standard
deviation of a log-normal distribution around the budget's own value, as if they lay one deviation above and below. The
deviations are independent of each other. Names are those of the budget's wafer, as in `ShadowPrices.constants`.
"""

from math import log
from typing import Final


def spread(one: float, other: float) -> float:
    """Half the logarithm of the ratio of two published values: `|ln(one / other)| / 2`."""
    return 0.5 * abs(log(one / other))


PUBLISHED_N7: Final[dict[str, float]] = {
    "technology.mac_area": spread(645.0 - 94.0, 183.0 + 127.0),
    "technology.sram_area": spread(0.85, 0.287),
    "technology.memory_phy_area": spread(16.2, 10.0),
    "technology.memory_phy_length": spread(12.0, 8.5),
    "technology.flop_energy": spread(0.70, 0.33),
    "technology.sram_energy": spread(0.13, 0.05),
    "technology.dram_energy": spread(13.6, 11.7),
    "technology.leakage_power_density": 0.3,
    "die.memory.stack_bandwidth": spread(1.2, 1.0),
    "d2d.shoreline_density": spread(112.0, 78.7),
    "d2d.energy": spread(1.25, 0.25),
    "d2d.latency": spread(210.0, 20.0),
}
"""Spreads of published 7 nm constants. Logic: what Tesla Dojo D1 needed against the dataflow core that papers assume
(645 mm2 without 94 mm2 of links, 183 + 127 mm2; see `technologies.DEMONSTRATED_N7`). SRAM mm2/MB: the leanest compiled
memory of dse4wse and a published N7 macro. Memory interface mm2 per stack: LLMCompass and OpenTallas; its edge, mm: at
package pitch (OpenTallas) and on the die (TX8). pJ/FLOP: A100 with and without instruction overhead (SC 2025). pJ/bit
of SRAM: DeepFlow and dse4wse. pJ/bit of memory: MI250X and GH200, measured (SC 2025). TB/s of an HBM3e stack: Micron's
product brief and B300 as shipped. GB/s per mm of edge: UCIe standard package (CATCH) and Dojo D1 (Tesla AI Day 2021).
pJ/bit between dies: Dojo and Cerebras (dse4wse). ns between dies: with and without forward error correction (TickTock,
ISCA 2025; FRED, arXiv 2406.19580). ASSUMPTION: leakage 0.3."""

NAMES: Final[dict[str, dict[str, float]]] = {"published-n7": PUBLISHED_N7}
"""Sets of standard deviations by name."""
