"""Four images set together as one, with their boxes and masks (Bochkovskiy et al., "YOLOv4", 2020, section 3.3)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images.classsets import ignored_in
from effbackbones.images.geometry import Mask, Size
from tasks.data.sample import Sample, crowd_of, labels_of
from tasks.data.transforms.views import JitterRange, jittered, through

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec

PARTNERS = 3
"""Images in a mosaic beside the one that is due."""
_MARGIN = 0.25  # the common corner lies in the middle half of the canvas, so that no tile is a strip

Tile = tuple[slice, slice]
"""Rows and columns of the canvas."""


def mosaic(
    samples: Sequence[Sample],
    canvas: Size,
    jitter: JitterRange,
    spec: "ImageSpec",
    rng: np.random.Generator,
    *,
    quick: bool = False,
) -> Sample:
    """Four samples around a random point of ``canvas`` (H, W), each jittered and mirrored on its own.

    An image is as large as it would be alone on the canvas (``quick`` as of ``apply_image``). Larger than its tile, a random part of it is
    seen; smaller, it is pushed to the common corner. Id and path are the first one's; ``labels`` are those of any, and there is no one
    ``label``. Samples that differ in dtype, number of channels or the kinds of labels raise :class:`UserError`.
    """
    first = samples[0]
    image = np.empty((*canvas, first.image.shape[2]), first.image.dtype)
    mask: Mask | None = None if first.mask is None else np.full(canvas, ignored_in(first.mask), first.mask.dtype)
    parts = []
    for sample, tile in zip(samples, _tiles(canvas, rng), strict=True):
        _check_alike(sample, first)
        part = _in_tile(sample, tile, canvas, jitter, spec, rng, quick)
        image[tile] = part.image
        if mask is not None and part.mask is not None:
            mask[tile] = part.mask
        parts.append(part)
    labels = (
        None
        if first.labels is None
        else np.maximum.reduce([sample.labels for sample in samples if sample.labels is not None])
    )
    whole = replace(first, image=image, mask=mask, label=None, labels=labels, plan=None, original=first.image.shape[:2])
    boxes = [part.boxes for part in parts if part.boxes is not None]
    if not boxes:
        return whole
    box_labels, crowd = (np.concatenate([of(part) for part in parts]) for of in (labels_of, crowd_of))
    return replace(whole, boxes=np.concatenate(boxes), box_labels=box_labels, crowd=crowd)


def _tiles(canvas: Size, rng: np.random.Generator) -> list[Tile]:
    """The four parts of the canvas around a random point of its middle."""
    halves = []
    for side, share in zip(canvas, rng.random(2).tolist(), strict=True):
        cut = round(side * (_MARGIN + (1 - 2 * _MARGIN) * share))
        halves.append((slice(0, cut), slice(cut, side)))
    return [(rows, columns) for rows in halves[0] for columns in halves[1]]


def _in_tile(
    sample: Sample,
    tile: Tile,
    canvas: Size,
    jitter: JitterRange,
    spec: "ImageSpec",
    rng: np.random.Generator,
    quick: bool,
) -> Sample:
    """A sample as its tile shows it: image and mask of the tile's size, boxes in pixels of the canvas."""
    rows, columns = tile
    height, width = sample.image.shape[:2]
    window = (rows.stop - rows.start, columns.stop - columns.start)
    at_end = (rows.start == 0, columns.start == 0)
    plan = jittered((height, width), canvas, window, jitter.draw(rng, sample.mirrored), at_end)
    part = through(sample, plan, spec, exact=False, quick=quick)
    if part.boxes is None:
        return part
    return replace(part, boxes=part.boxes + np.array([columns.start, rows.start] * 2, np.float32))


def _check_alike(sample: Sample, first: Sample) -> None:
    if _kind(sample) != _kind(first):
        text = f"is {_kind(sample)}, {first.path or first.id} is {_kind(first)}: they cannot stand in one mosaic"
        raise UserError(sample.path or sample.id, text, "make all samples alike, or set data.mosaic to 0")


def _kind(sample: Sample) -> str:
    """What two samples must have in common, in words."""
    labels = [name for name in ("labels", "boxes", "mask") if getattr(sample, name) is not None]
    return f"{sample.image.dtype} with {sample.image.shape[2]} channels and {', '.join(labels) or 'no labels'}"
