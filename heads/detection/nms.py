"""From scored boxes to detections: candidates, non-maximum suppression class by class, output of fixed shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from effbackbones.contracts import Detections
from effbackbones.export.operators import for_onnx, suppress
from heads.detection.anchors import pairwise_iou
from heads.options import choice, number, whole


class Candidates(NamedTuple):
    """Boxes float32 [B, n, 4] with one class each, by falling score: ``scores`` float32 [B, n], ``labels`` int64 [B, n].

    A score of -1 marks a row that is no candidate.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def top_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` largest of all anchor-class pairs of logits [B, A, K]: values, anchors and labels, each [B, n], falling;
    of equals the lower anchor first, then the lower label.

    Exact without ranking all pairs: a pair among the largest belongs to an anchor among the ``count`` with the largest
    maximum. An anchor with NaN or infinity among its logits comes last, with -inf.
    """
    best = logits.amax(2)
    best = torch.where(best.isfinite(), best, -torch.inf)
    anchors = largest(best, count)
    finite = best.gather(1, anchors).isfinite()[..., None]
    rows = logits.gather(1, anchors[..., None].expand(-1, -1, logits.shape[2]))
    chosen = torch.where(finite, rows, -torch.inf).flatten(1)
    pairs = largest(chosen, count)
    values = chosen.gather(1, pairs)
    # ONNX has no stable sort, and promises of its TopK that the first of equals comes first.
    values, order = values.topk(values.shape[1]) if for_onnx() else values.sort(stable=True, descending=True)
    pairs = pairs.gather(1, order)
    return values, anchors.gather(1, pairs // logits.shape[2]), pairs % logits.shape[2]


def largest(values: Tensor, count: int) -> Tensor:
    """Columns int64 [B, n] of the ``count`` largest of each row of [B, N], rising; of equals the first, which ``topk`` alone
    does not promise. The host waits for nothing."""
    count = min(count, values.shape[1])
    top, columns = values.topk(count)
    if for_onnx():  # whose TopK promises it
        return columns.sort(1).values
    least = top[:, -1:]
    turn = torch.arange(1, count + 1, device=values.device) - (top > least).sum(1, keepdim=True)
    seen = (values == least).cumsum(1, dtype=torch.int32)  # where this first reaches n stands the n-th of the least
    tied = torch.searchsorted(seen, turn.int())
    return torch.where(turn > 0, tied, columns).sort(1).values


def candidates(
    evidence: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    valid: Tensor,
    count: int,
    *,
    decode: Callable[[Tensor, Tensor], Tensor],
    probability: Callable[[Tensor], Tensor],
) -> Candidates:
    """The ``count`` pairs of most ``evidence`` [B, A, K] as boxes clipped to the ``valid`` (H, W) of each image, int [B, 2].

    ``decode``: deltas [B, n, 4] at anchors [B, n, 4] to boxes; ``probability``: evidence [B, n] to scores. Boxes that clipping
    leaves without extent, and boxes that are not finite or of deltas that are not, are no candidates.
    """
    values, where, labels = top_pairs(evidence, count)
    said = deltas.gather(1, where[..., None].expand(-1, -1, 4))
    boxes = decode(said, anchors[where])
    limit = valid.to(boxes).flip(1).repeat(1, 2)[:, None]
    clipped = torch.minimum(boxes.clamp(min=0), limit)
    sides = clipped[..., 2:] - clipped[..., :2]
    real = (said.isfinite() & boxes.isfinite()).all(2) & (sides > 0).all(2) & values.isfinite()
    return Candidates(torch.where(real[..., None], clipped, 0.0), torch.where(real, probability(values), -1.0), labels)


@dataclass(frozen=True)
class Selection:
    """Which candidates become detections, as options of a head.

    ``max_detections`` per image, of scores above ``score_threshold``; ``pre_nms``: anchor-class pairs that are looked at;
    ``nms``: ``hard``, with ``nms_iou``; ``gaussian``, with ``sigma``; or ``none``, for networks that find each object once.
    """

    max_detections: int = 100
    score_threshold: float = 0.05
    nms: str = "hard"
    nms_iou: float = 0.5
    sigma: float = 0.5
    pre_nms: int = 5000

    def __post_init__(self) -> None:
        whole("max_detections", self.max_detections)
        number("score_threshold", self.score_threshold, 0, below=1)
        choice("nms", self.nms, ("hard", "gaussian", "none"))
        number("nms_iou", self.nms_iou, 0, most=1)
        number("sigma", self.sigma, above=0)
        whole("pre_nms", self.pre_nms)

    def resting(self) -> dict[str, str]:
        """Fields that change nothing, and why."""
        return {} if self.nms == "gaussian" else {"sigma": "nms is not gaussian"}

    def __call__(self, found: Candidates, num_classes: int) -> Detections:
        """Detections of fixed shape, ``max_detections`` rows per image, of ``num_classes`` classes."""
        threshold, most = self.score_threshold, self.max_detections
        if self.nms == "none":
            return best_of(found, threshold=threshold, most=most)
        if self.nms == "gaussian":
            return gaussian_nms(found, sigma=self.sigma, threshold=threshold, most=most)
        if for_onnx():
            return _hard_nms_of_onnx(found, num_classes, iou=self.nms_iou, threshold=threshold, most=most)
        if torch.compiler.is_exporting():
            return _hard_nms_unrolled(found, iou=self.nms_iou, threshold=threshold, most=most)
        return hard_nms(found, iou=self.nms_iou, threshold=threshold, most=most)


def best_of(found: Candidates, *, threshold: float, most: int) -> Detections:
    """The ``most`` best candidates of scores above ``threshold``, in 0..1, whatever they overlap."""
    first = found.scores.shape[1]
    rank = (
        first - torch.arange(first, device=found.scores.device)
    ).float()  # candidates are sorted, but for those that are none
    rank = torch.where(found.scores > threshold, rank, 0.0)
    best, rows = rank.topk(min(most, first))
    rows = F.pad(rows, (0, most - rows.shape[1]))
    return _fixed(found, rows, found.scores.gather(1, rows), (best > 0).sum(1))


def hard_nms(found: Candidates, *, iou: float, threshold: float, most: int) -> Detections:
    """Drop boxes that overlap a better one of their class by more than ``iou``; keep at most ``most`` of scores above
    ``threshold``, in 0..1."""
    kept = []
    for boxes, scores, labels in zip(*found, strict=True):
        usable = (scores > threshold).nonzero()[:, 0]
        # Classes are told apart by moving each of them off the image: float32 would round the boxes of the 365th to whole sixteenths of
        # a pixel, and takes an overlap of 3 / 5 for more than 0.6, which no graph does.
        exact = (t[usable] if t.device.type == "mps" else t[usable].double() for t in (boxes, scores))
        order = usable[batched_nms(*exact, labels[usable], iou)]
        kept.append(order.sort().values[:most])  # candidates are sorted already, and equal scores by anchor
    count = torch.tensor([len(rows) for rows in kept], device=found.boxes.device)
    rows = torch.stack([F.pad(rows, (0, most - len(rows))) for rows in kept])
    return _fixed(found, rows, found.scores.gather(1, rows), count)


def _hard_nms_of_onnx(found: Candidates, num_classes: int, *, iou: float, threshold: float, most: int) -> Detections:
    """The same in a graph for ONNX, which has an operator for it."""
    boxes, scores, labels = found
    first = scores.shape[1]
    rank = (first - torch.arange(first, device=scores.device)).float()  # candidates are sorted
    own = labels[:, None] == torch.arange(num_classes, device=labels.device)[:, None]
    stay = suppress(boxes, torch.where(own & (scores > threshold)[:, None], rank, 0.0), iou, most)
    rows = torch.where(stay, rank, 0.0).topk(min(most, first)).indices
    rows = F.pad(rows, (0, most - rows.shape[1]))
    return _fixed(found, rows, scores.gather(1, rows), stay.sum(1).clamp(max=most))


def _hard_nms_unrolled(found: Candidates, *, iou: float, threshold: float, most: int) -> Detections:
    """The same in a graph of tensor operations alone, whose shapes do not depend on values: the best one left is taken, and what
    it suppresses goes, ``most`` times."""
    boxes, scores, labels = found
    left, rows, taken = scores > threshold, [], []
    for _ in range(most):
        row = left.to(torch.uint8).argmax(1, keepdim=True)  # the first, for they are sorted
        rows.append(row)
        taken.append(left.gather(1, row))
        overlap = pairwise_iou(boxes.gather(1, row[..., None].expand(-1, -1, 4)), boxes)[:, 0]
        left = left & ~((overlap > iou) & (labels == labels.gather(1, row)))
        left = left.scatter(1, row, False)
    chosen = torch.cat(rows, 1)
    return _fixed(found, chosen, scores.gather(1, chosen), torch.cat(taken, 1).sum(1))


def gaussian_nms(found: Candidates, *, sigma: float, threshold: float, most: int) -> Detections:
    """Instead of dropping them, multiply the scores of overlapping boxes of the same class by exp(-IoU^2 / ``sigma``), best
    box first, until ``most`` boxes are taken or none is above ``threshold``, in 0..1.

    Bodla et al., "Soft-NMS", 2017, equation 3. One pass over all candidates of the batch for each box taken.
    """
    scores, rows, best = found.scores, [], []
    for _ in range(most):
        value, row = scores.max(1, keepdim=True)
        box, label = found.boxes.gather(1, row[..., None].expand(-1, -1, 4)), found.labels.gather(1, row)
        overlap = torch.where(found.labels == label, pairwise_iou(box, found.boxes)[:, 0], 0.0)
        scores = (scores * torch.exp(-overlap.square() / sigma)).scatter(1, row, -1.0)
        rows.append(row)
        best.append(value)
    values = torch.cat(best, 1)
    return _fixed(found, torch.cat(rows, 1), values, (values > threshold).sum(1))


def _fixed(found: Candidates, rows: Tensor, scores: Tensor, count: Tensor) -> Detections:
    """Detections of candidates ``rows`` [B, N], zero from ``count`` [B] on."""
    taken = torch.arange(rows.shape[1], device=rows.device) < count[:, None]
    boxes = torch.where(taken[..., None], found.boxes.gather(1, rows[..., None].expand(-1, -1, 4)), 0.0)
    return Detections(
        boxes, torch.where(taken, scores, 0.0), torch.where(taken, found.labels.gather(1, rows), 0), count
    )
