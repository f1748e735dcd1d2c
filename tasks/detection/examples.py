"""Images on which a detector did worst and best, kept with their truth while a set is evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from effbackbones.drawing.boxes import Picture, Style, draw_boxes, rgb
from effbackbones.images.geometry import resize
from tasks.data.batch import Batch, ImageMeta
from tasks.data.boxes.table import xyxy
from tasks.data.sample import Truth
from tasks.detection.metrics import CONFIDENT, Matches, match_image
from tasks.detection.results import ImageDetections, finite_rows
from tasks.report.extremes import Extremes

GOOD_IOU = 0.5
"""IoU from which a detection of the right class is right."""
KEPT = 8
"""So many of the worst and of the best images are kept."""
_SIDE = 512  # longest side of a kept image, pixels: about what a page shows


@dataclass(frozen=True)
class Example:
    """An image [H, W, 3] uint8, and in its pixels the objects (``truth`` [m, 4] xyxy, ``labels``, ``crowd``) and the confident
    detections (``boxes`` [n, 4] xyxy, ``guesses``, ``scores``). ``name``: what a reader knows the image by; ``f1``: how good it is;
    ``matches``: what became of each."""

    id: str
    name: str
    f1: float
    matches: Matches
    image: Picture
    classes: Sequence[str]
    truth: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    boxes: NDArray[np.float64]
    guesses: NDArray[np.int64]
    scores: NDArray[np.float64]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Detections that are right, those that are wrong, and objects missed."""
        return tally(self.matches, self.crowd)

    def truth_picture(self) -> Picture:
        """The objects: missed ones dashed and named so, crowds hatched."""
        texts, styles = [], list[Style]()
        for label, crowd, found in zip(self.labels, self.crowd, self.matches.found, strict=True):
            texts.append(self.classes[label] + (" (crowd)" if crowd else "" if found else " missed"))
            styles.append("hatched" if crowd else "solid" if found else "dashed")
        return draw_boxes(self.image, self.truth, texts, self.labels, styles)

    def prediction_picture(self) -> Picture:
        """The confident detections: wrong ones dashed and named so, those in crowds hatched."""
        texts, styles = [], list[Style]()
        verdicts = zip(self.guesses, self.scores, self.matches.correct, self.matches.ignored, strict=True)
        for guess, score, correct, ignored in verdicts:
            texts.append(
                f"{self.classes[guess]} {score:.2f}" + (" (in a crowd)" if ignored else "" if correct else " wrong")
            )
            styles.append("hatched" if ignored else "solid" if correct else "dashed")
        return draw_boxes(self.image, self.boxes, texts, self.guesses, styles)


class DetectionExamples:
    """Keeps the images with the lowest and with the highest F1, at most :data:`KEPT` each and reduced to a few hundred pixels.

    F1 of an image: 2 right / (objects + detections), over detections with a score of at least ``threshold``; right is a
    detection whose class is that of an object that it overlaps by IoU :data:`GOOD_IOU` or more and that no better detection
    has taken. Crowds count for nothing. Of equal images those with more objects and mistakes come first. Images without
    objects and confident detections show nothing and are left out.
    """

    def __init__(self, classes: Sequence[str], threshold: float = CONFIDENT) -> None:
        self.classes, self.threshold = classes, threshold
        self._kept = Extremes[Example](KEPT)

    def update(self, batch: Batch, predictions: Sequence[ImageDetections]) -> None:
        """See the images of a batch; those without truth are passed over."""
        for row, detections in enumerate(predictions):
            truth = batch.meta[row].truth
            if truth is not None:
                self._consider(batch, row, truth, confident(detections, self.threshold))

    def worst(self) -> list[Example]:
        """Images with a mistake, worst first."""
        return self._kept.worst()

    def best(self) -> list[Example]:
        """Images with something right, best first; none that :meth:`worst` tells."""
        return self._kept.best()

    def _consider(self, batch: Batch, row: int, truth: Truth, found: ImageDetections) -> None:
        matches = match_image(found, truth, GOOD_IOU)
        right, wrong, missed = tally(matches, truth.crowd)
        if right + wrong + missed == 0:
            return
        f1 = 2 * right / (2 * right + wrong + missed)
        self._kept.consider(
            f1, partial(self._example, batch, row, truth, found, matches, f1), bad=wrong + missed, good=right
        )

    def _example(
        self, batch: Batch, row: int, truth: Truth, found: ImageDetections, matches: Matches, f1: float
    ) -> Example:
        """Image and boxes in the pixels of the resized image, which is reduced where it is larger than a page needs."""
        meta, (height, width) = batch.meta[row], batch.sizes.valid[row].tolist()
        image = rgb(batch.images[row, :, :height, :width].permute(1, 2, 0).cpu().numpy())
        shrink = min(1.0, _SIDE / max(height, width))
        image = resize(image, (max(1, round(height * shrink)), max(1, round(width * shrink))), "bilinear").astype(
            np.uint8
        )
        scale = np.tile(np.array(image.shape[1::-1]) / (width, height), 2)
        boxes, objects = (_in_window(xywh, meta) * scale for xywh in (found.boxes, truth.boxes))
        return Example(
            meta.id,
            meta.name,
            f1,
            matches,
            image,
            self.classes,
            objects,
            truth.labels,
            truth.crowd,
            boxes,
            found.labels,
            found.scores,
        )


def tally(matches: Matches, crowd: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Detections that are right, those that are wrong, and objects missed; ``crowd`` bool [m] of the objects."""
    wrong, missed = ~matches.correct & ~matches.ignored, ~matches.found & ~crowd
    return int(matches.correct.sum()), int(wrong.sum()), int(missed.sum())


def confident(found: ImageDetections, threshold: float) -> ImageDetections:
    """The detections with a score of at least ``threshold``; none that is not finite."""
    rows = finite_rows(found.boxes, found.scores) & (found.scores >= threshold)
    return replace(found, boxes=found.boxes[rows], scores=found.scores[rows], labels=found.labels[rows])


def _in_window(boxes: NDArray[np.float64], meta: ImageMeta) -> NDArray[np.float64]:
    """Boxes [n, 4] x, y, width, height in original pixels as xyxy in those of the image that the network saw."""
    return xyxy(boxes) if meta.plan is None else meta.plan.apply_boxes(xyxy(boxes))
