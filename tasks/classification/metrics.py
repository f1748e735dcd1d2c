"""Scores over a whole split: each figure comes from counts or ranks of all samples, never from a mean over batches.

All figures are fractions in 0..1; what is undefined (a class without samples, an empty split) is ``None`` and is left
out of means. A non-finite prediction counts as wrong in every figure, so that it can lower a score but never raise it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from effbackbones.errors import UserError
from tasks.scoring.calibration import calibration_error, counted, mean, nothing_counted, ratio, reliability

_THRESHOLD = 0.5  # above it, a class of a multi-label sample counts as predicted
SURE = 0.9
"""Confidence above which a mistake is a confident one."""


class ClassificationMetrics(Metric):
    """Top-1, top-5, F1, calibration and confusion of single-label samples; average precision of multi-label ones.

    ``update(probabilities, targets)`` takes float [B, K] in 0..1 and int64 [B] (float 0 or 1 [B, K] with
    ``multilabel``; of a single class that is not, the probability [B, 1] of it and targets 0 and 1, scored as the two classes
    ``not NAME`` and NAME). ``compute()`` gives, JSON-like:

    * single-label: ``samples``, ``non_finite`` (samples), ``top1``, ``top5`` (of more than five classes: of fewer it would
      be 1 whatever the model says; ties go to the lower class index), ``macro_f1``, ``ece``, ``per_class`` (name ->
      precision, recall, f1, support), ``confusion`` (rows true, columns predicted; non-finite predictions are in no
      column) and ``reliability``.
    * multi-label: ``samples``, ``non_finite`` (entries), ``map`` (mean over classes with positives), ``micro_ap``,
      ``macro_f1`` and ``micro_f1`` at threshold 0.5, ``ece``, ``per_class`` (with ``ap``), ``reliability``.

    ``ece`` is the expected calibration error with ``bins`` equal bins (Guo et al. 2017, On Calibration of Modern Neural
    Networks, eq. 3), of the top-1 confidence, or of every entry's probability with ``multilabel``. With ``ignore_unknown`` labels
    that are -1 or NaN are in no figure. Average precision
    is the step-wise sum of precision over recall, equal scores being one step.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    confusion: Tensor
    top5_correct: Tensor
    surely_wrong: Tensor
    calibration: Tensor
    non_finite: Tensor
    invalid: Tensor
    scores: list[Tensor]
    labels: list[Tensor]

    known: list[Tensor]

    def __init__(
        self, classes: Sequence[str], multilabel: bool = False, bins: int = 15, *, ignore_unknown: bool = False
    ) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or not classes or bins < 1:
            raise UserError("metrics", f"expected distinct class names and at least one bin, got {classes} and {bins}")
        self.binary = len(classes) == 1 and not multilabel
        self.classes = (f"not {classes[0]}", classes[0]) if self.binary else tuple(classes)
        self.multilabel, self.ignore_unknown = multilabel, ignore_unknown
        self.bins = bins
        self.add_state("calibration", nothing_counted(bins), "sum")
        self.add_state("non_finite", torch.tensor(0), "sum")
        self.add_state("invalid", torch.zeros(2, dtype=torch.int64), "sum")  # probabilities, targets
        if multilabel:
            self.add_state("scores", [], "cat")
            self.add_state("labels", [], "cat")
            self.add_state("known", [], "cat")
        else:
            # The last column holds samples whose prediction is not finite: they have a true class and no predicted one.
            known = len(self.classes)
            self.add_state("confusion", torch.zeros(known, known + 1, dtype=torch.int64), "sum")
            self.add_state("top5_correct", torch.tensor(0), "sum")
            self.add_state("surely_wrong", torch.tensor(0), "sum")
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        if self.multilabel:  # torchmetrics joins processes by shape and type, and one of them may have no sample
            empty = torch.zeros(0, len(self.classes), device=self.device)
            self.scores, self.labels, self.known = [empty], [empty.bool()], [empty.bool()]

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Count a batch; nothing is copied to the host. An empty one adds nothing, whatever its form."""
        batch, k = len(probabilities), len(self.classes)
        if not batch:
            return
        if self.binary and probabilities.shape == (batch, 1):
            probabilities = torch.cat([1 - probabilities, probabilities], 1)
        expected = (batch, k) if self.multilabel else (batch,)
        if (
            probabilities.shape != (batch, k)
            or targets.shape != expected
            or targets.is_floating_point() > self.multilabel
        ):
            kind = "" if self.multilabel else "integer "
            raise UserError(
                "metrics",
                f"expected probabilities [B, {k}] and {kind}targets {list(expected)}, "
                f"got {list(probabilities.shape)} and {targets.dtype} {list(targets.shape)}",
            )
        probabilities = probabilities.detach().float()
        outside = (probabilities < 0) | (probabilities > 1)
        self.invalid = self.invalid + torch.stack(
            [(outside & probabilities.isfinite()).sum(), self._unusable(targets).sum()]
        )
        if self.multilabel:
            known = targets >= 0 if self.ignore_unknown else torch.ones_like(targets, dtype=torch.bool)
            self._update_multilabel(probabilities, targets > 0.5, known)
        else:
            self._update_single(probabilities, targets.long().clamp(0, k - 1))

    def _unusable(self, targets: Tensor) -> Tensor:
        if not self.multilabel:
            return (targets < 0) | (targets >= len(self.classes))
        wrong = (targets != 0) & (targets != 1)
        return wrong & (targets != -1) & ~targets.isnan() if self.ignore_unknown else wrong

    def _update_single(self, probabilities: Tensor, targets: Tensor) -> None:
        k = len(self.classes)
        finite, confidence, best, rank = looked_up(probabilities, targets)
        columns = torch.where(finite, best, k)
        cells = targets * (k + 1) + columns
        self.confusion = self.confusion.flatten().scatter_add(0, cells, torch.ones_like(cells)).view_as(self.confusion)
        self.non_finite = self.non_finite + (~finite).sum()
        self.top5_correct = self.top5_correct + (finite & (rank < 5)).sum()
        self.surely_wrong = self.surely_wrong + (finite & (best != targets) & (confidence > SURE)).sum()
        self.calibration = counted(self.calibration, confidence, best == targets, finite)

    def _update_multilabel(self, probabilities: Tensor, positive: Tensor, known: Tensor) -> None:
        finite = probabilities.isfinite()
        self.non_finite = self.non_finite + (~finite & known).sum()
        counts = (finite & known).flatten()
        self.calibration = counted(self.calibration, probabilities.flatten(), positive.flatten(), counts)
        worst = torch.where(positive, -torch.inf, 2.0)  # never found, or above every probability
        self.scores.append(torch.where(finite, probabilities, worst))
        self.labels.append(positive)
        self.known.append(known)

    def compute(self) -> dict[str, Any]:
        """The scores of all samples so far. Impossible probabilities or targets raise :class:`UserError`."""
        outside, unusable = self.invalid.tolist()
        if outside:
            raise UserError(
                "metrics",
                f"{outside} predicted values lie outside of 0..1",
                "predict must give probabilities, not logits",
            )
        if unusable:
            raise UserError(
                "metrics",
                f"{unusable} targets are no class index (multi-label: not 0 or 1)",
                "check the labels of this split",
            )
        return self._compute_multilabel() if self.multilabel else self._compute_single()

    def anatomy(self) -> dict[str, Any]:
        """What the errors of all samples so far are, of all processes, in numbers: ``wrong``, all of them; ``in_top5``, those whose true
        class is among the five most probable, of more than five classes; ``confident``, with a confidence above :data:`SURE`. With several
        labels ``by_class``: name -> ``false_positives`` and ``false_negatives`` at threshold 0.5."""
        with self.sync_context():
            if self.multilabel:
                _, extra, missed = self._entries()
                rows = zip(self.classes, extra.tolist(), missed.tolist(), strict=True)
                return {"by_class": {name: {"false_positives": fp, "false_negatives": fn} for name, fp, fn in rows}}
            hits = int(self.confusion.diagonal().sum())
            return {
                "wrong": int(self.confusion.sum()) - hits,
                **({"in_top5": int(self.top5_correct) - hits} if len(self.classes) > 5 else {}),
                "confident": int(self.surely_wrong),
            }

    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Labels by class that are rightly there, wrongly there, and wrongly not there, int64 [K] each."""
        scores, positive, known = (dim_zero_cat(state).cpu() for state in (self.scores, self.labels, self.known))
        chosen = (scores > _THRESHOLD) & known
        return (chosen & positive).sum(0), (chosen & ~positive).sum(0), (~chosen & positive).sum(0)

    def _compute_single(self) -> dict[str, Any]:
        table = self.confusion.cpu()
        counts, missed = table[:, :-1], int(table[:, -1].sum())
        support, hits = table.sum(1), counts.diagonal()
        samples = int(support.sum())
        per_class = self._per_class(hits, counts.sum(0) - hits + missed, support - hits)
        return {
            "samples": samples,
            "non_finite": int(self.non_finite),
            "top1": ratio(int(hits.sum()), samples),
            **({"top5": ratio(int(self.top5_correct), samples)} if len(self.classes) > 5 else {}),
            "macro_f1": mean([row["f1"] for row in per_class.values()]),
            "ece": calibration_error(self.calibration, samples, int(self.non_finite)),
            "per_class": per_class,
            "confusion": counts.tolist(),
            "reliability": reliability(self.calibration),
        }

    def _compute_multilabel(self) -> dict[str, Any]:
        scores, positive, known = (dim_zero_cat(state).cpu() for state in (self.scores, self.labels, self.known))
        hits, extra, missed = self._entries()
        per_class = self._per_class(hits, extra, missed)
        for index, row in enumerate(per_class.values()):
            rows = known[:, index]
            row["ap"] = average_precision(scores[rows, index], positive[rows, index])
        positives, doubled = int(positive.sum()), 2 * int(hits.sum())
        return {
            "samples": len(scores),
            "non_finite": int(self.non_finite),
            "map": mean([row["ap"] for row in per_class.values()]),
            "micro_ap": average_precision(scores[known], positive[known]),
            "macro_f1": mean([row["f1"] for row in per_class.values()]),
            "micro_f1": doubled / (positives + int((hits + extra).sum())) if positives else None,
            "ece": calibration_error(self.calibration, int(known.sum()), int(self.non_finite)),
            "per_class": per_class,
            "reliability": reliability(self.calibration),
        }

    def _per_class(self, hits: Tensor, extra: Tensor, missed: Tensor) -> dict[str, dict[str, Any]]:
        """Precision, recall and F1 by class from true positives, false positives and false negatives, int64 [K] each."""
        rows = {}
        for name, tp, fp, fn in zip(self.classes, hits.tolist(), extra.tolist(), missed.tolist(), strict=True):
            present = tp + fn > 0
            precision = (tp / (tp + fp) if tp else 0.0) if present else None
            f1 = 2 * tp / (2 * tp + fp + fn) if present else None
            rows[name] = {"precision": precision, "recall": ratio(tp, tp + fn), "f1": f1, "support": tp + fn}
        return rows


def looked_up(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of probabilities [B, K] and classes int64 [B]: which predictions are finite, the confidence in the best class, that class, and
    the rank of the true one, 0 being the first, ties going to the lower class; [B] each."""
    confidence, best = probabilities.max(1)
    own = probabilities.gather(1, targets[:, None])
    earlier = torch.arange(probabilities.shape[1], device=targets.device) < targets[:, None]
    rank = ((probabilities > own) | ((probabilities == own) & earlier)).sum(1)
    return probabilities.isfinite().all(1), confidence, best, rank


def average_precision(scores: Tensor, positive: Tensor) -> float | None:
    """Average precision of one ranking: ``scores`` float [N], ``positive`` bool [N]; None without a positive.

    ``sum_n (R_n - R_{n-1}) P_n`` over the distinct scores, falling: no interpolation, ties share one threshold. A positive of
    score -inf is never found, at no threshold: at the lowest one all would be, and among few negatives that is no bad score.
    """
    total = int(positive.sum())
    if not total:
        return None
    falling, order = scores.sort(descending=True)
    hits = (positive & (scores > -torch.inf))[order].cumsum(0).double()
    ends = torch.cat([falling[1:] != falling[:-1], torch.ones(1, dtype=torch.bool)])
    hits, ranks = hits[ends], torch.arange(1, len(scores) + 1)[ends]
    gained = torch.diff(hits, prepend=torch.zeros(1, dtype=torch.float64))
    return float((gained * hits / ranks).sum() / total)
