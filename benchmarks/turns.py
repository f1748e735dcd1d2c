"""Sides that do the same work, timed in turns, so that a busy machine slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Run = Callable[[], object]
WARM_UP = 2
ENOUGH = 4.0
"""Seconds that a measurement may take beyond its rounds: short work gets more of them, at most :data:`MOST`."""
MOST = 30


@dataclass(frozen=True)
class Spread:
    """The middle of some figures, and their quartiles."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0], len(values))
        low, middle, high = statistics.quantiles(values, n=4)
        return cls(middle, low, high, len(values))


def in_turns(sides: Mapping[str, Run], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each side in each of at least ``rounds`` rounds, after :data:`WARM_UP`; every second round goes backwards, so that none
    always follows the same one. A turn is two runs, of which the second counts: in a loop a step finds the caches and the heap as the same
    step left them, not as another network did."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    begun, number = 0.0, 0
    while number < rounds + WARM_UP or (number < MOST + WARM_UP and time.perf_counter() - begun < ENOUGH):
        if number == WARM_UP:
            begun = time.perf_counter()
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            sides[name]()
            spent = once(sides[name], device)
            if number >= WARM_UP:
                times[name].append(spent)
        number += 1
    return times


def once(run: Run, device: str = "cpu") -> float:
    """Seconds of one run; on a GPU until its work is done."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours / theirs of each round."""
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])
