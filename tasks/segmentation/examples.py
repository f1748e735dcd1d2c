"""Images that a model segmented worst and best, kept with their truth while a set is evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from effbackbones.drawing.boxes import Picture, rgb
from effbackbones.drawing.masks import errors, fitted, overlay
from effbackbones.images.classsets import UNKNOWN, are_sets, ignored_in
from effbackbones.images.geometry import IGNORE, Mask
from tasks.data.batch import Batch
from tasks.report.extremes import Extremes
from tasks.segmentation.metrics import image_iou
from tasks.segmentation.results import Segmented
from tasks.segmentation.setmetrics import image_iou_of_sets

KEPT = 8
"""So many of the worst and of the best images are kept."""
_SIDE = 512  # longest side of a kept image, pixels: about what a page shows
_ENLARGED = 320  # small images are shown at least so large


@dataclass(frozen=True)
class Example:
    """An image [H, W, 3] uint8 with the classes of its pixels, ``truth`` and ``labels`` [H, W], all as a page shows them.
    ``name``: what a reader knows it by.
    ``iou`` and ``right`` (the share of right pixels) are those of the whole image."""

    id: str
    name: str
    iou: float
    right: float
    image: Picture
    classes: Sequence[str]
    truth: Mask
    labels: Mask

    def panels(self) -> dict[str, Picture]:
        """The image, its truth, the prediction, and where these differ."""
        drawn = {
            name: overlay(self.image, labels, self.classes)
            for name, labels in (("truth", self.truth), ("prediction", self.labels))
        }
        return {"image": self.image, **drawn, "errors": errors(self.image, self.labels, self.truth)}


class SegmentationExamples:
    """Keeps the images with the lowest and with the highest mean IoU over the classes of their truth or prediction, at most
    :data:`KEPT` each and reduced to a few hundred pixels. Ignored pixels count for nothing; images without truth, or with
    none but ignored pixels, are passed over.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._kept = Extremes[Example](KEPT)

    def update(self, batch: Batch, predictions: Sequence[Segmented]) -> None:
        """See the images of a batch."""
        for row, found in enumerate(predictions):
            mask = batch.meta[row].mask
            if mask is None:
                continue
            labels = found.labels.masked_fill(found.confidence.isnan(), ignored_in(mask)).cpu().numpy()  # no class
            iou = _iou(labels, mask, len(self.classes))
            if iou is not None:
                self._kept.consider(iou, partial(self._example, batch, row, labels, mask, iou))

    def worst(self) -> list[Example]:
        """Images with a mistake, worst first."""
        return self._kept.worst()

    def best(self) -> list[Example]:
        """Images with something right, best first; none that :meth:`worst` tells."""
        return self._kept.best()

    def _example(self, batch: Batch, row: int, labels: Mask, mask: Mask, iou: float) -> Example:
        """All three as the network saw them: what a crop cut off is not shown, nor is padding."""
        meta, (height, width) = batch.meta[row], batch.sizes.valid[row].tolist()
        image = rgb(batch.images[row, :, :height, :width].permute(1, 2, 0).cpu().numpy())
        maps = (
            (labels, mask) if meta.plan is None else (meta.plan.apply_mask(m)[:height, :width] for m in (labels, mask))
        )
        (shown, guess), (_, truth) = (fitted(image, part, _ENLARGED, _SIDE) for part in maps)
        right = float((labels == mask)[mask != ignored_in(mask)].mean())
        return Example(meta.id, meta.name, iou, right, np.ascontiguousarray(rgb(shown)), self.classes, truth, guess)


def _iou(labels: Mask, mask: Mask, count: int) -> float | None:
    """Mean IoU of an image; where there is no class, a wrong one is taken."""
    if are_sets(mask) and are_sets(labels):
        return image_iou_of_sets(np.where(labels == UNKNOWN, ~mask, labels), mask, count)
    number = max(2, count)
    return image_iou(np.where(labels == IGNORE, (mask + 1) % number, labels).astype(np.uint8), mask, number)
