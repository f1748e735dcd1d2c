"""What data sets of files share: a million names in two arrays, names that may not leave their folder, how images are read."""

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels, Size
from effbackbones.images.reading import MAX_PIXELS, is_image_name, read_image
from effbackbones.images.recordings import RATE, is_sound_name, read_recording
from tasks.data.files import jpeg
from tasks.data.files.cache import ImageCache
from tasks.data.files.decoding import lines_of
from tasks.data.files.listing import leaves, refuse_link
from tasks.data.files.names import refuse_other_numbers
from tasks.data.files.slate import reading_file
from tasks.settings.options import as_names


class PackedNames(Sequence[str]):
    """An immutable sequence of strings in two arrays. A list of str would be copied bit by bit into every forked worker,
    since reading an element counts references."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        position = range(len(self))[index]
        start = self._ends[position - 1] if position else 0
        return os.fsdecode(self._bytes[start : self._ends[position]].tobytes())


class Confinement:
    """Checks that names read from a file stay inside ``root``: no absolute path, no ``..``, no symbolic link outwards unless
    ``links`` is ``anywhere``."""

    def __init__(self, root: Path, links: str = "inside") -> None:
        self.root, self.links = root, links
        self._real = os.path.realpath(root)
        self._folders: set[str] = set()

    def check(self, name: str, where: str) -> None:
        """Refuse a ``name`` that leaves the root or is no file; :class:`UserError` with ``where`` it stands."""
        if not name or os.path.isabs(name) or re.match(r"[A-Za-z]:|[/\\]", name) or ".." in re.split(r"[/\\]", name):
            raise UserError(
                where, f"{name!r} is not a path inside {self.root}", "write file names relative to that folder"
            )
        path = os.path.join(self.root, name)
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):
            raise UserError(
                where, f"there is no file {path}", "correct the name, or data.root and data.options"
            ) from None
        folder = os.path.dirname(path)
        if stat.S_ISLNK(mode):
            self._inside(path, where)
        elif folder not in self._folders:
            self._inside(folder, where)
            self._folders.add(folder)
        if not (stat.S_ISREG(mode) or os.path.isfile(path)):
            raise UserError(where, f"{path} is not a file", "name one")

    def _inside(self, path: str, where: str) -> None:
        if self.links == "inside" and leaves(path, self._real):
            raise refuse_link(path, self.root, where)


def listed_classes(listed: object, root: Path) -> tuple[str, ...] | None:
    """Classes by the option ``classes``: a list of names, or a text file below ``root`` with one on each line; or None."""
    if listed is None:
        return None
    where = "data.options.classes"
    if isinstance(listed, str):
        where = str(root / listed)
        missing = "name a UTF-8 text file with one class on each line"
        listed = [name for _, name in lines_of(root / listed, missing)]
        refuse_other_numbers(where, listed)
    names = as_names(listed)
    if not names:
        what = f"expected class names, at least one, got {str(listed)[:60]}"
        raise UserError(where, what, "write names; in quotes, where they are no, off, 1.5 and the like")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(where, f"expected different class names, {twice!r} stands there twice", "correct the list")
    return names


@dataclass(frozen=True)
class ImageReader:
    """:func:`effbackbones.images.reading.read_image` with its options set; they are explained there. With ``cache`` images come from
    there, smaller than their files."""

    channels: int = 3
    depth: str = "8"
    exif: str = "apply"
    max_pixels: int = MAX_PIXELS
    at_least: Size | None = None
    frames: str = "stop"
    cache: ImageCache | None = None

    noun: ClassVar[str] = "image"
    a_noun: ClassVar[str] = "an image"
    """What it reads, in words."""

    @staticmethod
    def reads(name: str) -> bool:
        """Whether a file of that name is one of those that it reads, by its ending."""
        return is_image_name(name)

    def __call__(self, path: str) -> Pixels:
        """Pixels [H, W, channels] of a file."""
        return self.with_size(path)[0]

    def with_size(self, path: str) -> tuple[Pixels, Size]:
        """The same, and (H, W) before the cache made it smaller."""
        reading_file(path)
        if self.cache is not None:
            return self.cache.read(path, self._decoded, repr(replace(self, cache=None)))
        image = self._decoded(path)
        height, width = image.shape[:2]
        return image, (height, width)

    def _decoded(self, path: str) -> Pixels:
        return read_image(
            path,
            channels=self.channels,
            max_pixels=self.max_pixels,
            depth=self.depth,
            exif=self.exif,
            at_least=self.at_least,
            frames=self.frames,
            jpeg=jpeg.decoded,
        )


@dataclass(frozen=True)
class SoundReader(ImageReader):
    """:func:`effbackbones.images.recordings.read_recording` with its options set: recordings in ``channels`` at ``rate`` samples a second,
    or a ``part`` of one in seconds; ``max_pixels`` are the samples that one may have."""

    channels: int = 1
    depth: str = "native"
    rate: int = RATE
    part: tuple[float | None, float | None] = (None, None)
    noun: ClassVar[str] = "recording"
    a_noun: ClassVar[str] = "a recording"

    @staticmethod
    def reads(name: str) -> bool:
        return is_sound_name(name)

    def _decoded(self, path: str) -> Pixels:
        return read_recording(path, rate=self.rate, channels=self.channels, max_samples=self.max_pixels, part=self.part)


DEFAULT_READER = ImageReader()
