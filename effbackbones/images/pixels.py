"""What the values of image tensors mean, by their dtype."""

import torch
from torch import Tensor

from effbackbones.errors import UserError

MOST = 32.0
"""Above it a floating-point image is taken for one of 0..255: far from what noise or high dynamic range reaches."""
_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}  # floating-point images are 0..1 already


def white(images: Tensor) -> float:
    """The value that means 1 in ``images``; integers other than uint8 and uint16 raise :class:`UserError`."""
    if not images.is_floating_point() and images.dtype not in _WHITE:
        raise UserError(
            "images",
            f"expected uint8, uint16 or floating point, got {images.dtype}",
            "convert them: an integer says no range",
        )
    return _WHITE.get(images.dtype, 1.0)


def to_unit(images: Tensor) -> Tensor:
    """Images of any accepted dtype as float32, 0..1."""
    return images.float() / white(images)


def refuse_bytes(images: Tensor) -> None:
    """Raise :class:`UserError` for floating-point images of 0..255. Only on the CPU, where looking makes nobody wait."""
    if (
        torch.compiler.is_compiling()
        or images.device.type != "cpu"
        or not images.is_floating_point()
        or not images.numel()
    ):
        return
    largest = float(images.max())
    if largest > MOST:
        raise UserError("images", f"expected floating point in 0..1, found {largest:g}", "give uint8, or divide by 255")


def top_left(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left [B, C, H, W] of larger maps, ``size`` being (H, W)."""
    height, width = size
    if not torch.compiler.is_exporting():
        return maps[..., :height, :width]
    # A slice would make an exported graph refuse half of the sizes.
    rows, columns = torch.arange(height, device=maps.device), torch.arange(width, device=maps.device)
    return maps.index_select(2, rows).index_select(3, columns)
