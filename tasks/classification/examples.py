"""Pictures for the report of a classification: what was wrong, and most certain."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from effbackbones.drawing.boxes import Picture, draw_boxes, grid, rgb
from tasks.classification.results import stacked
from tasks.data.batch import Batch
from tasks.data.sample import Sample

KEPT = 24
"""Mistakes shown in a report."""
FLAT = 4
"""Widths in heights from which a picture is one."""
_ABOVE = 20  # pixels of a label above a flat picture


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction to show: ``image`` [H, W, C] as :func:`tasks.report.page.picture` takes it, ``what`` is wrong, and the
    ``confidence`` in it, 0..1."""

    image: NDArray[Any]
    what: str
    confidence: float
    id: str = ""


class ConfidentMistakes:
    """Keeps the wrong predictions of the highest confidence, with their pictures: one of an image, with several labels the one
    that is most wrong."""

    def __init__(self, classes: Sequence[str], multilabel: bool = False) -> None:
        single = len(classes) == 1 and not multilabel
        self.classes, self.multilabel = [f"not {classes[0]}", classes[0]] if single else classes, multilabel
        self._worst: list[tuple[float, int, Mistake]] = []
        self._seen = 0

    def update(self, batch: Batch, predictions: Sequence[Tensor]) -> None:
        """See the images of a batch with their probabilities, float [K] each; those without a label are passed over."""
        probabilities = stacked(predictions).float().cpu().numpy()
        for row, meta in enumerate(batch.meta):
            self._seen += 1  # breaks ties, so that mistakes are never compared
            found = None if meta.label is None else self._mistake(probabilities[row], meta.label)
            if found and math.isfinite(found[0]) and (len(self._worst) < KEPT or found[0] > self._worst[0][0]):
                image = batch.images[row].permute(1, 2, 0).cpu().numpy().copy()
                push = heapq.heappush if len(self._worst) < KEPT else heapq.heapreplace
                push(self._worst, (found[0], self._seen, Mistake(image, found[1], found[0], meta.id)))

    def _mistake(self, probabilities: NDArray[np.float32], label: Any) -> tuple[float, str] | None:
        """How sure a prediction is of what is wrong, and that; None if all is right."""
        if len(probabilities) == 1 and not self.multilabel:
            probabilities = np.array([1 - probabilities[0], probabilities[0]])
        if not self.multilabel:
            guess = int(probabilities.argmax())
            return (
                None
                if guess == label
                else (float(probabilities[guess]), f"{self.classes[label]}, taken for {self.classes[guess]}")
            )
        errors = np.where(label >= 0, np.abs(probabilities - label), 0.0)  # unknown labels are no mistakes
        worst = int(errors.argmax())
        what = "overlooked" if label[worst] else "seen where there is none"
        return (float(errors[worst]), f"{self.classes[worst]}, {what}") if errors[worst] > 0.5 else None

    def mistakes(self) -> list[Mistake]:
        """The kept ones, most confident first."""
        return [mistake for *_, mistake in sorted(self._worst, key=lambda kept: kept[:2], reverse=True)]


def label_sheet(samples: Sequence[Sample], classes: Sequence[str], columns: int = 4, side: int = 320) -> Picture:
    """Samples as they go into training, with their labels, each at most ``side`` pixels large. Pictures that are all flat, such as lines
    of text, are twice as large, half as many beside each other, and have their labels above."""
    images = [rgb(sample.image) for sample in samples]
    flat = all(image.shape[1] >= FLAT * image.shape[0] for image in images)
    columns, side = (max(1, columns // 2), 2 * side) if flat else (columns, side)
    pictures = []
    for sample, image in zip(samples, images, strict=True):
        found = [] if sample.label is None else [sample.label]
        if sample.labels is not None:
            found = np.flatnonzero(sample.labels).tolist()
        height, width = image.shape[:2]
        above = math.ceil(_ABOVE * max(1.0, width / side)) if flat else 0
        image = np.pad(image, ((above, 0), (0, 0), (0, 0)))
        frame, first = np.array([[0.0, above, width, above + height]]), np.array([found[0] if found else 0])
        text = ", ".join(classes[label] for label in found) or "no label"
        pictures.append(draw_boxes(image, frame, [text], first, ["solid"], at_most=side))
    return grid(pictures, columns)
