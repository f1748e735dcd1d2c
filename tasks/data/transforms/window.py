"""From samples with boxes and masks to the window that the network sees: letterbox, jitter, crop, flips and mosaic."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from effbackbones.images.geometry import Pixels, ResizePlan, Size
from tasks.data.sample import Sample, Transform, Truth
from tasks.data.transforms.images import ColorJitter
from tasks.data.transforms.mosaic import PARTNERS, mosaic
from tasks.data.transforms.views import Jitter, jittered, room_of, through, trainable
from tasks.settings.data import DataConfig

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec
    from effbackbones.model import Model
    from tasks.settings.sections import Config


class ViewTransform:
    """Image, boxes and mask of a sample to ``size`` (H, W), padded at right and bottom with the mean colour of ``spec``.

    Evaluation (``train`` False): the letterbox, whose plan leads back, or with ``data.tile`` the image as it is; all boxes stay,
    clipped; ``truth`` and ``truth_mask`` are what boxes and mask were. Training, by the section ``data``: mosaic until epoch
    ``closed_from``, or one image; scale jitter, crop (to ``data.crop_size``) and flips in one resize, colour jitter, the
    callables ``extra``, in this order; then boxes that are too small, and crowds if they are to be skipped, are left out. With
    ``data.batch_shape`` aspect an image is only padded to a multiple of ``size_divisor``.
    """

    @classmethod
    def of(cls, config: "Config", model: "Model", *, train: bool, epochs: float) -> "ViewTransform":
        """For ``model`` by the section ``data``, over so many ``epochs``."""
        data, spec = config.data, model.image_spec
        return cls(
            spec, spec.size, train, data, closed_from=epochs - data.close_mosaic, size_divisor=model.head.size_divisor
        )

    def __init__(
        self,
        spec: "ImageSpec",
        size: Size,
        train: bool,
        data: DataConfig,
        closed_from: float | None = None,
        size_divisor: int = 1,
        extra: Sequence[Transform] = (),
    ) -> None:
        self.spec, self.size, self.train, self.data = spec, size, train, data
        self.closed_from, self.size_divisor = closed_from, size_divisor
        self.jitter = ColorJitter(data.color_jitter) if data.color_jitter > 0 else None
        self.extra = tuple(extra)

    def partners(self, epoch: int, rng: np.random.Generator) -> int:
        """Three with the probability ``data.mosaic``, in training before ``closed_from``; else none."""
        open_ = self.train and (self.closed_from is None or epoch < self.closed_from)
        return PARTNERS if open_ and rng.random() < self.data.mosaic else 0

    def combine(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """The mosaic of four samples."""
        return self._finished(mosaic(samples, self._window(self._room(samples[0])), self.data, self.spec, rng), rng)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample at its size."""
        original, room = sample.image.shape[:2], self._room(sample)
        if not self.train:
            truth = Truth.of(sample) if sample.truth is None else sample.truth
            sample = replace(sample, truth=truth, truth_mask=sample.mask)
            plan = ResizePlan.squash(original, original) if self.data.tile else ResizePlan.letterbox(original, room)
            return through(sample, plan, self.spec, exact=True)
        plan = jittered(original, room, self._window(room), Jitter.draw(self.data, rng))
        return self._finished(through(sample, plan, self.spec, exact=False), rng)

    def _room(self, sample: Sample) -> Size:
        height, width = sample.image.shape[:2]
        return room_of((height, width), self.size, self.data, self.size_divisor)

    def _window(self, room: Size) -> Size:
        """What is seen in training of an image that fills ``room``."""
        crop = self.data.crop_size
        return room if crop is None else (crop, crop) if isinstance(crop, int) else crop

    def _finished(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """What follows the geometry in training. The truth is not scored there, so it does not travel."""
        if self.jitter is not None:
            sample = replace(sample, image=_on_content(self.jitter, sample, rng))
        for step in self.extra:
            sample = step(sample, rng)
        return replace(trainable(sample, self.data.min_box, crowds=self.data.crowd == "ignore"), truth=None)


def _on_content(step: Transform, sample: Sample, rng: np.random.Generator) -> Pixels:
    """The image after ``step``, but for the padding right and below, which keeps the colour that it has in evaluation."""
    image = sample.image
    height, width = sample.plan.valid if sample.plan else image.shape[:2]
    changed = step(replace(sample, image=image[:height, :width]), rng).image
    if changed.shape == image.shape:
        return changed
    image[:height, :width] = changed  # an image with padding is a new one of ours
    return image
