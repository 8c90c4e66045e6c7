"""Typed reading of a parsed JSON object: a value that breaks its rule is refused in one sentence."""

import json
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, Final

LARGEST_VALUE: Final = 10**8
"""No dimension of a model is larger; a larger value is refused as a mistake."""

_REQUIRED: Final = object()


class Fields:
    """The keys of one configuration, each read with its rule.

    Attributes:
        config: the parsed object.
        source: where it comes from, for messages.
    """

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self.config = config
        self.source = source

    def refuse(self, key: str, rule: str) -> ValueError:
        """Return the error that says what `key` is and what it must be."""
        value = f"is {shown(self.config[key])}" if key in self.config else "is missing"
        return ValueError(f"{self.source}: {key} {value}: it must be {rule}")

    def whole(self, key: str, default: "int | Callable[[Fields], int] | object" = _REQUIRED, *, least: int = 1) -> int:
        """Return a whole number.

        Args:
            key: the key.
            default: what a missing or null key stands for, or a function of the fields that gives it.
            least: smallest value allowed.

        Raises:
            ValueError: the value breaks the rule, or there is neither value nor default.
        """
        value: Any = self.config.get(key)
        if value is None and default is not _REQUIRED:
            value = default(self) if callable(default) else default
        if not _is_number(value) or value != int(value) or not least <= value <= LARGEST_VALUE:
            raise self.refuse(key, f"a whole number from {least} to {LARGEST_VALUE:,}")
        return int(value)

    def whole_or_null(self, key: str) -> int:
        """Return a whole number, 0 for null; a missing key is refused."""
        return 0 if key in self.config and self.config[key] is None else self.whole(key, least=0)

    def probability(self, key: str, default: float) -> float:
        """Return a number from 0 to 1; `default` for a missing or null key."""
        value = self.config.get(key)
        value = default if value is None else value
        if not _is_number(value) or not 0 <= value <= 1:
            raise self.refuse(key, "a number from 0 to 1")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; `default` for a missing or null key."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return isinstance(value, Integral) or math.isfinite(value)


def shown(value: Any) -> str:
    """Return a value as a message prints it: as JSON spells it, shortened where it is long."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return f"an integer of {value.bit_length()} bits"
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
