"""Detectors without anchors of their own: points, distances from them to the sides of a box, and which box each point gets.

A point is the middle of a square of one stride, an anchor like any other: so all that reads anchors reads points too.
Source: Tian et al., "FCOS: fully convolutional one-stage object detection", 2019, sections 3.1 to 3.3, with center sampling as
released since.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.detection.anchors import Assignment, areas, box_slices, center_size, in_crowds, in_groups
from heads.options import number

POINT = ((1.0, 1.0),)
"""The one shape of every cell, (width, height) in strides."""
_COARSER = 1.01  # a stride that is this much larger is another level's, and no rounding


@dataclass(frozen=True)
class Distances:
    """Boxes as (left, top, right, bottom) distances from the middle of an anchor, in its sides: for a point, in strides."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [..., 4] around the middles of anchors [..., 4]: distances [..., 4], negative where the middle is outside."""
        center, size = center_size(anchors)
        return torch.cat([(center - boxes[..., :2]) / size, (boxes[..., 2:] - center) / size], -1)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """The inverse. Distances are taken as they are: it is up to a network that they are positive."""
        center, size = center_size(anchors)
        return torch.cat([center - deltas[..., :2] * size, center + deltas[..., 2:] * size], -1)


@dataclass(frozen=True)
class CenterMatching:
    """Points get the boxes around them: those whose middle is near and whose size suits the level; of several the smallest.

    ``radius``: how far, in strides on either axis, a point may be from the middle of its box. ``least`` and ``most``: the range,
    in strides, of the longest distance from the point to a side of its box, the second above the first; below on the finest and above on
    the coarsest level there is no limit. (Levels of strides 8 to 128 and 4 to 8 are FCOS's 64, 128, 256 and 512 pixels.)
    """

    radius: float = 1.5
    least: float = 4.0
    most: float = 8.0

    def __post_init__(self) -> None:
        number("radius", self.radius, above=0)
        number("least", self.least, 0)
        number("most", self.most, above=self.least)

    @torch.no_grad()
    def __call__(self, anchors: Tensor, boxes: Tensor, usable: Tensor, crowd: Tensor | None = None) -> Assignment:
        """Match as :func:`heads.detection.anchors.assign` does; a box that suits no point gets none."""
        return in_groups(lambda b, u, c: self._match(anchors, b, u, c), anchors, boxes, usable, crowd)

    def _match(self, anchors: Tensor, boxes: Tensor, usable: Tensor, crowd: Tensor | None) -> Assignment:
        size = boxes.new_full((len(boxes), len(anchors)), math.inf)
        match = torch.full_like(size, -1, dtype=torch.int64)
        for part in box_slices(boxes, anchors):
            own, index = self._sizes(anchors, boxes[:, part], usable[:, part]).min(1)
            smaller = own < size
            size, match = torch.where(smaller, own, size), torch.where(smaller, index + part.start, match)
        return Assignment(match, None if crowd is None else in_crowds(anchors, boxes, crowd) & (match < 0))

    def _sizes(self, anchors: Tensor, boxes: Tensor, usable: Tensor) -> Tensor:
        """Areas [B, M, A] of the boxes at the points that they suit, infinity elsewhere."""
        points, strides = center_size(anchors)
        middles, _ = center_size(boxes)
        stride = strides.amax(1)
        least = torch.where(stride > _COARSER * stride.amin(), self.least * stride, 0.0)
        most = torch.where(stride * _COARSER < stride.amax(), self.most * stride, math.inf)
        suits = usable[..., None].expand(*boxes.shape[:2], len(anchors))
        longest = boxes.new_zeros(())
        for axis in range(2):
            before = points[:, axis] - boxes[..., None, axis]
            behind = boxes[..., None, axis + 2] - points[:, axis]
            near = (points[:, axis] - middles[..., None, axis]).abs() < self.radius * strides[:, axis]
            suits = suits & near & (torch.minimum(before, behind) > 0)
            longest = torch.maximum(longest, torch.maximum(before, behind))
        suits = suits & (longest > least) & (longest < most)
        return torch.where(suits, areas(boxes)[..., None], math.inf)


def centerness(boxes: Tensor, anchors: Tensor) -> Tensor:
    """How central the middle of each of anchors [..., 4] is in its box [..., 4], 0 at a side to 1 (equation 3): [...]."""
    distances = Distances().encode(boxes, anchors).clamp(min=0)
    low, high = distances[..., :2], distances[..., 2:]
    ratios = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=torch.finfo(distances.dtype).tiny)
    return ratios.prod(-1).sqrt()
