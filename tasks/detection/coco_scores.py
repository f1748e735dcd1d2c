"""COCO's precision and recall, from columns of boxes; the engine is faster-coco-eval, whose numbers are pycocotools'.

It runs class by class, on the images that have something of the class: that is all that a class's numbers depend on, and
memory follows the boxes rather than images times classes. Nothing else in the house talks to the engine.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster, mask as engine_mask  # type: ignore[import-untyped]
from numpy.typing import NDArray

from tasks.data.files.jsonfile import collector_off
from tasks.detection.results import finite_rows

AREAS = ("all", "small", "medium", "large")
"""By area of the object in square pixels: up to 32 x 32, up to 96 x 96, above."""
IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""IoU from which a detection is right: T thresholds."""
RECALLS = tuple(step / 100 for step in range(101))
"""Recall at which precision is read: R points."""
_CATEGORY = 1
_INSIDE = (1.0, 64.0**2, 1000.0**2)
"""An area that is small, one that is medium, one that is large."""
_LARGEST = float(np.finfo(np.float64).max)


class FoundColumns(NamedTuple):
    """Detections: ``image`` int64 [n] (in the order that breaks ties of scores), ``boxes`` float64 [n, 4] as x, y, width, height,
    ``scores`` float64 [n], ``labels`` int64 [n]."""

    image: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> "FoundColumns":
        """These rows alone."""
        return FoundColumns(self.image[rows], self.boxes[rows], self.scores[rows], self.labels[rows])


class TruthColumns(NamedTuple):
    """Objects: ``image``, ``boxes`` and ``labels`` as for detections, ``area`` float64 [m] square pixels, ``crowd`` bool [m]."""

    image: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> "TruthColumns":
        """These rows alone."""
        return TruthColumns(self.image[rows], self.boxes[rows], self.labels[rows], self.area[rows], self.crowd[rows])


class Curves(NamedTuple):
    """``precision`` float64 [T, R, K, A, M] and ``recall`` float64 [T, K, A, M] by IoU, recall, class, area and number of
    detections; -1 where there is no object of the class and size, crowds aside."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def precision_and_recall(found: FoundColumns, truth: TruthColumns, classes: int, max_dets: Sequence[int]) -> Curves:
    """Precision and recall over a whole set, with at most ``max_dets[m]`` (rising) detections per class and image.

    A detection that is not finite is right about nothing: it counts as a false positive in every area, at its score, or, if that
    is not finite, before all others. So it can lower any figure and raise none. pycocotools takes it for a perfect match.
    """
    shape = (len(AREAS), len(max_dets))
    result = Curves(
        np.full((len(IOUS), len(RECALLS), classes, *shape), -1.0), np.full((len(IOUS), classes, *shape), -1.0)
    )
    found_by_class, truth_by_class = (_groups(columns.labels, columns.image, classes) for columns in (found, truth))
    with collector_off():  # the engine wants a dictionary for each box: a third of the time otherwise
        for label in range(classes):
            mine = truth.take(truth_by_class[label])
            if not mine.crowd.all():
                scored = _class_curves(found.take(found_by_class[label]), mine, max_dets)
                result.precision[:, :, label], result.recall[:, label] = scored.precision[:, :, 0], scored.recall[:, 0]
    return result


def _groups(labels: NDArray[np.int64], image: NDArray[np.int64], classes: int) -> list[NDArray[np.int64]]:
    """Rows of each class, by image, otherwise in the given order."""
    order = np.lexsort((image, labels))
    bounds = np.searchsorted(labels[order], np.arange(classes + 1))
    return [order[start:stop] for start, stop in pairwise(bounds.tolist())]


def _class_curves(found: FoundColumns, truth: TruthColumns, max_dets: Sequence[int]) -> Curves:
    """Of a single class: K is 1."""
    if finite_rows(found.boxes, found.scores).all():
        return _run(found, truth, max_dets, 0.0)
    # The engine leaves unmatched detections of another size out. What is not finite has no size and must count for each: it is
    # given one after the other, and of each run that size is read. The first serves "all" too.
    first, *others = (_run(found, truth, max_dets, area) for area in _INSIDE)
    for index, run in enumerate(others, 2):
        first.precision[..., index, :], first.recall[..., index, :] = (
            run.precision[..., index, :],
            run.recall[..., index, :],
        )
    return first


def _run(found: FoundColumns, truth: TruthColumns, max_dets: Sequence[int], stand_in: float) -> Curves:
    """The engine on one class; ``stand_in``: area of a detection that is not finite."""
    images = np.union1d(found.image, truth.image).tolist()
    sides = (_annotations(images, records) for records in (_truth_records(truth), _found_records(found, stand_in)))
    engine = COCOeval_faster(*sides, "bbox", print_function=_silent)
    engine.params.maxDets = list(max_dets)
    engine.evaluate()
    engine.accumulate()
    return Curves(engine.eval["precision"], engine.eval["recall"])


def _annotations(images: list[int], records: list[dict[str, Any]]) -> Any:
    """Records of one category in the engine's own form."""
    annotations = COCO()
    annotations.print_function = _silent
    annotations.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": _CATEGORY}],
        "annotations": records,
    }
    annotations.createIndex()
    return annotations


def _silent(*_: Any) -> None:
    """In place of print."""


def _truth_records(truth: TruthColumns) -> list[dict[str, Any]]:
    # Here and below numbered from 1: the engine, as pycocotools, takes 0 for "not matched".
    rows = zip(truth.image.tolist(), truth.boxes.tolist(), truth.area.tolist(), truth.crowd.tolist(), strict=True)
    return [
        {"id": number, "image_id": image, "category_id": _CATEGORY, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for number, (image, box, area, crowd) in enumerate(rows, 1)
    ]


def _found_records(found: FoundColumns, stand_in: float) -> list[dict[str, Any]]:
    # Only finite numbers go to the engine: how compiled code takes others depends on the compiler's options.
    fine = finite_rows(found.boxes, found.scores)
    boxes = np.where(fine[:, None], found.boxes, 0)  # an empty box overlaps nothing
    with np.errstate(over="ignore"):
        area = np.where(fine, np.minimum(boxes[:, 2] * boxes[:, 3], _LARGEST), stand_in)
    scores = np.where(np.isfinite(found.scores), found.scores, _LARGEST)
    rows = zip(found.image.tolist(), boxes.tolist(), area.tolist(), scores.tolist(), strict=True)
    return [
        {"id": number, "image_id": image, "category_id": _CATEGORY, "bbox": box, "area": area, "score": score}
        for number, (image, box, area, score) in enumerate(rows, 1)
    ]


def overlaps(boxes: NDArray[np.float64], truth: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of boxes [n, 4] with objects [m, 4], both x, y, width, height: [n, m]. With a crowd: the part of the box that it covers."""
    if not len(boxes) or not len(truth):
        return np.zeros((len(boxes), len(truth)))
    return np.asarray(engine_mask.iou(boxes.tolist(), truth.tolist(), crowd.astype(int).tolist()))
