"""Training batches of drawn images, for what is measured without data: of the sizes, types and targets that a task's own have."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from effbackbones.images.geometry import Mask
from effbackbones.model import Model
from effbackbones.registry import TASKS
from tasks.data.batch import Batch, KeyedDataset
from tasks.data.dataset import Dataset
from tasks.data.sample import Sample, Transform
from tasks.data.sets.shapes import CLASSES, ShapesDataset
from tasks.engine import splits
from tasks.settings.sections import Config
from tasks.spec import TaskSpec

_DIFFERENT = 2  # images that are drawn; a batch repeats them
_DRAWN_FOR = ("cls", "det", "seg", "multi")


class DrawnBatches:
    """Makes batches for one ``model`` of a config. A task of the user's, whose targets nobody can draw, gets images of its data."""

    def __init__(self, task: TaskSpec, config: Config, model: Model) -> None:
        # What makes training images of other sizes rests: each batch is of the size asked for.
        data = replace(config.data, crop_size=None, tile=None, mosaic=0.0, batch_shape="fixed")
        self.task, self.config, self.model = task, replace(config, data=data), model
        self.own = None if task.name in _DRAWN_FOR else splits.open_dataset(config, task, "train")

    def __call__(self, images: int, height: int, width: int) -> Batch:
        """``images`` as training gets them, whose targets the model's head takes; [height, width] before padding to its divisor."""
        self.model.use_image_spec(replace(self.model.image_spec, size=(height, width)))
        transform = self.task.transform(self.config, self.model, train=True)
        source: Any = self.own or _Fitting(self.config, self.model, (height, width))
        samples = [_read(source, transform, index) for index in range(min(_DIFFERENT, images, len(source)))]
        collate = self.task.collate(self.config, self.model)
        return collate([samples[index % len(samples)] for index in range(images)])


def _read(source: Dataset, transform: Transform, index: int) -> Sample:
    return KeyedDataset(source, transform)[0, index]


class _Fitting(ShapesDataset):
    """Drawn shapes whose classes and channels are folded into those that a model has."""

    def __init__(self, config: Config, model: Model, size: tuple[int, int]) -> None:
        super().__init__(size, _DIFFERENT, sets=config.data.multilabel)
        counts = model.config["num_classes"]
        several = counts if isinstance(counts, Mapping) else {TASKS.canonical(str(model.config["task"])): counts}
        # A single class that one sigmoid tells from none has two answers.
        self.counts: dict[str, int] = {word: int(count) for word, count in several.items()}
        self.channels = len(model.image_spec.mean)
        self.deep = model.image_spec.rate is not None  # recordings have 16 bits

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        image = np.ascontiguousarray(sample.image[..., np.arange(self.channels) % 3])
        if self.deep:
            image = image.astype(np.uint16) * 257
        # What no head of the model is trained on is left out, as data without such labels have it.
        changes: dict[str, Any] = {"image": image, "label": None, "boxes": None, "box_labels": None, "mask": None}
        if (classes := self.counts.get("det")) and sample.box_labels is not None:
            changes |= {"boxes": sample.boxes, "box_labels": sample.box_labels % classes}
        if (classes := self.counts.get("seg")) and sample.mask is not None:
            changes["mask"] = self._mask(sample.mask, classes)
        if (classes := self.counts.get("cls")) and sample.label is not None:
            label = sample.label % max(2, classes)
            changes["label"] = label
            if self.sets:
                changes |= {"label": None, "labels": np.eye(max(label + 1, classes), dtype=np.float32)[label]}
        return replace(sample, **changes)

    def _mask(self, mask: Mask, classes: int) -> Mask:
        known: Mask = np.bitwise_and(mask, 2 ** min(classes, len(CLASSES)) - 1) if self.sets else mask % max(2, classes)
        return known
