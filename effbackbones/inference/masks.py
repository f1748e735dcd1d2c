"""Segmentations in pixels of the original images: probabilities are restored, and only then the most probable class is taken, or
those that are probable enough."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

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
    means nothing. ``probabilities`` float16 [K, H, W] in main memory, where they were to be kept. ``samples`` float16 [K, h, w], of sets:
    the probabilities of every :attr:`step`-th row and column, for whoever looks for thresholds.
    """

    labels: Tensor
    confidence: Tensor
    probabilities: Tensor | None = None
    samples: Tensor | None = None

    @property
    def step(self) -> int:
        """How far apart :attr:`samples` are, so that an image has about :data:`SAMPLED` of them."""
        height, width = self.labels.shape
        return max(1, math.isqrt(height * width // SAMPLED))


SAMPLED = 2**16


def restore_mask(
    scores: Tensor, plan: ResizePlan, *, keep: bool = False, name: str = "image", over: Sequence[float] | None = None
) -> Segmented:
    """The classes of an image from probabilities float [K, H, W] of a window, or of one that is padded beyond it; K = 1: of the
    foreground. ``keep``: whether these are kept too. ``over``: a probability for
    each class; the sets of those whose is higher, in place of one class each.

    Bilinear in float32, antialiased when shrinking, a band of rows at a time. Raises :class:`UserError` that begins with ``name``
    where the network saw a part of the image alone: the rest has no class.
    """
    return mask_of_views([(scores, plan)], keep=keep, name=name, over=over)


def mask_of_views(
    views: Sequence[tuple[Tensor, ResizePlan]],
    *,
    keep: bool = False,
    name: str = "image",
    over: Sequence[float] | None = None,
) -> Segmented:
    """The same of several looks at one image, probabilities and plan of each: of the mean of their probabilities in original pixels."""
    cut = []
    for scores, plan in views:
        if not plan.whole:
            what = f"the network saw only a window of {list(plan.size)} pixels of {list(plan.scaled)}"
            raise UserError(name, what, "evaluate segmentation with model.crop_mode letterbox or squash")
        height, width = plan.size
        cut.append((scores[:, :height, :width], plan))
    scores, plan = cut[0]
    return _collected(plan.original, _restored_bands(cut), scores.device, keep=keep, over=over)


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
    height, width = image.shape[1:]
    plan = ResizePlan.squash((height, width), (height, width))
    return mask_of_tiled_views(model, [(image, plan)], tile, overlap, batch_size, keep=keep, over=over)


def mask_of_tiled_views(
    model: Model,
    views: Sequence[tuple[Tensor, ResizePlan]],
    tile: Size,
    overlap: int,
    batch_size: int = 1,
    *,
    keep: bool = False,
    over: Sequence[float] | None = None,
) -> Segmented:
    """The same of several looks at one image, each an image [C, h, w] and its plan: of the mean of their probabilities. Of those at other
    sizes than the image's all probabilities are held, in float16; the others come and go in bands."""
    streams, held = [], []
    for image, plan in views:
        bands = predict_tiles(model, image, tile=tile, overlap=overlap, batch_size=batch_size)
        if plan.scaled == plan.original:
            streams.append((bands, plan))
        else:
            held.append((torch.cat([band.half() for _, band in bands], 1), plan))
    original, device = views[0][1].original, next(model.parameters()).device
    return _collected(original, _averaged_bands(streams, held), device, keep=keep, over=over)


def _averaged_bands(
    streams: Sequence[tuple[Iterator[tuple[int, Tensor]], ResizePlan]], held: Sequence[tuple[Tensor, ResizePlan]]
) -> Iterator[tuple[int, Tensor]]:
    """Means of the bands of ``streams``, at least one, which all begin in the same rows, and of what is ``held``."""
    if len(streams) + len(held) == 1:
        yield from streams[0][0]
        return
    plans = [plan for _, plan in streams]
    for found in zip(*(bands for bands, _ in streams), strict=True):
        top, rows = found[0][0], found[0][1].shape[1]
        total = sum(band.flip(-1) if plan.mirrored[1] else band for (_, band), plan in zip(found, plans, strict=True))
        for scores, plan in held:
            total = total + plan.restore_rows(scores, top, top + rows)
        yield top, total / (len(streams) + len(held))


def _restored_bands(views: Sequence[tuple[Tensor, ResizePlan]]) -> Iterator[tuple[int, Tensor]]:
    """Pairs of a first row and probabilities float32 [K, rows, W] in original pixels, the mean of those of all views."""
    scores, plan = views[0]
    height, width = plan.original
    rows = max(1, _BAND // (len(scores) * width))
    for top in range(0, height, rows):
        yield top, _mean_rows(views, top, min(height, top + rows))  # whoever takes them holds the only reference


def _mean_rows(views: Sequence[tuple[Tensor, ResizePlan]], top: int, bottom: int) -> Tensor:
    scores, plan = views[0]
    total = plan.restore_rows(scores, top, bottom)
    for others, way in views[1:]:
        total = total + way.restore_rows(others, top, bottom)
    return total if len(views) == 1 else total / len(views)


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
    sampled: list[Tensor] = []
    found = Segmented(labels, confidence)
    for top, band in bands:
        if keep:
            kept.append(band.half().cpu())
        bottom = top + band.shape[1]
        if over is not None:
            sampled.append(band[:, -top % found.step :: found.step, :: found.step].half())
            classes, best = _sets(band, over), torch.maximum(band, 1 - band).amin(0)
        elif len(band) == 1:
            classes, best = band[0] > 0.5, torch.maximum(band[0], 1 - band[0])
        else:
            best, classes = band.max(0)
        labels[top:bottom] = classes
        confidence[top:bottom] = torch.where(band.sum(0).isfinite(), best, torch.nan)
        del band, best  # before the next one is made
    return replace(
        found,
        probabilities=torch.cat(kept, 1) if keep else None,
        samples=torch.cat(sampled, 1) if sampled else None,
    )


def _sets(band: Tensor, over: Sequence[float]) -> Tensor:
    """The set of the classes whose probability is over theirs, int32 [rows, W]."""
    sets = torch.zeros(band.shape[1:], dtype=torch.int32, device=band.device)
    for label, (plane, least) in enumerate(zip(band, over, strict=True)):
        sets |= (plane > least).int() << label
    return sets
