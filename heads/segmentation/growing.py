"""A 3x3 convolution of a map that is doubled by nearest neighbours and joined with a skip, computed from the map as it was.

The nine taps at a pixel of a doubled map see two by two different ones: so each of the four pixels that one became is a 2x2 convolution
with sums of taps (Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017, arXiv:1707.02937, say so of the reverse).
That is 16 multiply-adds where there were 36, and the doubled map, joined with the skip, is neither written nor kept for the way back.
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from effbackbones.backbones import passes
from effbackbones.backbones.maps import is_last

_LEAST = 512
"""Pixels of a map, of all images, from which on it is quicker: the sums of taps cost the same for any."""
_LAST = torch.channels_last


def can_double(x: Tensor, skip: Tensor | None, conv: Any, size: tuple[int, int]) -> bool:
    """Whether :func:`doubled` gives ``conv`` of ``x``, brought to ``size`` by nearest neighbours and joined with ``skip``, and pays."""
    if not (passes.eager(x) and is_last(x) and (skip is None or is_last(skip))):
        return False  # before any side is looked at, which a graph would then be bound to
    images, _, height, width = x.shape
    fits = size == (2 * height, 2 * width) and images * height * width >= _LEAST
    exact = type(conv) is nn.Conv2d and conv.weight.dtype in (torch.float32, torch.float64)
    if not (fits and exact and type(conv.weight) is nn.Parameter):
        return False
    geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def doubled(x: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Maps [B, C, h, w] and [B, c, 2h, 2w] or None, channels last, through a kernel [N, C + c, 3, 3]: [B, N, 2h, 2w]."""
    count = x.shape[1]
    kernels = four_kernels(weight[:, :count])
    if skip is None:
        quarters = F.conv2d(x, kernels, None if bias is None else bias.repeat(4), padding=1)
        made: Tensor = _Woven.apply(quarters, None)
    else:
        made = _Woven.apply(F.conv2d(x, kernels, padding=1), F.conv2d(skip, weight[:, count:], bias, padding=1))
    return made


def four_kernels(weight: Tensor) -> Tensor:
    """Of a kernel [N, C, 3, 3] those of the four pixels, upper ones first: [4 N, C, 2, 2]."""
    # of three taps in a row those that see the same pixel of two, for the first of the four
    first = torch.tensor([[1, 0], [0, 1], [0, 1]], dtype=weight.dtype)
    sums = torch.stack((first, first.flip(0, 1)))  # [2 (which pixel), 3, 2]
    with torch.autocast(weight.device.type, enabled=False):
        every = torch.einsum("pka,qlb->klpqab", sums, sums).reshape(9, 16)
        made = weight.reshape(-1, 9) @ every
    made = made.view(*weight.shape[:2], 4, 2, 2).permute(2, 0, 1, 3, 4)
    return made.reshape(-1, weight.shape[1], 2, 2).contiguous(memory_format=_LAST)


class _Woven(torch.autograd.Function):
    """Four maps [B, 4 N, h + 1, w + 1], each shifted by its place, as every second pixel of one, added to ``base`` [B, N, 2h, 2w], which is
    overwritten."""

    @staticmethod
    def forward(ctx: FunctionCtx, quarters: Tensor, base: Tensor | None) -> Tensor:
        images, channels, height, width = quarters.shape
        shape = images, channels // 4, 2 * (height - 1), 2 * (width - 1)
        made = torch.empty(shape, dtype=quarters.dtype, memory_format=_LAST) if base is None else base
        for part, place in _places(quarters, made):
            if base is None:
                place.copy_(part)
            else:
                place.add_(part)
        if base is not None:
            ctx.mark_dirty(base)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        (grad,) = gradients
        return _Parted.apply(grad), grad if ctx.needs_input_grad[1] else None


class _Parted(torch.autograd.Function):
    """The way back of :class:`_Woven`: a map as four, with zeros where no pixel is for them."""

    @staticmethod
    def forward(ctx: FunctionCtx, woven: Tensor) -> Tensor:
        woven = woven.contiguous(memory_format=_LAST)
        images, channels, height, width = woven.shape
        shape = images, 4 * channels, height // 2 + 1, width // 2 + 1
        quarters = torch.empty(shape, dtype=woven.dtype, memory_format=_LAST)
        for edge in (quarters[:, :, 0], quarters[:, :, -1], quarters[..., 0], quarters[..., -1]):
            edge.zero_()
        for part, place in _places(quarters, woven):
            part.copy_(place)
        return quarters

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Woven.apply(gradients[0].contiguous(memory_format=_LAST), None)


def _places(quarters: Tensor, woven: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each of the four what of it is seen, and the pixels that it is for, both [B, h, w, N] and views."""
    images, channels, height, width = woven.shape
    split = woven.permute(0, 2, 3, 1).view(images, height // 2, 2, width // 2, 2, channels)
    parts = quarters.permute(0, 2, 3, 1)
    places = []
    for quarter, (row, column) in enumerate(itertools.product((0, 1), repeat=2)):
        seen = parts[:, row : row + height // 2, column : column + width // 2]
        places.append((seen.narrow(3, quarter * channels, channels), split[:, :, row, :, column]))
    return places
