"""What is worst and what is best of many things, while they pass by."""

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_Ranked = tuple[tuple[float, float, int], T]


class Extremes(Generic[T]):
    """Keeps the things of the lowest and of the highest quality (0 to 1), at most ``kept`` each; the perfect are not among the
    worst, and the useless not among the best."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self._worst: list[_Ranked[T]] = []
        self._best: list[_Ranked[T]] = []
        self._seen = 0

    def consider(self, quality: float, make: Callable[[], T], *, bad: float = 0, good: float = 0) -> None:
        """Keep the thing that ``make`` makes, if it belongs; only then is it made. Of equal ones those with more ``bad`` are worse,
        those with more ``good`` better, and then the earlier."""
        self._seen += 1  # so that things are never compared
        ranked = [(self._worst, (1 - quality, bad, -self._seen))] if quality < 1 else []
        ranked += [(self._best, (quality, good, -self._seen))] if quality > 0 else []
        ranked = [(heap, key) for heap, key in ranked if len(heap) < self.kept or key > heap[0][0]]
        made = make() if ranked else None
        for heap, key in ranked:
            assert made is not None
            (heapq.heappush if len(heap) < self.kept else heapq.heapreplace)(heap, (key, made))

    def worst(self) -> list[T]:
        """Worst first. What is among the best as well is told here if its quality is below a half."""
        best = {id(thing) for _, thing in self._best}
        return [
            thing for key, thing in sorted(self._worst, key=_key, reverse=True) if key[0] > 0.5 or id(thing) not in best
        ]

    def best(self) -> list[T]:
        """Best first; none that :meth:`worst` tells."""
        worst = {id(thing) for _, thing in self._worst}
        return [
            thing
            for key, thing in sorted(self._best, key=_key, reverse=True)
            if key[0] >= 0.5 or id(thing) not in worst
        ]


def _key(ranked: _Ranked[T]) -> tuple[float, float, int]:
    return ranked[0]
