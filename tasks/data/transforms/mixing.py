"""Mixup, cutmix and label smoothing, on whatever device the batch is; drawn from (seed, step), without a host synchronisation."""

import math

import numpy as np
import torch
from torch import Tensor

from effbackbones.images.spec import SILENCE

FAINTEST = 0.25
"""Of two sounds that are mixed and both labelled, the fainter is at least so loud beside the other: 12 dB below."""


def mix(
    images: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    smoothing: float = 0.0,
    multilabel: bool = False,
    seed: int = 0,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Each image of a batch mixed with the one before it, by one share for the batch.

    ``images`` floating point [B, C, H, W] (mixing commutes with normalising); ``targets`` int64 [B] or floating point
    [B, K]. ``mixup`` and ``cutmix`` are the alphas of Beta(alpha, alpha), 0 for neither; with both, each has half of the
    steps. Returns images of the same shape (the given ones where nothing is mixed) and float32 targets [B, K], smoothed
    (:func:`soft_targets`), then mixed like the images: mixup ``share * a + (1 - share) * b`` (Zhang et al. 2017), cutmix
    a box of b in a, ``share`` being the rest of the area (Yun et al. 2019).
    """
    soft = soft_targets(targets, num_classes, smoothing, multilabel=multilabel)
    if not (mixup or cutmix) or len(images) < 2:
        return images, soft
    rng = np.random.default_rng((seed, step))
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(rng.beta(alpha, alpha))
    if cut:
        left, top, right, bottom = cut_box(tuple(images.shape[-2:]), share, rng)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    else:
        mixed = torch.lerp(images.roll(1, 0), images, share)
    return mixed, torch.lerp(soft.roll(1, 0), soft, share)


def mix_waves(
    images: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    mixup: float,
    smoothing: float = 0.0,
    multilabel: bool = False,
    seed: int = 0,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Each recording of a batch together with the one before it, as sounds add up: the louder one as it is, the other one fainter, by one
    share for the batch.

    ``images`` floating point [B, C, 1, W] in 0..1; ``share`` is drawn from Beta(mixup, mixup), and a wave is
    ``(share * a + (1 - share) * b) / max(share, 1 - share)``, clipped. Returns float32 targets [B, K] too: with ``multilabel`` what is
    in either, for both are heard (the fainter one at least by :data:`FAINTEST`); else mixed by the share, as :func:`mix` does.
    """
    soft = soft_targets(targets, num_classes, smoothing, multilabel=multilabel)
    if not mixup or len(images) < 2:
        return images, soft
    share = float(np.random.default_rng((seed, step)).beta(mixup, mixup))
    if multilabel:
        share = min(max(share, FAINTEST / (1 + FAINTEST)), 1 / (1 + FAINTEST))
    waves = images - SILENCE
    mixed = torch.lerp(waves.roll(1, 0), waves, share) / max(share, 1 - share) + SILENCE
    other = soft.roll(1, 0)
    return mixed.clamp(0, 1), torch.maximum(soft, other) if multilabel else torch.lerp(other, soft, share)


def soft_targets(targets: Tensor, num_classes: int, smoothing: float = 0.0, *, multilabel: bool = False) -> Tensor:
    """Class indices int64 [B], or targets floating point [B, K], as float32 [B, K], smoothed.

    ``(1 - smoothing) * target + smoothing / K`` (Szegedy et al. 2015, section 7), as in ``torch.nn.functional.cross_entropy``; of
    sigmoids (``multilabel``, or one class) towards 1/2, as in the loss of the head.
    """
    if num_classes == 1:  # one sigmoid: no or yes, smoothed towards 1/2
        return targets.float().reshape(-1, 1) * (1 - smoothing) + smoothing / 2
    if targets.dim() == 1:
        # Not one_hot, which looks at the values on the host.
        hard = torch.zeros(len(targets), num_classes, device=targets.device).scatter_(1, targets[:, None], 1.0)
    else:
        hard = targets.float()
        hard = hard.masked_fill(hard < 0, math.nan)  # unknown labels (-1) stay so, whatever they are mixed with
    return hard * (1 - smoothing) + smoothing / (2 if multilabel else num_classes) if smoothing else hard


def cut_box(size: tuple[int, ...], share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of cutmix in images of ``size`` (H, W): ``1 - share`` of the area and the image's
    shape, its centre uniform in the image, cut off at the border."""
    height, width = size
    half_h, half_w = (int(side * math.sqrt(1 - share)) // 2 for side in (height, width))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    return max(0, x - half_w), max(0, y - half_h), min(width, x + half_w), min(height, y + half_h)
