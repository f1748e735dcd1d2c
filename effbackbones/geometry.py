"""Where each pixel of an image goes on its way into a network, and back: letterbox, squash, resize and centre crop.

Pure functions of sizes. Sizes are (height, width) in pixels. Coordinates are continuous pixels, x before y, the top left
corner of the image at (0, 0); so a resize by (sy, sx) multiplies them and a crop subtracts its corner.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from effbackbones.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8 | np.uint16 | np.float32]
Mask = NDArray[np.int64]
Size = tuple[int, int]
Scalar = TypeVar("Scalar", bound=np.generic)
Coordinates = TypeVar("Coordinates", NDArray[np.float32], "Tensor")

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# Four bands go through CMYK: PIL would weight the colours of RGBA with the fourth band.
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


@dataclass(frozen=True)
class ResizePlan:
    """Resize an image of size ``original`` to ``scaled``, then look at it through a window of ``size`` whose top left
    corner lies at ``offset`` (top, left) of the resized image. What the window shows beyond the image is padding."""

    original: Size
    scaled: Size
    offset: Size
    size: Size

    @classmethod
    def letterbox(cls, original: Size, size: Size) -> "ResizePlan":
        """The largest image of the same shape that fits in ``size``, at the top left; padding right and below.

        Sides are truncated to whole pixels, as the published EfficientDet preprocessing does (``image_scale``).
        """
        (height, width), (room_h, room_w) = original, size
        if room_h * width <= room_w * height:  # the height limits; whole numbers, so that the limiting side is exact
            scaled = (room_h, max(1, width * room_h // height))
        else:
            scaled = (max(1, height * room_w // width), room_w)
        return cls(original, scaled, (0, 0), size)

    @classmethod
    def squash(cls, original: Size, size: Size) -> "ResizePlan":
        """The whole image, stretched to ``size``."""
        return cls(original, size, (0, 0), size)

    @classmethod
    def center_crop(cls, original: Size, size: Size, crop_fraction: float = 1.0, *, squash: bool = False) -> "ResizePlan":
        """The shorter side resized to ``floor(size / crop_fraction)``, then the centre of ``size``.

        Gives the numbers of torchvision (``Resize``, ``CenterCrop``) for square sizes and those of timm
        (``ResizeKeepRatio``) for others; ``squash`` stretches instead of keeping the shape (timm's crop mode).
        """
        # The small addend keeps 380 / (380 / 384) at 384.
        target_h, target_w = (math.floor(side / crop_fraction + 1e-6) for side in size)
        height, width = original
        if squash:
            scaled = (target_h, target_w)
        elif target_h != target_w:
            ratio = min(height / target_h, width / target_w)
            scaled = (round(height / ratio), round(width / ratio))
        elif height <= width:
            scaled = (target_h, int(target_h * width / height))
        else:
            scaled = (int(target_w * height / width), target_w)
        top, left = (round((side - room) / 2.0) for side, room in zip(scaled, size, strict=True))
        return cls(original, scaled, (top, left), size)

    @property
    def scale(self) -> tuple[float, float]:
        """Resized pixels per original pixel, (vertical, horizontal)."""
        return self.scaled[0] / self.original[0], self.scaled[1] / self.original[1]

    @property
    def valid(self) -> Size:
        """(H, W) up to which the window shows image; beyond, right and below, is padding."""
        (height, width), (top, left), (room_h, room_w) = self.scaled, self.offset, self.size
        return max(0, min(room_h, height - top)), max(0, min(room_w, width - left))

    @property
    def identity(self) -> bool:
        """Whether the plan changes nothing."""
        return self.original == self.scaled == self.size and self.offset == (0, 0)

    def apply_image(self, image: Pixels, interpolation: str = "bicubic", fill: Sequence[float] | float = 0) -> Pixels:
        """``image`` [H, W, C] through the plan, same dtype: [size, C]. ``fill``: padding, per channel or one for all.

        Interpolation ``nearest``, ``bilinear`` or ``bicubic``; PIL's filters, so antialiased when shrinking.
        """
        self._check(image)
        resized = resize(image, self.scaled, interpolation)
        return resized if self.scaled == self.size and self.offset == (0, 0) else self._window(resized, fill)

    def apply_mask(self, mask: Mask, fill: int = 255) -> Mask:
        """Class indices ``mask`` [H, W] through the plan by nearest neighbour: [size]. ``fill`` is the ignored class."""
        self._check(mask)
        return self._window(resize_nearest(mask, self.scaled), fill)

    def apply_boxes(self, boxes: Coordinates) -> Coordinates:
        """Boxes [..., 4] xyxy or points [..., 2] xy of the original image, in pixels of the window; not clipped."""
        (scale_y, scale_x), (top, left) = self.scale, self.offset
        moved = boxes * 1.0
        moved[..., 0::2] = boxes[..., 0::2] * scale_x - left
        moved[..., 1::2] = boxes[..., 1::2] * scale_y - top
        return moved

    def restore_boxes(self, boxes: Coordinates) -> Coordinates:
        """The inverse of :meth:`apply_boxes`, for boxes [..., 4] or points [..., 2] of the window; not clipped."""
        (scale_y, scale_x), (top, left) = self.scale, self.offset
        moved = boxes * 1.0
        moved[..., 0::2] = (boxes[..., 0::2] + left) / scale_x
        moved[..., 1::2] = (boxes[..., 1::2] + top) / scale_y
        return moved

    def restore_map(self, scores: "Tensor") -> "Tensor":
        """Scores [K, size] of the window as [K, original]: padding cut off, bilinear, antialiased when shrinking.

        Where the window showed nothing of the image (a centre crop cuts its edges) the scores are 0.
        """
        import torch
        from torch.nn import functional

        if tuple(scores.shape[-2:]) != self.size:
            raise ValueError(f"expected scores of size {self.size}, got {tuple(scores.shape[-2:])}")
        rows, columns = self._overlap()
        scaled = scores[..., rows.inside, columns.inside]
        if tuple(scaled.shape[-2:]) != self.scaled:
            canvas = torch.zeros((*scores.shape[:-2], *self.scaled), dtype=scores.dtype, device=scores.device)
            canvas[..., rows.source, columns.source] = scaled
            scaled = canvas
        if self.scaled == self.original:
            return scaled
        return functional.interpolate(scaled[None], self.original, mode="bilinear", antialias=True, align_corners=False)[0]

    def _check(self, array: NDArray[np.generic]) -> None:
        if array.shape[:2] != self.original:
            raise ValueError(f"the plan is for size {self.original}, the array has {array.shape[:2]}")

    def _overlap(self) -> tuple["_Overlap", "_Overlap"]:
        vertical, horizontal = (_Overlap.of(*sides) for sides in zip(self.scaled, self.offset, self.size, strict=True))
        return vertical, horizontal

    def _window(self, array: NDArray[Scalar], fill: Sequence[float] | float) -> NDArray[Scalar]:
        """The window of ``size`` on the resized ``array`` [scaled, ...]; a view where nothing is padded."""
        rows, columns = self._overlap()
        seen = array[rows.source, columns.source]
        if seen.shape[:2] == self.size:
            return seen
        window: NDArray[Scalar] = np.empty((*self.size, *array.shape[2:]), array.dtype)
        window[:] = fill
        window[rows.inside, columns.inside] = seen
        return window


@dataclass(frozen=True)
class _Overlap:
    """Along one axis: the part of the resized image that the window shows, and where in the window it lies."""

    source: slice
    inside: slice

    @classmethod
    def of(cls, scaled: int, offset: int, size: int) -> "_Overlap":
        start, stop = max(0, offset), max(0, offset, min(scaled, offset + size))
        return cls(slice(start, stop), slice(start - offset, stop - offset))


def resize(image: Pixels, size: Size, interpolation: str = "bicubic") -> Pixels:
    """``image`` [H, W, C] resized to [size, C] by PIL's filters, same dtype; uint8, uint16 or float32, any C.

    An unknown interpolation raises :class:`UserError`.
    """
    if interpolation not in _FILTERS:
        raise UserError("interpolation", f"unknown value {interpolation!r}", nearest(interpolation, _FILTERS))
    if image.shape[:2] == size:
        return image
    height, width = size
    channels = image.shape[2]
    if image.dtype == np.uint8 and channels in _MODES:
        picture = to_pil(image, _MODES[channels])
        resized: Pixels = np.asarray(picture.resize((width, height), _FILTERS[interpolation]))
        return resized.reshape(height, width, channels)
    mode = "L" if image.dtype == np.uint8 else "F"
    bands = [to_pil(image[..., c : c + 1], mode).resize((width, height), _FILTERS[interpolation]) for c in range(channels)]
    stacked: Pixels = np.stack([np.asarray(band) for band in bands], axis=2)
    # Bicubic overshoots; PIL clips uint8 by itself.
    if image.dtype == np.uint16:
        return np.clip(np.rint(stacked), 0, 65535).astype(np.uint16)
    return np.clip(stacked, 0, 1) if mode == "F" else stacked


def resize_nearest(array: Mask, size: Size) -> Mask:
    """``array`` [H, W] of any dtype at [size] by nearest neighbour at pixel centres, the lower and right one in a tie."""
    if array.shape[:2] == size:
        return array
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(array.shape, size, strict=True))
    near: Mask = array[rows[:, None], columns]
    return near


def to_pil(image: Pixels, mode: str) -> Image.Image:
    """``image`` [H, W, C] as a PIL image of ``mode``, whose bands are the channels: L, RGB, CMYK of uint8, or F."""
    height, width, channels = image.shape
    pixels = np.ascontiguousarray(image, dtype=np.float32 if mode == "F" else np.uint8)
    if channels == 1:
        pixels = pixels.reshape(height, width)
    return Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)
