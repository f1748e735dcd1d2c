"""Recordings to pixels: sound files as images of one row, read by soundfile (libsndfile).

WAV, FLAC, OGG (Vorbis, Opus), MP3 and AIFF, told by their first bytes, not by their endings. What comes out is uint16
[1, samples, channels]: samples of 16 bits plus 32768, so that silence is :data:`effbackbones.images.spec.SILENCE`. All channels are mixed
to one by their mean, and other rates are resampled by a polyphase filter that keeps what lies above the new half rate out
(``scipy.signal.resample_poly``). libsndfile fills up or shortens truncated files in silence; so what is not whole is looked for here.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels
from effbackbones.images.opening import MAX_PIXELS, ImagePath, opened_file
from effbackbones.images.soundfiles import FORMATS, format_of, truncated
from effbackbones.images.spec import RATES
from effbackbones.pointers import LONGEST, refuse_pointer

SUFFIXES = frozenset([".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"])
"""Endings, in lower case, of the files that are taken for recordings in folders."""
RATE = 32_000
"""Samples a second to which recordings are brought, unless one says otherwise: what taggers of sound are mostly trained with."""
ZERO = 32768
"""The pixel of silence."""
_LATE = 0.05  # seconds by which the end of a part may lie behind that of its recording: tables round
_LOUDEST = 16.0
"""Of waves in -1..1: what a decoder overshoots, or a mix that was not scaled; above it they are taken for whole numbers."""
_ESTIMATED = 2 * 1152
"""Samples, two frames, by which an MP3 file without a table of its frames may be shorter than is computed from its size."""


@dataclass(frozen=True)
class Header:
    """What a sound file says of itself: ``kind`` of file, ``rate``, ``channels``, ``samples`` of each."""

    kind: str
    rate: int
    channels: int
    samples: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples / self.rate


def is_sound_name(name: str) -> bool:
    """Whether a file name ends like a recording."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def read_recording(
    path: ImagePath,
    *,
    rate: int,
    channels: int = 1,
    max_samples: int = MAX_PIXELS,
    part: tuple[float | None, float | None] = (None, None),
) -> Pixels:
    """Pixels uint16 [1, samples, channels] of a sound file, by path or in memory, at ``rate`` samples a second.

    ``channels``: 1, the mean of all that the file has, or as many as it has. ``part``: start and end in seconds, None: from the beginning,
    to the end. Raises :class:`UserError` for what cannot be read whole, holds nothing, values that are not finite, or more than
    ``max_samples``, as it is or at ``rate``, which is looked at before anything is decoded.
    """
    with _opened(path) as (file, about):
        start, stop = bounds(str(path), about, part)
        count = max(stop - start, round((stop - start) * rate / about.rate)) * about.channels
        if count > max_samples:
            what = (
                f"{about.channels} x {stop - start:,} samples at {about.rate:,} a second; allowed are {max_samples:,}"
            )
            raise UserError(str(path), what, "cut it into shorter ones, or raise max_pixels")
        if channels not in (1, about.channels):
            what = f"has {about.channels} channels, asked for are {channels}"
            raise UserError(str(path), what, "set data.options.channels: 1, which takes their mean")
        if start:  # some kinds can be read from their beginning alone
            file.seek(start)
        wave: NDArray[np.float32] = file.read(stop - start, dtype="float32", always_2d=True)
        if len(wave) < stop - start - (_ESTIMATED if about.kind == "MP3" else 0):
            what = f"is truncated: {len(wave):,} of {stop - start:,} samples can be read"
            raise UserError(str(path), what, "replace the file, or take it out of the data")
    return as_pixels(wave, about.rate, rate=rate, channels=channels, name=str(path))


def as_pixels(wave: NDArray[np.float32], given: int, *, rate: int, channels: int, name: str) -> Pixels:
    """A wave float32 [samples, C] in -1..1, of ``given`` samples a second, as pixels at ``rate``: see :func:`read_recording`. What lies
    beyond -1..1 is clipped; what lies so far beyond that other units are meant raises :class:`UserError`, as what is not finite does."""
    if not np.isfinite(wave).all():
        bad = int((~np.isfinite(wave)).sum())
        raise UserError(name, f"{bad:,} of {wave.size:,} samples are not finite", "write the file anew")
    if (most := float(np.abs(wave).max(initial=0))) > _LOUDEST:
        what = f"expected samples in -1..1, got up to {most:,.0f}"
        raise UserError(name, what, "divide by full scale (32768, where they were of 16 bits), or write whole numbers")
    if channels == 1 and wave.shape[1] > 1:
        wave = wave.mean(1, keepdims=True)
    if given != rate:
        wave = resampled(wave, given, rate)
    whole = np.rint(wave * ZERO).clip(-ZERO, ZERO - 1) + ZERO
    pixels: Pixels = whole.astype(np.uint16)[None]
    return pixels


def resampled(wave: NDArray[np.float32], given: int, rate: int) -> NDArray[np.float32]:
    """A wave [samples, C] of ``given`` samples a second at ``rate``: float32 [ceil(samples * rate / given), C]."""
    from scipy.signal import resample_poly  # a third of a second, which pictures need not wait for

    up, down, window = _filter(given, rate)
    found: NDArray[np.float32] = resample_poly(wave, up, down, axis=0, window=window).astype(np.float32, copy=False)
    return found


@lru_cache(16)
def _filter(given: int, rate: int) -> tuple[int, int, NDArray[np.float32]]:
    """By what to multiply and divide, and the low-pass between: resample_poly's own (Kaiser, beta 5), made once for each pair."""
    from scipy.signal import firwin  # as above

    shared = int(np.gcd(given, rate))
    up, down = rate // shared, given // shared
    widest = max(up, down)
    return up, down, firwin(20 * widest + 1, 1 / widest, window=("kaiser", 5.0)).astype(np.float32)


def read_header(path: ImagePath) -> Header:
    """What a sound file says of itself. Raises as :func:`read_recording` does for what is none, or empty."""
    with _opened(path) as (_, about):
        return about


def bounds(where: str, about: Header, part: tuple[float | None, float | None]) -> tuple[int, int]:
    """The first sample of a part, start and end in seconds, and the one behind its last. Raises :class:`UserError` with ``where`` for one
    that the recording does not have."""
    start, end = part[0] or 0.0, about.seconds if part[1] is None else part[1]
    if not 0 <= start < end:
        raise UserError(where, f"a part from {start:g} to {end:g} s is none", "correct its start or its end")
    if end > about.seconds + _LATE:
        what = f"lasts {about.seconds:.3f} s, and a part is to end at {end:g} s"
        raise UserError(where, what, "correct its end (in seconds)")
    first, last = round(start * about.rate), min(about.samples, round(end * about.rate))
    if first >= last:
        raise UserError(where, f"a part from {start:g} to {end:g} s holds no sample", "correct it")
    return first, last


@contextmanager
def _opened(path: ImagePath) -> Iterator[tuple[Any, Header]]:
    """A sound file, open, and its header; whatever is wrong with it, also while it is read inside, raises :class:`UserError`."""
    library = import_soundfile(str(path))
    with opened_file(path, "a recording") as file:
        kind = format_of(file)
        if kind is None:
            file.seek(0)
            refuse_pointer(path, file.read(LONGEST))
            raise _unreadable(path, f"not in one of the formats {', '.join(FORMATS)}" if _size(file) else "it is empty")
        if lacking := truncated(file, kind):
            raise UserError(str(path), lacking, "replace the file, or take it out of the data")
        file.seek(0)
        try:
            with library.SoundFile(_handle(file), closefd=False) as sound:
                about = Header(kind, sound.samplerate, sound.channels, sound.frames)
                _check_header(path, about)
                yield sound, about
        except (library.SoundFileError, RuntimeError, OSError, ValueError, MemoryError) as error:
            told = re.sub(r"^Error opening [^:]*: |^Error : ", "", " ".join(str(error).split()))
            raise _unreadable(path, told[:160]) from error


def _check_header(path: ImagePath, about: Header) -> None:
    if about.samples < 1:
        raise UserError(str(path), "holds no sound: 0 samples", "replace the file, or take it out of the data")
    if not RATES[0] <= about.rate <= RATES[1]:
        what = f"says {about.rate:,} samples a second; expected {RATES[0]:,} to {RATES[1]:,}"
        raise UserError(str(path), what, "correct its header")


def _handle(file: IO[bytes]) -> Any:
    """What libsndfile reads a file by; what has no number is read through a wrapper."""
    try:
        number = file.fileno()
    except OSError:
        return _InMemory(file)
    os.lseek(number, 0, os.SEEK_SET)  # our own file has read ahead
    return number


class _InMemory:
    """A file in memory for libsndfile, which of short ones asks for places before their beginning."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.tell, self._file = file.read, file.tell, file

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except ValueError:
            return -1

    def write(self, data: bytes) -> int:
        raise OSError("not to be written")


def _size(file: IO[bytes]) -> int:
    return file.seek(0, os.SEEK_END)


def _unreadable(path: ImagePath, why: str) -> UserError:
    remedy = "replace the file, or take it out of the data"
    return UserError(str(path), f"cannot be read as a recording: {why}", remedy)


def import_soundfile(name: str) -> Any:
    """The library; where it is missing, a :class:`UserError` that says how to get it for the recording ``name``."""
    try:
        import soundfile  # an extra
    except (ImportError, OSError) as error:  # OSError: without libsndfile
        remedy = "pip install 'effbackbones[sound]'"
        raise UserError(name, f"recordings are read by soundfile, which is not installed ({error})", remedy) from error
    return soundfile
