"""Data set ``folder``, class folders: ``root/{train,val,test}/CLASS/...``, one folder per class, images (or recordings: what the reader
reads) at any depth below it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError, nearest
from tasks.data.files.listing import files_below, is_hidden, shown
from tasks.data.files.reading import DEFAULT_READER, ImageReader, PackedNames
from tasks.data.fingerprint import Known
from tasks.data.sample import Sample


class FolderDataset:
    """Images of one split, sorted by class and name. ``id`` is the path below the split's folder.

    ``classes`` None: the sorted names of the class folders (as torchvision's ``ImageFolder`` sorts them); otherwise the
    label map of the training split, and a folder that is not in it raises :class:`UserError`. ``rename``: the classes of folders
    that are not called by them; several may be of one. Names that begin with a dot are passed over. Empty class folders raise; so
    do files that are no images, unless ``ignore_others``, and fewer than ``least`` classes. ``notes``: images that lie beside the
    class folders, which belong to none, and other files that are passed over. ``root`` and ``links``: where links may lead, as
    :func:`files_below` has it.
    """

    only_reads = True  # see tasks.data.batch

    def __init__(
        self,
        folder: str | Path,
        classes: tuple[str, ...] | None = None,
        *,
        read: ImageReader = DEFAULT_READER,
        ignore_others: bool = False,
        rename: Mapping[str, str] | None = None,
        least: int = 1,
        root: Path | None = None,
        links: str = "inside",
    ) -> None:
        self.folder = Path(folder)
        below = files_below(self.folder, lambda name: True, root=root, links=links) if self.folder.is_dir() else []
        found, self.notes = _class_folders(self.folder, [name for name in below if "/" not in name], read)
        class_of = _renamed(self.folder, found, rename or {}, known=classes is not None)
        self.classes = tuple(sorted(set(class_of.values()))) if classes is None else classes
        if len(self.classes) < least:
            raise _too_few(self.folder, found, self.classes)
        unknown = [name for name in found if class_of[name] not in self.classes]
        if unknown:
            what = f"class {class_of[unknown[0]]!r} is not in the training data (in all {len(unknown)} such)"
            raise UserError(str(self.folder / unknown[0]), what, "add it there, or remove the folder")
        names: list[str] = []
        counts: list[int] = []
        by_class: dict[str, list[str]] = {name: [] for name in found}
        others: list[str] = []
        for path in below:
            name, inside, _ = path.partition("/")
            if inside and read.reads(path):
                by_class[name].append(path)
            elif inside and not ignore_others:
                remedy = "remove it, or set data.options.other_files: ignore"
                raise UserError(str(self.folder / path), f"is not {read.a_noun} by its ending", remedy)
            elif inside:
                others.append(path)
        if others:
            what = f"{len(others):,} files are no {read.noun}s by their endings and passed over: {shown(others)}"
            self.notes = (*self.notes, what)
        for name, images in by_class.items():
            if not images:
                what = f"the class folder holds no {read.noun}"
                raise UserError(str(self.folder / name), what, "fill it or remove it")
            names += images
            counts.append(len(images))
        self.names = PackedNames(names)
        positions = {name: position for position, name in enumerate(self.classes)}
        labels = np.array([positions[class_of[name]] for name in found], np.int64)
        self.labels: NDArray[np.int64] = np.repeat(labels, counts)
        self.read = read

    def __len__(self) -> int:
        return len(self.names)

    def occurrences(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Image and class of every label, int64 [P] each."""
        return np.arange(len(self)), self.labels

    def __getitem__(self, index: int) -> Sample:
        path = f"{self.folder}/{self.names[index]}"
        return Sample(self.read(path), self.names[index], path, label=int(self.labels[index]))

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        return Known(name := self.names[index], self.labels[index].tobytes(), (f"{self.folder}/{name}",))


def _class_folders(folder: Path, beside: Sequence[str], read: ImageReader) -> tuple[list[str], tuple[str, ...]]:
    """Sorted names of the class folders of a split, and what to tell of the files ``beside`` them."""
    shape = f"expected {folder}/CLASS/{read.noun.upper()}"
    if not folder.is_dir():
        others = (
            sorted(entry.name for entry in os.scandir(folder.parent) if entry.is_dir())
            if folder.parent.is_dir()
            else []
        )
        there = (
            f"{folder.parent} holds the folders {', '.join(others[:8])}"
            if others
            else f"{folder.parent} holds no folders"
        )
        remedy = "move the classes there, or name the splits' folders by data.train, data.val, data.test"
        if any(read.reads(name) for other in others for name in os.listdir(folder.parent / other)):
            remedy = f"set data.val: 0.2, if these are the classes, which takes a fifth of each; or {remedy}"
        elif folder.name in ("val", "test") and "train" in others:
            remedy = f"set data.{folder.name}: 0.2, which takes a fifth of the training data; or {remedy}"
        raise UserError(str(folder), f"there is no such folder: {shape}, {there}", remedy)
    with os.scandir(folder) as entries:
        found = sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())
    if not found:
        raise UserError(
            str(folder),
            f"holds no class folders: {shape}",
            f"put the {read.noun}s of each class into a folder of its own",
        )
    loose = [name for name in beside if read.reads(name)]
    if not loose:
        return found, ()
    return found, (
        f"{len(loose):,} {read.noun}s beside the class folders belong to none and are not used: {shown(loose)}",
    )


def _renamed(folder: Path, found: list[str], rename: Mapping[str, str], *, known: bool) -> dict[str, str]:
    """The class of each folder; a name that no folder has raises :class:`UserError`, unless the classes are ``known``, for a split
    may lack some."""
    for old in rename:
        if old not in found and not known:
            what = f"there is no class folder {old!r} in {folder}"
            raise UserError("data.options.rename", what, nearest(old, found)[:200])
    return {name: rename.get(name, name) for name in found}


def _too_few(folder: Path, found: list[str], classes: tuple[str, ...]) -> UserError:
    """What to say of a single class: most often the classes lie one folder deeper."""
    what = f"holds the class folder {found[0]} alone, and one class is nothing to tell apart"
    with os.scandir(folder / found[0]) as entries:
        below = [entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
    if len(found) > 1:
        return UserError(
            "data.options.rename", f"makes one class, {classes[0]!r}, of all folders", "leave two at least"
        )
    if not below:
        return UserError(str(folder), what, "add the other classes, each in a folder of its own")
    remedy = f"if the classes are the folders in it, {shown(below)}, set data.train: {folder.name}/{found[0]}, and data.val likewise"
    return UserError(str(folder), what, remedy)
