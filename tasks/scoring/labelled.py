"""Outcomes of images that have one class, and of those that may have several."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tasks.scoring.outcomes import Floats, Outcomes, Tables, mean_of_known, quotient

_THRESHOLD = 0.5  # above it, a class of a multi-label sample counts as predicted


@dataclass(frozen=True)
class ClassOutcomes(Outcomes):
    """``label`` and ``predicted`` class int32 [n] (-1: the prediction was not finite), ``confidence`` float32 [n] of the predicted one,
    ``rank`` int32 [n] of the true one among the predictions, 0 being first (a large number where that was not finite)."""

    label: NDArray[np.int32]
    predicted: NDArray[np.int32]
    confidence: NDArray[np.float32]
    rank: NDArray[np.int32]
    kind: ClassVar[str] = "class"
    lead: ClassVar[tuple[str, ...]] = ("top1", "recall")

    @classmethod
    def of_tables(
        cls, ids: tuple[str, ...], classes: tuple[str, ...], truth: NDArray[np.uint32], tables: Tables
    ) -> Self:
        return cls(ids, classes, truth, *(_of_length(tables[name], len(ids)) for name in _COLUMNS))

    def tables(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in _COLUMNS}

    def scores(self, weights: NDArray[np.integer[Any]]) -> dict[str, Floats]:
        k, samples = len(self.classes), weights.sum(0, dtype=np.int64)
        right = self.label == self.predicted
        hits = _by_class(self.label[right], weights[right], k)
        true, found = _by_class(self.label, weights, k), _by_class(self.predicted, weights, k)
        lost = samples - found.sum(0)  # what is not finite counts as predicted wrongly for every class
        return {
            "top1": quotient(hits.sum(0), samples),
            **({"top5": quotient(weights[self.rank < 5].sum(0, dtype=np.int64), samples)} if k > 5 else {}),
            **_of_counts(hits, found - hits + lost, true - hits),
        }


_COLUMNS = ("label", "predicted", "confidence", "rank")


@dataclass(frozen=True)
class LabelSetOutcomes(Outcomes):
    """``probability`` float32 [n, K] (NaN: not finite); ``label`` int8 [n, K]: 1 there, 0 not there, -1 unknown."""

    probability: NDArray[np.float32]
    label: NDArray[np.int8]
    kind: ClassVar[str] = "classes"
    lead: ClassVar[tuple[str, ...]] = ("map", "ap")

    @classmethod
    def of_tables(
        cls, ids: tuple[str, ...], classes: tuple[str, ...], truth: NDArray[np.uint32], tables: Tables
    ) -> Self:
        found = (_of_length(tables[name], len(ids)).reshape(-1, len(classes)) for name in ("probability", "label"))
        return cls(ids, classes, truth, *found)

    def tables(self) -> dict[str, NDArray[Any]]:
        return {"probability": self.probability, "label": self.label}

    def cost(self) -> float:
        return self.probability.size * 8e-6

    def ranking(self) -> Floats:
        """Scores that order the entries as they are scored: what is not finite is found last, or above all that is wrong."""
        return np.where(np.isnan(self.probability), np.where(self.label == 1, -np.inf, 2.0), self.probability)

    def scores(self, weights: NDArray[np.integer[Any]]) -> dict[str, Floats]:
        k, ranking = len(self.classes), self.ranking()
        owner = np.repeat(np.arange(len(self.ids)), k).reshape(-1, k)
        known, positive, chosen = self.label >= 0, self.label == 1, ranking > _THRESHOLD
        hits, extra, missed = (
            np.stack([weights[rows[:, j]].sum(0, dtype=np.int64) for j in range(k)])
            for rows in (chosen & positive, chosen & known & ~positive, ~chosen & positive)
        )
        ap = np.stack(
            [
                ranked_precision(ranking[known[:, j], j], positive[known[:, j], j], owner[known[:, j], j], weights)
                for j in range(k)
            ]
        )
        doubled = 2 * hits.sum(0)
        return {
            "map": mean_of_known(ap),
            "micro_ap": ranked_precision(ranking[known], positive[known], owner[known], weights),
            "micro_f1": np.where(
                (hits + missed).sum(0) > 0, quotient(doubled, doubled + (extra + missed).sum(0)), np.nan
            ),
            **_of_counts(hits, extra, missed),
            "per_class/ap": ap,
        }


def ranked_precision(
    scores: Floats, positive: NDArray[np.bool_], owner: NDArray[np.int64], weights: NDArray[np.integer[Any]]
) -> Floats:
    """Average precision of a ranking under ``weights`` [n, B] of the images ``owner`` [N] of its entries: float64 [B], NaN without a
    positive. As :func:`tasks.classification.metrics.average_precision`: the sum of precision over steps of recall, equal scores
    being one step, a positive of score -inf never found."""
    order = np.argsort(-scores, kind="stable")
    scores, positive, owner = scores[order], positive[order], owner[order]
    sets, chunk = weights.shape[1], max(1, 2**22 // max(1, len(scores)))
    result = np.empty(sets)
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    found = (positive & (scores > -np.inf)).astype(np.int32)[:, None]
    for start in range(0, sets, chunk):
        mine = weights[:, start : start + chunk][owner].astype(np.int32)
        total = mine[positive].sum(0)
        hits = np.cumsum(mine * found, 0)[ends]
        ranks = np.cumsum(mine, 0)[ends]
        gained = np.diff(hits, axis=0, prepend=0)
        precision = hits / np.maximum(ranks, 1)
        result[start : start + chunk] = quotient((gained * precision).sum(0), total)
    return result


def _of_counts(hits: NDArray[Any], extra: NDArray[Any], missed: NDArray[Any]) -> dict[str, Floats]:
    """Scores of classes from true positives, false positives and false negatives, [K, B] each."""
    present = hits + missed > 0
    f1 = np.where(present, quotient(2 * hits, 2 * hits + extra + missed), np.nan)
    precision = np.where(present, np.where(hits > 0, quotient(hits, hits + extra), 0.0), np.nan)
    return {
        "macro_f1": mean_of_known(f1),
        "per_class/precision": precision,
        "per_class/recall": quotient(hits, hits + missed),
        "per_class/f1": f1,
    }


def _by_class(labels: NDArray[Any], weights: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Summed weights [K, B] of the images of each class; of -1 in none."""
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(classes + 1))
    result = np.zeros((classes, weights.shape[1]), np.int64)
    for label in range(classes):
        mine = order[bounds[label] : bounds[label + 1]]
        if len(mine):
            result[label] = weights[mine].sum(0, dtype=np.int64)
    return result


def _of_length(column: NDArray[Any], rows: int) -> NDArray[Any]:
    if len(column) != rows:
        raise ValueError(f"{len(column)} rows for {rows} images")
    return column
