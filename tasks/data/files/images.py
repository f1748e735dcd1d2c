"""The image files of a data set: that they exist, and their sizes, without a call to the system for each where one will do."""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.geometry import Size
from effbackbones.images.reading import image_size
from tasks.data.files.listing import Spelling, files_below, relative_to
from tasks.data.files.reading import Confinement

_LEAVES = re.compile(r"[A-Za-z]:|[/\\]|(?:.*[/\\])?\.\.(?:[/\\]|$)|.*\0|$", re.DOTALL)
"""Names that are no paths inside of a folder."""
_SHOWN = 3


def check_files(
    root: Path,
    names: Sequence[str],
    record: Callable[[int], str],
    remedy: str,
    *,
    links: str = "inside",
    absent: bool = False,
) -> list[str]:
    """The names as the folders spell them (accents and slashes may be written in two ways, whole paths are made relative). Raises
    :class:`UserError` for those that lead out of ``root``, or (unless files may be ``absent``) where there is no file; ``record`` says
    where name i stands. ``links``: where these may lead, one of :data:`tasks.data.files.listing.LINKS`.

    Folders are listed once each; only links and what a listing does not show are looked at one by one.
    """
    inside, spelling = Confinement(root, links), Spelling(root)
    listings: dict[str, frozenset[str]] = {}
    missing: list[int] = []
    found = list(names)
    for index, given in enumerate(names):
        name = found[index] = relative_to(root, given)
        folder, _, base = name.rpartition("/")
        if folder in listings and base in listings[folder]:
            continue
        if _LEAVES.match(name):
            raise UserError(
                record(index), f"{name[:100]!r} is not a path inside {root}", "write file names relative to that folder"
            )
        there = spelling.find(name)
        if there is None:
            missing.append(index)
            continue
        inside.check(there, record(index))
        found[index], folder = there, there.rpartition("/")[0]
        if folder not in listings:
            listings[folder] = _files(root / folder)
    if missing and not absent:
        shown = ", ".join(names[index][:40] for index in missing[:_SHOWN])
        more = ", ..." if len(missing) > _SHOWN else ""
        what = f"{len(missing):,} of {len(names):,} images have no file in {root}: {shown}{more}"
        raise UserError(record(missing[0]), what, remedy)
    return found


def _files(folder: Path) -> frozenset[str]:
    """Names of the plain files in a folder; links are left to be looked at."""
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))


def images_below(folder: Path, *, root: Path | None = None, links: str = "inside") -> list[str]:
    """Sorted paths below ``folder`` of all images at any depth, as :func:`tasks.data.files.listing.files_below` lists them."""
    return files_below(folder, root=root, links=links)


def header_sizes(paths: Sequence[str], exif: str, on_error: str) -> NDArray[np.int32]:
    """(H, W) of image files from their headers, int32 [I, 2], turned as ``exif`` (``apply`` or ``ignore``) says.

    A file that cannot be read raises :class:`UserError`; with ``on_error`` ``skip`` it has -1, and reading it fails in its turn.
    """

    def size(path: str) -> Size:
        try:
            return image_size(path, exif=exif)
        except UserError:
            if on_error == "stop":
                raise
            return -1, -1

    with ThreadPoolExecutor(8) as pool:
        return np.array(list(pool.map(size, paths)), np.int32).reshape(-1, 2)
