"""Words of the command line as values: every refusal is one sentence with argument, value and rule."""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, NamedTuple

from watos_jax.formats import huggingface
from watos_jax.hardware import Link, System, Wafer, several
from watos_jax.model import Transformer
from watos_jax.presets import chips, models, wafers
from watos_jax.units import GIGA

LARGEST: Final = 10_000_000
"""No count on the command line is larger; whole numbers up to here are exact in single precision."""
MOST_NODES: Final = 100_000
"""Nodes of a cluster."""
MOST_WAFERS: Final = 1_000
"""Wafers that are joined."""
WAFER_FABRICS: Final = ("mesh", "ring", "switch")
"""How they may be."""
WAFER_LATENCY: Final = 1.0
"""Microseconds over a link between wafers: ASSUMPTION, that of a link between boards."""


def one_line(text: str) -> str:
    """A text without line breaks and control characters: what a user typed may hold any."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def shown(value: str) -> str:
    """A word as a message prints it: quoted, shortened where it is long."""
    return repr(value if len(value) <= 60 else value[:57] + "...")


def whole(option: str, value: str, *, low: int = 1, high: int = LARGEST) -> int:
    """Read a whole number.

    Args:
        option: as the user spells it, for the message.
        value: what the user wrote.
        low: least number allowed.
        high: largest number allowed.

    Raises:
        ValueError: it is not written in digits, or out of range.
    """
    if re.fullmatch(r"[+-]?[0-9]{1,20}", value) and low <= int(value) <= high:
        return int(value)
    raise ValueError(f"{option} is {shown(value)}: it must be a whole number from {low:,} to {high:,}")


def number(option: str, value: str, *, high: float, above: bool = False) -> float:
    """Read a decimal number from 0 on.

    Args:
        option: as the user spells it, for the message.
        value: what the user wrote.
        high: largest number allowed.
        above: whether 0 itself is not allowed.

    Raises:
        ValueError: it is not a decimal number, or out of range.
    """
    is_decimal = re.fullmatch(r"[+]?([0-9]{1,20}[.]?[0-9]{0,20}|[.][0-9]{1,20})(e-?[0-9]{1,2})?", value)
    if is_decimal and float(value) <= high and (float(value) > 0.0 or not above):
        return float(value)
    most = f"{high:,.{0 if high >= 1.0 else 1}f}"
    rule = f"above 0, at most {most}" if above else f"from 0 to {most}"
    raise ValueError(f"{option} is {shown(value)}: it must be a number {rule}")


def choice(option: str, value: str, names: Iterable[str], *, otherwise: str = "") -> str:
    """Read one of several names; for presets, case does not matter and `_` is read as `-`.

    Args:
        option: as the user spells it, for the message.
        value: what the user wrote.
        names: what it may be.
        otherwise: what else it may be, for the message.

    Raises:
        ValueError: it is none of them.
    """
    names = tuple(names)
    key = value.strip().lower().replace("_", "-")
    found = value if value in names else key
    if found in names:
        return found
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(f"{option} is {shown(value)}: it must be one of {', '.join(names)}{otherwise}{hint}")


def model_of(name: str | None, sequence_length: str | None) -> Transformer:
    """Find the model: the preset of that name, else the `config.json` at that path.

    Args:
        name: a preset such as `llama3-70b`, or a path.
        sequence_length: tokens per training sequence; that of the preset or file where None.

    Raises:
        ValueError: neither a preset nor a readable configuration, or no sequence length.
    """
    if name is None:
        raise ValueError("MODEL is missing: it must be a preset such as llama3-70b or the path of a config.json")
    tokens = None if sequence_length is None else whole("--sequence-length", sequence_length)
    is_path = os.path.lexists(name) or name.endswith(".json") or os.sep in name
    if is_path and name not in models.NAMES:
        return huggingface.read(name, sequence_length=tokens)
    model = models.NAMES[choice("MODEL", name, models.NAMES, otherwise=" or the path of a config.json")]
    return model if tokens is None else replace(model, sequence_length=tokens)


class Joined(NamedTuple):
    """How several wafers are joined, as a user wrote it; None where nothing was said.

    Attributes:
        wafers: how many.
        bandwidth: GB/s in one direction of a link, or of a wafer into a switch.
        latency: microseconds over a link.
        fabric: one of `WAFER_FABRICS`.
    """

    wafers: str | None = None
    bandwidth: str | None = None
    latency: str | None = None
    fabric: str | None = None


def _refuse_all(joined: Joined, without: str) -> None:
    for name, value in joined._asdict().items():
        if value is not None:
            option = "--wafers" if name == "wafers" else f"--wafer-{name}"
            raise ValueError(f"{option} is {shown(value)}: it may only be given with {without}")


def wafer_of(wafer: str | None) -> Wafer:
    """Find a wafer by its name.

    Args:
        wafer: a preset such as `watos-config-3`.

    Raises:
        ValueError: nothing or an unknown name.
    """
    if wafer is None:
        raise ValueError("--wafer is missing: it must be a wafer such as watos-config-3")
    return wafers.NAMES[choice("--wafer", wafer, wafers.NAMES)]


def wafers_of(wafer: str | None, joined: Joined) -> tuple[str, System | Wafer]:
    """Find one wafer, or several that are joined, and what to call them.

    Args:
        wafer: a preset such as `watos-config-3`.
        joined: how many, and how.

    Raises:
        ValueError: an unknown name, wafers without bandwidth between them, or words about a link of one wafer alone.
    """
    one = wafer_of(wafer)
    if joined.wafers is None:
        _refuse_all(joined, "--wafers")
        return str(wafer), one
    count = whole("--wafers", joined.wafers, high=MOST_WAFERS)
    if joined.bandwidth is None:
        raise ValueError("--wafer-bandwidth is missing: with --wafers it must be the GB/s between them, such as 1800")
    rate = number("--wafer-bandwidth", joined.bandwidth, high=1e6, above=True)
    latency = WAFER_LATENCY if joined.latency is None else number("--wafer-latency", joined.latency, high=1e6)
    fabric = choice("--wafer-fabric", joined.fabric or WAFER_FABRICS[0], WAFER_FABRICS)
    return f"{count} x {wafer}", several(one, count, Link(bandwidth=rate * GIGA, latency=latency * 1e-6), fabric=fabric)


def hardware_of(wafer: str | None, system: str | None, nodes: str | None, joined: Joined) -> tuple[str, System | Wafer]:
    """Find the hardware, and what to call it: one wafer, several, or a cluster of nodes.

    Args:
        wafer: a preset such as `watos-config-3`.
        system: a preset such as `dgx-h100`.
        nodes: how many nodes; 1 where None.
        joined: how many wafers, and how they are joined.

    Raises:
        ValueError: not exactly one of `wafer` and `system`, an unknown name, or nodes that are no whole number.
    """
    if wafer is None and system is None:
        raise ValueError("--wafer is missing: it or --system must be given, such as --wafer watos-config-3")
    if wafer is not None and system is not None:
        raise ValueError(f"--wafer is {shown(wafer)} and --system {shown(system)}: only one of them may be given")
    if wafer is not None and nodes is not None:
        raise ValueError(f"--nodes is {shown(nodes)}: it may only be given with --system")
    if wafer is not None:
        return wafers_of(wafer, joined)
    _refuse_all(joined, "--wafer")
    node = chips.NAMES[choice("--system", str(system), chips.NAMES)]
    count = 1 if nodes is None else whole("--nodes", nodes, high=MOST_NODES)
    return f"{nodes or 1} x {system}", chips.cluster(node, count)
