"""Segmentations in pixels of the original images: probabilities are restored, and only then the most probable class is taken."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan, Size
from effbackbones.inference.tiling import predict_tiles
from effbackbones.model import Model

_BAND = 2**21
"""So many probabilities are restored at once: what a processor's cache holds, and little beside the memory of a network."""


@dataclass(frozen=True)
class Segmented:
    """What was found in one image, in original pixels, on the device of the prediction.

    ``labels`` uint8 [H, W]: the most probable class, the lower of equals; binary: 1 where the foreground's probability is over
    0.5. ``confidence`` float32 [H, W]: the probability of that class; NaN where the probability of any class is not finite, and
    where the label means nothing. ``probabilities`` float16 [K, H, W] in main memory, where they were to be kept.
    """

    labels: Tensor
    confidence: Tensor
    probabilities: Tensor | None = None


def restore_mask(scores: Tensor, plan: ResizePlan, *, keep: bool = False, name: str = "image") -> Segmented:
    """The classes of an image from probabilities float [K, H, W] of a window, or of one that is padded beyond it; K = 1: of the
    foreground. ``keep``: whether these are kept too.

    Bilinear in float32, antialiased when shrinking, a band of rows at a time. Raises :class:`UserError` that begins with ``name``
    where the network saw a part of the image alone: the rest has no class.
    """
    if not plan.whole:
        what = f"the network saw only a window of {list(plan.size)} pixels of {list(plan.scaled)}"
        raise UserError(name, what, "evaluate segmentation with model.crop_mode letterbox or squash")
    height, width = plan.size
    return _collected(plan.original, _restored_bands(scores[:, :height, :width], plan), scores.device, keep=keep)


def mask_of_tiles(
    model: Model, image: Tensor, tile: Size, overlap: int, batch_size: int = 1, *, keep: bool = False
) -> Segmented:
    """The classes of an ``image`` [C, H, W] at its own size, by :func:`effbackbones.inference.tiling.predict_tiles`."""
    bands = predict_tiles(model, image, tile=tile, overlap=overlap, batch_size=batch_size)
    height, width = image.shape[1:]
    return _collected((height, width), bands, next(model.parameters()).device, keep=keep)


def _restored_bands(scores: Tensor, plan: ResizePlan) -> Iterator[tuple[int, Tensor]]:
    """Pairs of a first row and probabilities float32 [K, rows, W] in original pixels."""
    height, width = plan.original
    rows = max(1, _BAND // (len(scores) * width))
    for top in range(0, height, rows):
        yield top, plan.restore_rows(scores, top, min(height, top + rows))


def _collected(
    size: Size, bands: Iterable[tuple[int, Tensor]], device: torch.device, *, keep: bool = False
) -> Segmented:
    """The classes of an image from bands of its probabilities."""
    labels = torch.empty(size, dtype=torch.uint8, device=device)
    confidence = torch.empty(size, dtype=torch.float32, device=device)
    kept: list[Tensor] = []
    for top, band in bands:
        if keep:
            kept.append(band.half().cpu())
        bottom = top + band.shape[1]
        if len(band) == 1:
            classes, best = band[0] > 0.5, torch.maximum(band[0], 1 - band[0])
        else:
            best, classes = band.max(0)
        labels[top:bottom] = classes
        confidence[top:bottom] = torch.where(band.sum(0).isfinite(), best, torch.nan)
        del band, best  # before the next one is made
    return Segmented(labels, confidence, torch.cat(kept, 1) if keep else None)
