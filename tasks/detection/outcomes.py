"""Detections of each image matched with its objects."""

from typing import Any

from tasks.data.batch import Batch
from tasks.detection.metrics import DetectionMetrics
from tasks.scoring.boxes import BoxOutcomes


class BoxRecorder:
    """Takes from ``metric``, which keeps all boxes, what became of them."""

    def __init__(self, metric: DetectionMetrics) -> None:
        self.metric = metric

    def update(self, batch: Batch, predictions: Any) -> None:
        """Nothing: the metric has them."""

    def outcomes(self) -> BoxOutcomes:
        """Of all images so far, of all processes."""
        return self.metric.outcomes()
