"""Losses of detection: pure functions on tensors, in float32, without host synchronisation and without dynamic shapes."""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

IouLoss = Literal["giou", "diou", "ciou"]
IOU_LOSSES: tuple[IouLoss, ...] = get_args(IouLoss)
_PART = 1 << 18  # logits in a part, 1 MiB
LEAST_AREA = 1e-7
"""Least area in square pixels that overlaps are shares of: keeps those of empty boxes finite. Nothing is added to larger ones, so that a
box that is as it should be costs nothing and is pulled nowhere, however small."""
_TINY = 1e-7  # keeps ratios and slopes finite


class Curve(NamedTuple):
    """Values of a function of the logits and its derivative there."""

    value: Tensor
    slope: Tensor


def focal_negative(logits: Tensor, gamma: float, smoothing: float = 0.0) -> Curve:
    """Focal loss of target 0, not yet weighted: p^gamma BCE(x, smoothing / 2), p = sigmoid(x).

    Lin et al., "Focal loss for dense object detection", 2017, equation 5; smoothing as in the released EfficientDet, in the
    cross-entropy alone. p^gamma is exp(gamma ln p): finite, with a finite slope, for every finite x.
    """
    softplus = F.softplus(logits)
    log_p = logits - softplus
    modulator = (log_p * gamma).exp_()
    p = log_p.exp_()
    cross_entropy = softplus.sub_(logits, alpha=smoothing / 2) if smoothing else softplus
    slope = (1 - p).mul_(cross_entropy).mul_(gamma).add_(p).sub_(smoothing / 2).mul_(modulator)
    return Curve(modulator.mul_(cross_entropy), slope)


def focal_positive(logits: Tensor, gamma: float, smoothing: float = 0.0) -> Curve:
    """Focal loss of target 1, not yet weighted: (1 - p)^gamma BCE(x, 1 - smoothing / 2). What -x costs as a negative."""
    value, slope = focal_negative(-logits, gamma, smoothing)
    return Curve(value, slope.neg_())


def _parts(logits: Tensor) -> list[slice]:
    """Anchors of [B, A, K] in parts that a processor's cache holds: a pass over memory costs more than the arithmetic."""
    images, anchors, classes = logits.shape
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(anchors)]
    step = max(1, _PART // max(1, images * classes))
    return [slice(first, first + step) for first in range(0, anchors, step)] or [slice(0)]


class _FocalSum(torch.autograd.Function):
    """Value and gradient in one pass over the logits, which are the largest tensor of a training step: autograd would keep
    four more of their size, and take twice as long on a CPU."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        logits: Tensor,
        labels: Tensor,
        ignored: Tensor | None,
        alpha: float,
        gamma: float,
        smoothing: float,
    ) -> Tensor:
        positive, column = (labels >= 0)[..., None], labels.clamp(min=0)[..., None]
        slope, sums = torch.empty_like(logits), []
        for part in _parts(logits):
            value, own = focal_negative(logits[:, part], gamma, smoothing)
            if ignored is not None:
                value.masked_fill_(ignored[:, part, None], 0.0)
                own.masked_fill_(ignored[:, part, None], 0.0)
            torch.mul(own, 1 - alpha, out=slope[:, part])
            sums.append(value.sum())
        chosen = logits.gather(2, column)
        own_value, own_slope = (alpha * curve for curve in focal_positive(chosen, gamma, smoothing))
        negative = (1 - alpha) * focal_negative(chosen, gamma, smoothing).value
        if ignored is not None:
            negative.masked_fill_(ignored[..., None], 0.0)
        correction = torch.where(positive, own_value - negative, 0.0)
        slope.scatter_(2, column, torch.where(positive, own_slope, slope.gather(2, column)))
        ctx.save_for_backward(slope)
        return (1 - alpha) * torch.stack(sums).sum() + correction.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0], None, None, None, None, None


def focal_sum(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 1.5,
    smoothing: float = 0.0,
    ignored: Tensor | None = None,
) -> Tensor:
    """Sum of the sigmoid focal loss over logits float32 [B, A, K] with ``labels`` int64 [B, A], -1 for background.

    Positives weigh ``alpha``, negatives 1 - ``alpha``. All entries are taken as negatives first, then the few positive ones
    are corrected: no one-hot of [B, A, K]. ``ignored`` bool [B, A] leaves anchors without a label out. Differentiable once.
    """
    value: Tensor = _FocalSum.apply(logits, labels, ignored, alpha, gamma, smoothing)
    return value


def rated_focal(logits: Tensor, quality: Tensor, gamma: float, smoothing: float = 0.0) -> Tensor:
    """Quality focal loss |y - p|^gamma BCE(x, y), p = sigmoid(x), y = ``quality`` in 0..1, of each of logits [...]: [...].

    Li et al., "Generalized focal loss", 2020, equation 5. In the cross-entropy alone y is moved by ``smoothing`` towards a half.
    """
    smooth = quality * (1 - smoothing) + smoothing / 2
    gap = (quality - logits.sigmoid()).square() + _TINY**2  # the slope of a root at 0 is not finite
    return gap ** (gamma / 2) * F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")


def distribution_sum(sides: Tensor, distances: Tensor, weights: Tensor) -> Tensor:
    """Sum of the distribution focal loss of logits ``sides`` [B, A, 4, n] of the values 0 to n - 1, averaged over the four sides, with
    ``weights`` [B, A]: cross-entropy of the two values around each of ``distances`` [B, A, 4], which are clamped to that range.

    Li et al., "Generalized focal loss", 2020, equation 6.
    """
    most = sides.shape[-1] - 1
    wanted = distances.clamp(0, most)
    low = wanted.floor().clamp(max=most - 1)
    upper, said = wanted - low, sides.log_softmax(-1)
    at_low = said.gather(-1, low.long()[..., None])[..., 0]
    at_high = said.gather(-1, low.long()[..., None] + 1)[..., 0]
    return -(((1 - upper) * at_low + upper * at_high).mean(-1) * weights).sum()


def huber_sum(deltas: Tensor, targets: Tensor, delta: float = 0.1) -> Tensor:
    """Sum of Huber's loss, 0.5 e^2 up to |e| = ``delta`` and delta (|e| - 0.5 delta) beyond, over entries with a target.

    An entry whose target is exactly 0 has none: so background is marked, and so the released code treats a coordinate of a
    positive anchor that happens to be 0 (effdet ``loss.py``).
    """
    error = torch.where(targets != 0, deltas - targets, 0.0)
    return F.huber_loss(error, torch.zeros_like(error), reduction="sum", delta=delta)


def smooth_l1_sum(deltas: Tensor, targets: Tensor, positive: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 loss, Huber's divided by its ``beta`` (0: of |e|), over the entries of ``positive`` anchors [B, A]."""
    error = torch.where(positive[..., None], deltas - targets, 0.0)
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=beta)


def quality_sum(quality: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Sum of the binary cross-entropy of logits [B, A] (centerness, objectness) with ``targets`` in 0..1, over those
    ``counted``, bool [B, A]."""
    logits = torch.where(counted, quality, 0.0)
    cost = F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="none")
    return torch.where(counted, cost, 0.0).sum()


def iou_loss(boxes: Tensor, targets: Tensor, kind: IouLoss) -> Tensor:
    """1 - IoU, made aware of distance, of each pair of boxes [..., 4] (xyxy): [...], 0..2 (``ciou`` above).

    ``giou``: Rezatofighi et al., 2019; ``diou`` and ``ciou``: Zheng et al., "Distance-IoU loss", 2020, equations 7 and 10.
    """
    # Not torchvision's: they take the pairs that overlap out by a mask, for which the host waits for the device (0.29,
    # ``_loss_inter_union``), and the gradient of their complete IoU is not finite for a box without extent.
    size, target_size = (b[..., 2:] - b[..., :2] for b in (boxes, targets))
    shared = (torch.minimum(boxes[..., 2:], targets[..., 2:]) - torch.maximum(boxes[..., :2], targets[..., :2])).clamp(
        min=0
    )
    hull = torch.maximum(boxes[..., 2:], targets[..., 2:]) - torch.minimum(boxes[..., :2], targets[..., :2])
    union = size.prod(-1) + target_size.prod(-1) - shared.prod(-1)
    iou = shared.prod(-1) / union.clamp(min=LEAST_AREA)
    if kind == "giou":
        area = hull.prod(-1)
        return 1 - iou + (area - union) / area.clamp(min=LEAST_AREA)
    centers = (boxes[..., :2] + boxes[..., 2:] - targets[..., :2] - targets[..., 2:]) / 2
    loss = 1 - iou + centers.square().sum(-1) / hull.square().sum(-1).clamp(min=LEAST_AREA)
    if kind == "diou":
        return loss
    angles = [torch.atan2(s[..., 0], s[..., 1]) for s in (size, target_size)]
    skew = (4 / math.pi**2) * (angles[1] - angles[0]).square()
    weight = (skew / (1 - iou + skew + _TINY)).detach()  # a constant in the gradient (text below equation 12)
    return loss + weight * skew
