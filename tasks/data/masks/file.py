"""Mask files to classes: what is stored is taken as it is, never resampled, rescaled or sent through colour profiles.

A palette file gives its indices, a grey one of any depth its own numbers (PIL widens those of 1, 2 and 4 bits; that is undone),
a colour file its colours; alpha is dropped where it is opaque everywhere, and refused elsewhere.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from effbackbones.errors import UserError
from effbackbones.images.arrays import read_numbers
from effbackbones.images.geometry import Mask, Size
from effbackbones.images.reading import (
    MAX_PIXELS,
    frame_count,
    is_deep,
    opened_image,
    orientation_of,
    sixteen_bits,
    turned,
)
from tasks.data.files.slate import reading_file
from tasks.data.sample import IGNORE

FORMATS = ("index", "palette", "rgb", "binary")
OTHERS = ("stop", "ignore", "nearest")
Numbers = NDArray[np.uint8 | np.uint16 | np.uint32]

_LOSSY = ("JPEG", "MPO", "AVIF")
_NEAR = 64
"""So far apart may the channels of a grey be in a file that does not keep values exactly."""


@dataclass(frozen=True)
class Stored:
    """What a mask file holds: ``kind`` ``grey`` or ``palette`` with ``pixels`` uint8 or uint16 [H, W], ``colour`` with uint8
    [H, W, 3]. ``white``: the largest number at the file's depth. ``palette`` uint8 [256, 3]: its colours. ``lossy``: its format
    does not keep values exactly."""

    kind: str
    pixels: NDArray[np.uint8 | np.uint16]
    white: int = 255
    lossy: bool = False
    palette: NDArray[np.uint8] | None = None

    def grey(self, path: str) -> NDArray[np.uint8 | np.uint16]:
        """One number for each pixel [H, W]; of colours only where all three channels agree, else :class:`UserError`."""
        if self.kind != "colour":
            return self.pixels
        apart = self.pixels.max(2) - self.pixels.min(2) > (_NEAR if self.lossy else 0)
        if apart.any():
            y, x = divmod(int(apart.argmax()), apart.shape[1])
            text = ",".join(map(str, self.pixels[y, x].tolist()))
            raise UserError(
                path, f"has colours: {text} at x {x}, y {y}", "set data.options.format: rgb and data.options.colors"
            )
        return self.pixels[..., 1]

    def colors(self, path: str) -> NDArray[np.uint32]:
        """The colour of each pixel as one number uint32 [H, W], as :func:`packed` has it."""
        if self.white > 255:
            raise UserError(path, "has 16-bit greys, and colours are of 8 bits", "set data.options.format: index")
        if self.kind == "colour":
            return packed(self.pixels)
        if self.palette is not None:
            found: NDArray[np.uint32] = packed(self.palette).take(self.pixels)
            return found
        grey: NDArray[np.uint32] = np.rint(self.pixels * (255 / self.white)).astype(np.uint32) * 0x010101
        return grey


def packed(colors: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Colours [..., 3] of 8 bits as one number each: red * 65536 + green * 256 + blue."""
    wide: NDArray[np.uint32] = colors.astype(np.uint32)
    return np.left_shift(wide[..., 0], 16) | np.left_shift(wide[..., 1], 8) | wide[..., 2]


@dataclass(frozen=True)
class MaskReader:
    """Reads files of one ``format`` as masks uint8 [H, W]: classes, 255 ignored.

    * ``index``: the number stored is the value, in grey and in palette files; ``palette``: the same, in palette files only;
    * ``rgb``: the colour is the value, as :func:`packed` has it, in files of any kind;
    * ``binary``: the value is 0 or 255, the latter also for the largest number of another depth; formats that do not keep values
      exactly, as JPEG, are cut half-way and allowed here alone.

    ``codes``: (value, class) of each value that is a class, ``ignored``: values that are ignored; all ``others`` raise
    :class:`UserError` naming file, value and a pixel (``stop``), are ignored (``ignore``), or are what the ``nearest`` of the
    known values is. So does whatever cannot be read whole, or has more than ``max_pixels``. ``exif``: whether an orientation in the
    mask's own file is applied, as for the image. ``palette``: (index, colour) as palette files should have them; one that has
    another colour at an index that occurs raises. ``remedy``: what to do about values that are no class, where that is known.
    """

    format: str
    codes: tuple[tuple[int, int], ...]
    ignored: tuple[int, ...] = ()
    others: str = "stop"
    max_pixels: int = MAX_PIXELS
    exif: str = "apply"
    palette: tuple[tuple[int, int], ...] = ()
    remedy: str = ""

    def __call__(self, path: str | Path) -> Mask:
        """The classes in a file."""
        reading_file(str(path))
        return self.decode(read_stored(path, max_pixels=self.max_pixels, exif=self.exif), str(path))

    def blank(self, size: Size, path: str) -> Mask:
        """The classes in a mask of ``size`` (H, W) that is 0, or black, everywhere; of an image that has none, ``path``."""
        labels, unknown = self._looked_up(np.zeros(size, np.uint8))
        if unknown.any() and self.others == "stop":
            word = "black is the colour" if self.format == "rgb" else "0 is the value"
            what = f"has no mask, and {word} of no class, so that none can stand for it"
            raise UserError(path, what, "set data.options.missing: skip")
        return labels

    def decode(self, stored: Stored, path: str) -> Mask:
        """The classes in what was read from ``path``."""
        numbers = self._numbers(stored, path)
        labels, unknown = self._looked_up(numbers)
        if self.others == "stop" and unknown.any():
            y, x = divmod(int(unknown.argmax()), unknown.shape[1])
            raise self._stranger(path, int(numbers[y, x]), f"at x {x}, y {y}")
        return labels

    def _numbers(self, stored: Stored, path: str) -> Numbers:
        """The value of each pixel [H, W]."""
        if stored.lossy and self.format != "binary":
            remedy = "store masks as PNG; data.options.format: binary cuts such files half-way"
            raise UserError(path, "is stored in a way (as JPEG) that does not keep values exactly", remedy)
        if self.format == "rgb":
            return stored.colors(path)
        if self.format == "palette" and stored.kind != "palette":
            raise UserError(
                path,
                f"is no palette file but of kind {stored.kind}",
                "set data.options.format: index, or rgb with colors",
            )
        if self.palette and stored.palette is not None:
            self._check_palette(stored.pixels, stored.palette, path)
        numbers = stored.grey(path)
        if self.format != "binary":
            return numbers
        if stored.lossy:
            return np.where(numbers > stored.white // 2, np.uint8(255), np.uint8(0))
        return np.where(numbers == stored.white, numbers.dtype.type(255), numbers)

    def _looked_up(self, numbers: Numbers) -> tuple[Mask, NDArray[np.bool_]]:
        """Class of each pixel, 255 for what has none; and whether its value is unknown."""
        values, classes, table, known = self._tables
        if self.format == "rgb":
            place = np.searchsorted(values, numbers).clip(max=len(values) - 1)
            unknown = values[place] != numbers
            if self.others == "nearest" and unknown.any():
                odd, where = np.unique(numbers[unknown], return_inverse=True)
                place[unknown] = _nearest_colours(odd, values)[where]
                return classes[place], unknown
            return np.where(unknown, np.uint8(IGNORE), classes[place]), unknown
        labels: Mask = table.take(numbers)
        unknown = labels == IGNORE
        return labels, unknown & ~known.take(numbers) if unknown.any() else unknown

    @cached_property
    def _tables(self) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """The known values, sorted, and the class of each; the class of each number of 16 bits, and whether it is known."""
        pairs = {**dict(self.codes), **dict.fromkeys(self.ignored, IGNORE)}
        values, classes = (
            np.array(sorted(pairs), np.uint32),
            np.array([pairs[value] for value in sorted(pairs)], np.uint8),
        )
        table, known = np.full(65536, IGNORE, np.uint8), np.zeros(65536, np.bool_)
        if self.format != "rgb":
            if self.others == "nearest":
                edges = (values[:-1] + values[1:]) // 2  # up to it the lower of two neighbours is as near
                table[:] = classes[np.searchsorted(edges, np.arange(len(table)))]
            table[values], known[values] = classes, True
        return values, classes, table, known

    def _check_palette(self, pixels: NDArray[np.integer], colours: NDArray[np.uint8], path: str) -> None:
        """Raise :class:`UserError` for a palette that has another colour at an index that occurs."""
        expected, found = dict(self.palette), packed(colours)
        for index in np.bincount(pixels.ravel()).nonzero()[0].tolist():
            if expected.get(index, found[index]) != found[index]:
                what = (
                    f"has the colour {words(int(found[index]))} at index {index}, other masks {words(expected[index])}"
                )
                raise UserError(
                    path, what, "correct it, or set data.options.colors, or format: index if the numbers are right"
                )

    def _stranger(self, path: str, value: int, place: str) -> UserError:
        """What to say of a value that is no class."""
        if self.format == "rgb":
            remedy = "add it to data.options.colors or ignore, or set data.options.other: ignore or nearest"
            return UserError(path, f"colour {words(value)} {place} is no class", self.remedy or remedy)
        if self.format == "binary":
            return UserError(
                path,
                f"value {value} {place} is neither 0 nor 255",
                "for masks of 0 and 1 set data.options.format: index; for soft edges other: nearest",
            )
        remedy = (
            f"if it means not known, --data.options '{{ignore: [{value}]}}'; if it is a class, name it in classes.txt or"
            " data.options.classes; else correct the mask, or set data.options.values or other"
        )
        return UserError(
            path,
            f"value {value} {place} is no class; expected {span([code for code, _ in self.codes])}",
            self.remedy or remedy,
        )


def _nearest_colours(odd: NDArray[np.uint32], known: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The place in ``known`` of the nearest colour to each of ``odd``, by the sum of squared differences of the channels."""
    ours, theirs = (
        np.stack([colours >> shift & 255 for shift in (16, 8, 0)], 1).astype(np.int64) for colours in (odd, known)
    )
    nearest: NDArray[np.int64] = ((ours[:, None] - theirs) ** 2).sum(2).argmin(1)
    return nearest


def words(colour: int) -> str:
    """A packed colour as ``red,green,blue``."""
    return ",".join(str(colour >> shift & 255) for shift in (16, 8, 0))


def span(values: list[int]) -> str:
    """Numbers in words: ``0..10``, or the first few of those without a simple order."""
    if len(values) > 1 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values[:8])) + (f", ... ({len(values)} values)" if len(values) > 8 else "")


def read_stored(path: str | Path, *, max_pixels: int = MAX_PIXELS, exif: str = "apply") -> Stored:
    """What a mask file holds, in any of the formats of :func:`effbackbones.images.reading.read_image` and under its limits; ``.npy``:
    [H, W] of whole numbers or truth values. Raises :class:`UserError` naming the file."""
    if str(path).lower().endswith(".npy"):
        numbers = _sixteen_bits(str(path), read_numbers(path, max_pixels))
        return Stored("grey", numbers, 255 if numbers.dtype == np.uint8 else 65535)
    with opened_image(path, max_pixels) as image:
        return _decoded(str(path), image, exif)


def _decoded(path: str, file_image: ImageFile.ImageFile, exif: str) -> Stored:
    """The pixels of the only frame, turned as ``exif`` says."""
    deep, orientation, white = is_deep(file_image), orientation_of(file_image), _white(file_image)
    lossy = file_image.format in _LOSSY or _rounds(file_image)
    if (frames := frame_count(file_image)) > 1:
        raise UserError(path, f"has {frames} frames: which of them is the mask?", "store one mask in each file")
    file_image.load()
    image = turned(file_image, orientation, exif)
    mode = image.mode
    if mode in ("LA", "PA", "RGBA"):
        clear = np.asarray(image.getchannel("A")) != 255
        if clear.any():
            y, x = divmod(int(clear.argmax()), clear.shape[1])
            raise UserError(path, f"is transparent at x {x}, y {y}: is that a class?", "store masks without alpha")
    if mode in ("1", "L", "LA") and not deep:
        return Stored("grey", _undone(np.asarray(image.getchannel(0)).astype(np.uint8), white), white, lossy)
    if mode in ("P", "PA"):
        colors = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
        return Stored(
            "palette",
            np.asarray(image.getchannel(0)).copy(),
            255,
            lossy,
            np.pad(colors, ((0, 256 - len(colors)), (0, 0))),
        )
    if mode.startswith("I;16"):
        return Stored("grey", _undone(sixteen_bits(image, file_image), white), white)
    if mode == "I":
        return Stored("grey", _undone(_sixteen_bits(path, np.asarray(image)).astype(np.uint16), white), white)
    if mode in ("RGB", "RGBA") and not deep:
        return Stored("colour", np.array(image)[..., :3], 255, lossy)
    kind = f"16-bit {mode}" if deep else mode
    raise UserError(path, f"pixels of kind {kind} are no classes", "store masks as PNG: grey, palette or 8-bit colour")


def _rounds(image: ImageFile.ImageFile) -> bool:
    """Whether a file of a format that can keep values exactly, WebP or JPEG 2000, says that it does not."""
    if image.format not in ("WEBP", "JPEG2000") or image.fp is None:
        return False
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    if image.format == "WEBP":
        return b"VP8 " in _chunks(content)
    # After the marks that begin a codestream comes COD, whose 14th byte names the wavelet (ISO 15444-1, A.6.1): 0 is the 9-7, which rounds.
    coding = content.find(b"\xff\x52", max(0, content.find(b"\xff\x4f\xff\x51")))
    return coding >= 0 and content[coding + 13 : coding + 14] == b"\0"


def _chunks(content: bytes) -> set[bytes]:
    """The names of the chunks of a RIFF file."""
    names, place = set(), 12
    while place + 8 <= len(content):
        names.add(content[place : place + 4])
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return names


def _sixteen_bits(path: str, numbers: NDArray[np.integer | np.bool_]) -> NDArray[np.uint8 | np.uint16]:
    """Whole numbers in 0..65535, in 8 bits where their type says so."""
    if numbers.dtype in (np.uint8, np.bool_):
        return numbers.astype(np.uint8)
    outside = (numbers < 0) | (numbers > 65535)
    if outside.any():
        y, x = divmod(int(outside.argmax()), outside.shape[1])
        what = f"value {numbers[y, x]} at x {x}, y {y} does not fit 16 bits without a sign"
        raise UserError(path, what, "store masks with 8 or 16 bits, pixels to be ignored as 255")
    return numbers.astype(np.uint16)


def _white(image: ImageFile.ImageFile) -> int:
    """The largest number that the depth of a grey file allows, from its header."""
    arguments = image.tile[0].args if image.tile else ""
    if image.format == "PPM" and isinstance(arguments, tuple):  # (mode, largest value)
        return int(arguments[-1])
    rawmode = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    few = re.match(r"L;([24])", rawmode)
    if few:
        return int(2 ** int(few[1]) - 1)
    return {"1": 1, "L": 255, "LA": 255}.get(image.mode, 65535 if image.mode.startswith("I") else 255)


def _undone(pixels: NDArray[np.uint8 | np.uint16], white: int) -> NDArray[np.uint8 | np.uint16]:
    """Numbers as the file has them, where PIL has stretched fewer bits over the whole range."""
    full = 255 if pixels.dtype == np.uint8 else 65535
    if white in (1, full):  # PIL leaves these as they are
        return pixels
    numbers: NDArray[np.uint8 | np.uint16] = np.rint(pixels * (white / full)).astype(pixels.dtype)
    return numbers
