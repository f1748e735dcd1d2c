"""How a line of text looks: ranges from which each picture of one is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from effbackbones.errors import UserError, nearest
from tasks.data.lettering.textfile import LONGEST

Range = tuple[float, float]
DIRECTIONS = ("auto", "ltr", "rtl")


@dataclass(frozen=True)
class Style:
    """Ranges (low, high) that each picture draws its own values from, uniformly; equal ones say one value.

    ``fonts``: files, of which those count that have all letters of the line. ``aspect``: the largest width of a picture, in heights of
    the line; what does not fit is not shown. ``direction``: ``auto`` (by script), ``ltr`` or ``rtl``.
    """

    LIMITS: ClassVar[Mapping[str, Range]] = {
        "height": (4, 512),
        "characters": (1, LONGEST),
        "margin": (0, 2),
        "contrast": (0.05, 1),
        "inverted": (0, 1),
        "tint": (0, 0.45),
        "noise": (0, 1),
        "blur": (0, 1),
        "rotation": (-180, 180),
    }

    fonts: tuple[str, ...]
    aspect: float = 16.0
    height: Range = (32, 32)
    """Pixels from the highest to the lowest reach of a font's letters."""
    characters: Range = (LONGEST, LONGEST)
    """At most so many of a line are shown, from the beginning of a word on."""
    margin: Range = (0.1, 0.1)
    """Paper on each side, in heights of the line, drawn for each side by itself."""
    contrast: Range = (1, 1)
    """Difference of paper and ink, of 1 for black on white."""
    inverted: float = 0.0
    """Probability of light letters on dark paper."""
    tint: Range = (0, 0)
    """How far the colours of paper and ink may go towards each other, each channel by itself, as a share."""
    noise: Range = (0, 0)
    """Standard deviation of grey noise, of 1 for black to white."""
    blur: Range = (0, 0)
    """Standard deviation of the blur, in heights of the line."""
    rotation: Range = (0, 0)
    """Degrees counterclockwise; the picture grows with it."""
    turns: tuple[int, ...] = (0,)
    """Quarter turns in degrees counterclockwise, one of them after all else."""
    direction: str = field(default="auto")

    def changed(self, given: Mapping[str, Any], where: str) -> Self:
        """The same with what is ``given`` by name: a number or [low, high], a probability, a list of turns, a direction. Raises
        :class:`UserError` with ``where`` for names and values that are none."""
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name not in OPTIONS:
                raise UserError(f"{where}.{name}", "a line has no such look", nearest(name, OPTIONS))
            found[name] = _read(name, value, f"{where}.{name}")
        return replace(self, **found)


OPTIONS = tuple(field.name for field in fields(Style) if field.name != "fonts")
"""What a config may say of it, beside the fonts."""
_TURNS = (0, 90, 180, 270)
LEAST_ASPECT = 4


def _read(name: str, value: Any, where: str) -> Any:
    if name == "direction":
        if value not in DIRECTIONS:
            raise UserError(where, f"unknown value {value!r}", nearest(str(value), DIRECTIONS))
        return value
    if name == "turns":
        turns = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not turns or not all(type(turn) is int and turn in _TURNS for turn in turns):
            raise UserError(where, f"expected some of {list(_TURNS)}, got {str(value)[:60]}", "write [0, 180]")
        return turns
    low, high = (LEAST_ASPECT, 200) if name == "aspect" else Style.LIMITS[name]
    alone = name in ("inverted", "aspect")
    pair = value if isinstance(value, list | tuple) and not alone else (value, value)
    numbers = [one for one in pair if isinstance(one, int | float) and not isinstance(one, bool) and low <= one <= high]
    if len(pair) != 2 or len(numbers) != 2 or numbers[0] > numbers[1]:
        form = "a number" if alone else "a number or [low, high]"
        raise UserError(where, f"expected {form} in [{low:g}, {high:g}], got {str(value)[:60]}", "correct it")
    return float(numbers[0]) if alone else (float(numbers[0]), float(numbers[1]))
