"""Detections of a network brought back to the pixels of the original images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from effbackbones.contracts import Detections
from effbackbones.images.geometry import ResizePlan, Size


class FoundBoxes(NamedTuple):
    """What was found in one image: ``corners`` float64 [n, 4] xyxy in original pixels, ``scores`` float64 [n], ``labels`` int64 [n]."""

    corners: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Which of them are all finite, bool [n]."""
        return np.isfinite(self.corners).all(1) & np.isfinite(self.scores)

    def first(self, most: int | None) -> "FoundBoxes":
        """The first ``most`` of them; all where that is None."""
        return FoundBoxes(self.corners[:most], self.scores[:most], self.labels[:most])

    def take(self, rows: NDArray[np.int64]) -> "FoundBoxes":
        """Those of ``rows``, in that order."""
        return FoundBoxes(self.corners[rows], self.scores[rows], self.labels[rows])


def joined(found: Sequence[FoundBoxes]) -> FoundBoxes:
    """All of them, one after the other."""
    if not found:
        return FoundBoxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    corners, scores, labels = (np.concatenate([one[part] for one in found]) for part in range(3))
    return FoundBoxes(corners, scores, labels)


def overlaps(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU float64 [n, m] of boxes [n, 4] and [m, 4] xyxy; 0 where a box has no extent."""
    low = np.maximum(one[:, None, :2], other[:, :2])
    high = np.minimum(one[:, None, 2:], other[:, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    both = areas[0][:, None] + areas[1] - shared
    found: NDArray[np.float64] = np.divide(shared, both, out=np.zeros_like(shared), where=(both > 0) & (shared > 0))
    return found


def restore_boxes(detections: Detections, plans: Sequence[ResizePlan]) -> list[FoundBoxes]:
    """Detections of a batch, cut to their counts, brought back by the ``plans`` of its images and clipped to these.

    Every tensor is copied from the device once. What is not finite stays so: clipping would make a full-width box of an
    infinite one.
    """
    return [
        one._replace(corners=clipped(plan.restore_boxes(one.corners), plan.original))
        for one, plan in zip(unbatched(detections), plans, strict=True)
    ]


def unbatched(detections: Detections) -> list[FoundBoxes]:
    """Detections of a batch, cut to their counts, in pixels of the images that the network got."""
    boxes, scores = (values.detach().cpu().double().numpy() for values in (detections.boxes, detections.scores))
    labels, counts = (
        values.detach().cpu().numpy().astype(np.int64) for values in (detections.labels, detections.count)
    )
    return [
        FoundBoxes(boxes[row, :n], scores[row, :n].copy(), labels[row, :n].copy())
        for row, n in enumerate(counts.tolist())
    ]


def clipped(boxes: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """Boxes [n, 4] cut at the edges of an image of ``size`` (H, W)."""
    height, width = size
    return np.where(np.isfinite(boxes), np.clip(boxes, 0, np.array([width, height, width, height], np.float64)), boxes)
