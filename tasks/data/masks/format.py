"""In which format are the masks of a folder? Found out from a look at some of them, or refused; never guessed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.reading import MAX_PIXELS
from tasks.data.masks.file import Stored, packed, read_stored
from tasks.data.sample import IGNORE

LOOKED_AT = 64
"""So many masks are looked at, spread evenly."""
_EXTREMES = 0.5
"""Share of pixels at the least and at the largest value from which the others are taken for soft edges."""


@dataclass
class Look:
    """What is stored in some masks of a folder: the first file of each kind; how many pixels have each value, int64 [65536]; whether
    all files hold 0 and one largest number alone (``two``), and whether that largest number occurs (``white``); of each palette
    file the colours of the values that occur in it; ``tops``: the first file of each largest number, -1: of more than two numbers."""

    looked_at: int = 0
    kinds: dict[str, str] = field(default_factory=dict)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(65536, np.int64))
    two: bool = True
    white: bool = False
    palettes: dict[str, dict[int, int]] = field(default_factory=dict)
    tops: dict[int, str] = field(default_factory=dict)

    @classmethod
    def at(cls, paths: Sequence[str], *, max_pixels: int = MAX_PIXELS, on_error: str = "stop") -> "Look":
        """A look at up to :data:`LOOKED_AT` of some files; with ``on_error`` ``skip``, past those that cannot be read."""
        look, count = cls(), min(len(paths), LOOKED_AT)
        for index in (np.arange(count) * len(paths) // max(count, 1)).tolist():
            try:
                stored = read_stored(paths[index], max_pixels=max_pixels)
            except UserError:
                if on_error == "stop":
                    raise
                continue
            look._add(stored, paths[index])
        return look

    @property
    def values(self) -> list[int]:
        """The values that occur, rising."""
        found: list[int] = self.counts.nonzero()[0].tolist()
        return found

    def _add(self, stored: Stored, path: str) -> None:
        self.looked_at += 1
        if stored.lossy:
            remedy = "store masks as PNG, or set data.options.format: binary to cut them half-way"
            raise UserError(path, "is stored in a way (as JPEG) that does not keep values exactly", remedy)
        self.kinds.setdefault(stored.kind, path)
        if stored.kind == "colour":
            raise UserError(
                path, _colours(stored), "set data.options.colors, or data.options.format: index or binary for greys"
            )
        counts = np.bincount(stored.pixels.ravel(), minlength=65536)
        self.counts += counts
        found = counts.nonzero()[0]
        top = int(found[-1])
        self.two &= len(found) <= 2 and (top == 0 or (int(found[0]) in (0, top) and top in {stored.white, 255} - {1}))
        self.white |= top > 0
        if top:
            self.tops.setdefault(top if len(found) < 3 else -1, path)
        if stored.palette is not None:
            colours = packed(stored.palette)
            self.palettes[path] = {value: int(colours[value]) for value in found.tolist()}


def _colours(stored: Stored) -> str:
    """What is unclear about a colour file."""
    if (stored.pixels.max(2) == stored.pixels.min(2)).all():
        return "is an RGB file of greys alone: classes as numbers (index), or black and white (binary)?"
    return f"is an RGB file with {len(np.unique(stored.pixels.reshape(-1, 3), axis=0))} colours: which is which class?"


def found_format(look: Look, classes: int | None, folder: str, *, numbers: bool = False) -> str:
    """``index``, ``palette`` or ``binary``, whichever alone fits; ``classes``: how many there are, None if nobody says.
    ``numbers``: binary is out of question.

    What fits two of them, or none, raises :class:`UserError` that names the readings and the option that decides.
    """
    if len(look.kinds) != 1:
        what = f"holds masks of two kinds: {' and '.join(look.kinds)}" if look.kinds else "has no mask that can be read"
        raise UserError(folder, what, "set data.options.format: index if the numbers stored are the classes in both")
    two = look.two and not numbers
    if not numbers and set(look.tops) == {1, IGNORE} and classes in (None, 2):
        what = f"{look.tops[1]} holds 0 and 1, {look.tops[IGNORE]} 0 and {IGNORE}, and no mask looked at both"
        raise UserError(
            folder, what, f"write all in one way, or set data.options.format: index, which ignores {IGNORE}"
        )
    if two and look.white:
        if classes in (None, 2):
            return "binary"
        what = f"its masks hold 0 and 255 alone: binary, with 2 classes, or index, with class 0 and ignored pixels? There are {classes}"
        raise UserError(folder, what, "set data.options.format, and data.options.classes for binary")
    if two and classes in (None, 2):
        what = f"the {look.looked_at} masks looked at hold 0 alone: the other class may be stored as 1 (index) or 255 (binary)"
        raise UserError(folder, what, "set data.options.format")
    return "palette" if "palette" in look.kinds else "index"


def remedy_for_strangers(look: Look, form: str, names: tuple[str, ...] | None, ignored: Sequence[int]) -> str:
    """What to write into the config where masks hold values that are no class, by what they hold; empty if that says nothing."""
    found = [value for value in look.values if value not in ignored]
    if form in ("rgb", "binary") or not found:
        return ""
    for values in (found, [value for value in found if value != IGNORE]):
        if names and len(values) == len(names) and values != list(range(len(names))):
            means = ", ".join(f"{value} = {name}" for value, name in zip(values[:6], names, strict=False))
            return (
                f"set data.options.values: {values} ({means}{', ...' if len(names) > 6 else ''}), if that is the order"
            )
    between = 1 - (look.counts[found[0]] + look.counts[found[-1]]) / look.counts.sum()
    soft = len(found) > 3 and found[0] == 0 and found[-1] in (255, 65535) and between <= _EXTREMES
    if soft and (names is None or len(names) == 2):
        edges = f"the edges are soft ({between:.0%} of the pixels lie between 0 and {found[-1]})"
        return f"{edges}: set data.options.format: binary and other: nearest to cut half-way"
    return ""
