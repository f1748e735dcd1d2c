"""How an image is brought to the size at which a network is asked: the same for the commands and for a predictor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from effbackbones.images.colours import fill_of
from effbackbones.images.geometry import Pixels, ResizePlan, Size

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec


@dataclass(frozen=True)
class Fitting:
    """Images to ``size`` (H, W), padded with the colour ``mean`` (0..1, one value for each channel).

    ``mode``: ``center`` (the shorter side to ``size / crop_fraction``, then the centre), ``squash`` (the same, stretched),
    ``letterbox`` (the whole image, padded at right and bottom; with ``aspect`` no more than to a multiple of ``divisor``), or
    ``own`` (each image at its own size, times ``scale``).
    """

    size: Size
    mean: Sequence[float]
    interpolation: str = "bicubic"
    mode: str = "letterbox"
    crop_fraction: float = 1.0
    aspect: bool = False
    divisor: int = 1
    scale: float = 1.0

    @classmethod
    def of_classes(cls, spec: "ImageSpec") -> "Fitting":
        """What a classifier is shown, as ``spec`` says."""
        return cls(spec.size, spec.mean, spec.interpolation, spec.crop_mode, spec.crop_fraction)

    @classmethod
    def of_places(
        cls, spec: "ImageSpec", *, aspect: bool = False, divisor: int = 1, own_size: bool = False
    ) -> "Fitting":
        """What a network is shown that says where things are: all of the image."""
        mode = "own" if own_size else "letterbox"
        return cls(spec.size, spec.mean, spec.interpolation, mode, aspect=aspect, divisor=divisor)

    def scaled(self, scale: float) -> "Fitting":
        """The same at ``scale`` times its size; where each image is shown at its own size, at that times ``scale``."""
        height, width = (max(1, round(side * scale)) for side in self.size)
        return replace(self, size=(height, width), scale=self.scale * scale)

    def plan(self, original: Size) -> ResizePlan:
        """The way of an image of size ``original``."""
        if self.mode == "own":
            height, width = (max(1, round(side * self.scale)) for side in original)
            return ResizePlan.squash(original, (height, width))
        if self.mode == "letterbox":
            room = room_of(original, self.size, self.divisor) if self.aspect else self.size
            return ResizePlan.letterbox(original, room)
        return ResizePlan.center_crop(original, self.size, self.crop_fraction, squash=self.mode == "squash")

    def __call__(self, image: Pixels, *, quick: bool = False) -> tuple[Pixels, ResizePlan]:
        """``image`` [H, W, C] at its size, and the plan that leads back; ``quick`` as of :meth:`ResizePlan.apply_image`."""
        height, width = image.shape[:2]
        plan = self.plan((height, width))
        return plan.apply_image(image, self.interpolation, fill_of(image, self.mean).tolist(), quick=quick), plan


def room_of(original: Size, size: Size, divisor: int) -> Size:
    """What the letterbox (H, W) of an image of size ``original`` fills of ``size``, rounded up to ``divisor`` where that allows."""
    scaled = ResizePlan.letterbox(original, size).scaled
    height, width = (min(most, -(-side // divisor) * divisor) for side, most in zip(scaled, size, strict=True))
    return height, width
