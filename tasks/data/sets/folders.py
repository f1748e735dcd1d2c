"""Data set ``folder``, class folders: ``root/{train,val,test}/CLASS/...``, one folder per class, images at any depth below it."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.reading import is_image_name
from tasks.data.files.reading import DEFAULT_READER, ImageReader, PackedNames
from tasks.data.fingerprint import Known
from tasks.data.sample import Sample


class FolderDataset:
    """Images of one split, sorted by class and name. ``id`` is the path below the split's folder.

    ``classes`` None: the sorted names of the class folders (as torchvision's ``ImageFolder`` sorts them); otherwise the
    label map of the training split, and a folder that is not in it raises :class:`UserError`. Names that begin with a dot
    are passed over. Empty class folders raise; so do files that are no images, unless ``ignore_others``.
    """

    def __init__(
        self,
        folder: str | Path,
        classes: tuple[str, ...] | None = None,
        *,
        read: ImageReader = DEFAULT_READER,
        ignore_others: bool = False,
    ) -> None:
        self.folder = Path(folder)
        found = _class_folders(self.folder)
        self.classes = tuple(found) if classes is None else classes
        unknown = sorted(set(found) - set(self.classes))
        if unknown:
            what = f"class {unknown[0]!r} is not in the training data (in all {len(unknown)} such)"
            raise UserError(str(self.folder / unknown[0]), what, "add it there, or remove the folder")
        names: list[str] = []
        counts: list[int] = []
        for name in found:
            images = sorted(_images(self.folder, name, ignore_others))
            if not images:
                raise UserError(str(self.folder / name), "the class folder holds no image", "fill it or remove it")
            names += images
            counts.append(len(images))
        self.names = PackedNames(names)
        positions = {name: position for position, name in enumerate(self.classes)}
        self.labels: NDArray[np.int32] = np.repeat(np.array([positions[name] for name in found], np.int32), counts)
        self.read = read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        path = f"{self.folder}/{name}"
        return Sample(self.read(path), name, path, label=int(self.labels[index]))

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        return Known(name := self.names[index], self.labels[index].tobytes(), f"{self.folder}/{name}")


def _class_folders(folder: Path) -> list[str]:
    """Sorted names of the class folders of a split."""
    shape = f"expected {folder}/CLASS/IMAGE"
    if not folder.is_dir():
        beside = (
            sorted(entry.name for entry in os.scandir(folder.parent) if entry.is_dir())
            if folder.parent.is_dir()
            else []
        )
        there = (
            f"{folder.parent} holds the folders {', '.join(beside[:8])}"
            if beside
            else f"{folder.parent} holds no folders"
        )
        remedy = "move the classes there, or name the splits' folders by data.train, data.val, data.test"
        raise UserError(str(folder), f"there is no such folder: {shape}, {there}", remedy)
    with os.scandir(folder) as entries:
        found = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    if not found:
        raise UserError(
            str(folder), f"holds no class folders: {shape}", "put the images of each class into a folder of its own"
        )
    return found


def _images(split: Path, name: str, ignore_others: bool) -> Iterator[str]:
    """Paths below ``split`` of the images at any depth below its folder ``name``."""
    with os.scandir(split / name) as entries:
        for entry in entries:
            path = f"{name}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if is_image_name(entry.name):
                yield path
            elif entry.is_dir():
                yield from _images(split, path, ignore_others)
            elif not ignore_others:
                raise UserError(
                    str(split / path),
                    "is not an image by its ending",
                    "remove it, or set data.options.other_files: ignore",
                )
