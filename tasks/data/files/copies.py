"""Image files of a data set that are there more than once under other names."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

_TAIL = 4096


def copies(paths: Sequence[str]) -> list[list[int]]:
    """Groups, of two or more, of positions in ``paths`` whose files are the same byte by byte; empty paths and what cannot be read are
    in none. Few files are read whole: those of one size and one end."""
    groups = [[place for place, path in enumerate(paths) if path]]
    for key in (_size, _end, _digest):
        groups = [same for group in groups for same in alike(group, lambda place, key=key: key(paths[place]))]  # type: ignore[misc]
    return groups


def alike(places: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Groups, of two or more, of ``places`` that have the same key; None is none."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for place in places:
        if (word := key(place)) is not None:
            found[word].append(place)
    return [group for group in found.values() if len(group) > 1]


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # whoever reads it will say so
        return None


def _end(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            file.seek(-min(_TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return file.read()
    except OSError:
        return None


def _digest(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
