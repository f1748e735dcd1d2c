"""How an image is brought to the size at which a network is asked: the same for the commands and for a predictor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from effbackbones.images.colours import fill_of
from effbackbones.images.geometry import Pixels, ResizePlan, Size
from effbackbones.images.spec import OF_SOUND

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec


@dataclass(frozen=True)
class Fitting:
    """Images to ``size`` (H, W), padded with the colour ``mean`` (0..1, one value for each channel).

    ``mode``: ``center`` (the shorter side to ``size / crop_fraction``, then the centre), ``squash`` (the same, stretched),
    ``letterbox`` (the whole image, padded at right and bottom; with ``aspect`` no more than to a multiple of ``divisor``),
    ``own`` (each image at its own size, times ``scale``), or, of recordings, ``window`` and ``loop`` (:meth:`windows`).
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
        if self.mode in OF_SOUND:
            return self._window(original[1], max(0, (original[1] - self.size[1]) // 2))
        if self.mode == "letterbox":
            room = room_of(original, self.size, self.divisor) if self.aspect else self.size
            return ResizePlan.letterbox(original, room)
        return ResizePlan.center_crop(original, self.size, self.crop_fraction, squash=self.mode == "squash")

    def windows(self, original: Size) -> list[ResizePlan]:
        """The ways in which all of an image of size ``original`` is seen: one of a picture. A recording is seen through windows side by
        side, of which the last one ends where it ends; one that is shorter than a window through a single one, with silence after it
        (``window``), or repeated until it is full (``loop``)."""
        length, room = original[1], self.size[1]
        if self.mode not in OF_SOUND:
            return [self.plan(original)]
        return [
            self._window(length, start)
            for start in (*range(0, max(1, length - room), room), *([length - room] * (length > room)))
        ]

    def looked(self, image: Pixels) -> list[tuple[Pixels, ResizePlan]]:
        """``image`` [H, W, C] as it is seen in each of the :meth:`windows`, and their plans."""
        height, width = image.shape[:2]
        return [(self._seen(image, plan), plan) for plan in self.windows((height, width))]

    def __call__(self, image: Pixels, *, quick: bool = False) -> tuple[Pixels, ResizePlan]:
        """``image`` [H, W, C] at its size, of a recording the window in its middle, and the plan that leads back; ``quick`` as of
        :meth:`ResizePlan.apply_image`."""
        height, width = image.shape[:2]
        plan = self.plan((height, width))
        return self._seen(image, plan, quick=quick), plan

    def _window(self, length: int, start: int) -> ResizePlan:
        scaled = (1, max(length, self.size[1]) if self.mode == "loop" else length)
        return ResizePlan((1, length), scaled, (0, start), self.size)

    def _seen(self, image: Pixels, plan: ResizePlan, *, quick: bool = False) -> Pixels:
        if self.mode == "loop" and plan.scaled != plan.original:
            return repeated(image, self.size[1])
        return plan.apply_image(image, self.interpolation, fill_of(image, self.mean).tolist(), quick=quick)


def repeated(image: Pixels, samples: int, start: int = 0) -> Pixels:
    """A recording [1, T, C], from its sample ``start`` on and over and over again: [1, samples, C]."""
    return image[:, np.arange(start, start + samples) % image.shape[1]]


def room_of(original: Size, size: Size, divisor: int) -> Size:
    """What the letterbox (H, W) of an image of size ``original`` fills of ``size``, rounded up to ``divisor`` where that allows."""
    scaled = ResizePlan.letterbox(original, size).scaled
    height, width = (min(most, -(-side // divisor) * divisor) for side, most in zip(scaled, size, strict=True))
    return height, width
