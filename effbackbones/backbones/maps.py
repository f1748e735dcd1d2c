"""Maps [B, C, H, W] that lie channels last on a processor: padded, taken apart, seen as pixels, without a pass over memory too many."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Sides = tuple[int, int, int, int]
"""Pixels left, right, above and below."""


def arranged(grad: Tensor, x: Tensor) -> Tensor:
    """A gradient that lies as its map does."""
    return grad.contiguous(memory_format=torch.channels_last) if is_last(x) else grad


def is_last(x: Tensor) -> bool:
    """Whether a map lies channels last, on a processor."""
    return x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)


def padded(x: Tensor, sides: Sides) -> Tensor:
    """As ``F.pad``, of which numbers below 0 cut off; that fills the whole map with zeros first, which costs as much as the copy."""
    if not is_last(x):
        return F.pad(x, sides)
    left, right, top, bottom = sides
    images, channels, *size = x.shape
    height, width = size[0] + top + bottom, size[1] + left + right
    shape = (images, channels, height, width)
    made = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    (first, last), (begin, end) = _overlap(top, size[0], height), _overlap(left, size[1], width)
    inside = made[:, :, first:last]
    for border in (made[:, :, :first], made[:, :, last:], inside[..., :begin], inside[..., end:]):
        if border.numel():
            border.zero_()
    inside[..., begin:end].copy_(
        x[:, :, max(0, first - top) : max(0, last - top), max(0, begin - left) : max(0, end - left)]
    )
    return made


def _overlap(before: int, size: int, whole: int) -> tuple[int, int]:
    """Where in a side of ``whole`` pixels those ``size`` lie that begin behind ``before``; of a kernel that is much wider than its map some
    columns see none."""
    first = max(0, before)
    return first, max(first, min(before + size, whole))


def phases(x: Tensor, gaps: Sequence[int], front: Sequence[int], size: Sequence[int]) -> Tensor:
    """Every ``gaps``-th pixel of a map as a map, for each first pixel: [B * gaps, C, *size], of a map with ``front`` zeros before it."""
    images, channels, *sides = x.shape
    top, bottom, left, right = (
        border for a, gap, b, side in zip(front, gaps, size, sides, strict=True) for border in (a, b * gap - a - side)
    )
    split = pixels(padded(x, (left, right, top, bottom))).view(images, size[0], gaps[0], size[1], gaps[1], channels)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(-1, *size, channels).permute(0, 3, 1, 2)


def pixels(x: Tensor) -> Tensor:
    """Map [B, C, H, W], channels last, as [pixels, C], the same memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(flat: Tensor, like: Tensor) -> Tensor:
    """Pixels [B * H * W, C] as the map they are, channels last."""
    return flat.view(len(like), *like.shape[2:], flat.shape[1]).permute(0, 3, 1, 2)
