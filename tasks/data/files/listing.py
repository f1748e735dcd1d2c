"""What lies in a folder: the one way in which readers and commands list it, and find a file by a name that is written elsewhere."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.images.reading import is_image_name
from tasks.data.files.names import normalised

LINKS = ("inside", "anywhere")
"""Where symbolic links may lead: ``data.links``."""

_SYSTEM = frozenset(
    ["@eadir", "#recycle", "$recycle.bin", "__macosx", "__pycache__", "lost+found", "system volume information"]
)
"""Folders, in lower case, that systems put beside a user's own: small copies of pictures, what was deleted, forks of files."""


def is_hidden(name: str) -> bool:
    """Whether a name is passed over everywhere: one that begins with a dot, as what systems leave beside files does (``._a.jpg``,
    ``.DS_Store``), or that of a folder which they leave there (``@eaDir``, ``__MACOSX``)."""
    return name.startswith(".") or name.lower() in _SYSTEM


def refuse_link(path: str, root: Path, where: str | None = None) -> UserError:
    """What is said of a link that leaves ``root`` where it must not; ``where`` its name stands, if in a file."""
    what = f"{path} is a link that leaves {root}" if where else f"is a link that leaves {root}"
    return UserError(where or path, what, "set data.links: anywhere, or copy the files")


def leaves(path: str, *real_roots: str) -> bool:
    """Whether a path leads out of all of the folders given by their real paths (``os.path.realpath``)."""
    real = os.path.realpath(path)
    return not any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in real_roots)


def files_below(
    folder: Path,
    wanted: Callable[[str], bool] = is_image_name,
    *,
    root: Path | None = None,
    links: str = "inside",
    passed: Counter[str] | None = None,
) -> list[str]:
    """Sorted paths below ``folder`` (with ``/``) of all files at any depth whose names are ``wanted``; hidden names are passed over.

    Links to files and folders are followed: with ``links`` ``inside`` one that leaves both ``folder`` and ``root`` (such as data.root)
    raises :class:`UserError`, with ``anywhere`` none does. One that leads to a folder it lies in would go on for ever: it raises, as
    does a folder that cannot be listed. Links that lead nowhere are no files. ``passed`` counts what is passed over, by kind.
    """
    root, passed = folder if root is None else root, Counter() if passed is None else passed
    real_roots = os.path.realpath(root), os.path.realpath(folder)
    found: list[str] = []
    waiting: deque[tuple[str, tuple[str, ...]]] = deque(
        [("", real_roots[1:])]
    )  # folders below, each with the real paths of those it lies in
    while waiting:
        prefix, above = waiting.popleft()
        for entry in _entries(f"{folder}/{prefix}"):
            if is_hidden(entry.name):
                passed["hidden"] += 1
                continue
            link = entry.is_symlink()
            if entry.is_dir():
                real = os.path.realpath(entry.path) if link else f"{above[-1].rstrip(os.sep)}{os.sep}{entry.name}"
                if link and real in above:
                    raise UserError(entry.path, f"is a link to {real}, a folder it lies in", "remove the link")
                waiting.append((f"{prefix}{entry.name}/", (*above, real)))
            elif not (wanted(entry.name) and entry.is_file()):
                passed[_kind(entry)] += 1
                continue
            else:
                found.append(prefix + entry.name)
            if link and links == "inside" and leaves(entry.path, *real_roots):
                raise refuse_link(entry.path, root)
    return sorted(found)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(folder.rstrip("/"), f"cannot be listed: {error.strerror}", "correct the path") from None


def _kind(entry: os.DirEntry[str]) -> str:
    """What a file is that is passed over."""
    if entry.is_symlink() and not entry.is_file():
        return "links that lead nowhere"
    return os.path.splitext(entry.name)[1].lower() or "without an ending"


class Lookup:
    """Finds names among those that are there, by the words that a list, a table or another folder has for them: as they are, or else
    with accents written in the other way (NFC and NFD look the same).

    ``names`` of files; ``key`` makes of each what it is looked up by, such as its stem. Names that differ in that way of writing
    alone are found by their own spelling only.
    """

    def __init__(self, names: Iterable[str], key: Callable[[str], str] = str) -> None:
        self._exact = {key(name): name for name in names}
        self._normal: dict[str, str | None] = {}
        for word, name in self._exact.items():
            normal = normalised(word)
            self._normal[normal] = None if normal in self._normal else name

    def find(self, word: str) -> str | None:
        """The name that is meant; None if there is none, or more than one."""
        return self._exact.get(word) or self._normal.get(normalised(word))


def relative_to(root: Path, name: str) -> str:
    """A whole path of something below ``root``, relative to it; another name as it is."""
    if os.path.isabs(name):
        for whole in (os.path.abspath, os.path.realpath):  # the second asks the system for each part of the path
            start = whole(root)
            if name.startswith(start + os.sep):
                return name[len(start) + 1 :]
    return name


class Spelling:
    """How the folders below ``root`` spell the names of what is in them; each folder is listed once at most."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, Lookup] = {}

    def find(self, name: str) -> str | None:
        """A path below the root as it is spelled there, whole paths made relative to it; None if there is no such file or folder."""
        name = relative_to(self.root, name)
        if os.path.lexists(f"{self.root}/{name}"):
            return name
        return self._spelled(name) or (self._spelled(name.replace("\\", "/")) if "\\" in name else None)

    def _spelled(self, name: str) -> str | None:
        found = ""
        for part in name.split("/"):
            there = self._folder(found).find(part)
            if there is None:
                return None
            found += f"/{there}" if found else there
        return found

    def _folder(self, name: str) -> Lookup:
        if name not in self._folders:
            path = f"{self.root}/{name}"
            self._folders[name] = Lookup(os.listdir(path) if os.path.isdir(path) else ())
        return self._folders[name]


def stem(name: str) -> str:
    """A path without the ending of its last part."""
    return os.path.splitext(name)[0]


def shown(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names, for a message."""
    first = sorted(names)
    return ", ".join(name[:60] for name in first[:most]) + (", ..." if len(first) > most else "")
