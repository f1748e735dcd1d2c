"""Training samples with their masks, side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from effbackbones.drawing.boxes import Picture, grid, rgb
from effbackbones.drawing.masks import fitted, legend, overlay
from effbackbones.images.geometry import IGNORE

if TYPE_CHECKING:
    from tasks.data.sample import Sample


def mask_sheet(samples: Sequence["Sample"], classes: Sequence[str], columns: int = 4, side: int = 480) -> Picture:
    """Samples as they go into training, each image beside its overlay, ``columns`` pictures of at most ``side`` pixels in a
    row; below, the legend of the classes that occur. What has no mask is shown as ignored."""
    pictures, occurring = [], np.zeros(256, np.bool_)
    for sample in samples:
        mask = np.full(sample.image.shape[:2], IGNORE, np.uint8) if sample.mask is None else sample.mask
        occurring[np.unique(mask)] = True
        pictures += [
            rgb(fitted(sample.image, mask, 320, side)[0]),
            overlay(sample.image, mask, classes, at_least=320, at_most=side),
        ]
    sheet = grid(pictures, max(2, columns // 2 * 2))
    return np.concatenate([sheet, legend(classes, np.flatnonzero(occurring).tolist(), sheet.shape[1])])
