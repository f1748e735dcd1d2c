"""Training samples with their masks, side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from effbackbones.drawing.boxes import Picture, grid, rgb
from effbackbones.drawing.masks import fitted, legend, occurring, overlay
from effbackbones.images.geometry import IGNORE, Mask

if TYPE_CHECKING:
    from tasks.data.sample import Sample


def mask_sheet(samples: Sequence["Sample"], classes: Sequence[str], columns: int = 4, side: int = 480) -> Picture:
    """Samples as they go into training, each image beside its overlay, ``columns`` pictures of at most ``side`` pixels in a
    row; below, the legend of the classes that occur. What has no mask is shown as ignored."""
    pictures, shown = [], set[int]()
    for sample in samples:
        mask: Mask = np.full(sample.image.shape[:2], IGNORE, np.uint8) if sample.mask is None else sample.mask
        shown |= set(occurring(mask))
        pictures += [
            rgb(fitted(sample.image, mask, 320, side)[0]),
            overlay(sample.image, mask, classes, at_least=320, at_most=side),
        ]
    sheet = grid(pictures, max(2, columns // 2 * 2))
    return np.concatenate([sheet, legend(classes, sorted(shown), sheet.shape[1])])
