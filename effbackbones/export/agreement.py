"""Whether two answers to the same images agree: top classes, boxes, pixels; and by how much they differ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
_ROUNDING = 1e-5  # of scores in float32, between two runtimes


@dataclass(frozen=True)
class Tolerance:
    """When boxes are the same: corners within ``pixels``, scores within ``score``; looked for are those of scores from ``from_score``
    on. ``value``: when raw numbers are the same."""

    pixels: float = 1.0
    score: float = 1e-3
    value: float = 1e-3
    from_score: float = 0.0


@dataclass
class Agreement:
    """Counts of what is the ``same`` among ``all``, by what is counted (``top-1``, ``boxes``, ``pixels``, ``values``), and the largest
    difference of each output; of boxes, of those that are the same."""

    tolerance: Tolerance
    same: dict[str, int] = field(default_factory=dict)
    all: dict[str, int] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)

    def share(self) -> float:
        """Of what is compared the least share that is the same, 0..1; 0 where there is nothing of a kind to compare."""
        return min((self.same[what] / self.all[what] if self.all[what] else 0.0 for what in self.all), default=0.0)

    def add(self, task: str, expected: Arrays, found: Arrays, *, multilabel: bool = False) -> None:
        """One image: outputs of a head by name, without the axis of the batch."""
        if "boxes" in expected:
            self._boxes(expected, found)
        elif task == "seg" and expected.keys() & {"labels", "probabilities"}:
            self._pixels(expected, found, multilabel)
        elif task == "cls" and "probabilities" in expected:
            self._difference("probabilities", expected["probabilities"], found["probabilities"])
            pair = [one["probabilities"] for one in (expected, found)]
            if multilabel or len(pair[0]) == 1:
                self._count("labels", (pair[0] > 0.5) == (pair[1] > 0.5))
            else:
                self._count("top-1", np.array([pair[0].argmax() == pair[1].argmax()]))
        elif task == "cls" and expected.keys() >= {"scores", "labels"}:
            self._difference("scores", expected["scores"], found["scores"])
            self._count("top-1", expected["labels"][:1] == found["labels"][:1])
        else:
            for name, value in expected.items():
                self._difference(name, value, found[name])
                close = np.isclose(
                    value, found[name], rtol=self.tolerance.value, atol=self.tolerance.value, equal_nan=True
                )
                self._count("values", close)

    def _count(self, what: str, same: NDArray[Any]) -> None:
        self.same[what] = self.same.get(what, 0) + int(same.sum())
        self.all[what] = self.all.get(what, 0) + same.size

    def _difference(self, name: str, one: NDArray[Any], other: NDArray[Any]) -> None:
        gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
        largest = float(np.where(np.isnan(gap), np.inf, gap).max(initial=0.0))
        self.largest[name] = max(self.largest.get(name, 0.0), largest)

    def _pixels(self, expected: Arrays, found: Arrays, multilabel: bool) -> None:
        labels = []
        for arrays in (expected, found):
            maps = arrays.get("probabilities")
            if maps is None:
                labels.append(arrays["labels"])
            else:
                labels.append(maps > 0.5 if multilabel or len(maps) == 1 else maps.argmax(0))
        if "probabilities" in expected:
            self._difference("probabilities", expected["probabilities"], found["probabilities"])
        self._count("pixels", labels[0] == labels[1])

    def _boxes(self, expected: Arrays, found: Arrays) -> None:
        """Each box has at most one that is the same, the nearest in score first. At the end of a full list a box may be missing
        whose score is that of the last one but for rounding: which of these is in it says nothing."""
        lists = [
            tuple(arrays[name][: int(arrays["count"])] for name in ("boxes", "scores", "labels"))
            for arrays in (expected, found)
        ]
        full = [len(expected["boxes"]) == len(scores) for _, scores, _ in lists]
        least = [
            float(scores.min(initial=1.0)) if is_full else -1.0
            for (_, scores, _), is_full in zip(lists, full, strict=True)
        ]
        (boxes, scores, labels), (other_boxes, other_scores, other_labels) = lists
        free = np.ones(len(other_scores), bool)
        best = max(
            scores.max(initial=0.0), other_scores.max(initial=0.0)
        )  # of a network that is never sure, less is looked at
        floor, same, missing = min(self.tolerance.from_score, float(best) / 2), 0, 0
        for box, score, label in zip(boxes, scores, labels, strict=True):
            gap = np.abs(other_scores - score)
            fits = free & (other_labels == label) & (gap <= self.tolerance.score)
            fits &= np.abs(other_boxes - box).max(1, initial=0.0) <= self.tolerance.pixels
            if fits.any():
                place = int(np.where(fits, gap, np.inf).argmin())
                free[place] = False
                # Two lists of n that share m have 2 m of 2 n in common.
                same += int(score >= floor) + int(other_scores[place] >= floor)
                self._difference("boxes", box, other_boxes[place])
                self._difference("scores", score, other_scores[place])
            elif score >= floor and score > least[1] + _ROUNDING:
                missing += 1
        left = other_scores[free]
        missing += int(((left >= floor) & (left > least[0] + _ROUNDING)).sum())
        self.same["boxes"] = self.same.get("boxes", 0) + same
        self.all["boxes"] = self.all.get("boxes", 0) + same + missing
        self.largest.setdefault("boxes", 0.0)
