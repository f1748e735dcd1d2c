"""MBConv blocks on a GPU in 16 bits: three passes over memory instead of ten, where that is quicker than the library there.

Which way a layer goes is measured, not guessed: on the first call for a size the kernels of
:mod:`effbackbones.inference.backends.kernels`, with each of their tiles, are compared with the library and timed beside it.
``EFFBACKBONES_FUSED=0`` leaves all to the library; ``1`` takes the first tile untimed, also in compiled code, which else has only the
fused kernels that the compiler makes.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from effbackbones.backbones import passes
from effbackbones.backbones.blocks import MBConv
from effbackbones.backbones.convolution import ConvNorm
from effbackbones.backbones.padding import Conv2dFixed, Conv2dSame, PaddedConv2d
from effbackbones.inference.backends import kernels
from effbackbones.inference.backends.checking import BOUND_NARROW, are_finite, difference
from effbackbones.inference.backends.kernels import ACTS, Tile, Window

LOG = logging.getLogger("effbackbones")
_NARROW = (torch.bfloat16, torch.float16)
_MOST = 2**31  # numbers of a map of one image, and pixels of a batch: what kernels count with
_MOST_IMAGES = 65_535  # of a grid's second side
_ROUNDS, _CALLS = 5, 4
_FAILED: set[tuple[type, Tile]] = set()
"""What is not tried again in this process: it did not run, or was wrong."""


class FusedLayer(nn.Module, ABC):
    """A folded convolution and its activation, by the library or by a kernel."""

    tiles: tuple[Tile, ...]

    def __init__(self, layer: ConvNorm) -> None:
        super().__init__()
        self.layer = layer
        self.act = type(layer.act).__name__
        self.chosen: dict[tuple[int, ...], Tile | None] = {}

    @abstractmethod
    def library(self, x: Tensor, *more: Any) -> Any:
        """By the library, on any device."""

    @abstractmethod
    def kernel(self, tile: Tile, x: Tensor, *more: Any) -> Any:
        """The same by a kernel."""

    def forward(self, x: Tensor, *more: Any) -> Any:
        """The quicker way's."""
        if not _may_fuse(x, self.layer.conv.weight):
            return self.library(x, *more)
        if torch.compiler.is_compiling() or not x.is_cuda:
            return self._answer(x, more)
        with torch.cuda.device(x.device):  # where Triton starts kernels
            return self._answer(x, more)

    def _answer(self, x: Tensor, more: tuple[Any, ...]) -> Any:
        tile = self._tile(x, more)
        return self.library(x, *more) if tile is None else self.kernel(tile, x, *more)

    def _tile(self, x: Tensor, more: tuple[Any, ...]) -> Tile | None:
        if passes.EVERYWHERE:
            return self.tiles[0]
        if torch.compiler.is_compiling():
            return None
        key = (x.shape[0].bit_length(), *x.shape[2:])
        if key not in self.chosen and not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.chosen[key] = self._quickest(x, more)
        return self.chosen.get(key)

    def _quickest(self, x: Tensor, more: tuple[Any, ...]) -> Tile | None:
        """The tile that beats the library by most, None where none does; one that fails or differs is told and tried no more."""
        wanted = _tensors(self.library(x, *more))
        if not are_finite(wanted):  # nothing can be compared
            return None
        best, least = None, _seconds(partial(self.library, x, *more), x.device)
        for tile in self.tiles:
            if (type(self), tile) in _FAILED:
                continue
            try:
                found = _tensors(self.kernel(tile, x, *more))
                why = difference(wanted, found, len(x), BOUND_NARROW)
            except Exception as error:  # of a compiler or a driver: the library answers
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if why is not None:
                _FAILED.add((type(self), tile))
                LOG.warning(
                    "inference: %s of %s is used no more, here with %s: %s",
                    tile,
                    type(self).__name__,
                    list(x.shape),
                    why,
                )
                continue
            taken = _seconds(partial(self.kernel, tile, x, *more), x.device)
            if taken < least:
                best, least = tile, taken
        return best

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "chosen": {}}  # another machine chooses by itself


class PointwiseLayer(FusedLayer):
    """[B, C, H, W] to [B, D, H, W]: each pixel times ``gate`` [B, C], convolved, activated, and ``added`` to."""

    tiles = kernels.POINTWISE_TILES

    def library(self, x: Tensor, *more: Any) -> Tensor:
        gate, added = more or (None, None)
        out: Tensor = self.layer(x if gate is None else x * gate[:, :, None, None])
        return out if added is None else out.add_(added)

    def kernel(self, tile: Tile, x: Tensor, *more: Any) -> Tensor:
        gate, added = more or (None, None)
        conv = self.layer.conv
        assert conv.bias is not None
        return kernels.pointwise(
            _last(x),
            conv.weight.flatten(1).contiguous(),
            conv.bias,
            self.act,
            gate=gate,
            added=None if added is None else _last(added),
            tile=tile,
        )


class DepthwiseLayer(FusedLayer):
    """[B, C, H, W] to [B, C, H / stride, W / stride] and the means over its pixels [B, C]; without squeeze-excite None for these."""

    tiles = kernels.DEPTHWISE_TILES

    def __init__(self, layer: ConvNorm, *, pooled: bool) -> None:
        super().__init__(layer)
        self.pooled = pooled
        self.taps: Tensor
        self.register_buffer("taps", layer.conv.weight.detach().flatten(1).t().contiguous(), persistent=False)

    def library(self, x: Tensor, *more: Any) -> tuple[Tensor, Tensor | None]:
        y = self.layer(x)
        return y, y.mean((2, 3)) if self.pooled else None

    def kernel(self, tile: Tile, x: Tensor, *more: Any) -> tuple[Tensor, Tensor | None]:
        conv = self.layer.conv
        assert conv.bias is not None
        y, means = kernels.depthwise(
            _last(x), self.taps, conv.bias, window(conv, *x.shape[2:]), self.act, pooled=self.pooled, tile=tile
        )
        return y, None if means is None else means.to(y.dtype)


class FusedBlock(nn.Module):
    """An :class:`MBConv` that only answers."""

    def __init__(self, block: MBConv) -> None:
        super().__init__()
        expand = getattr(block, "expand", None)
        self.expand = None if expand is None else PointwiseLayer(expand)
        self.squeeze_excite = getattr(block, "squeeze_excite", None)
        self.depthwise = DepthwiseLayer(block.depthwise, pooled=self.squeeze_excite is not None)
        self.project = PointwiseLayer(block.project)
        self.skip = block.skip

    def forward(self, x: Tensor) -> Tensor:
        """As the block's."""
        y, means = self.depthwise(x if self.expand is None else self.expand(x))
        gate = None if self.squeeze_excite is None else self.squeeze_excite.gate(means)
        out: Tensor = self.project(y, gate, x if self.skip else None)
        return out


def fuse_blocks(module: nn.Module) -> None:
    """Make each :class:`MBConv` of a folded ``module`` a :class:`FusedBlock` and each pointwise :class:`ConvNorm` elsewhere a
    :class:`PointwiseLayer`, in place, where weights are of 16 bits."""
    for name, child in module.named_children():
        if isinstance(child, MBConv):
            if _fits(child):
                module.add_module(name, FusedBlock(child))
        elif isinstance(child, ConvNorm):
            if _is_pointwise(child.conv) and _layer_fits(child):
                module.add_module(name, PointwiseLayer(child))
        else:
            fuse_blocks(child)


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


def _fits(block: MBConv) -> bool:
    pointwise = [block.project, *([block.expand] if hasattr(block, "expand") else [])]
    return _layer_fits(block.depthwise) and all(_is_pointwise(one.conv) and _layer_fits(one) for one in pointwise)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and tuple(conv.padding) == (0, 0)


def _layer_fits(layer: ConvNorm) -> bool:
    conv = layer.conv
    square = all(len({*sides}) == 1 for sides in (conv.kernel_size, conv.stride, conv.dilation))
    plain = type(conv) in (nn.Conv2d, Conv2dSame, Conv2dFixed) and conv.padding_mode == "zeros" and square
    folded = type(layer.bn) is nn.Identity and conv.bias is not None and conv.weight.dtype in _NARROW
    even = conv.in_channels % 8 == 0 and conv.out_channels % 8 == 0  # 16 bytes are read at once
    return plain and folded and even and type(layer.act).__name__ in ACTS and not isinstance(conv.padding, str)


def _may_fuse(x: Tensor, weight: Tensor) -> bool:
    """Whether a kernel may be called."""
    if not passes.ENABLED or x.dtype != weight.dtype or not (x.is_cuda or kernels.INTERPRETED):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        return False
    pixels = x.shape[2] * x.shape[3]
    fits = 0 < len(x) <= _MOST_IMAGES and 0 < pixels * max(weight.shape[:2]) < _MOST and len(x) * pixels < _MOST
    return fits and type(x) is Tensor


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _tensors(found: Any) -> list[Tensor]:
    return [one for one in (found if isinstance(found, tuple) else (found,)) if one is not None]


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of a call: the median of some rounds of several, the first of all not counted."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    call()
    for _ in range(_ROUNDS):
        wait()
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        wait()
        times.append((time.perf_counter() - start) / _CALLS)
    return median(times)
