"""How a preset is found by name: the constant `LLAMA3_70B` is `llama3-70b`."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

Record = TypeVar("Record")


def collect(namespace: Mapping[str, Any], record: type[Record]) -> dict[str, Record]:
    """Return the public constants of one record type, keyed by their names in lower case with hyphens.

    Args:
        namespace: the globals of a preset module.
        record: the type to collect.
    """
    return {
        name.lower().replace("_", "-"): value
        for name, value in namespace.items()
        if name.isupper() and not name.startswith("_") and isinstance(value, record)
    }


def find(kind: str, names: Mapping[str, Record], name: str) -> Record:
    """Return the preset called `name`; case does not matter, and `_` is read as `-`.

    Args:
        kind: what is looked for, for the message.
        names: the registry.
        name: what the caller wrote.

    Raises:
        ValueError: no preset has that name; the message lists the nearest names and all known ones.
    """
    key = name.strip().lower().replace("_", "-")
    if key in names:
        return names[key]
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    hint = f" (perhaps {' or '.join(near)})" if near else ""
    raise ValueError(f"{kind} is {name!r}: it must be one of {', '.join(sorted(names))}{hint}")
