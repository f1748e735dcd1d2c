"""Text files that list the images of a YOLO or darknet data set, as they were written here or on another machine."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from effbackbones.errors import UserError
from tasks.data.files.decoding import lines_of
from tasks.data.files.images import check_files, images_below
from tasks.data.files.listing import shown
from tasks.data.files.names import normalised

_MAX_LIST = 200_000_000  # bytes


def images_listed(listing: Path, root: Path, links: str) -> tuple[list[str], tuple[str, ...]]:
    """Images on the lines of a text file, relative to ``root``, and what is to be told of them.

    Lines are relative to the root, or with ``./`` to the list. Where none of them is there, nor the folder of any, they were written
    for another folder: each is then the one image below the root whose path ends as the line does, in as many parts as can be
    (``data/obj_train_data/a.jpg``: ``obj_train_data/a.jpg``), which is told; where there are several, :class:`UserError` names them.
    """
    found = lines_of(listing, "name a folder, or a text file with one image on each line", most=_MAX_LIST)
    numbered = {number: name.replace("\\", "/") for number, name in found}
    lines = {number: _below(name, listing, root) for number, name in numbered.items()}
    told: tuple[str, ...] = ()
    if lines and not any(_is_there(root, name) for name in lines.values()):
        taken = _by_tails(listing, numbered, images_below(root, links=links))
        if taken:
            number = min(taken)
            told = (
                f"{listing}: {len(taken):,} of {len(lines):,} images are found by the ends of their paths, "
                f"such as {numbered[number][:80]}: {taken[number]}",
            )
        lines |= taken
    numbers: dict[str, int] = {}
    for number, below in lines.items():
        if numbers.setdefault(below, number) != number:
            what = f"{numbered[number][:80]!r} stands in line {numbers[below]} already"
            raise UserError(f"{listing}:{number}", what, "remove one of the two")
    names, at = list(numbers), list(numbers.values())
    remedy = "add the image, or remove the line"
    return check_files(root, names, lambda index: f"{listing}:{at[index]}", remedy, links=links), told


def _below(name: str, listing: Path, root: Path) -> str:
    """A line as a path relative to the root."""
    whole = listing.parent / name if name.startswith("./") else root / name
    if name.startswith("./") and not whole.exists():
        whole = root / name
    return os.path.relpath(os.path.normpath(whole), root).replace(os.sep, "/")


def _is_there(root: Path, name: str) -> bool:
    """Whether there is such a file, or the folder in which it would lie."""
    folder = os.path.dirname(name)
    return os.path.lexists(root / name) or (folder.strip("./") != "" and os.path.isdir(root / folder))


def _by_tails(listing: Path, lines: Mapping[int, str], images: list[str]) -> dict[int, str]:
    """The images whose paths end as lines do, by their numbers; lines without any are left out."""
    ends: dict[str, list[str]] = defaultdict(list)
    for image in images:
        parts = normalised(image).split("/")
        for first in range(len(parts)):
            ends["/".join(parts[first:])].append(image)
    found = {}
    for number, line in lines.items():
        parts = [part for part in normalised(line).split("/") if part not in ("", ".", "..")]
        tails = ("/".join(parts[first:]) for first in range(len(parts)))
        there = next((ends[tail] for tail in tails if tail in ends), [])
        if len(there) > 1:
            what = f"{line[:80]!r} is not in the data, and {len(there)} images end so: {shown(there)}"
            raise UserError(f"{listing}:{number}", what, "write paths relative to the folder of the data")
        if there:
            found[number] = there[0]
    return found
