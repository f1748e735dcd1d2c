"""What may be done to the windows of recordings in training: transforms of the list ``data.augment``.

Each is done with probability ``p``. Ranges are [low, high], or one number for exactly that. Loudness is in decibels.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels
from effbackbones.images.recordings import RATE, ZERO, is_sound_name, read_header, read_recording, resampled
from tasks.data.files.listing import files_below
from tasks.data.sample import Sample

Range = float | Sequence[float]
Wave = NDArray[np.float32]
_TAIL = 4096  # samples in which what an equaliser adds before and after a sound has died away
_STEPS = 20  # of which the speed as it is has so many: few filters, each made once


class _OfSound:
    """With probability ``p`` another wave float32 [samples, C], in -1..1, in place of that of a sample."""

    def __init__(self, p: float) -> None:
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
            raise ValueError(f"p: expected a number in [0, 1], got {p!r}")
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample, perhaps changed."""
        image = sample.image
        if image.dtype != np.uint16 or image.shape[0] != 1:
            what = f"{type(self).__name__} is for recordings, and {sample.path or sample.id} is a picture"
            raise UserError("data.augment", what, "remove it")
        if rng.random() >= self.p:
            return sample
        wave = self.changed((image[0].astype(np.float32) - ZERO) / ZERO, rng)
        return replace(sample, image=_pixels(wave))

    def changed(self, wave: Wave, rng: np.random.Generator) -> Wave:
        """Another wave of the same shape."""
        raise NotImplementedError


class Equalizer(_OfSound):
    """Some frequencies louder and others softer, as of another microphone and room: gains of up to so many ``decibels`` are drawn for
    ``bands`` octaves below half the rate, and go over into each other evenly. Nothing moves in time (zero phase)."""

    def __init__(self, decibels: Range = (-10, 10), bands: int = 6, p: float = 0.5) -> None:
        super().__init__(p)
        self.decibels = _range("decibels", decibels)
        if isinstance(bands, bool) or not isinstance(bands, int) or not 2 <= bands <= 16:
            raise ValueError(f"bands: expected a whole number from 2 to 16, got {bands!r}")
        self.bands = bands

    def changed(self, wave: Wave, rng: np.random.Generator) -> Wave:
        gains = rng.uniform(*self.decibels, self.bands)
        count = len(wave) + min(len(wave), _TAIL)  # silence, into which the ends may ring
        octaves = np.log2(np.linspace(0, 1, count // 2 + 1).clip(2.0**-self.bands))
        response = 10 ** (np.interp(octaves, np.arange(1 - self.bands, 1), gains) / 20)
        spectrum = np.fft.rfft(wave, count, axis=0) * response[:, None].astype(np.float32)
        return np.fft.irfft(spectrum, count, axis=0)[: len(wave)].astype(np.float32)


class Gain(_OfSound):
    """Louder or softer by so many ``decibels``. What goes beyond full scale is clipped."""

    def __init__(self, decibels: Range = (-10, 6), p: float = 0.5) -> None:
        super().__init__(p)
        self.decibels = _range("decibels", decibels)

    def changed(self, wave: Wave, rng: np.random.Generator) -> Wave:
        return wave * np.float32(_ratio(rng.uniform(*self.decibels)))


class Polarity(_OfSound):
    """The wave upside down, which sounds the same."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def changed(self, wave: Wave, rng: np.random.Generator) -> Wave:
        return -wave


class Speed(_OfSound):
    """Faster by a ``factor``, or slower below 1, which is higher or lower too, as of another voice (Ko et al., "Audio augmentation for
    speech recognition", 2015); in steps of a twentieth. Of what is longer then a random part stays, beside what is shorter is silence."""

    def __init__(self, factor: Range = (0.85, 1.2), p: float = 0.5) -> None:
        super().__init__(p)
        self.factor = _range("factor", factor, "a factor")
        if not 0.25 <= self.factor[0] <= self.factor[1] <= 4:
            raise ValueError(f"factor: expected 0.25 to 4, got {factor!r}")

    def changed(self, wave: Wave, rng: np.random.Generator) -> Wave:
        steps = round(rng.uniform(*self.factor) * _STEPS)
        if steps == _STEPS:
            return wave
        moved, length = resampled(wave, steps, _STEPS), len(wave)
        if len(moved) >= length:
            start = int(rng.integers(len(moved) - length + 1))
            return moved[start : start + length]
        start = int(rng.integers(length - len(moved) + 1))
        placed = np.zeros_like(wave)
        placed[start : start + len(moved)] = moved
        return placed


class TimeShift(_OfSound):
    """Earlier or later by up to this ``share`` of the window; silence comes in, or with ``around`` what leaves at the other end."""

    def __init__(self, share: float = 0.1, around: bool = False, p: float = 0.5) -> None:
        super().__init__(p)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"share: expected a number in (0, 1], got {share!r}")
        if not isinstance(around, bool):
            raise ValueError(f"around: expected true or false, got {around!r}")
        self.share, self.around = share, around

    def changed(self, wave: Wave, rng: np.random.Generator) -> Wave:
        most = int(self.share * len(wave))
        by = int(rng.integers(-most, most + 1))
        moved = np.roll(wave, by, axis=0)
        if not self.around:
            moved[slice(0, by) if by >= 0 else slice(by, None)] = 0
        return moved


class WhiteNoise(_OfSound):
    """Noise of all frequencies, ``snr`` decibels below the sound of the window. A silent one stays so."""

    def __init__(self, snr: Range = (5, 40), p: float = 0.5) -> None:
        super().__init__(p)
        self.snr = _range("snr", snr)

    def changed(self, wave: Wave, rng: np.random.Generator) -> Wave:
        return _over(wave, rng.standard_normal(wave.shape, np.float32), rng.uniform(*self.snr))


class BackgroundNoise(_OfSound):
    """A random part of a random recording below ``folder``, ``snr`` decibels below the sound of the window; a shorter one is repeated.
    ``rate``: that of the windows, which the model says."""

    def __init__(self, folder: str, snr: Range = (3, 30), p: float = 0.5, rate: int = RATE) -> None:
        super().__init__(p)
        self.snr, self.rate, place = _range("snr", snr), rate, Path(folder).expanduser()
        if not place.is_dir():
            raise ValueError(f"there is no folder {place}")
        self.files = [str(place / name) for name in files_below(place, is_sound_name)]
        if not self.files:
            raise ValueError(f"there is no recording in {place}")

    def changed(self, wave: Wave, rng: np.random.Generator) -> Wave:
        path = self.files[int(rng.integers(len(self.files)))]
        about, seconds = read_header(path), len(wave) / self.rate
        start = rng.uniform(0, about.seconds - seconds) if about.seconds > seconds else 0.0
        end = min(about.seconds, start + seconds + 1 / self.rate)
        noise = read_recording(path, rate=self.rate, part=(start, end))[0]
        noise = noise[np.arange(len(wave)) % len(noise)]
        return _over(wave, (noise.astype(np.float32) - ZERO) / ZERO, rng.uniform(*self.snr))


def _over(wave: Wave, noise: Wave, snr: float) -> Wave:
    """``wave`` with ``noise``, ``snr`` decibels below it in power."""
    loud, faint = (math.sqrt(float(np.square(one, dtype=np.float64).mean())) for one in (wave, noise))
    return wave if not loud or not faint else wave + noise * np.float32(loud / faint * _ratio(-snr))


def _ratio(decibels: float) -> float:
    """Of amplitudes."""
    return float(10 ** (decibels / 20))


def _range(name: str, given: Range, unit: str = "decibels") -> tuple[float, float]:
    values = tuple(given) if isinstance(given, list | tuple) else (given, given)
    plain = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in values)
    if len(values) != 2 or not plain or values[0] > values[1]:
        raise ValueError(f"{name}: expected [low, high], {unit}, got {given!r}")
    return float(values[0]), float(values[1])


def _pixels(wave: Wave) -> Pixels:
    pixels: Pixels = (np.rint(wave * ZERO).clip(-ZERO, ZERO - 1) + ZERO).astype(np.uint16)[None]
    return pixels
