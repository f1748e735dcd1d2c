"""Images brought to the network's size inside of a graph, and answers back to the pixels of the images given.

The same geometry as :class:`effbackbones.images.geometry.ResizePlan`, in sides that are free. The filters are torch's antialiased
ones; PIL's, which the commands use, round between the two directions, so that pixels may differ by a level or two.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from effbackbones.contracts import Detections, ImageSizes, larger
from effbackbones.errors import UserError
from effbackbones.images.pixels import top_left
from effbackbones.model import Model


def smaller(one: int, other: int) -> int:
    """The smaller of two sides, in a graph a function of them."""
    side: Any = torch.sym_min(one, other)
    return int(side) if isinstance(side, int) else side


@dataclass(frozen=True)
class Resizing:
    """Images of one size to ``size`` (H, W) by ``mode`` (``center``, ``squash`` or ``letterbox``), padded with ``fill`` (0..255)."""

    size: tuple[int, int]
    mode: str
    interpolation: str
    crop_fraction: float
    fill: tuple[float, ...]

    @classmethod
    def of(cls, model: Model) -> "Resizing":
        """As a predictor fits images for ``model``: tasks that say where things are see the whole image."""
        spec = model.image_spec
        if spec.rate is not None:
            raise UserError("preprocessing", "resize is for pictures, and a recording is not resized", "take normalize")
        mode = spec.crop_mode if model.head.task == "cls" else "letterbox"
        fraction = spec.crop_fraction if model.head.task == "cls" else 1.0
        fill = tuple(float(round(255 * value)) for value in spec.mean)
        return cls(spec.size, mode, spec.interpolation, fraction, fill)

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is resized to, before what shows beyond ``size`` is cut off, or padding fills it."""
        room_h, room_w = self.size
        if self.mode == "letterbox":
            return (
                smaller(room_h, larger(1, height * room_w // width)),
                smaller(room_w, larger(1, width * room_h // height)),
            )
        target_h, target_w = (int(side / self.crop_fraction + 1e-6) for side in self.size)
        if self.mode == "squash":
            return target_h, target_w
        if target_h == target_w:
            return larger(target_h, target_h * height // width), larger(target_w, target_w * width // height)
        return (
            larger(target_h, (2 * height * target_w + width) // (2 * width)),
            larger(target_w, (2 * width * target_h + height) // (2 * height)),
        )

    def __call__(self, images: Tensor) -> tuple[Tensor, ImageSizes]:
        """Images uint8 [B, C, h, w] as whole numbers float32 [B, C, H, W] in 0..1, and their sizes."""
        scaled = self.scaled(images.shape[2], images.shape[3])
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(self.interpolation)
        resized = F.interpolate(images.float(), scaled, mode=self.interpolation, antialias=True, align_corners=False)
        resized = resized.round().clamp(0, 255)
        room_h, room_w = self.size
        if self.mode == "letterbox":
            fill = resized.new_tensor(self.fill)[:, None, None]
            padded = F.pad(resized - fill, (0, room_w - scaled[1], 0, room_h - scaled[0])) + fill
        else:
            padded = _cut(_cut(resized, 2, room_h), 3, room_w)
        sides = [
            torch.full((images.shape[0],), 1, dtype=torch.int64, device=images.device) * smaller(side, room)
            for side, room in zip(scaled, self.size, strict=True)
        ]
        return padded / 255, ImageSizes(self.size, torch.stack(sides, 1))

    def restore_boxes(self, found: Detections, images: Tensor) -> Detections:
        """Boxes in pixels of the images given, clipped to them."""
        height, width = images.shape[2], images.shape[3]
        scaled_h, scaled_w = self.scaled(height, width)
        x, y = width / scaled_w, height / scaled_h
        ones = found.boxes.new_ones(())
        factor = torch.stack([ones * x, ones * y, ones * x, ones * y])
        limit = torch.stack([ones * width, ones * height, ones * width, ones * height])
        return found._replace(boxes=torch.minimum(found.boxes * factor, limit))

    def restore_maps(self, maps: Tensor, images: Tensor) -> Tensor:
        """Probabilities [B, K, H, W] of the network's images at the size of those given."""
        seen = top_left(maps, self.scaled(images.shape[2], images.shape[3]))
        size = (images.shape[2], images.shape[3])
        return F.interpolate(seen, size, mode="bilinear", antialias=True, align_corners=False)


def _cut(images: Tensor, axis: int, room: int) -> Tensor:
    """The middle of an axis, rounded as Python rounds halves, to the even."""
    left = images.shape[axis] - room
    start = left // 2 + left % 4 // 3
    return images.index_select(axis, torch.arange(room, device=images.device) + start)
