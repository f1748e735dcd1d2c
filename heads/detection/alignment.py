"""Which anchor is to predict which box, decided by what the network predicts: task-aligned and SimOTA assignment.

Sources: Feng et al., "TOOD: task-aligned one-stage object detection", 2021, section 3.2; Ge et al., "YOLOX", 2021, section 2.1
(SimOTA); one anchor for each box beside it: Wang et al., "YOLOv10: real-time end-to-end object detection", 2024, section 3.1.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from effbackbones.contracts import BoxTargets
from heads.detection.anchors import Assignment, center_size, image_slices, in_crowds, pairwise_iou
from heads.detection.nms import largest
from heads.options import choice, number, whole

Assigner = Literal["aligned", "simota"]
_FOR_SUM = 10  # overlaps that are added up to say how many anchors a box gets (YOLOX as released)
_OVERLAP_WEIGHT = 3.0  # of -ln(IoU) in the cost (YOLOX as released)
_NOT_BOTH = 1e5  # cost of an anchor that is either outside of the box or far from its middle (YOLOX as released)
_TINY = 1e-8


class Aligned(NamedTuple):
    """``match`` int64 [B, A], the index of an anchor's box or -1; ``ignored`` as in :class:`Assignment`; ``quality`` float [B, A],
    0..1, what its score is to be: 0 without a box."""

    match: Tensor
    ignored: Tensor | None
    quality: Tensor

    @property
    def assignment(self) -> Assignment:
        """Without the quality."""
        return Assignment(self.match, self.ignored)


class _Rated(NamedTuple):
    """Of each box and anchor [B, M, A]: how well they suit (-inf: not at all), what decides between boxes that want one anchor;
    ``wanted`` int64 [B, M], how many anchors a box gets."""

    value: Tensor
    decides: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Alignment:
    """Each box gets the anchors that predict it best by score and overlap; an anchor that several boxes want goes to one of them.

    ``assigner`` ``aligned``: the ``topk`` anchors of the largest score^``score_power`` IoU^``iou_power`` among those whose middle lies
    in the box; wanted by several, the box of the largest IoU. ``quality`` is that measure, scaled so that the best anchor of a box has
    the largest IoU of its anchors. ``simota``: as many anchors as the sum of the ten largest IoUs says, one at least, of the
    least cost (cross-entropy of the classes and 3 times -ln IoU), among those whose middle lies in the box or within ``radius`` strides
    of its middle on either axis, preferring those of which both is true; wanted by several, the box of the least cost. ``quality``
    is the IoU. A box that is smaller than the finest cell is taken to be as large as it, so that some middle lies in it.
    """

    assigner: Assigner = "aligned"
    topk: int = 13
    score_power: float = 1.0
    iou_power: float = 6.0
    radius: float = 2.5

    def __post_init__(self) -> None:
        choice("assigner", self.assigner, get_args(Assigner))
        whole("topk", self.topk)
        number("score_power", self.score_power, 0)
        number("iou_power", self.iou_power, 0)
        number("radius", self.radius, above=0)

    def resting(self) -> dict[str, str]:
        """Fields that change nothing, and why."""
        simota = self.assigner == "simota"  # which takes as many anchors as overlap
        names = ("topk", "score_power", "iou_power") if simota else ("radius",)
        return dict.fromkeys(names, f"assigner is {self.assigner}")

    @torch.no_grad()
    def __call__(
        self,
        anchors: Tensor,
        logits: Tensor,
        predicted: Tensor,
        targets: BoxTargets,
        *,
        crowds: bool = False,
        one: bool = False,
    ) -> Aligned:
        """Anchors [A, 4], logits [B, A, K] and ``predicted`` boxes [B, A, 4], in floating point, with targets of at least one row.
        Crowds get no anchor; with ``crowds`` the anchors in them are ignored. ``one``: each box gets at most one anchor. Memory: a few
        tensors [b, M, A], of as many images b at once as keeps each below 2^26 values if one image does."""
        boxes, labels, crowd = targets
        parts = []
        for rows in image_slices(boxes, anchors):
            usable = (labels[rows] >= 0) & ~crowd[rows]
            rated, overlap = self._rated(anchors, logits[rows], predicted[rows], boxes[rows], labels[rows], usable)
            match, quality = self._best(rated, overlap, one)
            ignored = in_crowds(anchors, boxes[rows], crowd[rows]) & (match < 0) if crowds else None
            parts.append(Aligned(match, ignored, quality))
        if len(parts) == 1:
            return parts[0]
        left_out = [part.ignored for part in parts if part.ignored is not None]
        match, quality = (torch.cat([getattr(part, name) for part in parts]) for name in ("match", "quality"))
        return Aligned(match, torch.cat(left_out) if left_out else None, quality)

    @torch.no_grad()
    def contested(self, anchors: Tensor, boxes: Tensor, usable: Tensor) -> Tensor:
        """Boxes [B, M, 4] for which there is one anchor alone, which is that of an earlier one too, whatever is predicted: bool [B, M].
        Those that are not ``usable`` [B, M] want none. Memory: a few tensors [B, M, A]."""
        inside, near = self._places(anchors, boxes)
        suits = (inside if self.assigner == "aligned" else inside | near) & usable[..., None]
        only = torch.where(suits.sum(2) == 1, suits.to(torch.uint8).argmax(2), -1)
        same = (only[:, :, None] == only[:, None]) & (only >= 0)[:, :, None]
        return same.tril(-1).any(2)

    def _rated(
        self, anchors: Tensor, logits: Tensor, predicted: Tensor, boxes: Tensor, labels: Tensor, usable: Tensor
    ) -> tuple[_Rated, Tensor]:
        """How anchors suit boxes, and their IoU [B, M, A]."""
        labels = labels.clamp(min=0)
        overlap = pairwise_iou(boxes, predicted).nan_to_num_(0.0)
        own = logits.transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, len(anchors)))
        inside, near = self._places(anchors, boxes)
        if self.assigner == "aligned":
            value = self.score_power * F.logsigmoid(own) + torch.xlogy(self.iou_power, overlap)  # 0 of a power of 0
            value = torch.where(inside & usable[..., None] & value.isfinite(), value, -math.inf)
            return _Rated(value, overlap, torch.full_like(labels, self.topk)), overlap
        classes = (
            F.softplus(logits).sum(2)[:, None] - own
        )  # of the cross-entropy with 1 for its own class and 0 for the others
        cost = classes - _OVERLAP_WEIGHT * (overlap + _TINY).log() + _NOT_BOTH * (~(inside & near))
        value = torch.where((inside | near) & usable[..., None] & cost.isfinite(), -cost, -math.inf)
        likely = torch.where(value.isfinite(), overlap, 0.0).topk(min(_FOR_SUM, len(anchors)), 2).values
        return _Rated(value, value, likely.sum(2).long().clamp(min=1)), overlap

    def _places(self, anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the middle of an anchor is in a box, and near its middle: bool [B, M, A] twice."""
        points, strides = center_size(anchors)
        middles, sizes = center_size(boxes)
        reach = torch.maximum(sizes, strides.amin(0)) / 2
        inside = near = torch.ones((), dtype=torch.bool, device=boxes.device)
        for axis in range(2):
            away = (points[:, axis] - middles[..., None, axis]).abs()
            inside = inside & (away <= reach[..., None, axis])
            near = near & (away < self.radius * strides[:, axis])
        return inside, near

    def _best(self, rated: _Rated, overlap: Tensor, one: bool) -> tuple[Tensor, Tensor]:
        """Match and quality, both [B, A]."""
        value, decides, wanted = rated
        most = 1 if one else _FOR_SUM if self.assigner == "simota" else self.topk
        rows = largest(value.flatten(0, 1), most).view(*value.shape[:2], -1)
        rank = value.gather(2, rows).argsort(dim=2, descending=True, stable=True).argsort(2)
        taken = rank < wanted[..., None]
        chosen = torch.zeros_like(value, dtype=torch.bool).scatter_(2, rows, taken) & value.isfinite()
        index = torch.where(chosen, decides, -math.inf).argmax(1, keepdim=True)
        match = torch.where(chosen.any(1), index[:, 0], -1)
        kept = chosen & (match[:, None] == torch.arange(value.shape[1], device=value.device)[:, None])
        if self.assigner == "aligned":
            best = torch.where(kept, value, -math.inf).amax(2, keepdim=True)
            top = torch.where(kept, overlap, 0.0).amax(2, keepdim=True)
            quality = torch.where(kept, (value - best).exp() * top, 0.0).amax(1)
        else:
            quality = torch.where(kept, overlap, 0.0).amax(1)
        return match, quality
