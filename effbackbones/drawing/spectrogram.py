"""Recordings for the eye: what is heard when, at what pitch, how loud."""

import numpy as np
from numpy.typing import NDArray

_BANDS, _FRAMES = 128, 400
_WINDOW = 512  # samples of a frame
_NYQUIST = (
    8000.0  # Hz, as which the highest frequency is taken: an image does not say its rate, and mels bend there alike
)
_DECIBELS = 80.0  # from the brightest to the darkest colour
_FAINT = -50.0  # decibels of full scale: what is fainter all through is no bright picture
_COLOURS = np.array(
    [(8, 8, 20), (66, 21, 95), (158, 42, 99), (231, 94, 55), (251, 180, 60), (252, 255, 190)], np.float64
)


def is_recording(image: NDArray[np.generic]) -> bool:
    """Whether an image [H, W, C] is a recording: one row of uint16."""
    return image.ndim == 3 and image.shape[0] == 1 and image.dtype == np.uint16


def spectrogram(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """A recording uint16 [1, T, C], the mean of its channels, as RGB [128, W, 3]: time from left to right, frequencies on the mel scale
    (O'Shaughnessy 1987) from below, 80 decibels from dark to bright. W is 400, of short ones less."""
    wave = image[0].astype(np.float32).mean(1) / 32768 - 1
    frames = max(1, min(_FRAMES, len(wave) // 16))
    starts = np.arange(frames) * len(wave) // frames
    padded = np.pad(wave, (_WINDOW // 2, _WINDOW // 2))
    parts = padded[starts[:, None] + np.arange(_WINDOW)] * np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(parts)) ** 2 * (4 / _WINDOW) ** 2
    top = 2595 * np.log10(1 + _NYQUIST / 700)
    edges = 700 * (10 ** (np.linspace(0, top, _BANDS + 1) / 2595) - 1) / _NYQUIST * (power.shape[1] - 1)
    centres = (edges[1:] + edges[:-1]) / 2
    low = centres.astype(int)
    share = (centres - low)[None]
    bands = power[:, low] * (1 - share) + power[:, np.minimum(low + 1, power.shape[1] - 1)] * share
    loud = 10 * np.log10(bands.T[::-1] + 1e-12)
    shade = ((loud - max(float(loud.max()), _FAINT)) / _DECIBELS + 1).clip(0, 1)
    places = np.linspace(0, 1, len(_COLOURS))
    painted = np.stack([np.interp(shade, places, _COLOURS[:, band]) for band in range(3)], axis=2)
    pixels: NDArray[np.uint8] = painted.round().astype(np.uint8)
    return pixels
