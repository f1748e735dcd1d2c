"""What is heard when: scores of frames, over the windows of a recording, and the events that they tell of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Event:
    """A class is heard from ``begin`` to ``end``, in seconds of the recording; ``score``: of its surest frame."""

    label: int
    name: str
    begin: float
    end: float
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times in milliseconds' precision."""
        times = {"begin": round(self.begin, 3), "end": round(self.end, 3)}
        return {"class": self.name, "label": self.label, **times, "score": self.score}


@dataclass(frozen=True, eq=False)
class Timeline:
    """``scores`` float32 [K, F], 0..1, of the classes in frames of a recording of ``seconds``; frame j is centred on ``first`` + j *
    ``step`` seconds."""

    scores: Scores
    step: float
    seconds: float
    first: float

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Plain values: ``first`` and ``step`` in seconds, and the scores of each class."""
        rows = {
            name: [round(value, 4) for value in row] for name, row in zip(classes, self.scores.tolist(), strict=True)
        }
        return {"first": self.first, "step": self.step, "scores": rows}

    def events(self, classes: Sequence[str], thresholds: Sequence[float]) -> list[Event]:
        """The stretches over which a class has at least its of the ``thresholds``, by their begin. Between the middles of two frames the
        score is taken for a line, so that a border may lie within a frame."""
        found = [
            Event(label, name, begin, end, score)
            for label, (name, threshold) in enumerate(zip(classes, thresholds, strict=True))
            for begin, end, score in self._stretches(self.scores[label].astype(np.float64), threshold)
        ]
        return sorted(found, key=lambda event: (event.begin, event.label))

    def _stretches(self, scores: NDArray[np.float64], threshold: float) -> list[tuple[float, float, float]]:
        over = scores >= threshold
        edges = np.flatnonzero(np.diff(np.concatenate([[False], over, [False]])))
        return [
            (self._crossing(scores, first - 1, threshold), self._crossing(scores, last - 1, threshold), top)
            for first, last in edges.reshape(-1, 2).tolist()
            for top in [float(scores[first:last].max())]
        ]

    def _crossing(self, scores: NDArray[np.float64], frame: int, threshold: float) -> float:
        """When the line from the middle of ``frame`` to that of the next crosses the threshold; at the ends of the recording, these."""
        if frame < 0:
            return 0.0
        if frame + 1 >= len(scores):
            return self.seconds
        one, other = float(scores[frame]), float(scores[frame + 1])
        share = (threshold - one) / (other - one)
        return min(self.seconds, self.first + (frame + share) * self.step)


def stitched(parts: Sequence[Scores], starts: Sequence[int], step: int, centre: float, length: int) -> Scores:
    """Scores [K, F] of the frames of a recording of ``length`` samples, ``step`` apart and the first on ``centre``, from those [K, f] of
    windows that begin at the samples ``starts``: of each frame the mean over the windows that hold it, whose own need not lie on the same
    places. What lies behind the end is cut off."""
    count = max(1, math.ceil(length / step))
    if len(parts) == 1 and starts[0] == 0:
        return parts[0][:, :count]
    places = np.arange(count) * step
    total, weight = np.zeros((len(parts[0]), count)), np.zeros(count)
    for part, start in zip(parts, starts, strict=True):
        frames = part.shape[1]
        first, last = start == min(starts), start == max(starts)  # which answer for the ends, too
        held = (first | (places > start - step / 2)) & (last | (places <= start + (frames - 0.5) * step))
        own = start + np.arange(frames) * step
        total[:, held] += [np.interp(places[held], own, row) for row in part]
        weight += held
    made: Scores = (total / np.maximum(weight, 1)).astype(np.float32)
    return made
