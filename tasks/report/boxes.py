"""Training samples with their boxes, side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from effbackbones.drawing.boxes import Picture, Style, draw_boxes, grid

if TYPE_CHECKING:
    from tasks.data.sample import Sample


def sample_sheet(samples: Sequence["Sample"], classes: Sequence[str], columns: int = 4, side: int = 480) -> Picture:
    """Samples as they go into training, with their boxes and classes; crowds are hatched, each at most ``side`` pixels large."""
    pictures = []
    for sample in samples:
        boxes = np.zeros((0, 4)) if sample.boxes is None else sample.boxes
        labels = np.zeros(len(boxes), np.int64) if sample.box_labels is None else sample.box_labels
        crowd = np.zeros(len(boxes), np.bool_) if sample.crowd is None else sample.crowd
        texts = [f"{classes[label]}{' (crowd)' if many else ''}" for label, many in zip(labels, crowd, strict=True)]
        styles: list[Style] = ["hatched" if many else "solid" for many in crowd]
        pictures.append(draw_boxes(sample.image, boxes, texts, labels, styles, at_most=side))
    return grid(pictures, columns)
