"""Figures of a service in the text format that Prometheus reads (exposition format 0.0.4)."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts of values up to each of ``bounds``, their number and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        """Its lines: cumulated counts, sum and number."""
        found, total = [], 0
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{"+Inf" if bound is None else f"{bound:g}"}"}} {total}')
        return [*found, f"{name}_sum {self._sum:g}", f"{name}_count {total}"]


class Figures:
    """Requests by path and status, seconds that ``/predict`` took, images by what became of them, sizes of batches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._images: Counter[str] = Counter()
        self._seconds, self._batches = Histogram(_SECONDS), Histogram(_SIZES)

    def request(self, path: str, status: int, seconds: float | None = None) -> None:
        """A request was answered; ``seconds`` where its time is of interest."""
        with self._lock:
            self._requests[path, status] += 1
            if seconds is not None:
                self._seconds.add(seconds)

    def image(self, outcome: str) -> None:
        """An image was ``answered``, ``refused`` (it cannot be read) or ``failed``."""
        with self._lock:
            self._images[outcome] += 1

    def batch(self, size: int) -> None:
        """So many images went to the model at once."""
        with self._lock:
            self._batches.add(size)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """All of it; ``gauges`` are what the service is at now: help and value by name."""
        name = "effbackbones"
        with self._lock:
            requests = [
                f'{name}_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())
            ]
            images = [f'{name}_images_total{{outcome="{what}"}} {n}' for what, n in sorted(self._images.items())]
            blocks = [
                *_block(f"{name}_requests_total", "counter", "Requests answered.", requests),
                *_block(
                    f"{name}_predict_seconds",
                    "histogram",
                    "From the head of a request to its answer.",
                    self._seconds.lines(f"{name}_predict_seconds"),
                ),
                *_block(f"{name}_images_total", "counter", "Images by what became of them.", images),
                *_block(
                    f"{name}_batch_images",
                    "histogram",
                    "Images that the model got at once.",
                    self._batches.lines(f"{name}_batch_images"),
                ),
            ]
        for key, (about, value) in gauges.items():
            blocks += _block(f"{name}_{key}", "gauge", about, [f"{name}_{key} {value:g}"])
        return "\n".join(blocks) + "\n"


def _block(name: str, kind: str, about: str, lines: list[str]) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *lines]
