"""Detection scores over a whole set: COCO's average precision and recall, false alarms, and the matching of one image."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from effbackbones.errors import UserError
from tasks.data.sample import Truth
from tasks.detection.anatomy import anatomy
from tasks.detection.coco_scores import (
    AREAS,
    IOUS,
    RECALLS,
    Curves,
    FoundColumns,
    TruthColumns,
    overlaps,
    precision_and_recall,
)
from tasks.detection.matching import box_outcomes
from tasks.detection.results import ImageDetections, finite_rows
from tasks.scoring.boxes import BoxOutcomes

CONFIDENT = 0.3
"""Score from which a detection is taken seriously: drawn, judged in examples, and a false alarm on an image without objects."""
_IOU50, _IOU75 = IOUS.index(0.5), IOUS.index(0.75)
_DIGITS = 4  # of curves for drawing


class DetectionMetrics(Metric):
    """COCO's scores of detections, in pixels of the original images; equal to those of pycocotools.

    ``update(detections, truths)`` takes one :class:`ImageDetections` and one :class:`Truth` per image, each image once.
    ``compute()`` gives, JSON-like, fractions in 0..1, and ``None`` where there is no object that could be found:

    * ``AP``, ``AP50``, ``AP75``, ``AP_small``, ``AP_medium``, ``AP_large``, ``AR_1``, ``AR_10``, ``AR_100``, ``AR_small``,
      ``AR_medium``, ``AR_large``: the lines of COCO's summary. All but ``AR_1`` and ``AR_10`` are for the best ``max_dets``
      detections per class and image; with another number than 100 there is an ``AR_`` of that number instead.
    * ``per_class``: name -> ``ap``, ``ap50``, ``ar`` (``max_dets``), ``ground_truth`` and ``detections`` (counts).
    * ``images``, ``boxes`` (true ones; here and in ``ground_truth`` without crowds), ``detections``, ``non_finite`` (detections).
    * ``false_positives_on_empty``: detections per image without objects whose score is at least :data:`CONFIDENT`.
    * ``precision_recall``: ``recall`` (101 points) and, means over classes, precision there, for ``iou50``, ``iou75`` and
      ``iou`` (mean of all ten); ``precision_recall_per_class``: name -> precision for IoU 0.5. Four digits: for drawing.

    A detection that is not finite is dropped from the matching, counted, and wrong: it can lower a score but never raise it
    (see :func:`tasks.detection.coco_scores.precision_and_recall`). The result depends neither on batches nor on the order of images.

    The state is four tables that grow by rows. Processes are joined by appending theirs in the order of ranks, the same for
    all four; so the rows of an image are found by counting, and no image needs a number that is unique across processes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    images: list[Tensor]
    names: list[Tensor]
    found: list[Tensor]
    truth: list[Tensor]

    def __init__(self, classes: Sequence[str], max_dets: int = 100) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or not classes or max_dets < 1:
            raise UserError(
                "metrics", f"expected distinct class names and at least one detection, got {classes} and {max_dets}"
            )
        self.classes = tuple(classes)
        self.max_dets = tuple(sorted({m for m in (1, 10) if m < max_dets} | {max_dets}))
        for name in ("images", "names", "found", "truth"):
            self.add_state(name, [], "cat")
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        # Torchmetrics joins processes by shape and type, and one of them may have no image.
        self._append(np.zeros((0, 3), np.int64), b"", np.zeros((0, 6)), np.zeros((0, 7)))

    def _append(
        self, images: NDArray[np.int64], names: bytes, found: NDArray[np.float64], truth: NDArray[np.float64]
    ) -> None:
        """Rows of images (bytes of the id, numbers of detections and of objects), ids, detections (box, score, label) and
        objects (box, area, label, crowd)."""
        text = np.frombuffer(names, np.uint8).copy()
        # float64 travels as the integers of the same bits: some devices have no float64.
        tables = (images, text, found.view(np.int64), truth.view(np.int64))
        for state, table in zip((self.images, self.names, self.found, self.truth), tables, strict=True):
            state.append(torch.from_numpy(table).to(self.device))

    def update(self, detections: Sequence[ImageDetections], truths: Sequence[Truth | None]) -> None:
        """Add images. Missing, non-finite or foreign truth, and labels that are no class, raise :class:`UserError`."""
        if len(detections) != len(truths):
            raise UserError("metrics", f"{len(detections)} predicted images, {len(truths)} with truth")
        images, names, found, truth = [], [], [np.zeros((0, 6))], [np.zeros((0, 7))]
        for mine, objects in zip(detections, truths, strict=True):
            if objects is None:
                raise UserError(mine.id, "has no truth to score against", "give its sample boxes and box_labels")
            self._check(mine.id, "predicted", mine.boxes, mine.labels, mine.scores)
            self._check(mine.id, "true", objects.boxes, objects.labels, objects.area, objects.crowd)
            if not finite_rows(objects.boxes, objects.area).all():
                raise UserError(mine.id, "has a true box that is not finite", "correct the annotations")
            found.append(np.column_stack([mine.boxes, mine.scores, mine.labels]))
            truth.append(np.column_stack([objects.boxes, objects.area, objects.labels, objects.crowd]))
            names.append(mine.id.encode("utf-8", "surrogateescape"))
            images.append((len(names[-1]), len(mine.labels), len(objects.labels)))
        table = np.array(images, np.int64).reshape(-1, 3)
        self._append(
            table, b"".join(names), np.concatenate(found).astype(np.float64), np.concatenate(truth).astype(np.float64)
        )

    def _check(self, image: str, kind: str, boxes: NDArray[Any], labels: NDArray[Any], *columns: NDArray[Any]) -> None:
        n = len(labels)
        if boxes.shape != (n, 4) or any(column.shape != (n,) for column in columns):
            shapes = ", ".join(str(list(array.shape)) for array in (boxes, labels, *columns))
            raise UserError(image, f"expected {kind} boxes [n, 4] and columns [n], got {shapes}")
        if n and not 0 <= labels.min() <= labels.max() < len(self.classes):
            what = f"{kind} labels {labels.min()} to {labels.max()}, but {len(self.classes)} classes"
            raise UserError(image, what, "check classes and category ids")

    def compute(self) -> dict[str, Any]:
        """The scores of all images so far. An image that was added twice raises :class:`UserError`."""
        found, truth, ids = self._columns()
        images = len(ids)
        scored = precision_and_recall(found, truth, len(self.classes), self.max_dets)
        fine = finite_rows(found.boxes, found.scores)
        return {
            **self._summary(scored),
            "images": images,
            "boxes": int((~truth.crowd).sum()),
            "detections": len(found.labels),
            "non_finite": int((~fine).sum()),
            "false_positives_on_empty": _false_alarms(found, truth, images),
            "per_class": self._per_class(scored, found, truth),
            **self._precision_recall(scored),
        }

    def outcomes(self) -> BoxOutcomes:
        """What became of each image so far, of all processes, in the order of ids."""
        with self.sync_context():
            found, truth, ids = self._columns()
        return box_outcomes(found, truth, ids, self.classes, self.max_dets[-1])

    def anatomy(self) -> dict[str, Any]:
        """The errors in all images so far, of all processes, by kind: see :func:`tasks.detection.anatomy.anatomy`."""
        with self.sync_context():
            found, truth, _ = self._columns()
        return anatomy(found, truth, self.classes, self.max_dets[-1])

    def _columns(self) -> tuple[FoundColumns, TruthColumns, tuple[str, ...]]:
        """What the states hold, images numbered by their place in the sorted ids, and these."""
        images, names, found, truth = (
            dim_zero_cat(state).cpu().numpy() for state in (self.images, self.names, self.found, self.truth)
        )
        ids = _split(names.tobytes(), images[:, 0].tolist())
        rank = _ranks(ids)
        owners = np.repeat(rank, images[:, 1]), np.repeat(rank, images[:, 2])
        found, truth = found.view(np.float64), truth.view(np.float64)
        return (
            FoundColumns(owners[0], found[:, :4], found[:, 4], found[:, 5].astype(np.int64)),
            TruthColumns(owners[1], truth[:, :4], truth[:, 5].astype(np.int64), truth[:, 4], truth[:, 6] > 0),
            tuple(ids[row] for row in np.argsort(rank)),
        )

    def _summary(self, scored: Curves) -> dict[str, float | None]:
        """The lines of COCO's summary, in its order."""
        precision, recall = scored.precision[..., -1], scored.recall
        sizes = [(area, AREAS.index(area)) for area in AREAS[1:]]
        return {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[_IOU50, ..., 0]),
            "AP75": _mean(precision[_IOU75, ..., 0]),
            **{f"AP_{area}": _mean(precision[..., index]) for area, index in sizes},
            **{f"AR_{most}": _mean(recall[..., 0, m]) for m, most in enumerate(self.max_dets)},
            **{f"AR_{area}": _mean(recall[..., index, -1]) for area, index in sizes},
        }

    def _per_class(self, scored: Curves, found: FoundColumns, truth: TruthColumns) -> dict[str, dict[str, Any]]:
        precision, recall = scored.precision[..., 0, -1], scored.recall[..., 0, -1]
        counts = (
            np.bincount(labels, minlength=len(self.classes)).tolist()
            for labels in (truth.labels[~truth.crowd], found.labels)
        )
        return {
            name: {
                "ap": _mean(precision[..., k]),
                "ap50": _mean(precision[_IOU50, :, k]),
                "ar": _mean(recall[:, k]),
                "ground_truth": objects,
                "detections": detections,
            }
            for k, (name, objects, detections) in enumerate(zip(self.classes, *counts, strict=True))
        }

    def _precision_recall(self, scored: Curves) -> dict[str, Any]:
        precision = scored.precision[..., 0, -1]  # [T, R, K]
        known = precision[:, :, (precision >= 0).all((0, 1))]
        mean = known.mean(2) if known.size else np.full(known.shape[:2], np.nan)
        lines = {"iou50": mean[_IOU50], "iou75": mean[_IOU75], "iou": mean.mean(0)}
        per_class = {
            name: precision[_IOU50, :, k] for k, name in enumerate(self.classes) if (precision[:, :, k] >= 0).all()
        }
        return {
            "precision_recall": {"recall": list(RECALLS), **{name: _rounded(line) for name, line in lines.items()}},
            "precision_recall_per_class": {name: _rounded(line) for name, line in per_class.items()},
        }


def _split(text: bytes, lengths: Sequence[int]) -> list[str]:
    ends = np.cumsum([0, *lengths]).tolist()
    return [text[start:stop].decode("utf-8", "surrogateescape") for start, stop in pairwise(ends)]


def _ranks(ids: Sequence[str]) -> NDArray[np.int64]:
    """Place of each image in the order of the ids, numbers by value; the same id twice raises :class:`UserError`."""
    numbers = all(re.fullmatch(r"-?[0-9]+", id_) for id_ in ids)
    order = sorted(range(len(ids)), key=lambda index: (int(ids[index]) if numbers else 0, ids[index]))
    for one, other in pairwise(order):
        if ids[one] == ids[other]:
            raise UserError(f"image {ids[one]!r}", "is scored twice", "give every image an id of its own")
    ranks = np.empty(len(ids), np.int64)
    ranks[order] = np.arange(len(ids))
    return ranks


def _false_alarms(found: FoundColumns, truth: TruthColumns, images: int) -> float | None:
    empty = np.bincount(truth.image, minlength=images) == 0
    alarms = empty[found.image] & ((found.scores >= CONFIDENT) | ~np.isfinite(found.scores))
    return float(alarms.sum() / empty.sum()) if empty.any() else None


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean of what is defined; None where nothing is."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _rounded(line: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else round(value, _DIGITS) for value in line.tolist()]


class Matches(NamedTuple):
    """What became of the detections and objects of an image: ``correct`` bool [n]; ``ignored`` bool [n], taken by a crowd, neither
    right nor wrong; ``truth`` int64 [n], the object that took it, or -1; ``found`` bool [m], a detection is right about it."""

    correct: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    truth: NDArray[np.int64]
    found: NDArray[np.bool_]


def match_image(detections: ImageDetections, truth: Truth, iou: float = 0.5) -> Matches:
    """COCO's matching of one image at one IoU: from the highest score down, each detection takes the object of its class that it
    overlaps best, by ``iou`` or more, and that is not yet taken; failing that, a crowd. What is not finite takes nothing."""
    n, m = len(detections.labels), len(truth.labels)
    owner, taken = np.full(n, -1), np.zeros(m, np.bool_)
    fine = finite_rows(detections.boxes, detections.scores)
    overlap = overlaps(np.where(fine[:, None], detections.boxes, 0), truth.boxes, truth.crowd)
    overlap[(detections.labels[:, None] != truth.labels) | (overlap < min(iou, 1 - 1e-10))] = -1  # the margin is COCO's
    for row in np.argsort(-np.where(fine, detections.scores, -np.inf), kind="stable").tolist():
        for kind in (~truth.crowd & ~taken, truth.crowd):
            candidates = np.where(kind, overlap[row], -1)
            if m and candidates.max() >= 0:
                owner[row] = m - 1 - int(candidates[::-1].argmax())  # the last of equals, as COCO does
                taken[owner[row]] = not truth.crowd[owner[row]]
                break
    ignored = (owner >= 0) & np.append(truth.crowd, False)[owner]
    return Matches((owner >= 0) & ~ignored, ignored, owner, taken)
