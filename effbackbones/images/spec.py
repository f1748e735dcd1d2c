"""How the files of images become the pixels that a model sees, apart from resizing: a part of every model file."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from effbackbones.errors import UserError, nearest
from effbackbones.images.geometry import Size

LARGEST_SIDE = 16384
"""Pixels of a side that an image, or a tile of one, may be asked to have."""
_WORDS = {"depth": ("8", "native"), "exif": ("apply", "ignore"), "batch_shape": ("fixed", "aspect")}


@dataclass(frozen=True)
class ReadingSpec:
    """How images were read where a model was trained, and are to be read for its predictions.

    ``depth``: ``8`` (16-bit files become 8-bit) or ``native``. ``exif``: whether the orientation that a photograph carries is
    applied (``apply``) or not (``ignore``). ``tile``: (H, W) in pixels of the tiles in which images are predicted at their own
    size; None: whole, resized by the :class:`ImageSpec`. ``tile_overlap``: pixels that neighbouring tiles share.
    ``batch_shape``: letterboxed images are padded to the whole size (``fixed``), or no more than their batch needs (``aspect``).
    How many channels are read is the number of means of the :class:`ImageSpec`.

    Raises :class:`UserError` for other values.
    """

    depth: str = "8"
    exif: str = "apply"
    tile: Size | None = None
    tile_overlap: int = 64
    batch_shape: str = "fixed"

    def __post_init__(self) -> None:
        for name, allowed in _WORDS.items():
            value = getattr(self, name)
            if value not in allowed:
                what = f"unknown value {str(value)[:60]!r}"
                raise UserError(f"reading.{name}", what, nearest(str(value), allowed))
        sides = () if self.tile is None else self.tile
        if self.tile is not None and not (len(sides) == 2 and all(_whole(side, 32, LARGEST_SIDE) for side in sides)):
            what = f"expected [height, width] of 32 to {LARGEST_SIDE} pixels, got {str(self.tile)[:60]}"
            raise UserError("reading.tile", what, "correct it")
        if not _whole(self.tile_overlap, 0, min(sides, default=LARGEST_SIDE) - 1):
            what = f"expected less than a tile, got {str(self.tile_overlap)[:60]} pixels"
            raise UserError("reading.tile_overlap", what, "lower it")

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The spec of a JSON-like ``record``; unknown keys raise :class:`UserError`, for what they say would be lost."""
        known = [field.name for field in fields(cls)]
        for name in record:
            if name not in known:
                raise UserError(f"reading.{name}", "no such key", nearest(str(name), known))
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
