"""Anchors: the grid, boxes written relative to them, and which ground truth each of them is to predict by its overlap.

Pure functions on tensors. Boxes are xyxy in pixels; deltas are (ty, tx, th, tw). Sources: Lin et al., "Focal loss for dense
object detection", 2017, section 4; constants and order as released (effdet ``anchors.py``, ``object_detection/``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from heads.options import choice, number, require

_EPSILON = 1e-7  # added to sides before they divide or a logarithm is taken (effdet ``box_coder.py``)
_MOST_PAIRS = 2**26  # boxes times anchors whose overlaps are held at once: 256 MB each
_MOST_GROWTH = 20.0
"""Logarithm of the largest side that a box may have, in sides of its anchor: no image is so large, and what its area and a gradient are
stays finite, however wrong a network is."""
CROWD_SHARE = 0.5
"""An anchor that lies in a crowd with more than this share of its area says nothing about the background."""


def anchor_shapes(
    anchor_scale: float, num_scales: int, aspect_ratios: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """(width, height) of the anchors of a cell, in strides: octave by octave, in an octave aspect by aspect."""
    sides = [anchor_scale * 2 ** (octave / num_scales) for octave in range(num_scales)]
    return [(side * x, side * y) for side in sides for x, y in aspect_ratios]


def anchor_grid(
    image: tuple[int, int],
    maps: Sequence[Sequence[int]],
    shapes: Tensor | Sequence[Tensor],
    center: float = 0.5,
) -> Tensor:
    """Anchors float32 [A, 4] of an image of (H, W) pixels whose levels have ``maps`` (h, w) cells, finest first.

    ``shapes``: float [S, 2], (width, height) in strides, of all levels or one for each, on the device where the anchors are
    wanted and of the precision to compute in: beyond 1,000 pixels float32 is 1e-4 off. A stride is H / h by W / w, which need
    be no whole number; anchors sit in the middle of their cell (``center``, in strides from its corner) and may reach out of the
    image. Level by level, row by row, cell by cell, S to each.
    """
    levels = []
    each = [shapes] * len(maps) if isinstance(shapes, Tensor) else shapes
    for (height, width), own in zip(maps, each, strict=True):
        ys, xs = (
            (torch.arange(cells, dtype=own.dtype, device=own.device) + center) * side / cells
            for cells, side in ((height, image[0]), (width, image[1]))
        )
        centers = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], -1)
        strides = torch.stack([own.new_ones(()) * image[1] / width, own.new_ones(()) * image[0] / height])
        half = own * strides / 2
        levels.append(torch.cat([centers[:, :, None] - half, centers[:, :, None] + half], -1).reshape(-1, 4))
    return torch.cat(levels).float()


def center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centers and sizes, each [..., 2] as (x, y), of boxes [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low
    return low + size / 2, size


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes [..., 4] relative to anchors [..., 4]: ((y - ya) / ha, (x - xa) / wa, ln(h / ha), ln(w / wa))."""
    (center, size), (anchor_center, anchor_size) = center_size(boxes), center_size(anchors)
    size, anchor_size = size + _EPSILON, anchor_size + _EPSILON
    return torch.cat([((center - anchor_center) / anchor_size).flip(-1), (size / anchor_size).log().flip(-1)], -1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of :func:`encode`: deltas [..., 4] at anchors [..., 4] to boxes [..., 4], of at most e^20 sides of their anchors."""
    center, size = center_size(anchors)
    center = deltas[..., :2].flip(-1) * size + center
    half = deltas[..., 2:].flip(-1).clamp(max=_MOST_GROWTH).exp() * size / 2
    return torch.cat([center - half, center + half], -1)


@dataclass(frozen=True)
class Deltas:
    """Boxes as centers and logarithms of sizes relative to anchors, by :func:`encode` and :func:`decode`.

    ``order``: of both pairs, ``xy`` or, as EfficientDet's, ``yx``. ``center`` and ``size``: the unit of each pair; SSD's
    "variances" are 0.1 and 0.2 (Liu et al., "SSD", 2016, as released).
    """

    order: Literal["xy", "yx"] = "xy"
    center: float = 1.0
    size: float = 1.0

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [..., 4] relative to anchors [..., 4]: deltas [..., 4]."""
        return self._scaled(self._ordered(encode(boxes, anchors)), 1 / self.center, 1 / self.size)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """The inverse."""
        return decode(self._ordered(self._scaled(deltas, self.center, self.size)), anchors)

    def _ordered(self, deltas: Tensor) -> Tensor:
        return deltas if self.order == "yx" else torch.cat([deltas[..., :2].flip(-1), deltas[..., 2:].flip(-1)], -1)

    def _scaled(self, deltas: Tensor, center: float, size: float) -> Tensor:
        if center == size == 1:
            return deltas
        return torch.cat([deltas[..., :2] * center, deltas[..., 2:] * size], -1)


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


Force = Literal["claim", "lift", "none"]


@dataclass(frozen=True)
class IouMatching:
    """Anchors get the boxes that they overlap: :func:`assign` with other numbers.

    ``positive_iou``: an anchor that overlaps a box this much is to predict it. ``negative_iou``: below it an anchor is
    background; between the two it is ignored (RetinaNet: 0.5 and 0.4; equal: no such band).
    ``force``, for boxes that no anchor overlaps so much: ``claim`` gives each box the anchor that overlaps it most, even if that
    one has another match (EfficientDet, SSD); ``lift`` lets anchors that are the best of any box, ties included, keep the box
    that they themselves overlap most (RetinaNet, Faster R-CNN: ``allow_low_quality_matches``); ``none``.
    """

    positive_iou: float = 0.5
    negative_iou: float = 0.5
    force: Force = "claim"

    def __post_init__(self) -> None:
        number("positive_iou", self.positive_iou, above=0, most=1)
        number("negative_iou", self.negative_iou, 0, most=1)
        ordered = self.negative_iou <= self.positive_iou
        require("negative_iou", self.negative_iou, ordered, f"at most positive_iou, {self.positive_iou}")
        choice("force", self.force, get_args(Force))

    def __call__(self, anchors: Tensor, boxes: Tensor, usable: Tensor, crowd: Tensor | None = None) -> Assignment:
        return assign(anchors, boxes, usable, crowd, self)


_PUBLISHED = IouMatching()  # EfficientDet's


@torch.no_grad()
def assign(
    anchors: Tensor, boxes: Tensor, usable: Tensor, crowd: Tensor | None = None, rule: IouMatching = _PUBLISHED
) -> Assignment:
    """Match anchors [A, 4] to boxes [B, M, 4], M from 1 up, of which only the ``usable`` (bool [B, M]) count.

    An anchor takes the box that it overlaps most if their IoU is at least ``rule.positive_iou``, the first of equals. With
    ``rule.force`` ``claim`` each usable box also gets the anchor that overlaps it most, however little, even if that one has
    another match; of boxes that ask for the same anchor the first gets it. Anchors without a match that lie in a ``crowd`` box
    (bool [B, M]), or in the band of ``rule``, are ignored.

    Memory: three float tensors [b, m, A], of as many images b and boxes m at once as keep each below :data:`_MOST_PAIRS` values.
    """
    return in_groups(lambda b, u, c: _assign(anchors, b, u, c, rule), anchors, boxes, usable, crowd)


def in_groups(
    match: Callable[[Tensor, Tensor, Tensor | None], Assignment],
    anchors: Tensor,
    boxes: Tensor,
    usable: Tensor,
    crowd: Tensor | None,
) -> Assignment:
    """What ``match`` makes of boxes, usable and crowd, of as many images at once as memory allows."""
    groups = image_slices(boxes, anchors)
    if len(groups) == 1:
        return match(boxes, usable, crowd)
    parts = [match(boxes[rows], usable[rows], None if crowd is None else crowd[rows]) for rows in groups]
    ignored = [part.ignored for part in parts if part.ignored is not None]
    return Assignment(torch.cat([part.match for part in parts]), torch.cat(ignored) if ignored else None)


def image_slices(boxes: Tensor, anchors: Tensor) -> list[slice]:
    """Images of boxes [B, M, 4] in parts whose overlaps with all anchors memory holds at once, one image at least."""
    at_once = max(1, _MOST_PAIRS // (boxes.shape[1] * len(anchors)))
    return [slice(first, first + at_once) for first in range(0, len(boxes), at_once)]


def box_slices(boxes: Tensor, anchors: Tensor) -> list[slice]:
    """Boxes [B, M, 4] in parts whose overlaps with all anchors memory holds at once."""
    at_once = max(1, _MOST_PAIRS // (len(boxes) * len(anchors)))
    return [slice(first, first + at_once) for first in range(0, boxes.shape[1], at_once)]


def _assign(anchors: Tensor, boxes: Tensor, usable: Tensor, crowd: Tensor | None, rule: IouMatching) -> Assignment:
    """As :func:`assign`, all images at once, some boxes after the others: the first of equals is that of the earliest part."""
    overlap = nearest = lifted = None
    wanted: list[Tensor] = []
    for part in box_slices(boxes, anchors):
        iou = pairwise_iou(boxes[:, part], anchors)
        iou.masked_fill_(~usable[:, part, None], -1.0)
        own, index = iou.max(1)
        if rule.force == "claim":
            wanted.append(iou.argmax(2))
        elif rule.force == "lift":
            best = iou.amax(2, keepdim=True)
            found = ((iou == best) & (best > 0)).any(1)
            lifted = found if lifted is None else lifted | found
        if overlap is None or nearest is None:
            overlap, nearest = own, index
        else:
            better = own > overlap
            overlap, nearest = torch.where(better, own, overlap), torch.where(better, index + part.start, nearest)
    assert overlap is not None  # boxes has a row at least
    assert nearest is not None
    match = torch.where(overlap >= rule.positive_iou, nearest, -1)
    if wanted:
        match = _claimed(match, torch.cat(wanted, 1), usable)
    elif lifted is not None:
        match = torch.where(lifted, nearest, match)
    ignored = None if crowd is None else in_crowds(anchors, boxes, crowd) & (match < 0)
    if rule.negative_iou < rule.positive_iou:
        band = (overlap >= rule.negative_iou) & (match < 0)
        ignored = band if ignored is None else band | ignored
    return Assignment(match, ignored)


def _claimed(match: Tensor, wanted: Tensor, usable: Tensor) -> Tensor:
    """``match`` [B, A] where each usable box has got the anchor that it overlaps most, ``wanted`` [B, M]."""
    count, boxes = match.shape[1], wanted.shape[1]
    rows = torch.arange(boxes, device=match.device).expand(usable.shape)
    wanted = torch.where(usable, wanted, count)  # the anchor behind the last takes the wishes of the unusable
    asking = torch.full((len(match), count + 1), boxes, device=match.device)
    asking = asking.scatter_reduce(1, wanted, rows, "amin")[:, :count]
    return torch.where(asking < boxes, asking, match)


def in_crowds(anchors: Tensor, boxes: Tensor, crowd: Tensor) -> Tensor:
    """Anchors, bool [B, A], that lie in one of the ``crowd`` boxes (bool [B, M]) with more than half of their area."""
    inside = torch.zeros(len(boxes), len(anchors), dtype=torch.bool, device=boxes.device)
    for part in box_slices(boxes, anchors):
        share = intersections(boxes[:, part], anchors).div_(areas(anchors)).masked_fill_(~crowd[:, part, None], 0.0)
        inside = inside | (share.amax(1) > CROWD_SHARE)
    return inside
