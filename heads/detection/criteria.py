"""The table of losses: what scores and boxes of a dense detector may be trained with, as records of options.

A loss of classes also says how its logits rank: loss and score must agree on what a logit is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.detection.losses import IOU_LOSSES, IouLoss, focal_sum, huber_sum, iou_loss, rated_focal, smooth_l1_sum
from heads.options import choice, number, require

_LEAST_SHARE = 1e-6  # of all weights together, so that a batch without boxes divides 0 by something


class Coder(Protocol):
    """How boxes are written relative to anchors: :class:`~heads.detection.anchors.Deltas`, or distances."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [..., 4] and anchors [..., 4] to what a network is to say, [..., 4]."""

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """The inverse."""


class ClassLoss(Protocol):
    """A loss of logits [B, A, outputs], and what it makes of them as scores."""

    def outputs(self, num_classes: int) -> int:
        """Logits of an anchor."""

    def sum(self, logits: Tensor, labels: Tensor, ignored: Tensor | None) -> Tensor:
        """Sum over all anchors that are not ``ignored`` (bool [B, A]), with ``labels`` int64 [B, A], -1 for background."""

    def evidence(self, logits: Tensor) -> Tensor:
        """Values [B, A, K] by which anchor-class pairs are ranked."""

    def probability(self, evidence: Tensor) -> Tensor:
        """Scores in 0..1 of such values, rising with them."""


@dataclass(frozen=True)
class Focal:
    """A sigmoid per class, no background: focal loss, ``alpha`` and ``gamma`` as in :func:`focal_sum`; ``label_smoothing``."""

    alpha: float = 0.25
    gamma: float = 2.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        number("alpha", self.alpha, above=0, below=1)
        number("gamma", self.gamma, 0)
        number("label_smoothing", self.label_smoothing, 0, below=1)

    def outputs(self, num_classes: int) -> int:
        return num_classes

    def sum(self, logits: Tensor, labels: Tensor, ignored: Tensor | None) -> Tensor:
        smoothing = self.label_smoothing
        return focal_sum(logits, labels, alpha=self.alpha, gamma=self.gamma, smoothing=smoothing, ignored=ignored)

    def evidence(self, logits: Tensor) -> Tensor:
        return logits

    def probability(self, evidence: Tensor) -> Tensor:
        return evidence.sigmoid()

    @staticmethod
    def bias(prior: float) -> float:
        """The logit of a probability, for the last layer to start with (Lin et al. 2017, section 4.1)."""
        return -math.log((1 - prior) / prior)


@dataclass(frozen=True)
class QualityFocal:
    """A sigmoid per class, no background, that is to say how well its box fits: |y - p|^gamma BCE(p, y), y in 0..1.

    ``gamma``; ``alpha``: None, or the weight of the logit of an anchor's own class, the others then weigh 1 - alpha;
    ``label_smoothing``, in the cross-entropy alone. Source: Li et al., "Generalized focal loss", 2020, equation 5; what Feng et al.,
    "TOOD", 2021, train classes with (equation 8).
    """

    gamma: float = 2.0
    alpha: float | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        number("gamma", self.gamma, 0)
        if self.alpha is not None:
            number("alpha", self.alpha, above=0, below=1)
        number("label_smoothing", self.label_smoothing, 0, below=1)

    def outputs(self, num_classes: int) -> int:
        return num_classes

    def sum(self, logits: Tensor, labels: Tensor, ignored: Tensor | None) -> Tensor:
        return self.rated_sum(logits, labels, ignored, torch.ones_like(logits[..., 0]))

    def rated_sum(self, logits: Tensor, labels: Tensor, ignored: Tensor | None, quality: Tensor) -> Tensor:
        """As :meth:`ClassLoss.sum`, with y the ``quality`` [B, A], in 0..1, of the boxes of anchors that have a label."""
        own, others = (1.0, 1.0) if self.alpha is None else (self.alpha, 1 - self.alpha)
        smoothing, none = self.label_smoothing, torch.full_like(labels, -1)
        # All as negatives, then the few others put right: no target of [B, A, K].
        value = focal_sum(logits, none, alpha=0.0, gamma=self.gamma, smoothing=smoothing, ignored=ignored)
        of_own = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0]
        rated = rated_focal(of_own, quality, self.gamma, smoothing)
        unrated = rated_focal(of_own, torch.zeros_like(quality), self.gamma, smoothing)
        return others * value + torch.where(labels >= 0, own * rated - others * unrated, 0.0).sum()

    def evidence(self, logits: Tensor) -> Tensor:
        return logits

    def probability(self, evidence: Tensor) -> Tensor:
        return evidence.sigmoid()


@dataclass(frozen=True)
class MinedSoftmax:
    """A softmax over background, which comes first, and classes: cross-entropy of positives and of the hardest negatives.

    ``negatives``: how many for each positive of an image (Liu et al., "SSD", 2016, section 2.2); ``label_smoothing``.
    """

    negatives: float = 3.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        number("negatives", self.negatives, above=0)
        number("label_smoothing", self.label_smoothing, 0, below=1)

    def outputs(self, num_classes: int) -> int:
        return num_classes + 1

    def sum(self, logits: Tensor, labels: Tensor, ignored: Tensor | None) -> Tensor:
        flat, wanted = logits.flatten(0, 1), (labels + 1).flatten()
        cost = F.cross_entropy(flat, wanted, reduction="none", label_smoothing=self.label_smoothing).view_as(labels)
        positive = labels >= 0
        barred = positive if ignored is None else positive | ignored
        hardness = cost.detach().masked_fill(barred, -math.inf)
        rank = hardness.argsort(1, descending=True).argsort(1)
        mined = (rank < self.negatives * positive.sum(1, keepdim=True)) & ~barred
        return torch.where(positive | mined, cost, 0.0).sum()

    def evidence(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(2)[..., 1:]

    def probability(self, evidence: Tensor) -> Tensor:
        return evidence.exp()


DeltaLoss = Literal["huber", "smooth_l1", "l1"]
DELTA_LOSSES: dict[DeltaLoss, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "huber": lambda deltas, targets, positive, limit: huber_sum(deltas, targets, limit),
    "smooth_l1": smooth_l1_sum,
    "l1": lambda deltas, targets, positive, limit: smooth_l1_sum(deltas, targets, positive, 0.0),
}
"""Sums over deltas [B, A, 4] and targets, which are 0 where no box is; ``positive`` bool [B, A]; where it turns linear."""


@dataclass(frozen=True)
class Matched:
    """What each anchor is to say: ``positive`` bool [B, A]; its ``boxes`` [B, A, 4], the anchor itself where it has none; its
    ``labels`` int64 [B, A], -1 for background; ``ignored`` bool [B, A] of the class loss, or None."""

    positive: Tensor
    boxes: Tensor
    labels: Tensor
    ignored: Tensor | None


@dataclass(frozen=True)
class BoxLosses:
    """What pulls the boxes of positive anchors: a loss of the deltas, one of the boxes that they decode to, or both.

    ``delta_loss``: None, ``huber`` (leaves out a delta whose target is exactly 0, as the released EfficientDet does),
    ``smooth_l1`` or ``l1``, averaged over the four deltas, with ``box_weight``; ``huber_delta``: error at which the first two
    turn linear. ``iou_loss``: None, ``giou``, ``diou`` or ``ciou``, with ``iou_weight``.
    """

    delta_loss: DeltaLoss | None = "smooth_l1"
    huber_delta: float = 1.0
    box_weight: float = 1.0
    iou_loss: IouLoss | None = None
    iou_weight: float = 1.0

    def __post_init__(self) -> None:
        choice("delta_loss", self.delta_loss, (None, *DELTA_LOSSES))
        number("huber_delta", self.huber_delta, above=0)
        number("box_weight", self.box_weight, 0)
        choice("iou_loss", self.iou_loss, (None, *IOU_LOSSES))
        some = self.delta_loss is not None or self.iou_loss is not None
        require("delta_loss", self.delta_loss, some, "one, as there is no iou_loss: nothing would train the boxes")
        number("iou_weight", self.iou_weight, 0)

    def resting(self) -> dict[str, str]:
        """Fields that change nothing, and why."""
        found = {} if self.iou_loss else {"iou_weight": "there is no iou_loss"}
        if self.delta_loss is None:
            found |= dict.fromkeys(("box_weight", "huber_delta"), "there is no delta_loss")
        elif self.delta_loss == "l1":
            found["huber_delta"] = "delta_loss is l1"
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Those of :meth:`terms`."""
        asked = (("box", self.delta_loss), ("iou", self.iou_loss))
        return tuple(name for name, loss in asked if loss is not None)

    def terms(
        self,
        deltas: Tensor,
        anchors: Tensor,
        matched: Matched,
        coder: Coder,
        count: Tensor,
        share: Tensor | None = None,
        share_count: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``box`` and ``iou``, those asked for, of deltas float32 [B, A, 4]: weighted sums divided by ``count``.

        ``share`` [B, A] weighs the anchors of ``iou``, which is then divided by ``share_count``, or where that is None by the sum of
        the shares of positives (FCOS: centerness).
        """
        positive, own, losses = matched.positive, matched.boxes, {}
        if self.delta_loss is not None:
            targets = torch.where(positive[..., None], coder.encode(own, anchors), 0.0)
            off = DELTA_LOSSES[self.delta_loss](deltas, targets, positive, self.huber_delta)
            losses["box"] = self.box_weight * off / (4 * count)
        if self.iou_loss is not None:
            decoded = coder.decode(torch.where(positive[..., None], deltas, 0.0), anchors)
            overlap = torch.where(positive, iou_loss(decoded, own, self.iou_loss), 0.0)
            if share is not None:
                share = torch.where(positive, share, 0.0)
                overlap = overlap * share
                count = share.sum().clamp(min=_LEAST_SHARE) if share_count is None else share_count
            losses["iou"] = self.iou_weight * overlap.sum() / count
        return losses
