"""Numbers and tables as text, in the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

PREFIXES: Final = tuple(zip([10.0**power for power in range(15, -15, -3)], "P T G M k _ m u n p".split(), strict=True))
"""SI prefixes that numbers are shown with, the largest first; `_` stands for none."""


def quantity(value: float | None, unit: str, *, largest: float = 1e15) -> str:
    """A number with four digits, an SI prefix and its unit.

    Args:
        value: in SI units; None where it is not finite.
        unit: without prefix.
        largest: largest prefix used; 1 for seconds.
    """
    if value is None:
        return "-"
    usable = [(scale, name) for scale, name in PREFIXES if scale <= largest]
    scale, name = next((pair for pair in usable if abs(value) >= pair[0]), usable[-1] if value else (1.0, "_"))
    return f"{digits(value / scale)} {name.strip('_')}{unit}"


def digits(value: float) -> str:
    """A number with four significant digits and no exponent."""
    size = abs(value)
    places = next((places for bound, places in ((10.0, 3), (100.0, 2), (1000.0, 1)) if size < bound), 0)
    return f"{value:,.{places}f}"


def seconds(value: float | None) -> str:
    """A time: seconds, or milliseconds and microseconds below one."""
    return quantity(value, "s", largest=1.0)


def percent(value: float | None) -> str:
    """A fraction in per cent."""
    return "-" if value is None else f"{100.0 * value:.1f} %"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, words: int = 1) -> Table:
    """A table with a title above, its first columns set left and the others right.

    Args:
        title: above the table.
        columns: headings.
        rows: cells.
        words: number of columns that hold words.
    """
    drawn = Table(
        title=Text(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    for number, heading in enumerate(columns):
        drawn.add_column(heading, justify="left" if number < words else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return drawn


def pairs(title: str, rows: Mapping[str, str]) -> Table:
    """A table of names and values without headings."""
    drawn = table(title, ("", ""), rows.items())
    drawn.show_header = False
    return drawn


def stacked(*parts: RenderableType) -> RenderableType:
    """Tables one below the other, an empty line after each."""
    return Group(*(piece for part in parts for piece in (part, Text())))
