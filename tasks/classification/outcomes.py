"""Predicted and true classes of each image, kept beside the scores that they make."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tasks.classification.metrics import ClassificationMetrics, looked_up
from tasks.classification.results import stacked
from tasks.data.batch import Batch
from tasks.scoring.gathering import GatheredRows
from tasks.scoring.labelled import ClassOutcomes, LabelSetOutcomes
from tasks.scoring.outcomes import checksum

_UNRANKED = 2**20  # of a prediction that is not finite


class ClassRecorder:
    """Keeps what the network said of each image that ``metric`` scores; rows are float32, which holds labels exactly."""

    def __init__(self, metric: ClassificationMetrics) -> None:
        self.metric = metric
        width = 2 * len(metric.classes) if metric.multilabel else 4
        self.rows = GatheredRows(width, torch.float32).to(metric.device)

    def update(self, batch: Batch, predictions: Sequence[Tensor]) -> None:
        """Add the images of a batch that have a label."""
        found = [row for row, meta in enumerate(batch.meta) if meta.label is not None]
        if not found:
            return
        truth = [np.asarray(batch.meta[row].label, np.float32) for row in found]
        probabilities = stacked(predictions)[found].detach().float()
        labels = torch.from_numpy(np.stack(truth)).to(probabilities.device)
        rows = self._sets(probabilities, labels) if self.metric.multilabel else self._single(probabilities, labels)
        self.rows.update([batch.meta[row].id for row in found], [checksum(one) for one in truth], rows)

    def _single(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        if self.metric.binary and probabilities.shape[1] == 1:
            probabilities = torch.cat([1 - probabilities, probabilities], 1)
        finite, confidence, best, rank = looked_up(probabilities, labels.long())
        columns = labels, torch.where(finite, best, -1), confidence, torch.where(finite, rank, _UNRANKED)
        return torch.stack([column.float() for column in columns], 1)

    def _sets(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        known = labels >= 0 if self.metric.ignore_unknown else torch.ones_like(labels, dtype=torch.bool)
        probabilities = torch.where(probabilities.isfinite(), probabilities, torch.nan)
        return torch.cat([probabilities, torch.where(known, (labels > 0.5).float(), -1.0)], 1)

    def outcomes(self) -> ClassOutcomes | LabelSetOutcomes:
        """Of all images so far, of all processes."""
        ids, truth, rows = self.rows.compute()
        about, k = (ids, self.metric.classes, truth), len(self.metric.classes)
        if self.metric.multilabel:
            return LabelSetOutcomes(*about, rows[:, :k], rows[:, k:].astype(np.int8))
        label, predicted, confidence, rank = rows.T
        return ClassOutcomes(
            *about, label.astype(np.int32), predicted.astype(np.int32), confidence, rank.astype(np.int32)
        )
