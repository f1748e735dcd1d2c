"""What kind of sound file one is by its first bytes, and whether it ends where it says that it does."""

import os
import struct
from typing import IO

FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF")
_UNKNOWN = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)
"""Lengths that programs write which could not know it, because they wrote into a pipe."""
_TAIL = 66_000  # more than the longest page of Ogg


def format_of(file: IO[bytes]) -> str | None:
    """One of :data:`FORMATS`, or None."""
    file.seek(0)
    head = file.read(12)
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[:4] == b"fLaC":
        return "FLAC"
    if head[:4] == b"OggS":
        return "OGG"
    if head[:3] == b"ID3":  # stands before MP3, and before some FLAC
        size = 0
        for byte in head[6:10]:  # of seven bits each
            size = size << 7 | byte & 0x7F
        file.seek(10 + size)
        return "FLAC" if file.read(4) == b"fLaC" else "MP3"
    # A frame of MPEG audio: eleven ones, a version and a layer that there are, a bit rate and a rate.
    if len(head) > 3 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x18 != 0x08 and head[1] & 0x06:
        return "MP3" if head[2] & 0xF0 != 0xF0 and head[2] & 0x0C != 0x0C else None
    return None


def truncated(file: IO[bytes], kind: str) -> str:
    """What a file lacks at its end, or has behind it, in words, where libsndfile would take it for a shorter one; empty where nothing is
    seen to be missing. (Of FLAC and MP3 the samples that come are counted against those that the header says.)"""
    size = file.seek(0, os.SEEK_END)
    if kind in ("WAV", "AIFF"):
        return _chunk_cut(file, kind, size)
    return _page_cut(file, size) if kind == "OGG" else ""


def _chunk_cut(file: IO[bytes], kind: str, size: int) -> str:
    """Of a file of chunks: whether that of the samples is longer than what is left."""
    file.seek(0)
    order = "<" if file.read(4) in (b"RIFF", b"RF64") else ">"
    place, wanted, long = 12, b"data" if kind == "WAV" else b"SSND", 0
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        place += 8
        if name == b"ds64":  # of RF64, whose chunks may be longer than 32 bits say
            long = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        if name == wanted:
            left, length = size - place, long or length
            if length > left and length not in _UNKNOWN:
                return f"is truncated: the header announces {length:,} bytes of sound, {left:,} are there"
            return ""
        place += length + length % 2
    return ""  # no such chunk, of which libsndfile speaks


def _page_cut(file: IO[bytes], size: int) -> str:
    """Of Ogg: whether the last page is whole, and says that it is the last, of the stream with which the file begins: of several behind
    each other the first alone would be read."""
    file.seek(0)
    first = file.read(18)
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    place = tail.rfind(b"OggS")
    head = tail[place : place + 27]
    if place < 0 or len(head) < 27:
        return "is truncated: its last page is cut off"
    lengths = tail[place + 27 : place + 27 + head[26]]
    if place + 27 + head[26] + sum(lengths) > len(tail):
        return "is truncated: its last page is cut off"
    if head[14:18] != first[14:18]:  # the number of the stream
        return "holds several streams, of which one alone would be read"
    return "" if head[5] & 4 else "is truncated: its last page is missing"
