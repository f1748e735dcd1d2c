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


def restore_boxes(detections: Detections, plans: Sequence[ResizePlan]) -> list[FoundBoxes]:
    """Detections of a batch, cut to their counts, brought back by the ``plans`` of its images and clipped to these.

    Every tensor is copied from the device once. What is not finite stays so: clipping would make a full-width box of an
    infinite one.
    """
    boxes, scores = (values.detach().cpu().double().numpy() for values in (detections.boxes, detections.scores))
    labels, counts = (
        values.detach().cpu().numpy().astype(np.int64) for values in (detections.labels, detections.count)
    )
    return [
        FoundBoxes(
            _clipped(plan.restore_boxes(boxes[row, :n]), plan.original), scores[row, :n].copy(), labels[row, :n].copy()
        )
        for row, (plan, n) in enumerate(zip(plans, counts.tolist(), strict=True))
    ]


def _clipped(boxes: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    height, width = size
    return np.where(np.isfinite(boxes), np.clip(boxes, 0, np.array([width, height, width, height], np.float64)), boxes)
