"""The page that a detection run leaves: scores, curves, classes, examples beside their truth, and what the boxes are like."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effbackbones.model import Model
from tasks.data.dataset import Dataset
from tasks.detection.errorpart import add_errors
from tasks.detection.examples import GOOD_IOU, DetectionExamples, Example
from tasks.detection.metrics import CONFIDENT
from tasks.detection.statistics import BoxStatistics, statistics
from tasks.report.drawings import COCO_BORDERS, COVERED, box_histogram, coverage_figure, precision_recall
from tasks.report.page import Report
from tasks.report.records import Summary
from tasks.report.skeleton import add_classes, add_threshold, add_training, begun, finished, percent
from tasks.settings.sections import Config

_SMALL, _LARGE = COCO_BORDERS
_PER_IMAGE = "false_positives_on_empty"
_MEANING = {
    "AP": "average precision, mean over classes and the IoU thresholds 0.50, 0.55, ..., 0.95: COCO's own score",
    "AP50": "the same where an IoU of 0.50 is enough for a box to be right",
    "AP75": "the same where an IoU of 0.75 is needed",
    "AP_small": f"AP of objects smaller than {_SMALL} x {_SMALL} pixels of the file; a dash where there are none",
    "AP_medium": f"AP of objects between {_SMALL} x {_SMALL} and {_LARGE} x {_LARGE} pixels",
    "AP_large": f"AP of objects larger than {_LARGE} x {_LARGE} pixels",
    "AR_1": "average recall, mean over classes and the same thresholds: share of objects found by one box for each class and image",
    "AR_10": "average recall with ten boxes for each class and image",
    "AR_100": "average recall with a hundred boxes for each class and image",
    "AR_small": "average recall of small objects, with a hundred boxes",
    "AR_medium": "average recall of medium objects",
    "AR_large": "average recall of large objects",
    # So far the twelve lines of COCO's summary, in its order.
    "images": "images that were scored",
    "boxes": "objects in them, crowds left out",
    "detections": "boxes predicted, of any score",
    "non_finite": "predictions that were not finite, counted as wrong",
    _PER_IMAGE: f"boxes of a score of at least {CONFIDENT:g} per image without objects; lower is better",
}
_CURVES = ("val_AP", "val_AP50", "val_AP75", "val_AP_raw")
_MOST_LINES = 8  # classes; more lines cannot be told apart
_PRECISION = {"iou50": "IoU 0.50", "iou75": "IoU 0.75", "iou": "mean over IoU 0.50 to 0.95"}


class DetectionReporter(DetectionExamples):
    """Keeps the worst and the best images of the last evaluation, and writes the report."""

    def __init__(self, config: Config, classes: Sequence[str], threshold: float = CONFIDENT) -> None:
        super().__init__(classes, threshold)
        self.config = config

    def write(self, folder: Path, summary: Summary, model: Model, dataset: Dataset) -> Path:
        """Write ``report.html`` into ``folder``; returns its path. What the boxes of ``dataset`` are like is shown too."""
        return detection_report(folder, summary, examples=self, boxes=statistics(self.config, model, dataset))


def detection_report(
    folder: Path, summary: Summary, *, examples: DetectionExamples | None = None, boxes: BoxStatistics | None = None
) -> Path:
    """Write ``report.html`` into ``folder``; returns its path.

    ``examples``: what the evaluation collected, ``boxes``: what the training data is like.
    """
    scores = summary.results.scores
    report = begun(summary, ("AP", "AP50"), _MEANING, {_PER_IMAGE})
    add_training(report, summary, _CURVES)
    _precision_recall(report, scores)
    add_threshold(report, summary.results, "the boxes")
    add_errors(report, scores.get("errors") or {})
    add_classes(report, scores, summary.results.intervals.get(""))
    if examples is not None:
        _examples(report, "Worst images", examples.worst(), examples.threshold)
        _examples(report, "Best images", examples.best(), examples.threshold)
    if boxes is not None:
        _boxes(report, boxes)
    return finished(report, summary, folder)


def _precision_recall(report: Report, scores: Mapping[str, Any]) -> None:
    mean, by_class = scores.get("precision_recall") or {}, scores.get("precision_recall_per_class") or {}
    recall = mean.get("recall")
    lines = {
        _PRECISION.get(name, name): line
        for name, line in mean.items()
        if name != "recall" and any(v is not None for v in line)
    }
    if not recall or not lines:
        return
    shown = by_class if 1 < len(by_class) <= _MOST_LINES else {}
    report.figure(
        "Precision and recall",
        precision_recall(recall, lines, shown),
        "To the right: the lower the score from which boxes are "
        "taken, the more of the objects are found; downwards: the fewer of the boxes are right.",
    )


def _examples(report: Report, title: str, examples: Sequence[Example], threshold: float) -> None:
    """Truth and prediction side by side."""
    items = [
        ({"truth": example.truth_picture(), "prediction": example.prediction_picture()}, _words(example))
        for example in examples
    ]
    if items:
        report.pairs(
            title,
            items,
            f"By F1: twice the right boxes over objects and boxes. A box counts from score {threshold:.3g} on, as in predictions, "
            f"and is right if its class is and its IoU with an object of its own is at least {GOOD_IOU:g}. Dashed: an object missed, "
            "or a box that is wrong. Hatched: a crowd, or a box inside one, which count for nothing.",
        )


def _words(example: Example) -> str:
    right, wrong, missed = example.counts
    return f"F1 {example.f1:.2f}: {right} right, {wrong} wrong, {missed} missed\n{example.name}"


def _boxes(report: Report, boxes: BoxStatistics) -> None:
    if len(boxes.original):
        report.figure("Box sizes", box_histogram(boxes.original, boxes.network), _sizes(boxes))
    if len(boxes.best_iou):
        share = float((boxes.best_iou >= COVERED).mean())
        report.figure(
            "Anchors",
            coverage_figure(boxes.best_iou, boxes.network),
            f"{percent(share)} of {len(boxes.best_iou):,} boxes have "
            f"an anchor of IoU {COVERED:g} or more; the best has {boxes.best_iou.mean():.2f} on average. Right: the "
            "same by size, above each bar how many boxes there are. Boxes without an anchor are hardly learnt: the verb check "
            "proposes anchors that fit.",
        )
    if boxes.repairs:
        header = list(dict.fromkeys(key for row in boxes.repairs for key in row))
        report.table("Repairs of the data", header, [[row.get(key) for key in header] for row in boxes.repairs])


def _sizes(boxes: BoxStatistics) -> str:
    """How many boxes are small, medium and large in the sense of COCO."""
    areas = boxes.original.prod(1)
    small, large = float((areas < _SMALL**2).mean()), float((areas > _LARGE**2).mean())
    medium = max(0.0, 1 - small - large)
    middle = ", ".join(
        f"{np.median(np.sqrt(sides.prod(1))):.0f} pixels {where}"
        for sides, where in ((boxes.original, "in the files"), (boxes.network, "as the network sees them"))
    )
    return (
        f"Of {len(areas):,} boxes {percent(small)} are small (under {_SMALL} x {_SMALL} pixels of the file), {percent(medium)} medium, "
        f"{percent(large)} large (over {_LARGE} x {_LARGE}); dashed lines. Median: {middle}."
    )
