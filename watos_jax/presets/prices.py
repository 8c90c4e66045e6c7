"""Prices and defects of named processes; two published sets of defects differ by a factor of 1.7 at 7 nm.

Electricity, lifetime and the yields of bonding are ASSUMPTIONS where no source is named.
"""

from dataclasses import replace
from typing import Final

from watos_jax.presets._registry import collect, find
from watos_jax.prices import Prices
from watos_jax.units import GIGA

PER_CM2: Final = 1e4
"""One per cm2 in 1/m2."""
KILOWATT_HOUR: Final = 3.6e6
"""J."""
YEAR: Final = 365.25 * 86400.0
"""s."""

ACTUARY_N7: Final = Prices(
    wafer_price=9346.0,
    defect_density=0.09 * PER_CM2,
    clustering=10.0,
    memory_price=7.0 / GIGA,
    interconnect_price=1937.0,
    interconnect_yield=0.99,
    bond_yield=0.9999,
    energy_price=0.10 / KILOWATT_HOUR,
    lifetime=4.0 * YEAR,
)
"""7 nm as in Chiplet Actuary (Feng and Ma, DAC 2022): $9,346 a wafer, 0.09 defects/cm2, alpha 10; interconnect on a
55 nm wafer of $1,937. HBM $7/GB (LLMCompass, ISCA 2024). Passive wafer interconnect yields 99 % (Si-IF, UCLA).
ASSUMPTION: one bond in 10,000 fails (392 of 392 dies bonded in the Si-IF prototype bound it by 0.8 %); $0.10 per
kWh; four years."""

TTM_N7: Final = replace(ACTUARY_N7, defect_density=0.15 * PER_CM2, clustering=3.0)
"""`ACTUARY_N7` with the defects of ttm-cas (Ning et al., ISCA 2023): 0.15/cm2, alpha 3."""

ACTUARY_N5: Final = replace(ACTUARY_N7, wafer_price=16988.0, defect_density=0.11 * PER_CM2)
"""5 nm as in Chiplet Actuary (DAC 2022): $16,988 a wafer, 0.11 defects/cm2."""

TTM_N5: Final = replace(ACTUARY_N5, defect_density=0.20 * PER_CM2, clustering=3.0)
"""`ACTUARY_N5` with the defects of ttm-cas (ISCA 2023): 0.20/cm2, alpha 3."""

NAMES: Final[dict[str, Prices]] = collect(globals(), Prices)
"""Prices by name."""


def get(name: str) -> Prices:
    """Return the prices of that name, such as `actuary-n7`.

    Raises:
        ValueError: no prices have that name.
    """
    return find("prices", NAMES, name)
