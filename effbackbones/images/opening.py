"""Opening files of images, on a disk or in memory, and what is said of those that cannot be read."""

import io
import logging
import os
import stat
import struct
import tokenize
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias

from PIL import UnidentifiedImageError

from effbackbones.errors import UserError
from effbackbones.pointers import LONGEST, refuse_pointer

MAX_PIXELS = 64_000_000
FORMATS_AT_ONCE = ("JPEG", "PNG", "GIF", "BMP", "PPM")
# Closed: among the others that PIL knows is one that starts another program (EPS).
FORMATS = (*FORMATS_AT_ONCE, "WEBP", "TIFF", "JPEG2000", "AVIF")
DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    tokenize.TokenError,
)
"""What PIL's, NumPy's and tifffile's parsers raise on damaged files, from fuzzing and from reading them."""

# They log what they then raise, without the file's name; where nobody listens that would go to standard error.
for _library in ("PIL", "tifffile"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class Encoded:
    """A file of an image that is in memory: what stands in the place of a path. ``name`` is what it is called in results and errors, and
    tells by its ending whether it is a ``.npy`` file; nothing is looked for on the disk by it."""

    name: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


ImagePath: TypeAlias = str | Path | Encoded
"""Where an image file is."""


def opened_file(path: ImagePath, wanted: str = "an image") -> IO[bytes]:
    """A regular file, open for reading; anything else raises :class:`UserError`, which says that ``wanted`` was expected."""
    if isinstance(path, Encoded):
        return io.BytesIO(path.content)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not Path(path).is_dir():  # opening a pipe would wait for ever
            raise OSError("not a regular file")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise unreadable(path, error, wanted) from error


def unreadable(path: ImagePath, error: BaseException, wanted: str = "an image") -> UserError:
    """What to say of a file whose reading raised ``error``."""
    if isinstance(error, UserError):
        return error
    try:
        refuse_pointer(path, _head(path))
    except UserError as pointer:
        return pointer
    return UserError(
        str(path), f"cannot be read as {wanted}: {_reason(path, error)}", "replace the file, or take it out of the data"
    )


def _head(path: ImagePath) -> bytes:
    """What a file begins with, nothing of one that cannot be opened, or is no regular file: a pipe would be waited for."""
    if isinstance(path, Encoded):
        return path.content[:LONGEST]
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb") as file:
            return file.read(LONGEST)
    except (OSError, ValueError):
        return b""


def _reason(path: ImagePath, error: BaseException) -> str:
    """One line on what is wrong with a file."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(path, Encoded):
        size = len(path.content)
    else:
        if isinstance(error, IsADirectoryError) or Path(path).is_dir():
            return "it is a folder"
        if isinstance(error, PermissionError):
            return "no permission"
        size = Path(path).stat().st_size if Path(path).is_file() else -1
    if size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"not in one of the formats {', '.join(FORMATS)}"
    return " ".join(f"{type(error).__name__} {error}".split())[:160]


def check_pixels(path: ImagePath, size: tuple[int, int], max_pixels: int) -> None:
    """Refuse a file whose header announces more than ``max_pixels``; ``size`` is (width, height)."""
    width, height = size
    if width * height > max_pixels:
        raise UserError(
            str(path),
            f"the header announces {width} x {height} = {width * height:,} pixels; allowed are {max_pixels:,} pixels",
            "shrink the image, or raise max_pixels",
        )
