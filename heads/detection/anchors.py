"""Anchors: the grid, boxes written relative to them, and which ground truth each of them is to predict.

Pure functions on tensors. Boxes are xyxy in pixels; deltas are (ty, tx, th, tw). Sources: Lin et al., "Focal loss for dense
object detection", 2017, section 4; constants and order as released (effdet ``anchors.py``, ``object_detection/``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_EPSILON = 1e-7  # added to sides before they divide or a logarithm is taken (effdet ``box_coder.py``)
POSITIVE_IOU = 0.5
"""An anchor that overlaps a box this much is to predict it; there is no band of anchors left out below."""
_MOST_PAIRS = 2**28  # boxes times anchors whose overlaps are held at once: 1 GB each
CROWD_SHARE = 0.5
"""An anchor that lies in a crowd with more than this share of its area says nothing about the background."""


def anchor_shapes(
    anchor_scale: float, num_scales: int, aspect_ratios: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """(width, height) of the anchors of a cell, in strides: octave by octave, in an octave aspect by aspect."""
    sides = [anchor_scale * 2 ** (octave / num_scales) for octave in range(num_scales)]
    return [(side * x, side * y) for side in sides for x, y in aspect_ratios]


def anchor_grid(image: tuple[int, int], maps: Sequence[Sequence[int]], shapes: Tensor) -> Tensor:
    """Anchors float32 [A, 4] of an image of (H, W) pixels whose levels have ``maps`` (h, w) cells, finest first.

    ``shapes``: float [S, 2], (width, height) in strides, on the device where the anchors are wanted and of the precision to
    compute in: beyond 1,000 pixels float32 is 1e-4 off. A stride is H / h by W / w, which need be no whole number; anchors
    sit in the middle of their cell and may reach out of the image. Level by level, row by row, cell by cell, S to each.
    """
    levels = []
    for height, width in maps:
        ys, xs = (
            (torch.arange(cells, dtype=shapes.dtype, device=shapes.device) + 0.5) * side / cells
            for cells, side in ((height, image[0]), (width, image[1]))
        )
        centers = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], -1)
        strides = torch.stack([shapes.new_ones(()) * image[1] / width, shapes.new_ones(()) * image[0] / height])
        half = shapes * strides / 2
        levels.append(torch.cat([centers[:, :, None] - half, centers[:, :, None] + half], -1).reshape(-1, 4))
    return torch.cat(levels).float()


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centers and sizes, each [..., 2] as (x, y), of boxes [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low
    return low + size / 2, size


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes [..., 4] relative to anchors [..., 4]: ((y - ya) / ha, (x - xa) / wa, ln(h / ha), ln(w / wa))."""
    (center, size), (anchor_center, anchor_size) = _center_size(boxes), _center_size(anchors)
    size, anchor_size = size + _EPSILON, anchor_size + _EPSILON
    return torch.cat([((center - anchor_center) / anchor_size).flip(-1), (size / anchor_size).log().flip(-1)], -1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of :func:`encode`: deltas [..., 4] at anchors [..., 4] to boxes [..., 4]. Sizes are not bounded."""
    center, size = _center_size(anchors)
    center = deltas[..., :2].flip(-1) * size + center
    half = deltas[..., 2:].flip(-1).exp() * size / 2
    return torch.cat([center - half, center + half], -1)


def intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Areas shared by each of boxes [..., M, 4] with each of ``others`` [..., A, 4]: [..., M, A]."""

    def overlap(axis: int) -> Tensor:
        high = torch.minimum(boxes[..., :, None, axis + 2], others[..., None, :, axis + 2])
        return high.sub_(torch.maximum(boxes[..., :, None, axis], others[..., None, :, axis])).clamp_(min=0)

    return overlap(0).mul_(overlap(1))  # in place: these are the largest tensors of a training step


def areas(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each of boxes [..., M, 4] with each of ``others`` [..., A, 4], 0..1: [..., M, A]."""
    shared = intersections(boxes, others)
    union = (areas(boxes)[..., :, None] + areas(others)[..., None, :]).sub_(shared)
    return shared.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))  # two empty boxes share nothing


class Assignment(NamedTuple):
    """What each anchor is to predict: ``match`` int64 [B, A], the index of its box or -1; ``ignored`` bool [B, A], or None if
    no anchor is taken out of the loss."""

    match: Tensor
    ignored: Tensor | None = None


@torch.no_grad()
def assign(anchors: Tensor, boxes: Tensor, usable: Tensor, crowd: Tensor | None = None) -> Assignment:
    """Match anchors [A, 4] to boxes [B, M, 4], M from 1 up, of which only the ``usable`` (bool [B, M]) count.

    An anchor takes the box that it overlaps most if their IoU is at least 0.5, the first of equals. Each usable box also gets
    the anchor that overlaps it most, however little, even if that one has another match; of boxes that ask for the same
    anchor the first gets it. Anchors without a match that lie in a ``crowd`` box (bool [B, M]) are ignored.

    Memory: three float tensors [b, M, A], of as many images b at once as keep each below :data:`_MOST_PAIRS` values.
    """
    at_once = max(1, _MOST_PAIRS // (boxes.shape[1] * len(anchors)))
    if len(boxes) <= at_once:
        return _assign(anchors, boxes, usable, crowd)
    groups = [slice(first, first + at_once) for first in range(0, len(boxes), at_once)]
    parts = [_assign(anchors, boxes[rows], usable[rows], None if crowd is None else crowd[rows]) for rows in groups]
    ignored = [part.ignored for part in parts if part.ignored is not None]
    return Assignment(torch.cat([part.match for part in parts]), torch.cat(ignored) if ignored else None)


def _assign(anchors: Tensor, boxes: Tensor, usable: Tensor, crowd: Tensor | None) -> Assignment:
    """As :func:`assign`, all images at once."""
    iou = pairwise_iou(boxes, anchors)
    iou.masked_fill_(~usable[..., None], -1.0)
    overlap, nearest = iou.max(1)
    match = torch.where(overlap >= POSITIVE_IOU, nearest, -1)
    count, rows = len(anchors), torch.arange(boxes.shape[1], device=boxes.device).expand(boxes.shape[:2])
    wanted = torch.where(usable, iou.argmax(2), count)  # the anchor behind the last takes the wishes of the unusable
    asking = torch.full((len(boxes), count + 1), boxes.shape[1], device=boxes.device)
    asking = asking.scatter_reduce(1, wanted, rows, "amin")[:, :count]
    match = torch.where(asking < boxes.shape[1], asking, match)
    if crowd is None:
        return Assignment(match)
    share = intersections(boxes, anchors).div_(areas(anchors)).masked_fill_(~crowd[..., None], 0.0).amax(1)
    return Assignment(match, (share > CROWD_SHARE) & (match < 0))
