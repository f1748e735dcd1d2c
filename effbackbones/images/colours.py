"""Colours of an image in its own kind of number."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels


def fill_of(image: Pixels, mean: Sequence[float]) -> Pixels:
    """The mean colour in the dtype of ``image``: what padding is filled with, as ``Model`` fills it."""
    if len(mean) != image.shape[2]:
        raise UserError(
            "image_spec.mean",
            f"has {len(mean)} values, the image {image.shape[2]} channels",
            "give one of each per channel",
        )
    return in_dtype(np.array(mean), image)


def in_dtype(values: NDArray[np.float64], image: Pixels) -> Pixels:
    """Values in 0..1 in the dtype and range of ``image``."""
    full = {"uint8": 255, "uint16": 65535, "float32": 1}[image.dtype.name]
    scaled = values * full
    return scaled.astype(np.float32) if full == 1 else np.rint(scaled).astype(image.dtype)
