"""What the values of image tensors mean, by their dtype."""

import torch
from torch import Tensor

from effbackbones.errors import UserError

_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}  # floating-point images are 0..1 already


def white(images: Tensor) -> float:
    """The value that means 1 in ``images``; integers other than uint8 and uint16 raise :class:`UserError`."""
    if not images.is_floating_point() and images.dtype not in _WHITE:
        raise UserError("images", f"expected uint8, uint16 or floating point, got {images.dtype}", "convert them: an integer says no range")
    return _WHITE.get(images.dtype, 1.0)


def to_unit(images: Tensor) -> Tensor:
    """Images of any accepted dtype as float32, 0..1."""
    return images.float() / white(images)
