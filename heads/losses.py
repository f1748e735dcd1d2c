"""Losses of detection: pure functions on tensors, in float32, without host synchronisation and without dynamic shapes."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

IouLoss = Literal["giou", "diou", "ciou"]
IOU_LOSSES: tuple[IouLoss, ...] = get_args(IouLoss)
_TINY = 1e-7  # keeps the ratios of empty boxes finite


def focal_negative(logits: Tensor, alpha: float, gamma: float, smoothing: float = 0.0) -> Tensor:
    """Focal loss of each logit with target 0: (1 - alpha) p^gamma BCE(x, smoothing / 2), p = sigmoid(x).

    Lin et al., "Focal loss for dense object detection", 2017, equation 5; smoothing as in the released EfficientDet, in the
    cross-entropy alone. p^gamma is written as exp(-gamma softplus(-x)), whose gradient is finite for every x and gamma.
    """
    softplus = F.softplus(logits)
    cross_entropy = softplus - logits * (smoothing / 2) if smoothing else softplus
    return (1 - alpha) * torch.exp(gamma * (logits - softplus)) * cross_entropy


def focal_positive(logits: Tensor, alpha: float, gamma: float, smoothing: float = 0.0) -> Tensor:
    """Focal loss of each logit with target 1: alpha (1 - p)^gamma BCE(x, 1 - smoothing / 2)."""
    softplus = F.softplus(logits)
    return alpha * torch.exp(-gamma * softplus) * (softplus - logits * (1 - smoothing / 2))


def focal_sum(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 1.5,
    smoothing: float = 0.0,
    ignored: Tensor | None = None,
) -> Tensor:
    """Sum of the sigmoid focal loss over logits [B, A, K] with ``labels`` int64 [B, A], -1 for background.

    All entries are taken as negatives first, then the few positive ones are corrected: no one-hot of [B, A, K]. ``ignored``
    bool [B, A] leaves anchors out.
    """
    negative = focal_negative(logits, alpha, gamma, smoothing)
    if ignored is not None:
        negative = negative.masked_fill(ignored[..., None], 0.0)
    positive = labels >= 0
    own = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    correction = focal_positive(own, alpha, gamma, smoothing) - focal_negative(own, alpha, gamma, smoothing)
    return negative.sum() + torch.where(positive, correction, 0.0).sum()


def huber_sum(deltas: Tensor, targets: Tensor, delta: float = 0.1) -> Tensor:
    """Sum of Huber's loss, 0.5 e^2 up to |e| = ``delta`` and delta (|e| - 0.5 delta) beyond, over entries with a target.

    An entry whose target is exactly 0 has none: so background is marked, and so the released code treats a coordinate of a
    positive anchor that happens to be 0 (effdet ``loss.py``).
    """
    error = torch.where(targets != 0, deltas - targets, 0.0)
    return F.huber_loss(error, torch.zeros_like(error), reduction="sum", delta=delta)


def iou_loss(boxes: Tensor, targets: Tensor, kind: IouLoss) -> Tensor:
    """1 - IoU, made aware of distance, of each pair of boxes [..., 4] (xyxy): [...], 0..2 (``ciou`` above).

    ``giou``: Rezatofighi et al., 2019; ``diou`` and ``ciou``: Zheng et al., "Distance-IoU loss", 2020, equations 7 and 10.
    """
    size, target_size = (b[..., 2:] - b[..., :2] for b in (boxes, targets))
    shared = (torch.minimum(boxes[..., 2:], targets[..., 2:]) - torch.maximum(boxes[..., :2], targets[..., :2])).clamp(min=0)
    hull = torch.maximum(boxes[..., 2:], targets[..., 2:]) - torch.minimum(boxes[..., :2], targets[..., :2])
    union = size.prod(-1) + target_size.prod(-1) - shared.prod(-1)
    iou = shared.prod(-1) / (union + _TINY)
    if kind == "giou":
        area = hull.prod(-1)
        return 1 - iou + (area - union) / (area + _TINY)
    centers = (boxes[..., :2] + boxes[..., 2:] - targets[..., :2] - targets[..., 2:]) / 2
    loss = 1 - iou + centers.square().sum(-1) / (hull.square().sum(-1) + _TINY)
    if kind == "diou":
        return loss
    angles = [torch.atan2(s[..., 0], s[..., 1]) for s in (size, target_size)]
    skew = (4 / math.pi**2) * (angles[1] - angles[0]).square()
    weight = (skew / (1 - iou + skew + _TINY)).detach()  # a constant in the gradient (text below equation 12)
    return loss + weight * skew
