"""Triton kernels for a GPU: a convolution with all that follows it in an MBConv block, in one pass over a map in channels-last memory.

Both are bound by memory traffic, so what counts is bytes: each map is read once and written once. Sums are of 32 bits. Sources: none; the
arithmetic is that of the layers (:mod:`effbackbones.backbones.blocks`). With ``TRITON_INTERPRET=1`` they run on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from effbackbones.inference.backends.tiles import ACTS, Tile, Window

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run on a CPU, step by step."""
_INS = 64  # channels of the input at a time
_SMALLEST = 16  # side of a matrix product
_STAGES = 2  # of loads under way: what fits into the shared memory of every GPU that multiplies bfloat16


# Sizes of a layer or image, for none of which code is made anew.
_COUNTS = (
    ["eights", "height", "width", "out_height", "out_width", "top", "left"],
    ["rows", "eights_in", "eights_out", "pixels"],
)


@triton.jit  # type: ignore[untyped-decorator]  # untyped in triton
def _activated(x: tl.tensor, act: tl.constexpr) -> tl.tensor:
    if act == 1:
        x = x * tl.sigmoid(x)
    elif act == 2:
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif act == 3:
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 6.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit(do_not_specialize=_COUNTS[0])  # type: ignore[untyped-decorator]  # untyped in triton
def _depthwise(
    x: tl.tensor,  # [B, height, width, channels]
    taps: tl.tensor,  # [size * size, channels]
    bias: tl.tensor,  # [channels]
    y: tl.tensor,  # [B, out_height, out_width, channels]
    sums: tl.tensor,  # [B, tiles, channels], float32: of what is written, over the pixels of a tile
    eights: tl.tensor,  # channels / 8: so the compiler knows that rows begin where 16 bytes may be read at once
    height: tl.tensor,
    width: tl.tensor,
    out_height: tl.tensor,
    out_width: tl.tensor,
    top: tl.tensor,
    left: tl.tensor,
    size: tl.constexpr,
    stride: tl.constexpr,
    gap: tl.constexpr,
    act: tl.constexpr,
    pooled: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    tile_channels: tl.constexpr,
) -> None:
    channels = eights * 8
    blocks = tl.cdiv(channels, tile_channels)
    across = tl.cdiv(out_width, tile_columns)
    tile, image = tl.program_id(0) // blocks, tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) % blocks * tile_channels + tl.arange(0, tile_channels)
    p = tl.arange(0, tile_rows * tile_columns)
    row = tile // across * tile_rows + p // tile_columns
    column = tile % across * tile_columns + p % tile_columns
    known = c < channels
    x += image * height * width * channels
    y += image * out_height * out_width * channels
    total = tl.zeros([tile_rows * tile_columns, tile_channels], tl.float32)
    total += tl.load(bias + c, mask=known, other=0.0).to(tl.float32)[None, :]
    for i in tl.static_range(size):
        for j in tl.static_range(size):
            above, before = row * stride + i * gap - top, column * stride + j * gap - left
            inside = (above >= 0) & (above < height) & (before >= 0) & (before < width)
            place = (above * width + before)[:, None] * channels + c[None, :]
            seen = tl.load(x + place, mask=inside[:, None] & known[None, :], other=0.0)
            tap = tl.load(taps + (i * size + j) * channels + c, mask=known, other=0.0)
            total += seen.to(tl.float32) * tap.to(tl.float32)[None, :]
    total = _activated(total, act)
    wanted = (row < out_height) & (column < out_width)
    place = (row * out_width + column)[:, None] * channels + c[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=wanted[:, None] & known[None, :])
    if pooled:
        tiles = across * tl.cdiv(out_height, tile_rows)
        part = tl.sum(tl.where(wanted[:, None], total, 0.0), 0)
        tl.store(sums + (image * tiles + tile) * channels + c, part, mask=known)


@triton.jit(do_not_specialize=_COUNTS[1])  # type: ignore[untyped-decorator]  # untyped in triton
def _pointwise(
    x: tl.tensor,  # [rows, ins]
    weight: tl.tensor,  # [outs, ins]
    bias: tl.tensor,  # [outs]
    gate: tl.tensor,  # [rows / pixels, ins]
    added: tl.tensor,  # [rows, outs]
    y: tl.tensor,  # [rows, outs]
    rows: tl.tensor,
    eights_in: tl.tensor,
    eights_out: tl.tensor,
    pixels: tl.tensor,
    gated: tl.constexpr,
    adds: tl.constexpr,
    act: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_outs: tl.constexpr,
    tile_ins: tl.constexpr,
) -> None:
    ins, outs = eights_in * 8, eights_out * 8
    blocks = tl.cdiv(outs, tile_outs)
    r = tl.program_id(0) // blocks * tile_rows + tl.arange(0, tile_rows)
    o = tl.program_id(0) % blocks * tile_outs + tl.arange(0, tile_outs)
    start = r.to(tl.int64) * ins
    total = tl.zeros([tile_rows, tile_outs], tl.float32)
    for first in range(0, ins, tile_ins):
        c = first + tl.arange(0, tile_ins)
        inside = (r < rows)[:, None] & (c < ins)[None, :]
        seen = tl.load(x + start[:, None] + c[None, :], mask=inside, other=0.0)
        if gated:
            share = tl.load(gate + (r // pixels)[:, None] * ins + c[None, :], mask=inside, other=0.0)
            seen = (seen.to(tl.float32) * share.to(tl.float32)).to(seen.dtype)
        known = (o < outs)[None, :] & (c < ins)[:, None]
        kernel = tl.load(weight + o[None, :] * ins + c[:, None], mask=known, other=0.0)
        total = tl.dot(seen, kernel, total)
    total += tl.load(bias + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
    total = _activated(total, act)
    place = (r.to(tl.int64) * outs)[:, None] + o[None, :]
    inside = (r < rows)[:, None] & (o < outs)[None, :]
    if adds:
        total += tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)


def depthwise(
    x: Tensor, taps: Tensor, bias: Tensor, window: Window, act: str, *, pooled: bool, tile: Tile
) -> tuple[Tensor, Tensor | None]:
    """``act`` of the convolution of ``x`` [B, C, H, W], channels last, with ``taps`` [size * size, C], and its mean over the pixels,
    float32 [B, C], where ``pooled``."""
    batch, channels, height, width = x.shape
    y = _map(x, channels, window.out_height, window.out_width)
    across, down = _parts(window.out_width, tile.columns), _parts(window.out_height, tile.rows)
    block = min(tile.channels, _power(channels))
    sums = torch.empty((batch, across * down, channels) if pooled else 1, dtype=torch.float32, device=x.device)
    _depthwise[across * down * _parts(channels, block), batch](
        x,
        taps,
        bias,
        y,
        sums,
        channels // 8,
        height,
        width,
        window.out_height,
        window.out_width,
        window.top,
        window.left,
        size=window.size,
        stride=window.stride,
        gap=window.gap,
        act=ACTS.index(act),
        pooled=pooled,
        tile_rows=tile.rows,
        tile_columns=tile.columns,
        tile_channels=block,
        num_warps=tile.warps,
    )
    # added up by torch and not by the kernels, whose order is another each time
    return y, sums.sum(1) / (window.out_height * window.out_width) if pooled else None


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    act: str,
    *,
    gate: Tensor | None = None,
    added: Tensor | None = None,
    tile: Tile,
) -> Tensor:
    """``act`` of the product of the pixels of ``x`` [B, C, H, W], channels last, each times ``gate`` [B, C], with ``weight`` [D, C]; and
    ``added`` [B, D, H, W], channels last too."""
    batch, ins, height, width = x.shape
    outs, pixels = weight.shape[0], height * width
    y = _map(x, outs, height, width)
    block = min(tile.channels, max(_SMALLEST, _power(outs)))
    _pointwise[(_parts(batch * pixels, tile.rows) * _parts(outs, block),)](
        x,
        weight,
        bias,
        x if gate is None else gate,
        x if added is None else added,
        y,
        batch * pixels,
        ins // 8,
        outs // 8,
        pixels,
        gated=gate is not None,
        adds=added is not None,
        act=ACTS.index(act),
        tile_rows=tile.rows,
        tile_outs=block,
        tile_ins=min(_INS, max(_SMALLEST, _power(ins))),
        num_warps=tile.warps,
        num_stages=_STAGES,
    )
    return y


def _map(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _power(number: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()
