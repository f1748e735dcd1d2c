"""What a detector's errors are, and how much average precision each kind of them costs.

The kinds are those of Bolya et al. 2020, TIDE: A General Toolbox for Identifying Object Detection Errors (section 2.2); what is
matched, and what counts for nothing, is decided as COCO does.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.detection.coco_scores import AREAS, FoundColumns, TruthColumns, overlaps
from tasks.detection.matching import RANGES, beyond, counted

FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a box is on an object, and below which it is on none."""
FALSE_POSITIVES = ("classification", "localisation", "both", "duplicate", "background")
"""Kinds of wrong detections, in the order of their numbers here."""
KINDS = (*FALSE_POSITIVES, "missed")
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND = range(len(FALSE_POSITIVES))
_RIGHT, _IGNORED = -1, -2
_RECALLS = np.linspace(0, 1, 101)  # as COCO computes them: one that is met exactly may be a rounding above
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


class _Judged(NamedTuple):
    """Detections that count, ``found``, by class, image and falling score, with the ``kind`` int64 [n] of each (:data:`_RIGHT`,
    :data:`_IGNORED` or a number of :data:`FALSE_POSITIVES`) and the object that it took, or that a wrong one is meant to be:
    ``target`` int64 [n], or -1; ``ranked`` int64 [n], by falling score. Of the objects ``counts`` and ``taken`` bool [m]."""

    found: FoundColumns
    kind: Indices
    target: Indices
    ranked: Indices
    truth: TruthColumns
    counts: Flags
    taken: Flags

    @property
    def missed(self) -> Flags:
        """Objects that no detection took, nor would take if its class or its place were right: bool [m]."""
        meant = np.zeros(len(self.counts), np.bool_)
        meant[self.target[(self.kind == _CLASSIFICATION) | (self.kind == _LOCALISATION)]] = True
        return self.counts & ~self.taken & ~meant


def anatomy(found: FoundColumns, truth: TruthColumns, classes: Sequence[str], max_dets: int) -> dict[str, Any]:
    """The errors of a whole set at IoU 0.5, at most ``max_dets`` detections of each image and class, JSON-like:

    * ``ap50``: as scored. ``costs``: kind -> ``count``, and ``cost``, by which AP50 would rise if errors of this kind alone were mended;
      None where AP50 is undefined. The kinds are :data:`KINDS`, and ``false_positives`` and ``false_negatives``, which are all
      wrong detections, and all objects that were not found.
    * ``by_size``: small, medium and large -> ``objects``, ``not_found``, and ``missed`` of them.
    * ``by_class``: name -> kind -> count, of detections by the class that they name.

    A detection that COCO calls wrong is, the first that fits, by its largest IoU with objects of its class and of others:

    * ``localisation``: 0.1 to 0.5 with its class. Mended by moving it onto that object.
    * ``classification``: 0.5 or more with another. Mended by naming that class.
    * ``duplicate``: 0.5 or more with its class, for a better detection took that object. Left out when mended, as are the next two.
    * ``background``: less than 0.1 with all. What is not finite, too.
    * ``both``: 0.1 to 0.5 with another class.

    If a mended detection is on an object that another has, the better one stays. An object that was not found is ``missed`` unless
    a detection of the first two kinds is meant for it. It is mended by not asking for it, as if it were found as precisely as the
    others. Where nothing is left to ask for, a class has 1 if nothing wrong is left either, else 0.

    Crowds, and objects or lone detections beyond the sizes that COCO scores, are no errors, and no detection is meant for them.
    """
    judged = _judge(found, truth, max_dets)
    missed = judged.missed
    lost = judged.counts & ~judged.taken
    k = len(classes)
    objects, gone, unfound = (np.bincount(truth.labels[rows], minlength=k) for rows in (judged.counts, missed, lost))
    known = objects > 0
    scored = judged.kind != _IGNORED
    right = judged.kind == _RIGHT
    base = _ap50(judged, scored, objects, known)

    def told(count: int, mended: float | None) -> dict[str, Any]:
        return {"count": count, "cost": None if base is None or mended is None else mended - base}

    costs = {}
    for kind, name in enumerate(FALSE_POSITIVES):
        kept, corrected = _mended(judged, kind)
        costs[name] = told(int((judged.kind == kind).sum()), _ap50(judged, kept & scored, objects, known, corrected))
    costs["missed"] = told(int(missed.sum()), _ap50(judged, scored, objects - gone, known))
    costs["false_positives"] = told(int((scored & ~right).sum()), _ap50(judged, right, objects, known))
    costs["false_negatives"] = told(int(lost.sum()), _ap50(judged, scored, objects - unfound, known))
    return {
        "ap50": base,
        "costs": costs,
        "by_size": _by_size(truth.area, judged.counts, lost, missed),
        "by_class": _by_class(judged, gone, classes),
    }


def _judge(found: FoundColumns, truth: TruthColumns, max_dets: int) -> _Judged:
    """Match detections with objects, and tell what is wrong with those that are."""
    found, fine = counted(found, max_dets)
    least, most = RANGES[0]
    idle = truth.crowd | (truth.area < least) | (truth.area > most)
    row, thing, iou = _pairs(found, fine, truth)
    same = found.labels[row] == truth.labels[thing]
    target = _match(row, thing, iou, same, idle, truth.crowd, len(fine))
    took = target >= 0
    ignored = np.where(took, np.append(idle, False)[target], beyond(found, fine, least, most))
    right = took & ~ignored
    taken = np.zeros(len(idle), np.bool_)
    taken[target[right]] = True
    for_wrong = ~(right | ignored)[row] & ~idle[thing]
    own, own_at = _nearest(row, thing, iou, for_wrong & same, len(fine))
    other, other_at = _nearest(row, thing, iou, for_wrong & ~same, len(fine))
    cases = [
        ignored,
        right,
        (own >= BACKGROUND) & (own < FOREGROUND),
        other >= FOREGROUND,
        own >= FOREGROUND,
        other < BACKGROUND,
    ]
    numbers = [_IGNORED, _RIGHT, _LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND]
    kind = np.select(cases, numbers, _BOTH)
    target = np.select([right, kind == _LOCALISATION, kind == _CLASSIFICATION], [target, own_at, other_at], -1)
    ranked = np.lexsort((np.arange(len(fine)), found.image, -found.scores))
    return _Judged(found, kind, target, ranked, truth, ~idle, taken)


def _pairs(found: FoundColumns, fine: Flags, truth: TruthColumns) -> tuple[Indices, Indices, NDArray[np.float64]]:
    """Detections and objects of one image whose IoU is not that of the background, [p] each, and it."""
    mine, theirs = np.argsort(found.image, kind="stable"), np.argsort(truth.image, kind="stable")
    images = np.intersect1d(found.image, truth.image)
    bounds = [
        np.searchsorted(columns.image[order], images, side).tolist()
        for columns, order in ((found, mine), (truth, theirs))
        for side in ("left", "right")
    ]
    boxes = np.where(fine[:, None], found.boxes, 0)  # an empty box overlaps nothing
    rows, things, ious = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for first, last, low, high in zip(*bounds, strict=True):
        left, right = mine[first:last], theirs[low:high]
        overlap = overlaps(boxes[left], truth.boxes[right], truth.crowd[right])
        i, j = np.nonzero(overlap >= BACKGROUND)
        rows.append(left[i])
        things.append(right[j])
        ious.append(overlap[i, j])
    return np.concatenate(rows), np.concatenate(things), np.concatenate(ious)


def _match(
    row: Indices, thing: Indices, iou: NDArray[np.float64], same: Flags, idle: Flags, crowd: Flags, count: int
) -> Indices:
    """The object that each of ``count`` detections takes, int64 [n], or -1: the nearest of its class that is free, those that count
    first; of equals the last, as COCO does."""
    near = np.flatnonzero(same & (iou >= FOREGROUND))
    order = near[np.lexsort((-thing[near], -iou[near], idle[thing[near]], row[near]))]
    many, taken, owner = crowd.tolist(), set[int](), [-1] * count
    for one, wanted in zip(row[order].tolist(), thing[order].tolist(), strict=True):
        if owner[one] < 0 and (many[wanted] or wanted not in taken):
            owner[one] = wanted
            taken.add(wanted)
    return np.array(owner, np.int64)


def _nearest(
    row: Indices, thing: Indices, iou: NDArray[np.float64], among: Flags, count: int
) -> tuple[NDArray[np.float64], Indices]:
    """The largest IoU of each of ``count`` detections ``among`` the pairs, 0 where there is none, and its object, or -1."""
    pairs = np.flatnonzero(among)
    pairs = pairs[np.lexsort((-thing[pairs], iou[pairs], row[pairs]))]
    last = pairs[np.append(row[pairs][1:] != row[pairs][:-1], True)] if len(pairs) else pairs
    largest, nearest = np.zeros(count), np.full(count, -1)
    largest[row[last]], nearest[row[last]] = iou[last], thing[last]
    return largest, nearest


def _mended(judged: _Judged, kind: int) -> tuple[Flags, Flags]:
    """Which detections stay when the errors of a kind are mended, and which of these are corrected."""
    changed = judged.kind == kind
    if kind not in (_CLASSIFICATION, _LOCALISATION):
        return ~changed, np.zeros_like(changed)
    claims = np.flatnonzero(changed | (judged.kind == _RIGHT))
    order = claims[np.lexsort((changed[claims], -judged.found.scores[claims], judged.target[claims]))]
    objects = judged.target[order]
    kept = np.ones(len(changed), np.bool_)
    kept[order[1:][objects[1:] == objects[:-1]]] = False  # a better one has the same object
    return kept, kept & changed


def _ap50(judged: _Judged, kept: Flags, objects: Indices, known: Flags, corrected: Flags | None = None) -> float | None:
    """Mean over the ``known`` classes [K] of the average precision of the detections that are ``kept`` where there are so many
    ``objects`` [K] to find; those ``corrected`` are right, and of the class of their object. None where no class is known."""
    labels, right = judged.found.labels, judged.kind == _RIGHT
    if corrected is not None:
        right, labels = right | corrected, labels.copy()
        labels[corrected] = judged.truth.labels[judged.target[corrected]]
    rows = judged.ranked[kept[judged.ranked]]
    order = rows[np.argsort(labels[rows], kind="stable")]
    bounds = np.searchsorted(labels[order], np.arange(len(known) + 1)).tolist()
    values = [
        _average_precision(right[order[bounds[k] : bounds[k + 1]]], int(objects[k])) for k in np.flatnonzero(known)
    ]
    return float(np.mean(values)) if values else None


def _average_precision(right: Flags, objects: int) -> float:
    """Mean over COCO's 101 recalls of the best precision at that recall or a higher one; ``right`` [n] by falling score."""
    if not objects:
        return float(not len(right))
    at = np.flatnonzero(right)
    hits = np.arange(1, len(at) + 1)
    precision = np.maximum.accumulate((hits / (at + 1))[::-1])[::-1]
    reached = np.searchsorted(_RECALLS, hits / objects, side="right")
    return float((precision * np.diff(reached, prepend=0)).sum() / len(_RECALLS))


def _by_size(area: NDArray[np.float64], counts: Flags, lost: Flags, missed: Flags) -> dict[str, dict[str, int]]:
    borders = [limits[1] for limits in RANGES[1:-1]]
    size = np.searchsorted(borders, area)
    return {
        name: {
            key: int((rows & (size == index)).sum())
            for key, rows in (("objects", counts), ("not_found", lost), ("missed", missed))
        }
        for index, name in enumerate(AREAS[1:])
    }


def _by_class(judged: _Judged, missed: Indices, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    table = np.zeros((len(classes), len(KINDS)), np.int64)
    wrong = judged.kind >= 0
    np.add.at(table, (judged.found.labels[wrong], judged.kind[wrong]), 1)
    table[:, -1] = missed
    return {name: dict(zip(KINDS, row, strict=True)) for name, row in zip(classes, table.tolist(), strict=True)}
