"""The page that a segmentation run leaves: scores, curves, classes, examples beside their truth, and what the masks are like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from effbackbones.drawing.masks import WRONG, has_background, occurring, palette_of
from effbackbones.model import Model
from tasks.data.dataset import Dataset
from tasks.data.masks.count import MaskStatistics, median_frequency
from tasks.data.sample import IGNORE
from tasks.report.drawings import class_shares
from tasks.report.page import Report
from tasks.report.records import Summary
from tasks.report.skeleton import (
    add_calibration,
    add_classes,
    add_confusion,
    add_threshold,
    add_training,
    begun,
    finished,
    percent,
)
from tasks.segmentation.errorpart import add_errors
from tasks.segmentation.examples import Example, SegmentationExamples
from tasks.segmentation.statistics import statistics

_MEANING = {
    "miou": "mean IoU over the classes that occur; IoU: of the pixels that truth or prediction give a class, the share that both do",
    "pixel_accuracy": "share of the pixels whose class is the true one",
    "dice": "mean over the same classes of the common pixels as a share of the mean of both areas",
    "boundary_iou": "mean IoU of the bands along the borders of the classes, 2 % of the image's diagonal wide: how exact outlines are",
    "ece": "expected calibration error over pixels: mean gap between confidence and accuracy; lower is better",
    "images": "images that were scored",
    "pixels": "labelled pixels in them",
    "non_finite": "pixels whose prediction was not finite, counted as wrong",
}
_MEANING_OF_SETS = {
    **{name: text for name, text in _MEANING.items() if name not in ("boundary_iou", "ece")},
    "pixel_accuracy": "share of the pixels whose whole set of classes is the true one",
}
_CURVES = ("val_miou", "val_dice", "val_boundary_iou", "val_pixel_accuracy", "val_miou_raw")
_MOST_BARS = 50  # classes; more are in the table alone
_HATCHED = "repeating-linear-gradient(135deg, #80868e 0 2px, #d5d9de 2px 5px)"


class SegmentationReporter(SegmentationExamples):
    """Keeps the worst and the best images of the last evaluation, and writes the report."""

    def __init__(self, classes: Sequence[str], on_error: str = "stop") -> None:
        super().__init__(classes)
        self.on_error = on_error

    def write(self, folder: Path, summary: Summary, model: Model, dataset: Dataset) -> Path:
        """Write ``report.html`` into ``folder``; returns its path. What the masks of ``dataset`` are like is shown too."""
        return segmentation_report(folder, summary, examples=self, masks=statistics(dataset, self.on_error))


def segmentation_report(
    folder: Path, summary: Summary, *, examples: SegmentationExamples | None = None, masks: MaskStatistics | None = None
) -> Path:
    """Write ``report.html`` into ``folder``; returns its path.

    ``examples``: what the evaluation collected, ``masks``: what the training data is like.
    """
    scores = summary.results.scores
    meaning = _MEANING if "boundary_iou" in scores else _MEANING_OF_SETS
    report = begun(summary, ("miou", "pixel_accuracy", "dice", "boundary_iou"), meaning)
    add_training(report, summary, _CURVES)
    add_classes(report, scores, summary.results.intervals.get(""))
    add_threshold(report, summary.results, "the classes of pixels")
    add_errors(report, scores.get("errors") or {})
    add_confusion(report, scores, "pixels")
    add_calibration(report, scores)
    if examples is not None:
        _examples(report, "Worst images", examples.worst())
        _examples(report, "Best images", examples.best())
    if masks is not None:
        _masks(report, masks)
    return finished(report, summary, folder)


def _examples(report: Report, title: str, examples: Sequence[Example]) -> None:
    """Image, truth, prediction and errors side by side."""
    items = [
        (example.panels(), f"mean IoU {example.iou:.2f}, {percent(example.right)} of the pixels right\n{example.name}")
        for example in examples
    ]
    if items:
        report.pairs(
            title, items, "By the mean IoU of the image over the classes in its truth or prediction.", _legend(examples)
        )


def _legend(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """What the colours that occur mean."""
    classes = examples[0].classes
    shown = {value for example in examples for labels in (example.truth, example.labels) for value in occurring(labels)}
    colours = ["rgb({} {} {})".format(*colour) for colour in palette_of(classes).tolist()]
    colours[IGNORE] = _HATCHED
    if has_background(classes):
        colours[0] = "none"
    entries = [("ignored" if value == IGNORE else classes[value], colours[value]) for value in sorted(shown)]
    return [*entries, ("wrong", "rgb({} {} {})".format(*WRONG))]


def _masks(report: Report, masks: MaskStatistics) -> None:
    """How often classes occur in the training data, rarest first, and the weights that would make up for it."""
    if not masks.pixels.any():
        return
    pixels, images = masks.pixels, masks.images
    labelled, looked_at = max(1, masks.labelled), max(1, masks.looked_at)
    order = np.argsort(pixels, kind="stable").tolist()
    looked = f"{masks.looked_at:,} of {masks.total:,} images looked at; " if masks.looked_at < masks.total else ""
    void = f"{looked}{percent(masks.ignored / max(1, labelled + masks.ignored))} of all pixels are ignored."
    if masks.overlap is not None:
        several, bare = (percent(part / labelled) for part in (masks.overlap.several, masks.overlap.bare))
        void += f" Of the others {several} have several classes, {bare} none."
    if len(order) <= _MOST_BARS:
        shares = {
            "share of the labelled pixels": pixels[order] / labelled,
            "share of the images": images[order] / looked_at,
        }
        report.figure(
            "Classes of the training data", class_shares([masks.classes[k] for k in order], shares), "Rarest first."
        )
    weights = median_frequency(masks)
    rows = [
        [
            masks.classes[k],
            int(pixels[k]),
            percent(float(pixels[k] / labelled)),
            int(images[k]),
            percent(float(images[k] / looked_at)),
            weights[k],
        ]
        for k in order
    ]
    header = ["class", "pixels", "share of the labelled", "images", "share of the images", "weight"]
    report.table(
        "Frequencies",
        header,
        rows,
        "Weight: what optim.class_weights sets, the median of the frequencies over "
        f"a class's own, each taken over the images that have the class (Eigen and Fergus 2015). {void}",
    )
