"""The checksums in image files that PIL does not look at: a flipped bit in a PNG would give other pixels without a word."""

import struct
import zlib
from typing import IO

_FIRST = 8
"""Bytes of a PNG's signature; then chunks of length, type, data and CRC (PNG specification, section 5)."""
_PART = 1 << 20


def check_png(file: IO[bytes]) -> None:
    """Raise ``ValueError`` if a chunk of pixels in an open PNG file is not what was written. The place in the file is kept; where
    it ends too early is left to the decoder, which says so."""
    place = file.tell()
    file.seek(_FIRST)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind != b"IDAT":  # PIL checks the others that matter
            file.seek(length + 4, 1)
            continue
        found = zlib.crc32(kind)
        while length and (part := file.read(min(length, _PART))):
            found, length = zlib.crc32(part, found), length - len(part)
        told = file.read(4)
        if not length and len(told) == 4 and found != int.from_bytes(told, "big"):
            raise ValueError("its checksum is wrong: a damaged disk, or transfer, has changed it")
    file.seek(place)
