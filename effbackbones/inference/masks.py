"""Segmentations in pixels of the original images: probabilities are restored, and only then the most probable class is taken, or
those that are probable enough."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
    0.5. Of a head whose classes overlap int32 [H, W]: the set (:mod:`effbackbones.images.classsets`) of those whose probability is
    over the head's threshold, or another that was asked for. ``confidence`` float32 [H, W]: the probability of that class, of a set the
    least that its classes and those it lacks are right by; NaN where the probability of any class is not finite, and where the label
    means nothing. ``probabilities`` float16 [K, H, W] in main memory, where they were to be kept.
    """

    labels: Tensor
    confidence: Tensor
    probabilities: Tensor | None = None


SURE = 0.5
"""Probability over which a class is there that may overlap others, where its head says nothing else."""


def restore_mask(
    scores: Tensor, plan: ResizePlan, *, keep: bool = False, name: str = "image", over: Sequence[float] | None = None
) -> Segmented:
    """The classes of an image from probabilities float [K, H, W] of a window, or of one that is padded beyond it; K = 1: of the
    foreground. ``keep``: whether these are kept too. ``over``: a probability for
    each class; the sets of those whose is higher, in place of one class each.

    Bilinear in float32, antialiased when shrinking, a band of rows at a time. Raises :class:`UserError` that begins with ``name``
    where the network saw a part of the image alone: the rest has no class.
    """
    if not plan.whole:
        what = f"the network saw only a window of {list(plan.size)} pixels of {list(plan.scaled)}"
        raise UserError(name, what, "evaluate segmentation with model.crop_mode letterbox or squash")
    height, width = plan.size
    return _collected(
        plan.original, _restored_bands(scores[:, :height, :width], plan), scores.device, keep=keep, over=over
    )


def mask_of_tiles(
    model: Model,
    image: Tensor,
    tile: Size,
    overlap: int,
    batch_size: int = 1,
    *,
    keep: bool = False,
    over: Sequence[float] | None = None,
) -> Segmented:
    """The classes of an ``image`` [C, H, W] at its own size, by :func:`effbackbones.inference.tiling.predict_tiles`. ``keep`` and
    ``over`` as of :func:`restore_mask`."""
    bands = predict_tiles(model, image, tile=tile, overlap=overlap, batch_size=batch_size)
    height, width = image.shape[1:]
    return _collected((height, width), bands, next(model.parameters()).device, keep=keep, over=over)


def _restored_bands(scores: Tensor, plan: ResizePlan) -> Iterator[tuple[int, Tensor]]:
    """Pairs of a first row and probabilities float32 [K, rows, W] in original pixels."""
    height, width = plan.original
    rows = max(1, _BAND // (len(scores) * width))
    for top in range(0, height, rows):
        yield top, plan.restore_rows(scores, top, min(height, top + rows))


def sure_of(head: Any, threshold: float | None = None) -> tuple[float, ...] | None:
    """Over which probability each class of ``head`` is there: its own ``thresholds``, unless another is asked for; None where a pixel
    has one class, the most probable."""
    if not getattr(head, "multilabel", False):
        return None
    own: tuple[float, ...] = getattr(head, "thresholds", (SURE,) * head.num_classes)
    return own if threshold is None else (threshold,) * head.num_classes


def _collected(
    size: Size,
    bands: Iterable[tuple[int, Tensor]],
    device: torch.device,
    *,
    keep: bool = False,
    over: Sequence[float] | None = None,
) -> Segmented:
    """The classes of an image from bands of its probabilities."""
    labels = torch.empty(size, dtype=torch.uint8 if over is None else torch.int32, device=device)
    confidence = torch.empty(size, dtype=torch.float32, device=device)
    kept: list[Tensor] = []
    for top, band in bands:
        if keep:
            kept.append(band.half().cpu())
        bottom = top + band.shape[1]
        if over is not None:
            classes, best = _sets(band, over), torch.maximum(band, 1 - band).amin(0)
        elif len(band) == 1:
            classes, best = band[0] > 0.5, torch.maximum(band[0], 1 - band[0])
        else:
            best, classes = band.max(0)
        labels[top:bottom] = classes
        confidence[top:bottom] = torch.where(band.sum(0).isfinite(), best, torch.nan)
        del band, best  # before the next one is made
    return Segmented(labels, confidence, torch.cat(kept, 1) if keep else None)


def _sets(band: Tensor, over: Sequence[float]) -> Tensor:
    """The set of the classes whose probability is over theirs, int32 [rows, W]."""
    sets = torch.zeros(band.shape[1:], dtype=torch.int32, device=band.device)
    for label, (plane, least) in enumerate(zip(band, over, strict=True)):
        sets |= (plane > least).int() << label
    return sets
