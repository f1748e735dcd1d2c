"""COCO's matching of detections with objects for all IoUs and sizes at once, image by image: outcomes for resampling.

The rules are those of pycocotools' ``evaluateImg``: from the highest score down, a detection takes the object of its class that it
overlaps best and that is not yet taken, objects that count before those that do not (crowds, other sizes); it is not counted
if it took one of these, or took none and is itself of another size.
"""

import numpy as np
from numpy.typing import NDArray

from tasks.detection.coco_scores import AREAS, IOUS, FoundColumns, TruthColumns, overlaps
from tasks.detection.results import finite_rows
from tasks.scoring.boxes import BoxOutcomes, Found, Objects
from tasks.scoring.outcomes import checksum

RANGES = ((0.0, 1e5**2), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e5**2))
_LIMITS = np.minimum(IOUS, 1 - 1e-10)  # the margin is COCO's
_BITS = 1 << np.arange(len(IOUS), dtype=np.uint16)


def box_outcomes(
    found: FoundColumns, truth: TruthColumns, ids: tuple[str, ...], classes: tuple[str, ...], max_dets: int
) -> BoxOutcomes:
    """Outcomes of a whole set; at most ``max_dets`` detections count per image and class, the best."""
    found, fine = counted(found, max_dets)
    scores = found.scores
    outside = np.stack([beyond(found, fine, *limits) for limits in RANGES], 1)
    right = np.zeros((len(scores), len(AREAS)), np.uint16)
    ignored = np.where(outside, np.uint16(_BITS.sum()), np.uint16(0))
    _match(found, truth, fine, right, ignored)
    by_score = np.lexsort((np.arange(len(scores)), found.image, -scores, found.labels))
    objects = truth.take(np.flatnonzero(~truth.crowd))
    sizes = np.zeros(len(objects.labels), np.uint8)
    for size, (low, high) in enumerate(RANGES):
        sizes |= ((objects.area >= low) & (objects.area <= high)).astype(np.uint8) << np.uint8(size)
    by_label = np.argsort(objects.labels, kind="stable")
    columns = found.image.astype(np.int32), found.labels.astype(np.int32), scores, right, ignored
    kept = Objects(objects.image[by_label].astype(np.int32), objects.labels[by_label].astype(np.int32), sizes[by_label])
    sums = _checksums(truth, len(ids))
    return BoxOutcomes(ids, classes, sums, Found(*columns).take(by_score), kept, max_dets)


def counted(found: FoundColumns, max_dets: int) -> tuple[FoundColumns, NDArray[np.bool_]]:
    """The detections that count, by class, image and falling score: the best ``max_dets`` of each image and class; and which are finite.
    A score that is not is above all others."""
    fine = finite_rows(found.boxes, found.scores)
    scores = np.where(np.isfinite(found.scores), found.scores, np.finfo(np.float64).max)
    order = np.lexsort((np.arange(len(scores)), -scores, found.image, found.labels))
    group = _starts(found.labels[order], found.image[order])
    order = order[np.arange(len(order)) - group < max_dets]
    return found._replace(scores=scores).take(order), fine[order]


def beyond(found: FoundColumns, fine: NDArray[np.bool_], least: float, most: float) -> NDArray[np.bool_]:
    """Which finite detections are smaller or larger than areas from ``least`` to ``most``."""
    with np.errstate(over="ignore", invalid="ignore"):
        area = np.where(fine, found.boxes[:, 2] * found.boxes[:, 3], 0)
    return fine & ((area < least) | (area > most))


def _starts(*keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row of sorted ``keys`` the first row of its group."""
    new = np.zeros(len(keys[0]), np.bool_)
    new[:1] = True
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))


def _match(
    found: FoundColumns,
    truth: TruthColumns,
    fine: NDArray[np.bool_],
    right: NDArray[np.uint16],
    ignored: NDArray[np.uint16],
) -> None:
    """Fill in ``right`` and ``ignored`` of detections, sorted by class, image and falling score."""
    order = np.lexsort((np.arange(len(truth.labels)), truth.image, truth.labels))
    truth = truth.take(order)
    images = int(max(found.image.max(initial=0), truth.image.max(initial=0))) + 1
    keys, wanted = found.labels * images + found.image, truth.labels * images + truth.image
    starts = np.unique(wanted)
    theirs = np.searchsorted(wanted, starts), np.searchsorted(wanted, starts, "right")
    mine = np.searchsorted(keys, starts), np.searchsorted(keys, starts, "right")
    boxes = np.where(fine[:, None], found.boxes, 0)
    for first, last, low, high in zip(*mine, *theirs, strict=True):
        if first == last:
            continue
        crowd, area = truth.crowd[low:high], truth.area[low:high]
        overlap = overlaps(boxes[first:last], truth.boxes[low:high], crowd)
        # [A, m]: objects that count for nothing at this size.
        idle = np.stack([crowd | (area < least) | (area > most) for least, most in RANGES])
        taken = np.zeros((len(AREAS), len(IOUS), high - low), np.bool_)
        for row in np.flatnonzero(overlap.max(1) >= _LIMITS[0]).tolist():
            _take(overlap[row], crowd, idle, taken, right[first + row], ignored[first + row])


def _take(
    overlap: NDArray[np.float64],
    crowd: NDArray[np.bool_],
    idle: NDArray[np.bool_],
    taken: NDArray[np.bool_],
    right: NDArray[np.uint16],
    ignored: NDArray[np.uint16],
) -> None:
    """What one detection takes, at all sizes and IoUs."""
    near = np.flatnonzero(overlap >= _LIMITS[0])
    close = overlap[near]
    free = (close >= _LIMITS[:, None]) & (~taken[:, :, near] | crowd[near])  # [A, T, near]
    counts = free & ~idle[:, None, near]
    some: NDArray[np.bool_] = np.any(counts, 2)
    any_: NDArray[np.bool_] = np.any(free, 2)
    # The last of equals, as COCO does.
    best: NDArray[np.int64] = (
        len(near) - 1 - np.where(np.where(some[..., None], counts, free), close, -1.0)[..., ::-1].argmax(2)
    )
    sizes, limits = np.nonzero(any_)
    taken[sizes, limits, near[best[sizes, limits]]] = True
    right |= (some * _BITS).sum(1).astype(np.uint16)
    hit = (any_ * _BITS).sum(1).astype(np.uint16)
    idly = ((any_ & ~some) * _BITS).sum(1).astype(np.uint16)
    ignored[:] = (ignored & ~hit) | idly


def _checksums(truth: TruthColumns, images: int) -> NDArray[np.uint32]:
    """Of the objects of each image."""
    order = np.argsort(truth.image, kind="stable")
    rows = np.column_stack([truth.boxes, truth.area, truth.labels, truth.crowd]).astype(np.float64)[order]
    bounds = np.searchsorted(truth.image[order], np.arange(images + 1))
    return np.array([checksum(rows[bounds[i] : bounds[i + 1]]) for i in range(images)], np.uint32)
