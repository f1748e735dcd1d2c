"""In which format are the masks of a folder? Found out from a look at some of them, or refused; never guessed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.reading import MAX_PIXELS
from tasks.data.masks.file import Stored, read_stored

LOOKED_AT = 64
"""So many masks are looked at, spread evenly."""


@dataclass
class Look:
    """What is stored in some masks of a folder: the first file of each kind; the ``values`` that occur, bool [65536]; whether all
    files hold 0 and one largest number alone (``two``), and whether that largest number occurs (``white``)."""

    looked_at: int = 0
    kinds: dict[str, str] = field(default_factory=dict)
    values: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(65536, np.bool_))
    two: bool = True
    white: bool = False

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

    def _add(self, stored: Stored, path: str) -> None:
        self.looked_at += 1
        if stored.lossy:
            remedy = "store masks as PNG, or set data.options.format: binary to cut them half-way"
            raise UserError(path, "is of a format (JPEG, AVIF) that does not keep values exactly", remedy)
        self.kinds.setdefault(stored.kind, path)
        if stored.kind == "colour":
            raise UserError(
                path, _colours(stored), "set data.options.colors, or data.options.format: index or binary for greys"
            )
        found = np.bincount(stored.pixels.ravel()).nonzero()[0]
        self.values[found] = True
        top = int(found[-1])
        self.two &= len(found) <= 2 and (top == 0 or (int(found[0]) in (0, top) and top in {stored.white, 255} - {1}))
        self.white |= top > 0


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
    if two and look.white:
        if classes in (None, 2):
            return "binary"
        what = f"its masks hold 0 and 255 alone: binary, with 2 classes, or index, with class 0 and ignored pixels? There are {classes}"
        raise UserError(folder, what, "set data.options.format, and data.options.classes for binary")
    if two and classes in (None, 2):
        what = f"the {look.looked_at} masks looked at hold 0 alone: the other class may be stored as 1 (index) or 255 (binary)"
        raise UserError(folder, what, "set data.options.format")
    return "palette" if "palette" in look.kinds else "index"
