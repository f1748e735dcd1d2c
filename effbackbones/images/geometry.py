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
from effbackbones.images import bytewise
from effbackbones.images.classsets import IGNORE as IGNORE, Mask as Mask, ignored_in

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8 | np.uint16 | np.float32]
Size = tuple[int, int]
Scalar = TypeVar("Scalar", bound=np.generic)
Coordinates = TypeVar("Coordinates", NDArray[np.float32], NDArray[np.float64], "Tensor")
Extent = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_WASTED = 4
"""By so much larger than what the window shows may a resized image be before making that part alone is quicker, by another kernel."""
_REACH = 2  # pixels to either side that the widest filter, bicubic, weighs; more when shrinking, in proportion
# Four bands go through CMYK: PIL would weight the colours of RGBA with the fourth band.
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


@dataclass(frozen=True)
class ResizePlan:
    """Resize an image of size ``original`` to ``scaled``, then look at it through a window of ``size`` whose top left
    corner lies at ``offset`` (top, left) of the resized image. What the window shows beyond the image is padding.

    ``mirrored`` (upside down, left to right) says whether the image is turned over before all that, so that padding stays
    where it is; boxes and scores come back to the image as it was.
    """

    original: Size
    scaled: Size
    offset: Size
    size: Size
    mirrored: tuple[bool, bool] = (False, False)

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
    def center_crop(
        cls, original: Size, size: Size, crop_fraction: float = 1.0, *, squash: bool = False
    ) -> "ResizePlan":
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
    def content(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of what the window shows of the image, in its pixels; without extent where it shows nothing."""
        (room_h, room_w), (rows, columns) = self.size, (part.inside for part in self._overlap())
        return min(columns.start, room_w), min(rows.start, room_h), min(columns.stop, room_w), min(rows.stop, room_h)

    @property
    def whole(self) -> bool:
        """Whether the window shows all of the image."""
        return all(part.source == slice(0, side) for part, side in zip(self._overlap(), self.scaled, strict=True))

    @property
    def identity(self) -> bool:
        """Whether the plan changes nothing."""
        return self.original == self.scaled == self.size and self.offset == (0, 0) and not any(self.mirrored)

    def apply_image(
        self,
        image: Pixels,
        interpolation: str = "bicubic",
        fill: Sequence[float] | float = 0,
        *,
        exact: bool = True,
        quick: bool = False,
    ) -> Pixels:
        """``image`` [H, W, C] through the plan, same dtype: [size, C]. ``fill``: padding, per channel or one for all.

        Interpolation ``nearest``, ``bilinear`` or ``bicubic``; PIL's filters, so antialiased when shrinking. Unless
        ``exact``, only what the window shows is resized: bytes are a level off here and there, and a small crop of a much
        enlarged image takes no longer than any other. ``quick``: bytes by the kernels of :mod:`effbackbones.images.bytewise`.
        """
        self._check(image)
        if quick and image.dtype == np.uint8 and interpolation in bytewise.MODES:
            return self._window(self._quickly(image, interpolation), fill)
        image = self._turned(image)
        rows, columns = (part.source for part in self._overlap())
        whole = (rows.stop - rows.start, columns.stop - columns.start) == self.scaled
        if whole or exact:
            resized = resize(image, self.scaled, interpolation)
            return self._window(resized if whole else resized[rows, columns], fill)
        return self._window(_resize_part(image, self.scaled, rows, columns, interpolation), fill)

    def _quickly(self, image: Pixels, interpolation: str) -> Pixels:
        """What the window shows of the resized image. It is turned over at the end, where it is smallest."""
        overlap = self._overlap()
        rows, columns = (part.source for part in overlap)
        seen = (rows.stop - rows.start) * (columns.stop - columns.start)
        if self.scaled[0] * self.scaled[1] > _WASTED * seen:
            return _resize_part(self._turned(image), self.scaled, rows, columns, interpolation)
        rows, columns = (
            slice(side - part.source.stop, side - part.source.start) if turned else part.source
            for part, side, turned in zip(overlap, self.scaled, self.mirrored, strict=True)
        )
        resized = bytewise.resized(image.astype(np.uint8, copy=False), self.scaled, interpolation)
        return bytewise.mirrored(resized[rows, columns], *self.mirrored)

    def apply_mask(self, mask: Mask, fill: int | None = None) -> Mask:
        """Classes ``mask`` [H, W] through the plan by nearest neighbour: [size]. ``fill``: beyond the image; ignored by default."""
        self._check(mask)
        rows, columns = (part.source for part in self._overlap())
        return self._window(
            resize_nearest(self._turned(mask), self.scaled, rows, columns), ignored_in(mask) if fill is None else fill
        )

    def apply_boxes(self, boxes: Coordinates) -> Coordinates:
        """Boxes [..., 4] xyxy or points [..., 2] xy of the original image, in pixels of the window; not clipped."""
        (scale_y, scale_x), (top, left) = self.scale, self.offset
        boxes = self._turned_boxes(boxes)
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
        return self._turned_boxes(moved)

    def restore_map(self, scores: "Tensor") -> "Tensor":
        """Scores [K, size] of the window as float32 [K, original]: padding cut off, bilinear, antialiased when shrinking.

        Where the window showed nothing of the image (a centre crop cuts its edges) the scores are 0.
        """
        return self.restore_rows(scores, 0, self.original[0])

    def restore_rows(self, scores: "Tensor", start: int, stop: int) -> "Tensor":
        """Rows ``start`` to ``stop`` of :meth:`restore_map`, bit for bit, without making the rest of it: float32 [K, rows, W]."""
        from torch.nn import functional

        if tuple(scores.shape[-2:]) != self.size:
            raise ValueError(f"expected scores of size {self.size}, got {tuple(scores.shape[-2:])}")
        height, width = self.original
        if self.mirrored[0]:
            start, stop = height - stop, height - start
        rows, columns = self._overlap()
        # Each row is made from others by operations on single elements, so that no rounding depends on how many are made at once.
        part = _weighted_rows(
            scores[..., rows.inside, columns.inside], *_row_weights(self.scaled[0], height, rows.source, start, stop)
        )
        if part.shape[-1] != self.scaled[1]:
            part = functional.pad(part, (columns.source.start, self.scaled[1] - columns.source.stop))
        if self.scaled[1] != width:
            part = functional.interpolate(
                part[None], (stop - start, width), mode="bilinear", antialias=True, align_corners=False
            )[0]
        axes = [axis for axis, turned in zip((-2, -1), self.mirrored, strict=True) if turned]
        return part.flip(axes) if axes else part

    def _check(self, array: NDArray[np.generic]) -> None:
        if array.shape[:2] != self.original:
            raise ValueError(f"the plan is for size {self.original}, the array has {array.shape[:2]}")

    def _turned(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """A view of ``array`` [H, W, ...], mirrored as the plan says."""
        rows, columns = (slice(None, None, -1 if turned else None) for turned in self.mirrored)
        return array[rows, columns] if any(self.mirrored) else array

    def _turned_boxes(self, boxes: Coordinates) -> Coordinates:
        """Boxes [..., 4] or points [..., 2] of the original in the mirrored one, or back."""
        turned = boxes
        for axis, (flip, side) in enumerate(zip(self.mirrored[::-1], self.original[::-1], strict=True)):
            if flip:
                columns = list(range(axis, boxes.shape[-1], 2))
                turned = turned * 1.0
                turned[..., columns] = side - boxes[..., columns[::-1]]  # what was the right edge is the left one now
        return turned

    def _overlap(self) -> tuple["_Overlap", "_Overlap"]:
        vertical, horizontal = (_Overlap.of(*sides) for sides in zip(self.scaled, self.offset, self.size, strict=True))
        return vertical, horizontal

    def _window(self, seen: NDArray[Scalar], fill: Sequence[float] | float) -> NDArray[Scalar]:
        """The window of ``size`` around what it shows of the resized image; ``seen`` itself where nothing is padded."""
        if seen.shape[:2] == self.size:
            return seen
        left, top, right, bottom = self.content
        window: NDArray[Scalar] = np.empty((*self.size, *seen.shape[2:]), seen.dtype)
        row = np.empty(window.shape[1:], seen.dtype)  # copying rows is many times faster than repeating a colour
        row[:] = fill
        window[:top], window[bottom:] = row, row
        window[top:bottom, :left], window[top:bottom, right:] = row[:left], row[right:]
        window[top:bottom, left:right] = seen
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


def _row_weights(
    old: int, new: int, known: slice, start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What rows ``start`` to ``stop`` of ``new`` are made of when ``old`` rows are resized: places [taps, rows] in the rows
    ``known`` and weights [taps, rows], 0 for rows that are not known. A triangle as wide as the scale, as PIL's and torch's."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(start, stop) + 0.5) * scale
    first, last = np.floor(centres - reach + 0.5), np.floor(centres + reach + 0.5)
    places = first + np.arange(int((last - first).max(initial=1)))[:, None]
    weights = np.maximum(0, 1 - np.abs(places + 0.5 - centres) / reach) * ((places >= 0) & (places < old))
    weights /= weights.sum(0)
    weights *= (places >= known.start) & (places < known.stop)
    inside = np.clip(places - known.start, 0, max(0, known.stop - known.start - 1))
    return inside.astype(np.int64), weights.astype(np.float32)


def _weighted_rows(rows: "Tensor", places: NDArray[np.int64], weights: NDArray[np.float32]) -> "Tensor":
    """Sums of ``rows`` [K, N, W] by places and weights [taps, n]: float32 [K, n, W]."""
    import torch

    total = torch.zeros((*rows.shape[:-2], places.shape[1], rows.shape[-1]), device=rows.device)
    if not rows.shape[-2]:
        return total
    for place, weight in zip(torch.from_numpy(places), torch.from_numpy(weights), strict=True):
        if weight.any():
            taken = rows.index_select(-2, place.to(rows.device, non_blocking=True)).float()
            total += taken * weight[:, None].to(rows.device, non_blocking=True)
    return total


def resize(image: Pixels, size: Size, interpolation: str = "bicubic", box: Extent | None = None) -> Pixels:
    """``image`` [H, W, C], or the ``box`` of it, resized to [size, C] by PIL's filters, same dtype; uint8, uint16 or float32, any C.

    At the edges of ``box`` the filters see what lies beyond. An unknown interpolation raises :class:`UserError`.
    """
    if interpolation not in _FILTERS:
        raise UserError("interpolation", f"unknown value {interpolation!r}", nearest(interpolation, _FILTERS))
    if image.shape[:2] == size and box is None:
        return image
    height, width = size
    channels = image.shape[2]
    if image.dtype == np.uint8 and channels in _MODES:
        picture = to_pil(image, _MODES[channels])
        resized: Pixels = np.asarray(picture.resize((width, height), _FILTERS[interpolation], box))
        return resized.reshape(height, width, channels)
    mode = "L" if image.dtype == np.uint8 else "F"
    bands = [
        to_pil(image[..., c : c + 1], mode).resize((width, height), _FILTERS[interpolation], box)
        for c in range(channels)
    ]
    stacked: Pixels = np.stack([np.asarray(band) for band in bands], axis=2)
    # Bicubic overshoots; PIL clips uint8 by itself.
    if image.dtype == np.uint16:
        return np.clip(np.rint(stacked), 0, 65535).astype(np.uint16)
    return np.clip(stacked, 0, 1) if mode == "F" else stacked


def _resize_part(image: Pixels, size: Size, rows: slice, columns: slice, interpolation: str) -> Pixels:
    """``resize(image, size)[rows, columns]`` without making the rest of it."""
    wanted = (rows.stop - rows.start, columns.stop - columns.start)
    if 0 in wanted:
        return np.empty((*wanted, image.shape[2]), image.dtype)
    parts, edges = [], []
    for part, old, new in zip((rows, columns), image.shape[:2], size, strict=True):
        start, stop = part.start * old / new, part.stop * old / new
        reach = math.ceil(_REACH * max(1.0, old / new)) + 1
        first, last = max(0, math.floor(start) - reach), min(old, math.ceil(stop) + reach)
        parts.append(slice(first, last))
        edges.append((start - first, min(stop - first, last - first)))
    (top, bottom), (left, right) = edges
    return resize(image[parts[0], parts[1]], wanted, interpolation, (left, top, right, bottom))


def resize_nearest(array: Mask, size: Size, rows: slice = slice(None), columns: slice = slice(None)) -> Mask:
    """``array`` [H, W] of any dtype at [size] by nearest neighbour at pixel centres, the lower and right one in a tie; of that
    the part [``rows``, ``columns``]."""
    if array.shape[:2] == size:
        return array[rows, columns]
    near_rows, near_columns = (
        (2 * np.arange(new)[part] + 1) * old // (2 * new)
        for old, new, part in zip(array.shape, size, (rows, columns), strict=True)
    )
    near: Mask = array[near_rows[:, None], near_columns]
    return near


def to_pil(image: Pixels, mode: str) -> Image.Image:
    """``image`` [H, W, C] as a PIL image of ``mode``, whose bands are the channels: L, RGB, CMYK of uint8, or F."""
    height, width, channels = image.shape
    pixels = np.ascontiguousarray(image, dtype=np.float32 if mode == "F" else np.uint8)
    if channels == 1:
        pixels = pixels.reshape(height, width)
    return Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)
