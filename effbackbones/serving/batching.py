"""One thread that owns what answers, and gives it what is waiting in batches."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Collects items and has them answered, in the order they came, by one thread: a batch begins with the first that waits, and ends at
    ``batch_size`` items or ``wait`` seconds later. ``answer`` gives one result for each item of a batch; where it raises, each is asked
    by itself, so that a bad one fails alone. ``watch`` hears of the size of each batch. How much may wait is up to who submits."""

    def __init__(
        self,
        answer: Callable[[list[T]], Sequence[R]],
        *,
        batch_size: int,
        wait: float,
        watch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._answer, self._batch_size, self._wait, self._watch = answer, batch_size, wait, watch
        self._waiting: queue.SimpleQueue[tuple[T, Future[R]] | None] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        return self._thread.is_alive() and not self._closed

    def submit(self, item: T) -> "Future[R]":
        """The result that ``item`` will have; after :meth:`close` raises ``RuntimeError``."""
        future: Future[R] = Future()
        with self._lock:  # nothing comes behind the end
            if self._closed:
                raise RuntimeError("closed: nothing more is answered")
            self._waiting.put((item, future))
        return future

    def close(self) -> None:
        """Answer what is waiting, and end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        going = True
        while going:
            batch, going = self._collected()
            # Who gave up waiting is left out.
            batch = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if batch:
                self._watch(len(batch))
                self._settle(batch)

    def _collected(self) -> tuple[list[tuple[T, "Future[R]"]], bool]:
        """The next batch, and whether more may come."""
        batch: list[tuple[T, Future[R]]] = []
        end = 0.0
        while len(batch) < self._batch_size:
            try:
                one = self._waiting.get(timeout=max(0.0, end - time.monotonic()) if batch else None)
            except queue.Empty:
                break
            if one is None:
                return batch, False
            end = end or time.monotonic() + self._wait
            batch.append(one)
        return batch, True

    def _settle(self, batch: list[tuple[T, "Future[R]"]]) -> None:
        """Give each of a batch its result, or its exception."""
        try:
            results = list(self._answer([item for item, _ in batch]))
            if len(results) != len(batch):
                raise ValueError(f"{len(results)} results for {len(batch)} items")
        except BaseException as error:  # whatever it is, somebody waits for an answer, and the thread goes on
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:
                self._settle([one])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
