"""From trials at small sizes to what a model takes at its own: memory, time, and into how many pieces a batch must be split.

Memory and time are lines in the pixels of all images: a fixed part (weights, optimiser, averages, libraries, calls) and one for each
pixel (activations, work on them). Between two trials they are read off, beyond the last one the line of the last two goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.engine.rehearsal import Facts, Trial

ENOUGH = 8
"""Images that batch norm should see at a time, where a batch has so many: with fewer its statistics become noise (Wu and He, "Group
Normalization", 2018, figure 1: the error grows from there on)."""


@dataclass(frozen=True)
class Step:
    """What a training step is foreseen to take: ``pieces`` of ``images`` each, the piece that memory depends on."""

    images: int
    pieces: int
    megabytes: float
    seconds: float


@dataclass
class Foresight:
    """What was tried of a model, and what follows from it."""

    facts: Facts
    trials: list[Trial] = field(default_factory=list)

    def of(self, kind: str) -> list[Trial]:
        """The trials of ``train`` or ``predict``, by their pixels."""
        return sorted((trial for trial in self.trials if trial.of == kind), key=lambda trial: trial.pixels)

    def latency(self) -> float:
        """Seconds for one image."""
        return self._read("predict", "seconds", 1)

    def predicting(self) -> float:
        """Megabytes for one image."""
        return self._read("predict", "megabytes", 1)

    def step(self, batch: int, pieces: int) -> Step:
        """A training step on ``batch`` images of this process in so many ``pieces``."""
        images = batch // pieces
        update = self.of("train")[-1].update
        seconds = pieces * max(self._read("train", "seconds", images) - update, 0.0) + update
        megabytes = self._read("train", "megabytes", images)
        if pieces > 1:  # gradients of the pieces before stay, and all images wait on the device, a byte for each value
            height, width = self.facts.trained
            waiting = (pieces - 1) * images * height * width * self.facts.channels
            megabytes += (4 * self.facts.parameters + waiting) / 2**20
        return Step(images, pieces, megabytes, seconds)

    def fitting(self, batch: int, megabytes: float) -> Step | None:
        """The step on ``batch`` images in the fewest pieces that fits into so many ``megabytes``; None: none does."""
        for pieces in (number for number in range(1, batch + 1) if batch % number == 0):
            step = self.step(batch, pieces)
            if step.megabytes <= megabytes:
                return step
        return None

    def _read(self, kind: str, name: str, images: int) -> float:
        height, width = self.facts.trained if kind == "train" else self.facts.padded
        points = [(trial.pixels, float(getattr(trial, name))) for trial in self.of(kind)]
        return read_off(points, images * height * width / 1e6)


def read_off(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at ``x`` of the line through neighbouring ``points`` (x, y), which ascend; beyond them that of the two at that end,
    which does not fall. A single point stands for a line through zero."""
    if len(points) == 1:
        return points[0][1] * x / points[0][0]
    upper = next((index for index, point in enumerate(points) if index and point[0] >= x), len(points) - 1)
    (x1, y1), (x2, y2) = points[upper - 1 : upper + 1]
    slope = (y2 - y1) / (x2 - x1)
    return y2 + (x - x2) * (max(slope, 0.0) if x > x2 or x < x1 else slope)


def enough(step: Step | None, batch: int) -> bool:
    """Whether batch norm sees enough images at a time in a step on ``batch``; it does not in none."""
    return step is not None and step.images >= min(ENOUGH, batch)


def better(plain: Step | None, recomputed: Step | None, batch: int) -> bool:
    """Whether activations should be recomputed: where that lets batch norm see more images at a time and it sees too few else."""
    if recomputed is None or plain is None:
        return recomputed is not None
    return not enough(plain, batch) and recomputed.images > plain.images
