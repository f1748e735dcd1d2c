"""Waves to the picture that a network of pictures sees: a log-mel spectrogram, on the device, in float32 whatever the weights are.

A frame is centred on every ``hop``-th sample, the first on the first; what lies outside of the recording is silence. So a recording of
T samples has ceil(T / hop) frames: what a convolution of that stride would give, and one less than other libraries where hop divides T.
"""

import math
from collections.abc import Callable
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones.mel import MelSpec, mel_filters
from effbackbones.export.operators import for_onnx

FLOOR = 1e-10
"""Least power: -100 dB. What is below is taken for it."""
LEVEL, SPREAD = -50.0, 20.0
"""Of the normalisation ``fixed``, in dB: spoken digits recorded at hand lie at -48 with a deviation of 17, whatever n_fft and mels."""
PCEN = {"smoothing": 0.025, "gain": 0.98, "bias": 2.0, "root": 0.5, "eps": 1e-6}
"""Wang et al., "Trainable frontend for robust and far-field keyword spotting", 2017, section 3: s, alpha, delta, r, epsilon."""
_PCEN_SCALE = 2.0**31
"""Their constants are for samples that are whole numbers of 32 bits, not -1..1."""
PCEN_LEVEL, PCEN_SPREAD = 0.7, 0.75
"""What is taken from PCEN, and by what it is divided then: mean and deviation of the same recordings."""


class Spectrogram(nn.Module):
    """Waves [B, T] in -1..1, T from 1 up, to spectrograms float32 [B, mels, ceil(T / hop)] of about mean 0 and deviation 1.

    ``fixed``: (dB - reference - LEVEL) / SPREAD, where the reference of a filter is what white noise of root mean square 1 (full scale)
    gives in it: so levels do not depend on n_fft, window, scale and norm. ``clip``: by mean and deviation of each spectrogram. ``pcen``:
    per-channel energy normalisation instead of dB, with the published constants (:data:`PCEN`).

    Nothing of it is trained, and no part of it in a state dict.
    """

    window: Tensor
    filters: Tensor
    reference: Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        for name, value in self._constants().items():
            self.register_buffer(name, value.to(torch.get_default_device()), persistent=False)

    def _constants(self) -> dict[str, Tensor]:
        window, filters = hann(self.spec.window), mel_filters(self.spec)
        reference = 10 * np.log10(np.square(window).sum() * filters.sum(1))
        found = {"window": window, "filters": filters, "reference": reference[:, None]}
        return {name: torch.from_numpy(value.astype(np.float32)) for name, value in found.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved to other devices; never to another dtype, in which a window of eight bits would hide what is quiet."""
        moved = cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call] # untyped in torch
        for name, value in self._constants().items():
            moved.register_buffer(name, value.to(getattr(moved, name).device), persistent=False)
        return moved

    def forward(self, waves: Tensor) -> Tensor:
        device = waves.device.type
        if device != "meta" and torch.is_autocast_enabled(device):  # without values there is no precision
            with torch.autocast(device, enabled=False):
                return self._normalized(self.power(waves.float()))
        return self._normalized(self.power(waves.float()))

    def power(self, waves: Tensor) -> Tensor:
        """Power of each filter [B, mels, ceil(T / hop)]."""
        spec = self.spec
        left = spec.n_fft // 2
        padded = F.pad(waves, (left, spec.n_fft - left - 1))
        if for_onnx():  # whose transform onnxruntime has, and OpenVINO takes no complex numbers
            real, imaginary = self._transformed(padded, waves.shape[-1])
            squares = real.square() + imaginary.square()
        else:
            found = torch.stft(
                padded, spec.n_fft, spec.hop, spec.window, self.window, center=False, return_complex=True
            )
            squares = torch.view_as_real(found).square().sum(-1)
        return self.filters @ squares

    def _transformed(self, padded: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The same by a product with a matrix: real and imaginary part [B, bins, frames]."""
        spec = self.spec
        count, pieces = (length - 1) // spec.hop + 1, -(-spec.n_fft // spec.hop)
        rows = F.pad(padded, (0, (count + pieces) * spec.hop - padded.shape[-1]))
        blocks = rows.reshape(rows.shape[0], count + pieces, spec.hop)
        frames = torch.cat([blocks[:, k : k + count] for k in range(pieces)], 2)[..., : spec.n_fft]
        real, imaginary = (torch.from_numpy(part) for part in basis(spec))
        return (frames @ real).transpose(1, 2), (frames @ imaginary).transpose(1, 2)

    def _normalized(self, power: Tensor) -> Tensor:
        if self.spec.normalize == "pcen":
            return (pcen(power.sqrt() * _PCEN_SCALE) - PCEN_LEVEL) / PCEN_SPREAD
        levels = decibels(power)
        if self.spec.normalize == "clip":
            deviation, mean = torch.std_mean(levels, (1, 2), correction=0, keepdim=True)
            return (levels - mean) / (deviation + 1e-5)
        return (levels - (self.reference + LEVEL)) / SPREAD


def decibels(power: Tensor) -> Tensor:
    """10 log10 of power, of :data:`FLOOR` at least."""
    return 10 * power.clamp(min=FLOOR).log10()


def pcen(energy: Tensor) -> Tensor:
    """Per-channel energy normalisation of energies [B, mels, frames], by the constants :data:`PCEN`: (E / (eps + M)^gain + bias)^root -
    bias^root, where M is E smoothed over time, M[t] = (1 - s) M[t - 1] + s E[t], as if before the first frame there were more of it."""
    s, frames = PCEN["smoothing"], energy.shape[-1]
    time = torch.arange(frames, device=energy.device)
    ago = time[:, None] - time  # [to, from]
    weights = torch.where(ago >= 0, s * torch.exp(math.log1p(-s) * ago.clamp(min=0)), 0.0)
    first = torch.exp(math.log1p(-s) * (time + 1))
    smooth = energy @ weights.t() + energy[..., :1] * first
    gained = energy * (PCEN["eps"] + smooth).pow(-PCEN["gain"])
    made: Tensor = (gained + PCEN["bias"]).pow(PCEN["root"]) - PCEN["bias"] ** PCEN["root"]
    return made


def hann(length: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The periodic Hann window."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def basis(spec: MelSpec) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]]]:
    """Cosines and sines [n_fft, n_fft // 2 + 1] under the window: frames times these are their transforms."""
    left = (spec.n_fft - spec.window) // 2
    window = np.pad(hann(spec.window), (left, spec.n_fft - spec.window - left))
    turns = np.outer(np.arange(spec.n_fft), np.arange(spec.n_fft // 2 + 1)) % spec.n_fft
    angles = turns * (2 * np.pi / spec.n_fft)
    return (window[:, None] * np.cos(angles)).astype(np.float32), (-window[:, None] * np.sin(angles)).astype(np.float32)
