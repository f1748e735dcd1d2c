"""Images kept on a disk as they were read and brought to size, so that a later epoch need neither decode nor resize them.

A file an image, below a folder that is named by what was done to it; whatever changes that, or the file, has another name. A file is
written beside its place and put there at once, so that processes may share a folder and be killed at any moment; one that is not whole
all the same (a crash of the machine) has another sum and is made anew.
"""

import hashlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels, ResizePlan, Size
from effbackbones.inference.fitting import Fitting
from tasks.telling import say

_HEADER = struct.Struct("<8s5IQ4x")
"""Of each file: the form of it, (H, W) of the image as it was read, (H, W, C) of what follows, sum of its 64-bit words."""
_FORM: dict[bytes, np.dtype[Any]] = {
    b"EBimage1": np.dtype(np.uint8),
    b"EBimage2": np.dtype("<u2"),
    b"EBimage4": np.dtype("<f4"),
}
_UNITED = ("pillow", "torch", "torchvision")
"""Packages whose releases may decode or resize otherwise."""
_LEFT_OVER = 3600.0
"""Seconds after which a file that was being written belongs to nobody."""

Read = Callable[[str], Pixels]
_refused: set[str] = set()
"""Folders of which this process has told that they cannot be written."""


@dataclass(frozen=True)
class ImageCache:
    """A cache in ``folder``: images as ``fitting`` brings them to size, where that enlarges neither side, else as they are read.

    ``quick``: of :meth:`ResizePlan.apply_image`.
    """

    folder: Path
    fitting: Fitting
    quick: bool

    @cached_property
    def place(self) -> Path:
        """The folder of images that were treated alike."""
        fitting = self.fitting
        done = (fitting.mode, fitting.size, fitting.crop_fraction, fitting.interpolation, self.quick, _releases())
        height, width = fitting.size
        return self.folder / f"{fitting.mode}-{height}x{width}-{hashlib.sha256(repr(done).encode()).hexdigest()[:12]}"

    def kept(self, original: Size) -> ResizePlan:
        """How an image of size ``original`` is brought to what is kept of it."""
        scaled = self.fitting.plan(original).scaled
        smaller = scaled[0] <= original[0] and scaled[1] <= original[1]
        return ResizePlan.squash(original, scaled if smaller else original)

    def read(self, path: str, read: Read, how: str) -> tuple[Pixels, Size]:
        """What is kept of the image file ``path``, writable without changing the cache, and its size (H, W) as ``read`` gives it, which
        is called where nothing is kept yet; ``how`` says what beside the file decides about the pixels that it gives."""
        entry = self._entry(path, how)
        if (found := _taken(entry)) is not None:
            return found
        image = read(path)
        height, width = image.shape[:2]
        plan = self.kept((height, width))
        small = plan.apply_image(image, self.fitting.interpolation, quick=self.quick)
        self._put(entry, small, (height, width))
        return small, (height, width)

    def open(self, count: int, channels: int, itemsize: int) -> str:
        """Make the folder, clear it of what killed processes left, and say in a line what it will need for ``count`` images; refuse
        where the disk has less room than that. Raises :class:`UserError` where it cannot be written."""
        height, width = self.fitting.size
        needed = count * (height * width * channels * itemsize + _HEADER.size)
        fresh = not self.place.is_dir()
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            for left in self.place.glob("*/*.part"):
                with suppress(OSError):
                    if time.time() - left.stat().st_mtime > _LEFT_OVER:
                        left.unlink()
            room = os.statvfs(self.place) if hasattr(os, "statvfs") else None
            writable = os.access(self.place, os.W_OK)
        except OSError as error:
            raise UserError(
                "data.cache", f"{self.folder}: {error.strerror}", "name a folder that can be written"
            ) from error
        if not writable:
            raise UserError("data.cache", f"{self.folder} cannot be written", "name a folder that can")
        free = room.f_bavail * room.f_frsize if room else needed
        if fresh and free < needed:
            what = (
                f"up to {needed / 1e9:.1f} GB are needed, and the disk of {self.folder} has {free / 1e9:.1f} GB of room"
            )
            raise UserError("data.cache", what, "name a folder on another disk, or set it to null")
        if self.fitting.mode == "own":
            return f"data.cache: {count:,} training samples are kept, as large as they are read, in {self.place}"
        kept = f"{count:,} training images are kept at up to {width} x {height} pixels"
        return f"data.cache: {kept} in {self.place}, up to {needed / 1e6:,.0f} MB"

    def _entry(self, path: str, how: str) -> Path:
        """The place of an image file as it is now. (One that is written anew has another time of change, whatever else is set.)"""
        known: tuple[object, ...] = how, os.path.abspath(path)
        with suppress(OSError):  # what cannot be read says so when it is
            told = os.stat(path)
            known += told.st_size, told.st_mtime_ns, told.st_ctime_ns
        name = hashlib.sha256(repr(known).encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return self.place / name[:2] / name[2:]

    def _put(self, entry: Path, image: Pixels, original: Size) -> None:
        if str(self.place) in _refused:
            return
        form = next((form for form, dtype in _FORM.items() if dtype == image.dtype), None)
        if form is None:
            return
        words = _padded(np.ascontiguousarray(image, _FORM[form]).tobytes())
        header = _HEADER.pack(form, *original, *image.shape, _sum(words))
        part = entry.with_name(f"{entry.name}-{os.getpid()}-{threading.get_ident()}.part")
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(header + words)
            os.replace(part, entry)
        except OSError as error:
            _refused.add(str(self.place))
            with suppress(OSError):
                part.unlink()
            say(f"data.cache: {self.folder} cannot be written ({error.strerror}): images are read without it")


def _taken(entry: Path) -> tuple[Pixels, Size] | None:
    """What an entry holds, mapped so that what is written stays in this process; None where there is none, or not a whole one."""
    try:
        with open(entry, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        form, height, width, rows, columns, channels, told = _HEADER.unpack_from(memory)
        dtype: np.dtype[Any] = _FORM[form]
        count = rows * columns * channels
        if len(memory) != _HEADER.size + -(-count * dtype.itemsize // 8) * 8 or told != _sum(memory, _HEADER.size):
            return None
        pixels: Pixels = np.frombuffer(memory, dtype, count, _HEADER.size).reshape(rows, columns, channels)
        return pixels, (height, width)
    except (OSError, ValueError, LookupError, struct.error):  # ValueError: an empty file
        return None


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 8)


def _sum(content: "bytes | mmap.mmap", start: int = 0) -> int:
    """Of 64-bit words. Quick; what a crash leaves of a file, pages of zeros, has another."""
    words: NDArray[np.uint64] = np.frombuffer(content, "<u8", offset=start)
    return int(words.sum(dtype=np.uint64))


@cache
def _releases() -> str:
    """Names and releases of what decodes and resizes."""
    found = {name: "none" for name in _UNITED}
    for name in _UNITED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return repr(found)
