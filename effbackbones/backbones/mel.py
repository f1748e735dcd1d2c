"""Mel filters, and the numbers that say how a recording becomes a spectrogram.

Scales: HTK's is 2595 log10(1 + f / 700) (O'Shaughnessy, "Speech communication", 1987); Slaney's is linear up to 1000 Hz, 3 mel for
200 Hz, and logarithmic above, 27 mel for a factor of 6.4 (Slaney, "Auditory toolbox", 1998).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError, nearest
from effbackbones.images.spec import LONGEST_WINDOW, RATES

Floats = NDArray[np.float64]
_KNEE, _LINEAR, _LOG = 1000.0, 200.0 / 3, math.log(6.4) / 27
_WORDS = {"mel_scale": ("slaney", "htk"), "mel_norm": ("none", "slaney"), "normalize": ("fixed", "clip", "pcen")}
_LARGEST = {"n_fft": 65536, "hop": 65536, "mels": 1024}


@dataclass(frozen=True)
class MelSpec:
    """How waves become a log-mel spectrogram.

    ``rate``: samples a second. ``n_fft``, ``win`` (None: as ``n_fft``), ``hop``: samples of a Fourier transform, of its Hann window
    (in its middle), and from one to the next. ``mels``: filters between ``f_min`` and ``f_max`` Hz (None: half the rate), on the scale
    ``mel_scale`` (``slaney`` or ``htk``), of peak 1 (``mel_norm`` none) or of equal area (``slaney``: 2 / their width in Hz).
    ``seconds``: length of a window. ``normalize``: ``fixed``, ``clip`` or ``pcen``
    (:mod:`effbackbones.backbones.spectrogram`).

    Raises :class:`UserError`, naming the option, for other values, and for filters so narrow that they lie between two bins.
    """

    rate: int = 32000
    n_fft: int = 1024
    hop: int = 320
    win: int | None = None
    mels: int = 128
    f_min: float = 20.0
    f_max: float | None = None
    mel_scale: Literal["slaney", "htk"] = "slaney"
    mel_norm: Literal["none", "slaney"] = "none"
    seconds: float = 5.0
    normalize: Literal["fixed", "clip", "pcen"] = "fixed"

    def __post_init__(self) -> None:
        for name, allowed in _WORDS.items():
            if (word := getattr(self, name)) not in allowed:
                raise _wrong(name, f"unknown value {str(word)[:60]!r}", nearest(str(word), allowed))
        for name, most in _LARGEST.items():
            _between(name, getattr(self, name), 1, most)
        _between("rate", self.rate, *RATES)
        _between("win", self.window, 1, self.n_fft)
        if not 0 <= self.f_min < self.top <= self.rate / 2:
            what = f"expected 0 <= f_min < f_max <= half the rate, got {self.f_min} and {self.top} at {self.rate}"
            raise _wrong("f_max", what, "correct them")
        if not 1 <= self.samples <= LONGEST_WINDOW:
            what = f"expected a window of 1 to {LONGEST_WINDOW} samples, got {self.seconds} s at {self.rate}"
            raise _wrong("seconds", what, "correct it")
        if empty := int((mel_filters(self).sum(1) == 0).sum()):
            what = f"{empty} of {self.mels} filters lie between two frequencies of n_fft {self.n_fft} at {self.rate}"
            raise _wrong("mels", what, "take fewer, raise n_fft or f_min, or take mel_scale slaney")

    @property
    def window(self) -> int:
        """Samples of the window."""
        return self.n_fft if self.win is None else self.win

    @property
    def top(self) -> float:
        """The highest frequency in Hz."""
        return self.rate / 2 if self.f_max is None else self.f_max

    @property
    def samples(self) -> int:
        """Samples of a window of the network."""
        return round(self.seconds * self.rate) if math.isfinite(self.seconds) else 0


def _wrong(name: str, what: str, remedy: str) -> UserError:
    return UserError(f"backbone_options.{name}", what, remedy)


def _between(name: str, value: Any, least: int, most: int) -> None:
    if not least <= value <= most:
        raise _wrong(name, f"expected {least} to {most}, got {value}", "correct it")


def mel_of(frequency: Floats, scale: str) -> Floats:
    """Hz to mel."""
    if scale == "htk":
        return 2595 * np.log10(1 + frequency / 700)
    above = _KNEE / _LINEAR + np.log(np.maximum(frequency, _KNEE) / _KNEE) / _LOG
    return np.where(frequency < _KNEE, frequency / _LINEAR, above)


def frequency_of(mel: Floats, scale: str) -> Floats:
    """Mel to Hz."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    above = _KNEE * np.exp(_LOG * np.maximum(mel - _KNEE / _LINEAR, 0))
    return np.where(mel < _KNEE / _LINEAR, mel * _LINEAR, above)


def mel_filters(spec: MelSpec) -> Floats:
    """Triangles [mels, n_fft // 2 + 1] over the frequencies of a transform, corners at equal steps of mel."""
    low, high = mel_of(np.array([spec.f_min, spec.top]), spec.mel_scale).tolist()
    corners = frequency_of(np.linspace(low, high, spec.mels + 2), spec.mel_scale)
    bins = np.arange(spec.n_fft // 2 + 1) * (spec.rate / spec.n_fft)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    filters: Floats = np.maximum(0, np.minimum(rising, falling))
    return filters * (2 / (corners[2:] - corners[:-2]))[:, None] if spec.mel_norm == "slaney" else filters
