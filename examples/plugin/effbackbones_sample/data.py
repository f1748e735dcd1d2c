"""A data set, and a transform of its samples."""

from dataclasses import replace

import numpy as np

from tasks.data.batch import Sample


class Greys:
    """Dark and bright images."""

    classes = ("dark", "bright")

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = index % 2
        image = np.full((40, 60, 3), 60 + 120 * label, np.uint8)  # [H, W, 3] RGB
        return Sample(image, id=str(index), label=label)


def greys(data, split, classes):
    """Called with the config's section ``data``, the split, and the classes of the training split (None: this is it)."""
    return Greys({"train": 64, "val": 16, "test": 16}[split])


class Darken:
    """Divides images by a number, half of the time. Draws from ``rng`` alone, so that a run can be repeated."""

    def __init__(self, by=1.2):
        self.by = by

    def __call__(self, sample, rng):
        return replace(sample, image=(sample.image / self.by).astype(np.uint8)) if rng.random() < 0.5 else sample
