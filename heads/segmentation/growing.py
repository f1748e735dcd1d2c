"""A 3x3 convolution of a map that is doubled by nearest neighbours and joined with a skip, computed from the map as it was.

Each of the four pixels that one became sees a neighbourhood of 2x2 pixels of the map, by sums of the kernel's taps. All four together
are a transposed convolution of stride 2 by a kernel of 4x4 (Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017,
arXiv:1707.02937, say so of the reverse): 16 multiply-adds where there were 36, and the doubled map, joined with the skip, is neither
written nor kept for the way back.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones import passes
from effbackbones.backbones.maps import is_last

_LEAST = 512
"""Pixels of a map, of all images, from which on it is quicker: torch lays the kernel out in each call, for any map alike."""


def can_double(x: Tensor, skip: Tensor | None, conv: Any, size: tuple[int, int]) -> bool:
    """Whether :func:`doubled` gives ``conv`` of ``x``, brought to ``size`` by nearest neighbours and joined with ``skip``, and pays."""
    if not (passes.eager(x) and is_last(x) and (skip is None or is_last(skip))):
        return False  # before any side is looked at, which a graph would then be bound to
    return size == (2 * x.shape[2], 2 * x.shape[3]) and pays(x) and is_usual(conv)


def pays(x: Tensor) -> bool:
    """Whether ``x`` has pixels enough, layer by layer; in graphs, whose kernels are laid out when they are opened, any map has."""
    return not passes.eager(x) or x.shape[0] * x.shape[2] * x.shape[3] >= _LEAST


def is_usual(conv: Any) -> bool:
    """Whether this is a convolution of 3x3 that keeps the size of a map, in full precision."""
    exact = type(conv) is nn.Conv2d and conv.weight.dtype in (torch.float32, torch.float64)
    if not (exact and type(conv.weight) is nn.Parameter):
        return False
    geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def doubled(x: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Maps [B, C, h, w] and [B, c, 2h, 2w] or None through a kernel [N, C + c, 3, 3]: [B, N, 2h, 2w]."""
    count = x.shape[1]
    kernel = spread(weight[:, :count]).contiguous()
    if skip is None:
        return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1).add_(F.conv2d(skip, weight[:, count:], bias, padding=1))


def spread(weight: Tensor) -> Tensor:
    """Of a kernel [N, C, 3, 3] for the doubled map that of the transposed convolution, [C, N, 4, 4]."""
    return F.avg_pool2d(weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1).transpose(0, 1)


class GrownConv(nn.Module):
    """``conv`` and ``act`` as :func:`doubled` computes them, of ``count`` channels that are doubled and the others of a skip: with the sums
    of taps made once, for eval mode. ``conv`` itself stays for maps of other sizes: a copy of U-Net B3 is a fifth larger by that."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module, count: int) -> None:
        super().__init__()
        weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        alone = count == conv.in_channels
        self.up = nn.ConvTranspose2d(count, len(weight), 4, 2, 1, bias=alone and bias is not None)
        self.beside = (
            None if alone else nn.Conv2d(conv.in_channels - count, len(weight), 3, 1, 1, bias=bias is not None)
        )
        self.up.weight = nn.Parameter(spread(weight[:, :count]).contiguous())
        if self.beside is not None:
            self.beside.weight = nn.Parameter(weight[:, count:].clone())
        if bias is not None:
            (self.beside or self.up).bias = nn.Parameter(bias.clone())
        self.act = copy.deepcopy(act)  # one that stood in two places would be fused with neither
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """As of :func:`doubled`."""
        made = self.up(x)
        if self.beside is not None:
            made = made.add_(self.beside(skip))
        out: Tensor = self.act(made)
        return out
