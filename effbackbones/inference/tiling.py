"""Predictions for images larger than memory likes: tile by tile, blended, and given out in bands of rows."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.images.geometry import Size
from effbackbones.model import Model


def predict_tiles(
    model: Model, image: Tensor, *, tile: Size, overlap: int, batch_size: int = 1
) -> Iterator[tuple[int, Tensor]]:
    """Probabilities of a segmentation model for one ``image`` [C, H, W] (dtypes as for ``Model.predict``; it may lie on another
    device than the model), from the top to the bottom: pairs of a first row and float32 [K, rows, W] on the model's device.

    Tiles are ``tile`` (H, W) pixels large, or as the image where that is smaller, ``overlap`` apart from each other's edges; the
    last ones are shifted inwards. ``batch_size`` of them go through the model at once. Where tiles overlap, the outer quarter
    of the overlap counts for nothing, because there a tile sees least around it, and the middle half runs linearly from one
    to the other: a network that sees no further than ``overlap / 4`` gives what it gives for the whole image. Networks with
    global pooling (squeeze-excite, DeepLab, PSPNet) see the tile as their world, and give something else.

    Memory: one band [K, tile height, W], which is freed when the caller drops it, and a batch of tiles. Raises
    :class:`UserError` where the overlap leaves nothing of a tile, or a tile is smaller than the head's ``min_size``.
    """
    _check(model, tile, overlap, batch_size)
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"expected one image [C, H, W], got {list(image.shape)}")
    return _bands(model, image, tile, overlap, batch_size)


def _check(model: Model, tile: Size, overlap: int, batch_size: int) -> None:
    least = max(1, model.head.min_size)
    if min(tile) < least:
        raise UserError(
            "tile",
            f"{list(tile)} pixels; {type(model.head).__name__} needs {least} in both directions",
            "take larger tiles",
        )
    if not 0 <= overlap < min(tile):
        raise UserError("tile_overlap", f"{overlap} pixels of tiles of {list(tile)}", f"give 0 to {min(tile) - 1}")
    if batch_size < 1:
        raise UserError("batch_size", f"expected at least 1 tile at once, got {batch_size}", "correct it")


def _bands(model: Model, image: Tensor, tile: Size, overlap: int, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    device = next(model.parameters()).device
    height, width = image.shape[1:]
    (tops, row_weights), (lefts, column_weights) = (
        _along(side, length, overlap, device) for side, length in zip((height, width), tile, strict=True)
    )
    kept: Tensor | None = None  # rows that the tiles above began
    for place, (top, weights) in enumerate(zip(tops, row_weights, strict=True)):
        rows = image[:, top : top + len(weights)]
        band = _across(model, rows, lefts, column_weights, batch_size, device)
        band *= weights[:, None]
        if kept is not None:
            band[:, : kept.shape[1]] += kept
        done = tops[place + 1] - top if place + 1 < len(tops) else len(weights)
        kept = band[:, done:].clone()
        finished = [band[:, :done]]
        del band, rows  # whoever takes the band then holds the only reference
        yield top, finished.pop()


def _across(
    model: Model, rows: Tensor, lefts: list[int], weights: Tensor, batch_size: int, device: torch.device
) -> Tensor:
    """Probabilities [K, tile height, W] of a row of tiles, blended from left to right."""
    band: Tensor | None = None
    length = weights.shape[1]
    for start in range(0, len(lefts), batch_size):
        some = lefts[start : start + batch_size]
        tiles = torch.stack([rows[..., left : left + length] for left in some]).to(device)
        predicted = model.predict(tiles)
        if not isinstance(predicted, Tensor) or predicted.shape[-2:] != tiles.shape[-2:]:
            raise UserError(
                "tile", f"{type(model.head).__name__} does not predict classes of pixels", "predict whole images"
            )
        if band is None:
            band = predicted.new_zeros((predicted.shape[1], *rows.shape[1:]), dtype=torch.float32)
        for left, weight, part in zip(some, weights[start:], predicted, strict=False):
            band[..., left : left + length] += part.float() * weight
    assert band is not None  # there is always a tile
    return band


def starts_along(side: int, tile: int, step: int, align: int = 1) -> list[int]:
    """Where pieces of ``tile`` pixels begin, so that they cover a ``side``: every ``step`` pixels, the last ones shifted inwards, and
    from there out again to a multiple of ``align``, so that by less than that the last one may stand out."""
    last = -(-max(0, side - tile) // align) * align
    return [min(i * step, last) for i in range(1 + math.ceil(last / step))]


def _along(side: int, tile: int, overlap: int, device: torch.device) -> tuple[list[int], Tensor]:
    """Where tiles begin along a side, and the weights float32 [tiles, length] of their pixels, whose sum is 1 at every place."""
    length = min(tile, side)
    starts = starts_along(side, tile, tile - overlap)
    inwards = torch.arange(length, dtype=torch.float64) + 0.5
    ramp = ((inwards - overlap / 4) / (overlap / 2)).clamp(0, 1) if overlap else torch.ones_like(inwards)
    weights = torch.ones(len(starts), length, dtype=torch.float64)
    weights[1:] = ramp
    weights[:-1] = torch.minimum(weights[:-1], ramp.flip(0))
    places = torch.tensor(starts)[:, None] + torch.arange(length)
    total = torch.zeros(side, dtype=torch.float64).index_add_(0, places.flatten(), weights.flatten())
    return starts, (weights / total[places]).float().to(device)
