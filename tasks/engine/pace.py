"""How fast a run goes, and how much of its time it waits for data."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Pace:
    """Images per second and share of the time spent waiting for them, of the steps since :meth:`restart`."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart(0)

    def restart(self, step: int) -> None:
        """Count anew, ``step`` steps being done."""
        self._step, self._start, self._waited = step, time.monotonic(), 0.0

    def at(self, step: int) -> tuple[float, float]:
        """Images per second and share of the time waited, ``step`` steps being done."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        return (step - self._step) * self.batch_size / seconds, self._waited / seconds

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """``batches``; what they make wait is counted."""
        source = iter(batches)
        start = time.perf_counter()
        for batch in source:
            self._waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()
