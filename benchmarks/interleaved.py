"""Two ways to do the same, timed in turns, so that a busy machine slows both."""

import statistics
import time
from collections.abc import Callable


def compare(ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> tuple[float, float, list[float]]:
    """Median seconds of both, and the quartiles of their ratio, over interleaved rounds after one to warm up."""
    seconds: dict[Callable[[], None], list[float]] = {ours: [], theirs: []}
    for number in range(rounds + 1):
        for run in (ours, theirs) if number % 2 else (theirs, ours):
            start = time.perf_counter()
            run()
            if number:
                seconds[run].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    return statistics.median(seconds[ours]), statistics.median(seconds[theirs]), statistics.quantiles(ratios, n=4)
