"""What the words of a line name: files, folders, globs, and with ``-`` a list of paths that comes through standard input."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from effbackbones.errors import UserError
from effbackbones.images.reading import SUFFIXES
from tasks.data.files.listing import files_below, shown

LIST = "-"
"""The word for a list of paths through standard input."""
_NAMED = 3  # lines of a list that a message names


def image_files(
    inputs: Sequence[str], links: str = "anywhere", tell: Callable[[str], None] | None = None
) -> list[Path]:
    """The images that files, folders (all below them), globs and lists (:data:`LIST`) name, sorted within each, each once; a name
    without any raises :class:`UserError`. ``links`` as in :func:`tasks.data.files.listing.files_below`. What is passed over in
    folders, and how many are named twice, is told to ``tell``."""
    if not inputs:
        raise UserError("INPUT", "nothing is named", "name files, folders or globs")
    if inputs.count(LIST) > 1:
        raise UserError(LIST, "is there twice, and there is one standard input", "name it once")
    files: list[Path] = []
    passed = Counter[str]()
    for name in inputs:
        files += listed(sys.stdin.buffer, tell) if name == LIST else _named(name, links, passed)
    return distinct(files, passed, tell)


def distinct(files: Sequence[Path], passed: Counter[str], tell: Callable[[str], None] | None) -> list[Path]:
    """Each file once, under the first of its names, also where links lead to its folder in several ways; says how many were
    named again, and what was ``passed`` over."""
    real: dict[str, str] = {}

    def identity(file: Path) -> str:
        folder, name = os.path.split(file)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        return os.path.join(real[folder], name)

    once: dict[str, Path] = {}
    for file in files:
        once.setdefault(identity(file), file)
    if tell and len(once) < len(files):
        tell(f"{len(files) - len(once):,} images are named more than once, and predicted once")
    if tell and passed:
        kinds = ", ".join(
            f"{count:,} {kind}" for kind, count in sorted(passed.items(), key=lambda one: (-one[1], one[0]))
        )
        tell(f"passed over in folders: {kinds}")
    return list(once.values())


def _named(name: str, links: str, passed: Counter[str]) -> list[Path]:
    """The images that a word names."""
    path = Path(name)
    if path.is_dir():
        found = [path / below for below in files_below(path, links=links, passed=passed)]
    else:
        found = [path] if path.is_file() else sorted(map(Path, glob.glob(name, recursive=True)))
    if not found and not path.is_dir() and not glob.has_magic(name):
        raise UserError(name, "no such file or folder", "correct the path, relative to the working folder")
    if not found:
        raise UserError(name, "no image found", f"images end in {', '.join(sorted(SUFFIXES))}")
    return found


def listed(stream: IO[bytes], tell: Callable[[str], None] | None = None) -> list[Path]:
    """The files of a list, one path a line, or with zero bytes between them (``find -print0``), which keeps names with line ends.
    Blank lines are passed over and told. Raises :class:`UserError` with the lines of what is no file, and for an empty list."""
    files: list[Path] = []
    blank, wrong = 0, list[tuple[int, str, str]]()
    for number, line in _lines(stream):
        path = Path(os.fsdecode(line))
        if not line.strip():
            blank += 1
        elif path.is_file():
            files.append(path)
        else:
            what = "is a folder: list its files, or name it on the line" if path.is_dir() else "no such file"
            wrong.append((number, str(path), what))
    if wrong:
        number, name, what = wrong[0]
        others = shown([f"line {row}: {text}" for row, text, _ in wrong[1:]], _NAMED)
        more = f" ({len(wrong) - 1:,} more: {others})" if others else ""
        raise UserError(f"standard input, line {number}", f"{name}: {what}{more}", "correct the list")
    if not files:
        raise UserError("standard input", "lists no file", "write one path a line: find FOLDER -name '*.jpg' | ...")
    if tell and blank:
        tell(f"standard input: {blank:,} blank lines are passed over")
    return files


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each path."""
    whole = stream.read()
    if b"\0" in whole:
        parts = whole.split(b"\0")
    else:
        parts = [line.removesuffix(b"\r") for line in whole.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    yield from enumerate(parts if parts[-1] else parts[:-1], 1)
