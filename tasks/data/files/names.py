"""Names of files as people write them, and as they lie in a folder."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.images import reading, recordings

_SUFFIXES = sorted(reading.SUFFIXES | recordings.SUFFIXES)
_NUMBERED = re.compile(r"([0-9]{1,4})\s*[\s:=,;.)]\s*\S")
"""How a class name begins that has its number before it."""
_HEADINGS = frozenset(["name", "names", "class", "classes", "label", "labels", "category", "categories"])
"""What stands over a column of names, and names nothing that can be seen."""
_LOOKED_AT = 64
"""So many folders are looked through for a file that is not where it should be."""


def normalised(name: str) -> str:
    """A name with each letter in one way (NFC): a letter with its accent, and the two after each other, look the same."""
    return unicodedata.normalize("NFC", name)


def refuse_other_numbers(where: str, names: Sequence[str]) -> None:
    """Raise :class:`UserError` where a class in a file of names has not the number of its line: under a heading, or where lines begin with
    numbers (``2: dog``) in another order than theirs."""
    if names and _is_heading(names):
        what = f"line 1 says {names[0][:40]!r}, which would name class 0, and each other line the class behind its own"
        raise UserError(where, what, "remove the heading, or list the names in the config")
    numbers = [int(found[1]) for name in names if (found := _NUMBERED.match(name))]
    if len(numbers) < len(names) or sorted(numbers) not in ([*range(len(names))], [*range(1, len(names) + 1)]):
        return
    place = next((place for place, number in enumerate(numbers) if number - min(numbers) != place), None)
    if place is not None:
        what = f"line {place + 1} says {names[place][:40]!r}, and the number of a class is that of its line"
        raise UserError(where, what, "put the lines into that order, or list the names in the config")


def _is_heading(names: Sequence[str]) -> bool:
    """Whether the first of these stands over the others: a comment, a word for what they are, or the only one without its number."""
    first, *others = names
    numbers = [int(found[1]) for name in others if (found := _NUMBERED.match(name))]
    alone = len(others) > 1 and numbers == [*range(numbers[0], numbers[0] + len(others))] if numbers else False
    words = set(re.split(r"[\W_]+", first.lower())) - {""}
    named = bool(words) and words <= _HEADINGS
    return (len(first) > 1 and first[0] == "#") or named or (alone and bool(words & _HEADINGS))


def plain(name: str) -> str:
    """A path without parts that say nothing (``./a//b.jpg``: ``a/b.jpg``), so that one file has one name. As it is where it goes
    up: above a link that is elsewhere."""
    spare = ("./" in name or "//" in name) and ".." not in name.split("/")
    return os.path.normpath(name) if spare else name


def elsewhere(root: Path, name: str) -> tuple[str, str] | None:
    """Where a file is that is not at ``root / name``: a folder below ``root`` (or ``.``) and an ending to add (or none)."""
    slashed = name.replace("\\", "/")
    for folder in _folders(root):
        for suffix in ("", *_SUFFIXES, *(suffix.upper() for suffix in _SUFFIXES)):
            if os.path.isfile(folder / (slashed + suffix)):  # also where it could be none, such as of a name too long
                return folder.relative_to(root).as_posix(), suffix
    return None


def _folders(root: Path) -> Iterator[Path]:
    """``root`` and the folders in it and in these, the first few."""
    yield root
    count = 0
    for place, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if Path(place) != root and Path(place).parent != root:
            folders[:] = []
        for name in folders:
            count += 1
            if count > _LOOKED_AT:
                return
            yield Path(place) / name
