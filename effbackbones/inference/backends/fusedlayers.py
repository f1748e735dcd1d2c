"""Layers of a folded network on a GPU in 16 bits, by the library or by a kernel that does more in one pass over memory.

Which way a layer goes is measured, not guessed (:mod:`effbackbones.inference.backends.choosing`). ``EFFBACKBONES_FUSED=0`` leaves all to
the library; ``1`` takes the first tile untimed, also in compiled code, which else has only the fused kernels that the compiler makes.
"""

import logging
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from effbackbones.backbones import passes
from effbackbones.backbones.convolution import ConvNorm
from effbackbones.backbones.padding import PaddedConv2d
from effbackbones.inference.backends.choosing import LOCK, quickest
from effbackbones.inference.backends.tiles import DEPTHWISE_TILES, POINTWISE_TILES, Tile, Window

LOG = logging.getLogger("effbackbones")
NARROW = (torch.bfloat16, torch.float16)
_MOST = 2**31 - 2**12  # numbers of a map of one image, and pixels of a batch: what kernels count with
_MOST_IMAGES = 65_535  # of a grid's second side


@cache
def kernels() -> Any:
    """The module of kernels; None where there is no Triton, or one that cannot be used, which is told."""
    try:
        from effbackbones.inference.backends import kernels  # loads the compiler
    except Exception as error:  # of another's package, whatever is wrong with it
        if not (isinstance(error, ModuleNotFoundError) and error.name == "triton"):
            LOG.warning("inference: the library computes all layers, for Triton cannot be loaded: %s", error)
        return None
    return kernels


class FusedLayer(nn.Module, ABC):
    """A folded convolution and its activation, by the library or by a kernel. ``chosen``: the tile for so many pixels, a power of two;
    None is the library."""

    tiles: tuple[Tile, ...]

    def __init__(self, layer: ConvNorm) -> None:
        super().__init__()
        self.layer = layer
        self.act = type(layer.act).__name__
        self.chosen: dict[int, Tile | None] = {}
        self.kernels = kernels()

    @abstractmethod
    def library(self, x: Tensor, *more: Tensor | None) -> Any:
        """By the library, on any device."""

    @abstractmethod
    def kernel(self, tile: Tile, x: Tensor, *more: Tensor | None) -> Any:
        """The same by a kernel."""

    def forward(self, x: Tensor, *more: Tensor | None) -> Any:
        """The quicker way's."""
        if not self._may_fuse(x, more):
            return self.library(x, *more)
        if torch.compiler.is_compiling() or not x.is_cuda:
            return self._answer(x, more)
        with torch.cuda.device(x.device):  # where Triton starts kernels
            return self._answer(x, more)

    def _answer(self, x: Tensor, more: tuple[Tensor | None, ...]) -> Any:
        tile = self.tiles[0] if passes.EVERYWHERE else self._chosen(x, more)
        return self.library(x, *more) if tile is None else self.kernel(tile, x, *more)

    def _chosen(self, x: Tensor, more: tuple[Tensor | None, ...]) -> Tile | None:
        key = (x.shape[0] * x.shape[2] * x.shape[3]).bit_length()
        if key not in self.chosen and not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            with LOCK:
                if key not in self.chosen:
                    kind = type(self).__name__
                    self.chosen[key] = quickest(kind, self.library, self.kernel, self.tiles, (x, *more))
        return self.chosen.get(key)

    def _may_fuse(self, x: Tensor, more: tuple[Tensor | None, ...]) -> bool:
        """Whether a kernel may be called, and is wanted."""
        weight = self.layer.conv.weight
        if not passes.ENABLED or self.kernels is None or not (x.is_cuda or self.kernels.INTERPRETED):
            return False
        if torch.compiler.is_compiling():
            if not passes.EVERYWHERE:
                return False
        elif not passes.alone(x) or torch._C._len_torch_dispatch_stack() > 0:
            return False
        if x.dtype not in NARROW or (x.dtype, x.device) != (weight.dtype, weight.device):
            return False
        if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, weight, *more)):
            return False
        if torch.is_autocast_enabled(x.device.type) or torch.are_deterministic_algorithms_enabled():
            return False  # the quickest of several kernels is not the same each time
        images, pixels = x.shape[0], x.shape[2] * x.shape[3]
        return 0 < images <= _MOST_IMAGES and 0 < pixels * max(weight.shape[:2]) < _MOST and images * pixels < _MOST

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "chosen": {}, "kernels": None}  # another machine has its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # untyped in torch
        self.kernels = kernels()


class PointwiseLayer(FusedLayer):
    """[B, C, H, W] to [B, D, H, W]: each pixel times ``gate`` [B, C], convolved, activated, and ``added`` to."""

    tiles = POINTWISE_TILES

    def library(self, x: Tensor, *more: Tensor | None) -> Tensor:
        gate, added = more or (None, None)
        out: Tensor = self.layer(x if gate is None else x * gate[:, :, None, None])
        return out if added is None else out.add_(added)

    def kernel(self, tile: Tile, x: Tensor, *more: Tensor | None) -> Tensor:
        gate, added = more or (None, None)
        conv, added = self.layer.conv, None if added is None else _last(added)
        weight = conv.weight.flatten(1).contiguous()
        out: Tensor = self.kernels.pointwise(_last(x), weight, conv.bias, self.act, gate=gate, added=added, tile=tile)
        return out


class DepthwiseLayer(FusedLayer):
    """[B, C, H, W] to [B, C, H / stride, W / stride] and the means over its pixels [B, C]; without squeeze-excite None for these."""

    tiles = DEPTHWISE_TILES

    def __init__(self, layer: ConvNorm, *, pooled: bool) -> None:
        super().__init__(layer)
        self.pooled = pooled
        self.taps: Tensor
        self.register_buffer("taps", layer.conv.weight.detach().flatten(1).t().contiguous(), persistent=False)

    def library(self, x: Tensor, *more: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y = self.layer(x)
        return y, y.mean((2, 3)) if self.pooled else None

    def kernel(self, tile: Tile, x: Tensor, *more: Tensor | None) -> tuple[Tensor, Tensor | None]:
        conv = self.layer.conv
        over = window(conv, *x.shape[2:])
        y, means = self.kernels.depthwise(_last(x), self.taps, conv.bias, over, self.act, pooled=self.pooled, tile=tile)
        return y, None if means is None else means.to(y.dtype)


def window(conv: nn.Conv2d, height: int, width: int) -> Window:
    """How a depthwise convolution goes over a map of that size."""
    if isinstance(conv, PaddedConv2d):
        left, right, top, bottom = conv.sides(height, width)
    else:
        top = bottom = int(conv.padding[0])
        left = right = int(conv.padding[1])
    size, stride, gap = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
    span = gap * (size - 1) + 1
    out = (height + top + bottom - span) // stride + 1, (width + left + right - span) // stride + 1
    return Window(size, stride, gap, top, left, *out)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
