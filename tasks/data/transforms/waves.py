"""Recordings to the windows that the network gets."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images.colours import fill_of
from effbackbones.images.geometry import Pixels
from effbackbones.inference.fitting import Fitting, repeated
from tasks.data.sample import Sample, Transform

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec


class WaveTransform:
    """Brings a recording to a window as ``image_spec`` says; the label stays.

    In training one of ``samples`` samples is taken at random. A shorter recording is placed in it at random, with silence around, or, where
    the spec says ``loop``, repeated from a random place on; with ``centred`` the window is the middle, as in an evaluation of one window.
    Then comes ``after``. Evaluation (``train`` False): the middle; who wants all of a recording takes ``fitting.windows``.
    """

    def __init__(
        self,
        image_spec: "ImageSpec",
        train: bool,
        *,
        samples: int | None = None,
        centred: bool = False,
        after: Transform | None = None,
    ) -> None:
        self.train, self.centred, self.after = train, centred, after if train else None
        fitting = Fitting.of_classes(image_spec)
        self.size = (1, samples) if train and samples else image_spec.size
        self.fitting = replace(fitting, size=self.size)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample at ``size``."""
        image = sample.image
        if image.dtype != np.uint16 or image.shape[0] != 1:
            what = f"is a picture, {image.dtype} {' x '.join(map(str, image.shape))}, and the model hears recordings"
            raise UserError(sample.path or sample.id, what, "set data.name: sound, or choose another backbone")
        plan, length = None, image.shape[1]
        if self.train and not self.centred:
            image = self._at_random(image, rng)
        else:
            image, plan = self.fitting(image)
        sample = replace(sample, image=image, original=(1, length), plan=plan)
        return sample if self.after is None else self.after(sample, rng)

    def kept(self) -> Fitting:
        """To what size recordings may be brought before, once for all samples: their own."""
        return replace(self.fitting, mode="own")

    def _at_random(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        length, room = image.shape[1], self.size[1]
        if length >= room:
            start = int(rng.integers(length - room + 1))
            return image[:, start : start + room]
        if self.fitting.mode == "loop":
            return repeated(image, room, int(rng.integers(length)))
        window = np.empty((1, room, image.shape[2]), image.dtype)
        window[:] = fill_of(image, self.fitting.mean)
        start = int(rng.integers(room - length + 1))
        window[:, start : start + length] = image
        return window
