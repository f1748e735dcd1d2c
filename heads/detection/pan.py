"""The path aggregation network: maps of a backbone in, as many of one width out, after a way down and a way up. No boxes here.

Sources: Liu et al., "Path aggregation network for instance segmentation", 2018, section 3.1; maps are joined by concatenation and
the convolutions are separable, as in mobile detectors (Lyu et al., "RTMDet", 2022, section 3.1).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones.convolution import Activation, ConvNorm, activation_layer
from heads.detection.bifpn import NUMERICS, SeparableConv


class Join(nn.Module):
    """Maps [B, in_channels, h, w] to [B, channels, h, w]: a 1x1 convolution, then ``depth`` separable ones of kernel 3 that each add
    to what they read."""

    def __init__(self, in_channels: int, channels: int, depth: int, activation: Activation) -> None:
        super().__init__()
        self.mix = ConvNorm(in_channels, channels, numerics=NUMERICS, activation=activation)
        self.steps = nn.ModuleList(SeparableConv(channels, channels, norm=True) for _ in range(depth))
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        for step in self.steps:
            x = x + self.act(step(x))
        return x


class Coarser(nn.Module):
    """Half the size, rounded up: a depthwise convolution of kernel 3 and stride 2, then a 1x1 one."""

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels, channels, 3, numerics=NUMERICS, activation=None, stride=2, groups=channels)
        self.pointwise = ConvNorm(channels, channels, numerics=NUMERICS, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class PAN(nn.Module):
    """Maps of ``in_channels``, finest first, each twice as coarse as the one before, to as many of ``channels``; ``depth`` of each
    :class:`Join`."""

    def __init__(self, in_channels: Sequence[int], channels: int, depth: int, activation: Activation) -> None:
        super().__init__()
        levels = len(in_channels)
        self.lateral = nn.ModuleList(
            ConvNorm(width, channels, numerics=NUMERICS, activation=activation) for width in in_channels
        )
        self.down = nn.ModuleList(Join(2 * channels, channels, depth, activation) for _ in range(levels - 1))
        self.coarser = nn.ModuleList(Coarser(channels, activation) for _ in range(levels - 1))
        self.up = nn.ModuleList(Join(2 * channels, channels, depth, activation) for _ in range(levels - 1))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps [B, c, h, w] to one map [B, channels, h, w] per level, finest first."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for level, join in zip(reversed(range(len(maps) - 1)), self.down, strict=True):
            above = F.interpolate(maps[level + 1], size=list(maps[level].shape[-2:]))
            maps[level] = join(torch.cat([maps[level], above], 1))
        for level, (coarser, join) in enumerate(zip(self.coarser, self.up, strict=True)):
            maps[level + 1] = join(torch.cat([coarser(maps[level]), maps[level + 1]], 1))
        return maps


def doubling(strides: Sequence[int]) -> bool:
    """Whether each stride is twice the one before."""
    return all(coarse == 2 * fine for fine, coarse in pairwise(strides))
