"""What kernels for a GPU are told: how work is cut up, and how a depthwise kernel goes over a map. Loads no compiler."""

from typing import NamedTuple

ACTS = ("Identity", "SiLU", "ReLU", "ReLU6")
"""Activations by their place, which kernels know them by."""


class Tile(NamedTuple):
    """What one program computes: ``rows`` x ``columns`` pixels (``columns`` 1: pixels in a row) of ``channels``, by ``warps``."""

    rows: int
    columns: int
    channels: int
    warps: int


# Few, for each is compiled for each kind of layer. The smaller ones are for small maps and batches.
DEPTHWISE_TILES = (Tile(4, 8, 64, 4), Tile(8, 8, 32, 4))
POINTWISE_TILES = (Tile(128, 1, 64, 4), Tile(64, 1, 128, 4), Tile(64, 1, 256, 8))


class Window(NamedTuple):
    """How a depthwise kernel of ``size`` x ``size`` goes over a map, with ``top`` and ``left`` pixels of zeros before it."""

    size: int
    stride: int
    gap: int
    top: int
    left: int
    out_height: int
    out_width: int
