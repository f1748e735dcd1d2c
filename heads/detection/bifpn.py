"""The bidirectional feature pyramid: maps of a backbone in, as many maps of one width out. No boxes in this file.

Source: Tan, Pang and Le, "EfficientDet", 2020, section 3; numerics as released (effdet ``efficientdet.py``): SAME padding,
batch norm with epsilon 1e-3 and momentum 0.01, activation before a node's convolution and none behind its batch norm.
"""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from effbackbones.backbones import passes
from effbackbones.backbones.convolution import (
    Activation,
    ConvNorm,
    Foldable,
    Numerics,
    activation_layer,
    convolution,
    fold_into,
)
from effbackbones.backbones.padding import same_padding
from heads.detection.levels import Source, level_strides
from heads.detection.variants import Fusion

NUMERICS = Numerics("same", 1e-3, 0.01)
"""Of neck and towers, whatever the backbone's are."""

_LINEAR = nn.Identity()
_EPSILON = 1e-4  # of the fast fusion's denominator (section 3.3)


class Place(NamedTuple):
    """A node of a cell: the ``level`` whose size it has, counted from 0, and the ids of the maps that it fuses."""

    level: int
    inputs: tuple[int, ...]


def wiring(num_levels: int) -> tuple[Place, ...]:
    """The nodes of one cell in the order of their ids, which follow on those of the inputs, 0 to ``num_levels`` - 1.

    Top down first, then bottom up with the cell's own input as a third edge (figure 3, panel d); the last ``num_levels``
    nodes are the cell's outputs, finest first.
    """
    ids = [[level] for level in range(num_levels)]
    nodes: list[Place] = []

    def add(level: int, inputs: tuple[int, ...]) -> None:
        ids[level].append(num_levels + len(nodes))
        nodes.append(Place(level, inputs))

    for level in reversed(range(num_levels - 1)):
        add(level, (ids[level][-1], ids[level + 1][-1]))
    for level in range(1, num_levels):
        add(level, (*ids[level], ids[level - 1][-1]))
    return tuple(nodes)


def max_pool_same(x: Tensor, stride: int) -> Tensor:
    """Maximum over windows of ``stride`` + 1, SAME padding: [B, C, H, W] to [B, C, ceil(H / stride), ceil(W / stride)].

    Cells of the padding never win (they are -inf): padding with 0, as some ports do, is wrong for negative features.
    """
    kernel = stride + 1
    top, bottom = same_padding(x.shape[-2], kernel, stride)
    left, right = same_padding(x.shape[-1], kernel, stride)
    return F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-math.inf), kernel, stride)


class Resize(NamedTuple):
    """From a map of ``source`` stride to one of ``target`` stride; each must be a multiple of the other."""

    source: int
    target: int

    def __call__(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Max-pooled to coarser, nearest neighbour to finer; ``size`` is the (H, W) that must come out."""
        if self.target > self.source:
            return max_pool_same(x, self.target // self.source)
        return F.interpolate(x, size=list(size), mode="nearest") if self.target < self.source else x


class Projection(ConvNorm):
    """1x1 convolution with a bias, which the batch norm behind it makes redundant but the released weights have; linear."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, numerics=NUMERICS, activation=None)
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        init_glorot(self.conv)


class SeparableConv(Foldable):
    """3x3 depthwise, then 1x1 convolution with bias, then batch norm if ``norm``; no activation."""

    exact: bool = False
    """Whether it computes in float32 where the rest of the network does not."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: bool) -> None:
        super().__init__()
        self.depthwise = convolution(in_channels, in_channels, 3, padding=NUMERICS.padding, groups=in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)
        self.bn: nn.Module = (
            nn.BatchNorm2d(out_channels, NUMERICS.bn_eps, NUMERICS.bn_momentum) if norm else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return passes.conv_norm_act(passes.convolve(x, self.depthwise), self.pointwise, self.bn, _LINEAR)

    def fold(self) -> Self:
        if isinstance(self.bn, _BatchNorm):
            fold_into(self.pointwise, self.bn)
            self.bn = nn.Identity()
        return self


class FusionNode(nn.Module):
    """Brings its inputs to one width and size, fuses them, and convolves: activation, separable convolution, batch norm.

    ``inputs`` by id. ``fast`` weighs them by relu(w) / (sum of relu(w) + 1e-4), ``softmax`` by softmax(w), ``sum`` by 1.
    """

    def __init__(self, inputs: Mapping[int, Source], output: Source, fusion: Fusion, activation: Activation) -> None:
        super().__init__()
        self.fusion = fusion
        self.resizes = {i: Resize(source.stride, output.stride) for i, source in inputs.items()}
        narrow = {str(i): source.channels for i, source in inputs.items() if source.channels != output.channels}
        self.laterals = nn.ModuleDict({i: Projection(width, output.channels) for i, width in narrow.items()})
        self.weights = None if fusion == "sum" else nn.Parameter(torch.ones(len(inputs)))
        self.act = activation_layer(activation)
        self.conv = SeparableConv(output.channels, output.channels, norm=True)
        init_glorot(self.conv.depthwise)
        init_glorot(self.conv.pointwise)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """``maps`` by id, each [B, channels, h, w], to [B, width, H, W] of the (H, W) ``size``."""
        inputs = []
        for i, resize in self.resizes.items():
            lateral = str(i)
            narrow = self.laterals[lateral](maps[i]) if lateral in self.laterals else maps[i]
            inputs.append(resize(narrow, size))
        out: Tensor = self.conv(self.act(self._fuse(inputs)))
        return out

    def _fuse(self, inputs: list[Tensor]) -> Tensor:
        if self.weights is not None:
            # In float32: under autocast the sum of three weights and 1e-4 would lose the latter.
            positive = self.weights.float().relu()
            shares = (
                positive / (positive.sum() + _EPSILON) if self.fusion == "fast" else self.weights.float().softmax(0)
            )
            weights = [share.to(x.dtype) for x, share in zip(inputs, shares.unbind(), strict=True)]
            fused = inputs[0] * weights[0]
            for x, weight in zip(inputs[1:], weights[1:], strict=True):
                # Ours, and fresh memory costs more than the sum; autocast may give maps of two dtypes.
                fused = fused.addcmul_(x, weight) if x.dtype == fused.dtype else fused + x * weight
            return fused
        return reduce(torch.add, inputs)


class Cell(nn.Module):
    """One pass top down and one bottom up over all levels."""

    def __init__(self, inputs: Sequence[Source], channels: int, fusion: Fusion, activation: Activation) -> None:
        super().__init__()
        self.places = wiring(len(inputs))
        sources = list(inputs)
        self.nodes = nn.ModuleList()
        for place in self.places:
            output = Source(channels, inputs[place.level].stride)
            self.nodes.append(FusionNode({i: sources[i] for i in place.inputs}, output, fusion, activation))
            sources.append(output)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map per level, finest first, to as many of the same sizes."""
        sizes = [m.shape[-2:] for m in maps]
        known = list(maps)
        for node, place in zip(self.nodes, self.places, strict=True):
            known.append(node(known, sizes[place.level]))
        return known[-len(maps) :]


class BiFPN(nn.Module):
    """Maps of a backbone to ``levels`` maps of ``channels`` each, after ``cells`` cells.

    ``inputs``: the backbone's maps, finest first, which are the first of ``levels``; coarser levels are made by pooling the
    last one, projected first. Names of levels appear in the state dict. ``strides`` has the stride of every level in pixels.
    """

    def __init__(
        self,
        inputs: Sequence[Source],
        levels: Sequence[int],
        channels: int,
        cells: int,
        fusion: Fusion,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.strides = level_strides([source.stride for source in inputs], len(levels))
        self.resample = nn.ModuleDict()
        sources = list(inputs)
        for level, stride in list(zip(levels, self.strides, strict=True))[len(inputs) :]:
            if sources[-1].channels != channels:
                self.resample[str(level)] = Projection(sources[-1].channels, channels)
            sources.append(Source(channels, stride))
        self.extra = {
            str(level): Resize(*self.strides[i : i + 2]) for i, level in enumerate(levels[1:]) if i + 1 >= len(inputs)
        }
        self.cells = nn.ModuleList()
        for _ in range(cells):
            self.cells.append(Cell(sources, channels, fusion, activation))
            sources = [Source(channels, stride) for stride in self.strides]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps [B, c, h, w] to one map [B, channels, h, w] per level, finest first."""
        maps = list(features)
        for level, resize in self.extra.items():
            coarse = self.resample[level](maps[-1]) if level in self.resample else maps[-1]
            maps.append(resize(coarse, ()))
        for cell in self.cells:
            maps = cell(maps)
        return maps


def init_glorot(conv: nn.Conv2d) -> None:
    """Glorot's uniform weights with fans counted within a group, zero bias (effdet ``_init_weight``, for the neck)."""
    fan_in = conv.weight[0].numel()
    fan_out = conv.weight.shape[0] * math.prod(conv.kernel_size) // conv.groups
    limit = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(conv.weight, -limit, limit)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
