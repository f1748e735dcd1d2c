"""From samples with boxes and masks to the window that the network sees: letterbox, jitter, crop, flips and mosaic."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from effbackbones.images.geometry import Pixels, Size
from effbackbones.inference.fitting import Fitting, room_of
from tasks.data.sample import Sample, Transform, Truth
from tasks.data.transforms.images import ColorJitter, share_of
from tasks.data.transforms.mosaic import PARTNERS, mosaic
from tasks.data.transforms.views import JitterRange, jittered, through, trainable

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec


class ViewTransform:
    """Image, boxes and mask of a sample to ``size`` (H, W), padded at right and bottom with the mean colour of ``spec``.

    Evaluation (``train`` False): the letterbox, whose plan leads back, or with ``own_size`` the image as it is; all boxes stay,
    clipped; ``truth`` and ``truth_mask`` are what boxes and mask were.

    Training: ``first`` on each image as it was read; with the probability ``mosaic`` four images as one, until epoch
    ``closed_from``; ``scale_jitter`` (range of the factor), crop (to ``crop_size``), ``vertical_flip`` and ``flip``
    (probabilities) in one resize, ``color_jitter`` (strength), the callables ``extra``, in this order; then boxes with a side of
    less than ``min_box`` pixels are left out, and crowds unless ``crowd`` is ``ignore``. With ``batch_shape`` ``aspect`` an image is
    only padded to a multiple of ``size_divisor``. ``quick``: images are resized by torch's kernels (``apply_image``).
    """

    def __init__(
        self,
        spec: "ImageSpec",
        size: Size,
        train: bool,
        extra: Sequence[Transform] = (),
        *,
        scale_jitter: tuple[float, float] = (1.0, 1.0),
        vertical_flip: float = 0.0,
        flip: float = 0.5,
        crop_size: Size | None = None,
        mosaic: float = 0.0,
        closed_from: float | None = None,
        color_jitter: float = 0.0,
        min_box: float = 1.0,
        crowd: str = "skip",
        batch_shape: str = "fixed",
        size_divisor: int = 1,
        own_size: bool = False,
        first: Transform | None = None,
        quick: bool = False,
    ) -> None:
        self.first, self.quick = first if train else None, quick and train
        self.spec, self.size, self.train, self.extra = spec, size, train, tuple(extra)
        self.jitter = JitterRange(scale_jitter, vertical_flip, flip)
        self.crop_size, self.mosaic, self.closed_from = crop_size, mosaic, closed_from
        self.colors = ColorJitter(color_jitter) if color_jitter > 0 else None
        self.min_box, self.crowds = min_box, crowd == "ignore"
        self.fixed, self.size_divisor, self.own_size = batch_shape == "fixed", size_divisor, own_size
        aspect = not self.fixed
        self.fitting = replace(
            Fitting.of_places(spec, aspect=aspect, divisor=size_divisor, own_size=own_size), size=size
        )

    def partners(self, epoch: int, rng: np.random.Generator) -> int:
        """Three with the probability ``mosaic``, in training before ``closed_from``; else none."""
        open_ = self.train and (self.closed_from is None or epoch < self.closed_from)
        return PARTNERS if open_ and rng.random() < self.mosaic else 0

    def combine(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """The mosaic of four samples."""
        if self.first is not None:
            samples = [self.first(sample, rng) for sample in samples]
        window = self._window(self._room(samples[0]))
        return self._finished(mosaic(samples, window, self.jitter, self.spec, rng, quick=self.quick), rng)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample at its size."""
        if self.first is not None:
            sample = self.first(sample, rng)
        original, room = sample.image.shape[:2], self._room(sample)
        if not self.train:
            truth = Truth.of(sample) if sample.truth is None else sample.truth
            sample = replace(sample, truth=truth, truth_mask=sample.mask)
            return through(sample, self.fitting.plan(original), self.spec, exact=True)
        plan = jittered(original, room, self._window(room), self.jitter.draw(rng, sample.mirrored))
        return self._finished(through(sample, plan, self.spec, exact=False, quick=self.quick), rng)

    def scaled(self, share: float) -> "ViewTransform":
        """The same for images, and crops of them, of this ``share`` of the sides: as near as ``size_divisor`` lets them be."""
        other = copy.copy(self)
        other.size = share_of(self.size, share, self.size_divisor)
        other.crop_size = self.crop_size and share_of(self.crop_size, share, self.size_divisor)
        other.fitting = replace(self.fitting, size=other.size)
        return other

    def kept(self) -> Fitting:
        """To what size images may be brought before, once for all samples: the letterbox at its largest."""
        largest = max(1.0, self.jitter.scale[1])
        height, width = (math.ceil(side * largest) for side in self.size)
        return replace(Fitting.of_places(self.spec), size=(height, width))

    def _room(self, sample: Sample) -> Size:
        height, width = sample.image.shape[:2]
        return self.size if self.fixed else room_of((height, width), self.size, self.size_divisor)

    def _window(self, room: Size) -> Size:
        """What is seen in training of an image that fills ``room``."""
        return self.crop_size or room

    def _finished(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """What follows the geometry in training. The truth is not scored there, so it does not travel."""
        if self.colors is not None:
            sample = replace(sample, image=_on_content(self.colors, sample, rng))
        for step in self.extra:
            sample = step(sample, rng)
        return replace(trainable(sample, self.min_box, crowds=self.crowds), truth=None)


def _on_content(step: Transform, sample: Sample, rng: np.random.Generator) -> Pixels:
    """The image after ``step``, but for the padding right and below, which keeps the colour that it has in evaluation."""
    image = sample.image
    height, width = sample.plan.valid if sample.plan else image.shape[:2]
    changed = step(replace(sample, image=image[:height, :width]), rng).image
    if changed.shape == image.shape:
        return changed
    image[:height, :width] = changed  # an image with padding is a new one of ours
    return image
