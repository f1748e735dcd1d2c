"""How the files of images become the pixels that a model sees: read, and brought to size. Both are a part of every model file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from effbackbones.errors import UserError, nearest
from effbackbones.images.geometry import Size

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LARGEST_SIDE = 16384
"""Pixels of a side that an image, or a tile of one, may be asked to have."""
LONGEST_WINDOW = 2**24
"""Samples that a window of a recording may be asked to have."""
RATES = (1000, 768_000)
"""Between these is the number of samples a second of recordings."""
OF_SOUND = ("window", "loop")
"""The values of ``crop_mode`` that recordings have."""
SILENCE = 32768 / 65535
"""The grey, 0..1, of no sound: a recording is an image of one row of uint16, samples of 16 bits plus 32768. As the standard deviation
too it makes them waves in -1..1."""
_WORDS = {"depth": ("8", "native"), "exif": ("apply", "ignore"), "batch_shape": ("fixed", "aspect")}


@dataclass(frozen=True)
class ImageSpec:
    """How images are prepared: what the weights were trained with.

    ``size`` is (H, W) in pixels; ``mean`` and ``std`` have one value per channel, for images in 0..1; ``interpolation``
    is ``bilinear`` or ``bicubic``. ``crop_mode``: the shorter side is resized to ``size / crop_fraction`` before a centre crop
    (``center``); the whole image is squashed to ``size`` (``squash``), or fitted into it, padded at right and bottom with
    the mean colour (``letterbox``).

    A recording is an image of one row, of ``rate`` samples a second (None: pictures). It is looked at through windows of ``size``
    (1, samples), which lie side by side, the last one at its end; a shorter recording is padded with silence, its mean (``window``),
    or repeated until it fills one (``loop``). Nothing is resized.

    Raises :class:`UserError` for other values.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_fraction: float = 0.875
    crop_mode: str = "center"
    rate: int | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise UserError(
                "image_spec", f"mean has {len(self.mean)} values, std {len(self.std)}", "give one of each per channel"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std, self.crop_fraction))):
            raise UserError(
                "image_spec", f"expected finite numbers, got mean {self.mean}, std {self.std}", "correct it"
            )
        self._check_sound()
        if len(self.size) != 2 or (self.rate is None and max(self.size) > LARGEST_SIDE):
            what = f"expected [height, width] of 1 to {LARGEST_SIDE} pixels, got {str(self.size)[:60]}"
            raise UserError("image_spec.size", what, "correct it")
        if min(self.std) <= 0 or not 0 < self.crop_fraction <= 1 or min(self.size) < 1:
            raise UserError(
                "image_spec", f"std and size must be positive, crop_fraction in (0, 1]; got {self}", "correct it"
            )
        for field, value, allowed in (
            ("interpolation", self.interpolation, ("bilinear", "bicubic")),
            ("crop_mode", self.crop_mode, ("center", "squash", "letterbox", *OF_SOUND)),
        ):
            if value not in allowed:
                raise UserError(f"image_spec.{field}", f"unknown value {value!r}", nearest(value, allowed))

    def _check_sound(self) -> None:
        """Refuse a rate that is none, windows of pictures, and windows that are no row of samples."""
        if (self.rate is None) != (self.crop_mode not in OF_SOUND):
            what = f"crop_mode {self.crop_mode!r} with rate {self.rate}: recordings have a rate, and are seen through windows"
            raise UserError(
                "image_spec.rate", what, f"with a rate set crop_mode to {' or '.join(OF_SOUND)}, without one to neither"
            )
        if self.rate is None:
            return
        if not _whole(self.rate, *RATES):
            what = f"expected {RATES[0]} to {RATES[1]} samples a second, got {str(self.rate)[:60]}"
            raise UserError("image_spec.rate", what, "correct it")
        if len(self.size) != 2 or self.size[0] != 1 or not _whole(self.size[1], 1, LONGEST_WINDOW):
            what = f"expected [1, samples of a window, 1 to {LONGEST_WINDOW}], got {str(self.size)[:60]}"
            raise UserError("image_spec.size", what, "correct it")

    @classmethod
    def of_sound(cls, rate: int, samples: int) -> Self:
        """That of windows of so many ``samples`` of recordings of ``rate`` samples a second."""
        return cls((1, samples), (SILENCE,), (SILENCE,), crop_fraction=1.0, crop_mode="window", rate=rate)

    def record(self) -> dict[str, Any]:
        """As plain values, from which it is made again; that of pictures says no rate."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if name != "rate" or value is not None}

    @property
    def noun(self) -> str:
        """What one of them is called."""
        return "image" if self.rate is None else "recording"

    def told(self) -> str:
        """How images are brought to the network's size and range, for people."""
        height, width = self.size
        if self.rate is not None:
            windows = f"windows of {width / self.rate:.4g} s ({width:,} samples) at {self.rate:,} samples a second"
            return f"{windows}, shorter recordings {'repeated' if self.crop_mode == 'loop' else 'padded with silence'}"
        ways = {
            "center": f"shorter side to {round(min(self.size) / self.crop_fraction)}, centre crop",
            "squash": "squashed",
            "letterbox": "fitted in and padded",
        }
        numbers = "; ".join(
            f"{name} {' '.join(f'{value:.4g}' for value in values)}"
            for name, values in (("mean", self.mean), ("std", self.std))
        )
        return f"{height} x {width}, {ways[self.crop_mode]}, {self.interpolation}; {numbers}"

    def for_channels(self, count: int) -> "ImageSpec":
        """This spec for images of ``count`` channels: if that is another number, each gets the average of mean and std."""
        if len(self.mean) == count:
            return self
        mean, std = ((sum(values) / len(values),) * count for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)


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
