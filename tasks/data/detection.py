"""From samples with boxes to batches: letterbox, jitter, flips and mosaic, and the targets of a detection head."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from effbackbones.contracts import BoxTargets
from effbackbones.errors import UserError
from effbackbones.geometry import Pixels, ResizePlan, Size
from tasks.data.batch import Batch, ImageMeta, Sample, Transform, Truth, stack_images
from tasks.data.mosaic import PARTNERS, mosaic
from tasks.data.transforms import ColorJitter, fill_of
from tasks.data.views import Jitter, crowd_of, jittered, labels_of, room_of, through, trainable
from tasks.settings import DataConfig

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec

FOREIGN = ("randaugment", "erasing", "mixup", "cutmix", "multilabel")
"""Settings of the section ``data`` that would change an image without its boxes, or mean nothing for them."""
_FEW = (8, 16, 32, 64, 100)  # 100: the most objects that the published recipe keeps of an image


class DetectionTransform:
    """Image, boxes and mask of a sample to ``size`` (H, W), padded at right and bottom with the mean colour of ``spec``.

    Evaluation (``train`` False): the letterbox, whose plan leads back; all boxes stay, clipped; ``truth`` is what they were.
    Training, by the section ``data``: mosaic until epoch ``closed_from``, or one image; scale jitter, crop and flips in one
    resize, colour jitter, the callables ``extra``, in this order; then boxes that are too small, and crowds if they are to be
    skipped, are left out. With ``data.batch_shape`` aspect an image is only padded to a multiple of ``size_divisor``.
    """

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
        return self._finished(mosaic(samples, self._room(samples[0]), self.data, self.spec, rng), rng)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample at its size."""
        original, room = sample.image.shape[:2], self._room(sample)
        if not self.train:
            truth = Truth.of(sample) if sample.truth is None else sample.truth
            return replace(through(sample, ResizePlan.letterbox(original, room), self.spec, exact=True), truth=truth)
        plan = jittered(original, room, room, Jitter.draw(self.data, rng))
        return self._finished(through(sample, plan, self.spec, exact=False), rng)

    def _room(self, sample: Sample) -> Size:
        height, width = sample.image.shape[:2]
        return room_of((height, width), self.size, self.data, self.size_divisor)

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


def refuse_foreign(data: DataConfig) -> None:
    """Settings that detection cannot follow raise :class:`UserError`."""
    for name in FOREIGN:
        if getattr(data, name):
            raise UserError(f"data.{name}", "is for classification; detection would not move the boxes with it", "remove it")


def collate_detection(samples: Sequence[Sample], *, size_divisor: int = 1, fill: Sequence[float]) -> Batch:
    """Images of different sizes are padded at right and bottom, with the colour ``fill`` (0..1, one value per channel), to the
    largest sides rounded up to ``size_divisor``. Targets: :class:`BoxTargets`, None where no sample has boxes.

    M is one of 8, 16, 32, 64, 100, 128, 256, 512, ...: few shapes for the kernels to be chosen for. Samples of which only
    some have boxes raise :class:`UserError`.
    """
    valid = [sample.plan.valid if sample.plan else sample.image.shape[:2] for sample in samples]
    images, sizes = stack_images(_of_one_size(samples, size_divisor, fill))
    sizes = sizes._replace(valid=torch.tensor(valid, dtype=torch.int64))
    return Batch(images, sizes, _box_targets(samples), [ImageMeta.of(sample) for sample in samples])


def _of_one_size(samples: Sequence[Sample], divisor: int, fill: Sequence[float]) -> list[Sample]:
    sides = {sample.image.shape[:2] for sample in samples}
    if len(sides) == 1:
        return list(samples)
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*sides, strict=True))
    padded = []
    for sample in samples:
        plan = ResizePlan(sample.image.shape[:2], sample.image.shape[:2], (0, 0), (height, width))
        padded.append(replace(sample, image=plan.apply_image(sample.image, fill=fill_of(sample.image, fill).tolist())))
    return padded


def _box_targets(samples: Sequence[Sample]) -> BoxTargets | None:
    without = [sample for sample in samples if sample.boxes is None]
    if len(without) == len(samples):
        return None
    if without:
        where = without[0].path or without[0].id
        raise UserError(where, "has no boxes, others of its batch have", "give images without objects boxes of shape [0, 4]")
    shape = len(samples), _bucket(max(len(labels_of(sample)) for sample in samples))
    boxes, labels, crowd = torch.zeros(*shape, 4), torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        count = len(labels_of(sample))
        boxes[row, :count] = torch.from_numpy(sample.boxes)
        labels[row, :count] = torch.from_numpy(labels_of(sample))
        crowd[row, :count] = torch.from_numpy(crowd_of(sample))
    return BoxTargets(boxes, labels, crowd)


def _bucket(count: int) -> int:
    """The number of rows for ``count`` boxes: the next of a short list, beyond it the next power of two."""
    return next((few for few in _FEW if count <= few), 1 << max(7, (count - 1).bit_length()))
