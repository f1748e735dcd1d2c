"""An image alone, without labels, through the evaluation transform of a task."""

from dataclasses import dataclass

import numpy as np

from effbackbones.images.geometry import Pixels, ResizePlan
from effbackbones.inference.preparing import Fit
from tasks.data.sample import Sample, Transform
from tasks.data.transforms.images import ClassificationTransform
from tasks.data.transforms.waves import WaveTransform
from tasks.data.transforms.window import ViewTransform


def fit_of(transform: Transform) -> Fit:
    """How an evaluation transform brings images to size: one of a plug-in's is asked, for it may be anything."""
    if type(transform) in (ClassificationTransform, ViewTransform, WaveTransform):
        fitting: Fit = transform.fitting  # type: ignore[attr-defined]  # all have it
        return fitting
    return _Through(transform)


@dataclass(frozen=True)
class _Through:
    transform: Transform

    def __call__(self, image: Pixels) -> tuple[Pixels, ResizePlan]:
        sample = self.transform(Sample(image=image, id="image"), np.random.default_rng(0))
        height, width = image.shape[:2]
        there, across = sample.image.shape[:2]
        return sample.image, sample.plan or ResizePlan.squash((height, width), (there, across))
