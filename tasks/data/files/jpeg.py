"""A quicker decoder for the plainest JPEG files: torchvision's, whose pixels are those of PIL's.

PIL stays the judge. It has read the header and held it against all limits before; only files are taken here that every JPEG library
decodes alike, and what cannot be decoded whole goes back to PIL, which says why. Of data that are damaged and can still be decoded, both
libraries give the same pixels and raise nothing (libjpeg may write a line to standard error).

Where the extra ``fast`` is installed and rows below some place are not looked at (:func:`rows_needed`), decoding stops there.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from effbackbones.images.geometry import Size

_BASELINE, _SCAN, _ADOBE = 0xC0, 0xDA, 0xEE
_END = b"\xff\xd9"
_PASSED_OVER = "extraneous bytes before marker 0xd9"
"""What libjpeg says of data that no row is made of."""
_SEGMENTS = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Markers of tables, comments and applications, each followed by its length (ITU-T T.81, table B.1)."""
_SAMPLINGS = frozenset({0x11, 0x21, 0x22})
"""Of luminance, where colour has 0x11: as many values of it as pixels, half as many, or a quarter."""

Lowest = Callable[[Size], int]
"""Down to which row an image is looked at, by its size (H, W)."""
_lowest: ContextVar[Lowest | None] = ContextVar("lowest", default=None)


@contextmanager
def rows_needed(lowest: Lowest | None) -> Iterator[None]:
    """Inside, of the images that are read nothing counts below what ``lowest`` says: rows there may be black. None: all of them counts."""
    token = _lowest.set(lowest)
    try:
        yield
    finally:
        _lowest.reset(token)


def decoded(content: bytes) -> NDArray[np.uint8] | None:
    """Pixels RGB uint8 [H, W, 3] of a JPEG file as it is stored, equal to PIL's down to the row that is needed; None where PIL is to
    decode it."""
    places = _places(content)
    if places is None or not is_equal_here():
        return None
    lowest = _lowest.get()
    upper = None if lowest is None else _upper_rows(content, *places, lowest)
    return _by_torchvision(content) if upper is None else upper


def is_plain(content: bytes) -> bool:
    """Whether a file is a baseline JPEG of 8 bits, YCbCr in a usual sampling, one scan and no marker of Adobe's, its header whole."""
    return _places(content) is not None


def _places(content: bytes) -> tuple[int, int] | None:
    """Where in such a file the content of the frame header begins, and where the coded data; None of others."""
    place, frame = 2, 0
    while content[place : place + 1] == b"\xff" and len(content) >= place + 10:
        kind, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if kind == _SCAN:
            return (frame, place + 2 + length) if frame and content[place + 4] == 3 else None
        if kind == _BASELINE and not frame and _is_usual(content[place + 4 : place + 2 + length]):
            frame = place + 4
        elif kind not in _SEGMENTS or kind == _ADOBE:
            return None
        place += 2 + length
    return None


def _is_usual(frame: bytes) -> bool:
    """Whether a frame header is of 8 bits and of three components that are numbered and sampled as usual (ITU-T T.81, B.2.2)."""
    if len(frame) != 15 or frame[0] != 8 or frame[5] != 3:
        return False
    names, samplings = frame[6::3], frame[7::3]
    return names == b"\x01\x02\x03" and samplings[0] in _SAMPLINGS and samplings[1:] == b"\x11\x11"


@cache
def is_equal_here() -> bool:
    """Whether torchvision is there, with a JPEG library that gives PIL's pixels: builds differ. Tried once in a process."""
    for content, expected in _trials():
        found = _by_torchvision(content)
        if found is None or not np.array_equal(found, expected):
            return False
    return True


def _trials() -> Iterator[tuple[bytes, NDArray[np.uint8]]]:
    """A file in each sampling, and what PIL makes of it."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (35, 53, 3), dtype=np.uint8))
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        file = io.BytesIO()
        picture.save(file, "JPEG", subsampling=subsampling)
        yield file.getvalue(), np.asarray(Image.open(file))


def _upper_rows(content: bytes, frame: int, data: int, lowest: Lowest) -> NDArray[np.uint8] | None:
    """The image with the rows black that are not needed. None where leaving them out gains nothing, or the data has other markers than one
    at its end: what is cut off or damaged in that way is not passed over."""
    height, width = (int.from_bytes(content[frame + place : frame + place + 2], "big") for place in (1, 3))
    block = 8 * (content[frame + 7] & 15)
    needed = -(-lowest((height, width)) // block)
    rows = (needed + 1) * block  # one block more, which colours at the edge are interpolated with
    if rows >= height or not _has_simplejpeg() or not _is_one_piece(content, data):
        return None
    image = np.empty((height, width, 3), np.uint8)
    if not _decoded_into(image[:rows], content, frame):
        return None
    image[rows:] = 0
    return image


def _decoded_into(upper: NDArray[np.uint8], content: bytes, frame: int) -> bool:
    """Decode the first rows of an image into ``upper``, from a copy whose header says that there are no more: a decoder then passes over
    the data of the others. Gives whether it could. (torchvision's would write a line on what it passes over to standard error.)"""
    from simplejpeg import decode_jpeg  # an extra

    cut = bytearray(content)
    cut[frame + 1 : frame + 3] = len(upper).to_bytes(2, "big")
    try:
        decode_jpeg(cut, buffer=upper)
    except ValueError as told:  # of the last thing that it noticed; where that ends the decoding, PIL says what it is
        return _PASSED_OVER in str(told)
    return True


def _is_one_piece(content: bytes, data: int) -> bool:
    """Whether the coded data is followed by the marker of the end, and has no other one (a byte 255 of its own is followed by 0)."""
    if len(content) < data + len(_END) or not content.endswith(_END):
        return False
    coded = np.frombuffer(content, np.uint8, offset=data)
    marks = np.flatnonzero(coded[:-2] == 0xFF) + 1
    return not coded[marks].any()


@cache
def _has_simplejpeg() -> bool:
    """Whether it is there, and gives PIL's pixels of the first rows. Tried once in a process."""
    try:
        for content, expected in _trials():
            places, upper = _places(content), np.empty((32, *expected.shape[1:]), np.uint8)
            if places is None or not _decoded_into(upper, content, places[0]):
                return False
            if not np.array_equal(upper[:16], expected[:16]):
                return False
    except (ImportError, OSError):
        return False
    return True


def _by_torchvision(content: bytes) -> NDArray[np.uint8] | None:
    """What torchvision makes of a file; None where it cannot."""
    try:
        import torch  # both are slow to load, and this file is on the way to commands that need neither
        from torchvision.io import ImageReadMode, decode_jpeg

        pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except (ImportError, OSError, RuntimeError, AttributeError):  # it is built without, or the file is damaged
        return None
    image: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy()  # it lies so in memory
    return image
