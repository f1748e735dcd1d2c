"""Palettes of mask files: the same index should mean the same colour in all of them; where it does not, colours may decide."""

from collections.abc import Mapping
from pathlib import Path

from effbackbones.errors import UserError
from tasks.data.masks.file import words

Palettes = Mapping[str, Mapping[int, int]]
"""Of each file the colours, packed, of the indices that occur in it."""


def common(palettes: Palettes) -> dict[int, int] | None:
    """The colour of each index, if it is the same in all files; else None."""
    found: dict[int, int] = {}
    for colours in palettes.values():
        for index, colour in colours.items():
            if found.setdefault(index, colour) != colour:
                return None
    return found


def by_colour(palettes: Palettes, folder: str) -> tuple[dict[int, int], str]:
    """The index of each colour, where indices differ in colour from file to file: that of the files that have all colours, if they
    agree (a tool that drops what a file does not use moves the others down); and one of these files.

    Otherwise :class:`UserError` names an index, two files, and the colours.
    """
    every = {colour for colours in palettes.values() for colour in colours.values()}
    whole = {path: colours for path, colours in palettes.items() if set(colours.values()) == every}
    agreed = common(whole)
    if whole and agreed is not None and len(agreed) == len(every):
        return {colour: index for index, colour in agreed.items()}, min(whole)
    raise _conflict(palettes, folder)


def _conflict(palettes: Palettes, folder: str) -> UserError:
    first: dict[int, tuple[str, int]] = {}
    for path, colours in palettes.items():
        for index, colour in colours.items():
            other, before = first.setdefault(index, (path, colour))
            if before != colour:
                what = f"palettes differ: {index} is {words(before)} in {Path(other).name} and {words(colour)} in {Path(path).name}"
                return UserError(folder, what, _remedy(palettes))
    raise ValueError("the palettes agree")


def _remedy(palettes: Palettes) -> str:
    every = sorted({colour for colours in palettes.values() for colour in colours.values()})
    listed = ", ".join(f'"NAME={words(colour)}"' for colour in every[:4]) + (", ..." if len(every) > 4 else "")
    return f"set data.options.colors: [{listed}], or format: index if the numbers are right"
