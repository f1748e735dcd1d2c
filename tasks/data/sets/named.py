"""Files whose names say what they are: their class and more, by a pattern such as ``(?P<label>\\d)_(?P<speaker>\\w+)_(?P<index>\\d+)``."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError, nearest
from tasks.data.files.listing import files_below, shown, stem
from tasks.data.files.reading import DEFAULT_READER, ImageReader, PackedNames
from tasks.data.fingerprint import Known
from tasks.data.sample import Sample

LABEL = "label"
"""The group of a pattern that is the class."""


class NamedDataset:
    """Files at any depth below ``folder``, sorted; ``id`` is the path below it. The class of each is what the group ``label`` of
    ``pattern`` is in its name.

    ``classes`` None: the sorted labels that occur; otherwise these, and any other raises :class:`UserError`. ``rename``: other names
    for labels. A file whose name does not follow the pattern raises, unless ``ignore_others``; so do fewer than ``least`` classes.
    ``values``: what each group is of each file. ``root`` and ``links``: where links may lead, as
    :func:`tasks.data.files.listing.files_below` has it.
    """

    only_reads = True  # see tasks.data.batch

    def __init__(
        self,
        folder: Path,
        pattern: "re.Pattern[str]",
        classes: tuple[str, ...] | None = None,
        *,
        read: ImageReader = DEFAULT_READER,
        ignore_others: bool = False,
        rename: Mapping[str, str] | None = None,
        least: int = 1,
        root: Path | None = None,
        links: str = "inside",
    ) -> None:
        self.folder, self.read, self.notes = folder, read, tuple[str, ...]()
        below = files_below(folder, read.reads, root=root, links=links)
        names = [name for name in below if not ignore_others or found_in(pattern, name)]
        if len(names) < len(below):
            others = [name for name in below if not found_in(pattern, name)]
            what = f"{len(others):,} {read.noun}s whose names do not follow data.options.pattern are not used"
            self.notes = (f"{what}: {shown(others)}",)
        if not names:
            raise UserError(str(folder), f"holds no {read.noun}", "correct data.root")
        remedy = "correct it, or set data.options.other_files: ignore"
        self.values = values_of(pattern, names, read.noun, remedy)
        labels = [(rename or {}).get(label, label) for label in self.values[LABEL]]
        if classes is None and (unknown := sorted(set(rename or {}) - set(self.values[LABEL]))):
            what = f"there is no label {unknown[0]!r} in {folder}"
            raise UserError("data.options.rename", what, nearest(unknown[0], self.values[LABEL])[:200])
        self.classes = tuple(sorted(set(labels))) if classes is None else classes
        if len(self.classes) < least:
            what = f"the group label is {self.classes[0]!r} in all {len(names):,} names"
            raise UserError("data.options.pattern", what, "correct it: one class is nothing to tell apart")
        positions = {name: place for place, name in enumerate(self.classes)}
        for name, label in zip(names, labels, strict=True):
            if label not in positions:
                what = f"its class {label!r} is not in the training data"
                raise UserError(str(folder / name), what, nearest(label, self.classes)[:200])
        self.names = PackedNames(names)
        self.labels: NDArray[np.int64] = np.array([positions[label] for label in labels], np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def occurrences(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """File and class of every label, int64 [P] each."""
        return np.arange(len(self)), self.labels

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        path = f"{self.folder}/{name}"
        return Sample(self.read(path), name, path, label=int(self.labels[index]))

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        return Known(name := self.names[index], self.labels[index].tobytes(), (f"{self.folder}/{name}",))


def found_in(pattern: "re.Pattern[str]", name: str) -> "re.Match[str] | None":
    """What a pattern finds in the name of a file without its ending: all of it must follow, the folders too where it has a slash."""
    whole = stem(name)
    return pattern.fullmatch(whole if "/" in pattern.pattern else whole.rpartition("/")[2])


def values_of(
    pattern: "re.Pattern[str]", names: Sequence[str], noun: str, remedy: str = "correct it, so that all names follow"
) -> dict[str, PackedNames]:
    """What each named group of ``pattern`` is in each of ``names``; one that does not follow it raises :class:`UserError`."""
    matches = [found_in(pattern, name) for name in names]
    others = [name for name, match in zip(names, matches, strict=True) if match is None]
    if others:
        what = f"{len(others):,} of {len(names):,} {noun}s have names that do not follow {pattern.pattern!r}: {shown(others)}"
        raise UserError("data.options.pattern", what, remedy)
    found = [match for match in matches if match is not None]
    return {group: PackedNames(match[group] or "" for match in found) for group in pattern.groupindex}
