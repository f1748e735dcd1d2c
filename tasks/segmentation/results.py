"""Segmentations in pixels of the original images: probabilities are restored, and only then the most probable class is taken."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan, Size
from effbackbones.inference.tiling import predict_tiles
from effbackbones.model import Model
from tasks.data.batch import Batch, ImageMeta

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


def restore(batch: Batch, predictions: Tensor, *, keep: bool = False) -> list[Segmented]:
    """One per image of a batch, from probabilities float [B, K, H, W] in pixels of its images; K = 1: of the foreground. ``keep``:
    whether these are kept too.

    Bilinear in float32, antialiased when shrinking, a band of rows at a time. Raises :class:`UserError` for an image that was
    transformed in a way that cannot be undone, and for one of which the network saw a part alone: the rest has no class.
    """
    restored = []
    for row, (scores, meta) in enumerate(zip(predictions.detach(), batch.meta, strict=True)):
        plan = meta.plan or _unchanged(batch, row)
        if not plan.whole:
            what = f"the network saw only a window of {list(plan.size)} pixels of {list(plan.scaled)}"
            raise UserError(
                meta.path or meta.id, what, "evaluate segmentation with model.crop_mode letterbox or squash"
            )
        height, width = plan.size  # where images of several sizes are in a batch, they are padded beyond it
        bands = _restored_bands(scores[:, :height, :width], plan)
        restored.append(_collected(meta.original, bands, scores.device, keep=keep))
    return restored


def predict_tiled(
    model: Model, batch: Batch, tile: Size, overlap: int, batch_size: int = 1, *, keep: bool = False
) -> list[Segmented]:
    """One per image of a batch of images at their own size, padding aside, by :func:`effbackbones.inference.tiling.predict_tiles`.

    An image that was resized, cropped or mirrored raises :class:`UserError`.
    """
    found = []
    device = next(model.parameters()).device
    for row, (image, meta) in enumerate(zip(batch.images, batch.meta, strict=True)):
        plan = meta.plan or _unchanged(batch, row)
        height, width = meta.original
        if (plan.scaled, plan.offset, plan.mirrored) != (meta.original, (0, 0), (False, False)) or not plan.whole:
            what = f"was brought from {[height, width]} to {list(plan.scaled)} pixels; tiles are for images at their own size"
            raise UserError(meta.path or meta.id, what, "leave it as it is")
        bands = predict_tiles(model, image[:, :height, :width], tile=tile, overlap=overlap, batch_size=batch_size)
        found.append(_collected(meta.original, bands, device, keep=keep))
    return found


def _unchanged(batch: Batch, row: int) -> ResizePlan:
    """The plan of an image that came without one, and has its original size."""
    meta: ImageMeta = batch.meta[row]
    valid = batch.sizes.valid[row].tolist()
    if valid != list(meta.original):
        what = f"is {valid} pixels large and was {list(meta.original)}, and nothing says how to go back"
        raise UserError(meta.path or meta.id, what, "an evaluation transform must set Sample.plan")
    return ResizePlan.squash(meta.original, meta.original)


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
