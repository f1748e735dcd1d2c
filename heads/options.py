"""Checks of option values: each raises :class:`UserError` with the option's name, or returns the value; and records of options."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from effbackbones.contracts import FeatureSpec
from effbackbones.errors import UserError, nearest

Record = TypeVar("Record")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area", "nearest-exact")


def require(name: str, value: Any, holds: bool, expected: str, remedy: str = "correct it") -> None:
    """Raise :class:`UserError` unless ``holds``."""
    if not holds:
        raise UserError(f"head_options.{name}", f"expected {expected}, got {value!r}", remedy)


def require_pictures(spec: FeatureSpec, task: str) -> None:
    """Raise :class:`UserError` for the maps of recordings, whose rows are frequencies: in them nothing has a place."""
    if spec.rows is not None:
        what = f"is for recordings, and {task} finds places in pictures"
        raise UserError(f"backbone {spec.backbone!r}", what, "take the task classify")


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """``value``, which must be among ``allowed``; otherwise the nearest is named."""
    if value not in allowed:
        raise UserError(f"head_options.{name}", f"unknown value {value!r}", nearest(str(value), map(str, allowed)))
    return value


def number(
    name: str,
    value: Any,
    least: float | None = None,
    *,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """``value``, a finite number of at least ``least`` or above ``above``, and at most ``most`` or below ``below``."""
    bounds = ((least, "of at least"), (above, "above"), (most, "at most"), (below, "below"))
    expected = " and ".join(f"{words} {bound}" for bound, words in bounds if bound is not None)
    holds = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    require(name, value, holds, f"a number {expected}")
    return float(value)


def whole(name: str, value: Any, least: int = 1) -> int:
    """``value``, an integer of at least ``least``."""
    holds = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(name, value, holds, f"an integer of at least {least}")
    return int(value)


def wholes(name: str, value: Any, least: int = 1) -> list[int]:
    """``value``, a list of integers of at least ``least``."""
    holds = isinstance(value, Sequence) and not isinstance(value, str) and bool(value)
    require(name, value, holds, "a list of integers", "write it like [256, 128, 64]")
    return [whole(name, item, least) for item in value]


def taken(record: Record, options: dict[str, Any]) -> Record:
    """``record``, a frozen dataclass, with those of its fields that ``options`` name; they are taken out of ``options``."""
    own = cast(Any, record)
    changed: Record = replace(own, **{f.name: options.pop(f.name) for f in fields(own) if f.name in options})
    return changed
