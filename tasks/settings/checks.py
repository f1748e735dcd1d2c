"""What the sections of a config share: plain values, checked as each instance is made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

from effbackbones.errors import UserError, nearest

Option = int | float | str | bool | list | None  # type: ignore[type-arg]  # elements of the list: checked by `_plain`
Options = dict[str, Option]
Step = str | dict[str, Option | dict[str, Option]]  # steps inside of it: checked by `_plain`
"""A transform: its name, or its name with its arguments, which may hold steps themselves."""
Steps = tuple[Step, ...]


def _plain(where: str, value: object) -> None:
    """Refuse numbers that are not finite and anything but plain values, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(where, f"expected a finite number, got {value}", "correct it")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _plain(f"{where}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _plain(where, item)
    elif value is not None and not isinstance(value, (int, float, str, bool)):
        raise UserError(where, f"expected a plain value, got a {type(value).__name__}", "use numbers, text, lists")


def choice(where: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a ``value`` that is none of ``choices``."""
    if value not in choices:
        raise UserError(where, f"unknown value {str(value)[:60]!r}", nearest(str(value), map(str, choices)))


def _within(where: str, value: object, interval: str) -> None:
    """Refuse numbers (also each of a tuple) outside of ``interval``, written as in mathematics: ``[0, 1)``."""
    for number in value if isinstance(value, (list, tuple)) else (value,):
        if number is None or isinstance(number, str):
            continue
        low, high = (float(end) for end in interval[1:-1].split(","))
        above = number >= low if interval[0] == "[" else number > low
        below = number <= high if interval[-1] == "]" else number < high
        if not (above and below):
            expected = "a number" if number is value else "numbers"
            raise UserError(where, f"expected {expected} in {interval}, got {str(number)[:40]}", "correct it")


class Section:
    """Checks that all sections share.

    ``LIMITS`` maps a field to its interval. ``MEANT_FOR`` names the tasks to which a field means something; the commands of the
    others refuse it (:func:`tasks.settings.tree.build`).
    """

    SECTION: ClassVar[str]
    LIMITS: ClassVar[dict[str, str]] = {}
    MEANT_FOR: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            where, value = f"{self.SECTION}.{item.name}", getattr(self, item.name)
            if isinstance(value, Section):
                continue
            _plain(where, value)
            hint = hints[item.name]
            choices = [
                word for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part)
            ]
            if choices and value is not None:
                choice(where, value, choices)
            if item.name in self.LIMITS:
                _within(where, value, self.LIMITS[item.name])
