"""Checks of option values: each returns the value, or raises :class:`UserError` with the option's name."""

import math
from collections.abc import Sequence
from typing import Any

from effbackbones.errors import UserError, nearest

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area", "nearest-exact")


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """``value``, which must be among ``allowed``."""
    if value not in allowed:
        raise UserError(f"head_options.{name}", f"unknown value {value!r}", nearest(str(value), map(str, allowed)))
    return value


def number(name: str, value: Any, least: float, below: float = math.inf) -> float:
    """``value``, a number in [least, below)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
        what = f"expected a number of at least {least}" + (f" and below {below}" if below < math.inf else "")
        raise UserError(f"head_options.{name}", f"{what}, got {value!r}", "correct it")
    return float(value)


def whole(name: str, value: Any, least: int = 1) -> int:
    """``value``, an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"head_options.{name}", f"expected an integer of at least {least}, got {value!r}", "correct it")
    return value


def wholes(name: str, value: Any, least: int = 1) -> list[int]:
    """``value``, a list of integers of at least ``least``."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise UserError(
            f"head_options.{name}", f"expected a list of integers, got {value!r}", "write it like [256, 128, 64]"
        )
    return [whole(name, item, least) for item in value]


def require(option: str, value: Any, holds: bool, expected: str) -> None:
    """Raise :class:`UserError` naming a head's option unless ``holds``."""
    if not holds:
        raise UserError(f"head_options.{option}", f"expected {expected}, got {value!r}", "correct it")


def choose(option: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise :class:`UserError` naming the nearest choice unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise UserError(f"head_options.{option}", f"unknown value {value!r}", nearest(str(value), allowed))


def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_positive, value))


def is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf
