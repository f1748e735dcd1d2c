"""A quicker decoder for the plainest JPEG files: torchvision's, whose pixels are those of PIL's.

PIL stays the judge. It has read the header and held it against all limits before; only files are taken here that every JPEG library
decodes alike, and what cannot be decoded whole goes back to PIL, which says why. Of data that are damaged and can still be decoded, both
libraries give the same pixels and raise nothing (libjpeg may write a line to standard error).
"""

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BASELINE, _SCAN, _ADOBE = 0xC0, 0xDA, 0xEE
_SEGMENTS = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Markers of tables, comments and applications, each followed by its length (ITU-T T.81, table B.1)."""
_SAMPLINGS = frozenset({0x11, 0x21, 0x22})
"""Of luminance, where colour has 0x11: as many values of it as pixels, half as many, or a quarter."""


def decoded(content: bytes) -> NDArray[np.uint8] | None:
    """Pixels RGB uint8 [H, W, 3] of a JPEG file as it is stored, equal to PIL's; None where PIL is to decode it."""
    return _by_torchvision(content) if is_plain(content) and is_equal_here() else None


def is_plain(content: bytes) -> bool:
    """Whether a file is a baseline JPEG of 8 bits, YCbCr in a usual sampling, one scan and no marker of Adobe's, its header whole."""
    place, framed = 2, False
    while content[place : place + 1] == b"\xff" and len(content) >= place + 10:
        kind, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if kind == _SCAN:
            return framed and content[place + 4] == 3
        if kind == _BASELINE and not framed:
            framed = _is_usual(content[place + 4 : place + 2 + length])
        elif kind not in _SEGMENTS or kind == _ADOBE:
            return False
        place += 2 + length
    return False


def _is_usual(frame: bytes) -> bool:
    """Whether a frame header is of 8 bits and of three components that are numbered and sampled as usual (ITU-T T.81, B.2.2)."""
    if len(frame) != 15 or frame[0] != 8 or frame[5] != 3:
        return False
    names, samplings = frame[6::3], frame[7::3]
    return names == b"\x01\x02\x03" and samplings[0] in _SAMPLINGS and samplings[1:] == b"\x11\x11"


@cache
def is_equal_here() -> bool:
    """Whether torchvision is there, with a JPEG library that gives PIL's pixels: builds differ. Tried once in a process."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (35, 53, 3), dtype=np.uint8))
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        file = io.BytesIO()
        picture.save(file, "JPEG", subsampling=subsampling)
        found = _by_torchvision(file.getvalue())
        if found is None or not np.array_equal(found, np.asarray(Image.open(file))):
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
