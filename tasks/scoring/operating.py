"""From which score on is a prediction taken for one? Precision, recall and F1 against the threshold, and the threshold of the best F1.

Of boxes at IoU 0.5, of images that may have several classes or one of two by probability, of pixels that may have several.
A threshold is halfway between the lowest score that is taken and the next lower one, so that rounding changes nothing; of pixels the
edge of a step of probability.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.scoring.boxes import BoxOutcomes
from tasks.scoring.labelled import ClassOutcomes, LabelSetOutcomes
from tasks.scoring.outcomes import Outcomes
from tasks.scoring.pixels import PixelOutcomes

FEW, FEW_PIXELS = 10, 1000
"""Images, and pixels, with a class from which on the threshold that is best for it is its own."""
CURVE = 101
"""Thresholds 0, 0.01, ..., 1 of a curve for drawing."""


def operating_point(outcomes: Outcomes) -> dict[str, Any] | None:
    """``threshold``, and ``precision``, ``recall`` and ``f1`` at it, of all classes together; ``per_class`` the same of each; ``curve``:
    precision, recall and F1 at thresholds (:data:`CURVE`). ``thresholds``: which one each class gets that may be there beside others,
    its own where it was there at least :data:`FEW` times, else that of all. JSON-like; None where nothing has a threshold, or
    nothing could be found."""
    if isinstance(outcomes, PixelOutcomes):
        return None if outcomes.ranked is None else _of_pixels(outcomes.ranked, outcomes.classes)
    entries = _entries(outcomes)
    if entries is None:
        return None
    scores, hits, labels, positives = entries
    whole = best_f1(scores, hits, int(positives.sum()))
    if whole is None:
        return None
    per_class = {}
    for label, name in enumerate(outcomes.classes):
        mine = labels == label
        found = best_f1(scores[mine], hits[mine], int(positives[label]))
        if found is not None:
            per_class[name] = found
    point: dict[str, Any] = {**whole, "per_class": per_class, "curve": _curve(scores, hits, int(positives.sum()))}
    if isinstance(outcomes, LabelSetOutcomes):
        point["thresholds"] = _of_classes(point, dict(zip(outcomes.classes, positives.tolist(), strict=True)), FEW)
    return point


def _of_classes(found: dict[str, Any], positives: Mapping[str, int], few: int) -> dict[str, float]:
    """A threshold for each class: of few examples the best one is chance, that of all classes is better."""
    own, whole = found["per_class"], float(found["threshold"])
    return {
        name: own[name]["threshold"] if name in own and count >= few else whole for name, count in positives.items()
    }


def _of_pixels(ranked: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any] | None:
    """The same from counts [2, K, B] of pixels, without the class and with it, by their probability of it in B steps. Every edge of
    a step is tried."""
    edges = np.arange(ranked.shape[-1]) / ranked.shape[-1]

    def best(counts: NDArray[np.int64]) -> dict[str, float] | None:
        right = counts[1, ::-1].cumsum()[::-1]
        taken, there = right + counts[0, ::-1].cumsum()[::-1], int(counts[1].sum())
        if not there:
            return None
        f1 = 2 * right / (taken + there)
        place = len(f1) - 1 - int(f1[::-1].argmax())
        numbers = edges[place], right[place] / max(1, taken[place]), right[place] / there, f1[place]
        return dict(zip(("threshold", "precision", "recall", "f1"), map(float, numbers), strict=True))

    whole = best(ranked.sum(1))
    if whole is None:
        return None
    per_class = {name: one for k, name in enumerate(classes) if (one := best(ranked[:, k])) is not None}
    above = ranked.sum(1)[:, ::-1].cumsum(1)[:, ::-1]
    curve = _drawable(edges, above[1], above.sum(0), int(above[1, 0]))
    found = {**whole, "per_class": per_class, "curve": curve}
    positives = dict(zip(classes, ranked[1].sum(-1).tolist(), strict=True))
    return {**found, "thresholds": _of_classes(found, positives, FEW_PIXELS)}


def operating_points(found: Outcomes | Mapping[str, Outcomes] | None) -> dict[str, dict[str, Any]]:
    """Of an evaluation's outcomes, by the word of the task, "" where there is one; those that have one."""
    by_task: Mapping[str, Outcomes] = {"": found} if isinstance(found, Outcomes) else found or {}
    points = {word: operating_point(outcomes) for word, outcomes in by_task.items()}
    return {word: point for word, point in points.items() if point is not None}


def best_f1(scores: NDArray[Any], hits: NDArray[np.bool_], positives: int) -> dict[str, float] | None:
    """The threshold of the best F1 over entries that are right or not, and precision, recall and F1 there; of equals the highest.
    ``positives``: how many could be found. None where there is none, or no entry is right."""
    if not positives or not hits.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores = scores[order].astype(np.float64)
    right = np.cumsum(hits[order])
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # equal scores are taken together
    f1 = 2 * right[ends] / (ends + 1 + positives)
    place = int(f1.argmax())
    last = ends[place]
    lower = max(0.0, float(scores[last + 1])) if last + 1 < len(scores) else 0.0
    return {
        "threshold": (min(1.0, float(scores[last])) + lower) / 2,
        "precision": float(right[last] / (last + 1)),
        "recall": float(right[last] / positives),
        "f1": float(f1[place]),
    }


def _curve(scores: NDArray[Any], hits: NDArray[np.bool_], positives: int) -> dict[str, list[float | None]]:
    thresholds = np.linspace(0, 1, CURVE)
    ranked, right = np.sort(scores), np.sort(scores[hits])
    taken = len(ranked) - np.searchsorted(ranked, thresholds)
    found = len(right) - np.searchsorted(right, thresholds)
    return _drawable(thresholds, found, taken, positives)


def _drawable(
    thresholds: NDArray[Any], found: NDArray[Any], taken: NDArray[Any], positives: int
) -> dict[str, list[float | None]]:
    """Precision, recall and F1 where so many of what was ``taken`` is right."""
    return {
        "threshold": [round(float(value), 2) for value in thresholds],
        "precision": [round(float(f / t), 4) if t else None for f, t in zip(found, taken, strict=True)],
        "recall": [round(float(f / positives), 4) for f in found],
        "f1": [round(float(2 * f / (t + positives)), 4) for f, t in zip(found, taken, strict=True)],
    }


def _entries(
    outcomes: Outcomes,
) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[Any], NDArray[np.int64]] | None:
    """Scores of what may be taken, whether each is right, its class, and how many could be found of each class [K]."""
    k = len(outcomes.classes)
    if isinstance(outcomes, BoxOutcomes):
        found, counted = outcomes.found, outcomes.found.ignored[:, 0] & 1 == 0
        objects = np.bincount(outcomes.objects.label[outcomes.objects.sizes & 1 > 0], minlength=k)
        return found.score[counted], (found.right[:, 0] & 1 > 0)[counted], found.label[counted], objects
    if isinstance(outcomes, LabelSetOutcomes):
        known = (outcomes.label >= 0) & ~np.isnan(outcomes.probability)
        labels = np.broadcast_to(np.arange(k), known.shape)[known]
        return outcomes.probability[known], outcomes.label[known] == 1, labels, (outcomes.label == 1).sum(0)
    if isinstance(outcomes, ClassOutcomes) and k == 2:
        sure = outcomes.predicted >= 0
        second = np.where(outcomes.predicted == 1, outcomes.confidence, 1 - outcomes.confidence)[sure]
        there = outcomes.label == 1
        return second, there[sure], np.ones(len(second), np.int64), np.array([0, int(there.sum())])
    return None
