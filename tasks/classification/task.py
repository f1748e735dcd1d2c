"""Image classification, one label or several per image: what it adds to the engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.data.dataset import Dataset
from tasks.spec import Observer, TaskSpec, Writer

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from effbackbones.model import Model
    from tasks.data.batch import Batch
    from tasks.data.sample import Sample, Transform
    from tasks.settings.sections import Config
from tasks.classification.files import PredictionFiles


class Classification(TaskSpec):
    """Images to class probabilities."""

    name: ClassVar[str] = "cls"
    command: ClassVar[str] = "classify"

    def monitor(self, config: "Config") -> str:
        return "map" if config.data.multilabel else "top1"

    def labels(self, config: "Config") -> tuple[str, ...]:
        return ("labels",) if config.data.multilabel else ("label",)

    def head_options(self, config: "Config", dataset: Dataset | None) -> dict[str, Any]:
        # Mixed targets are smoothed where they are mixed; all others in the loss.
        smoothing = 0.0 if config.data.mixup or config.data.cutmix else config.optim.label_smoothing
        # What is off is not said, so that a head of the user's need not know it.
        return {
            name: value
            for name, value in (("multilabel", config.data.multilabel), ("label_smoothing", smoothing))
            if value
        }

    def transform(self, config: "Config", model: "Model", *, train: bool, epochs: float = math.inf) -> "Transform":
        from tasks.data.door import class_transform

        return class_transform(config.data, model.image_spec, train=train)

    def targets(self, config: "Config") -> Callable[[Sequence["Sample"]], Any]:
        from tasks.data.collating import class_targets

        return class_targets

    def collate(self, config: "Config", model: "Model") -> Callable[[Sequence["Sample"]], "Batch"]:
        from tasks.data.collating import class_targets, collate

        # No padding: the head would not know it from the image.
        return partial(collate, targets=class_targets, size_divisor=None, fill=model.image_spec.mean)

    def augment(self, config: "Config", batch: "Batch", num_classes: int, step: int) -> tuple["Tensor", Any]:
        data = config.data
        if not (data.mixup or data.cutmix):
            return batch.images, batch.targets
        from effbackbones.images.pixels import to_unit
        from tasks.data.transforms.mixing import mix

        return mix(
            to_unit(batch.images),
            batch.targets,
            num_classes,
            mixup=data.mixup,
            cutmix=data.cutmix,
            smoothing=config.optim.label_smoothing,
            seed=config.run.seed,
            step=step,
        )

    def metrics(self, config: "Config", classes: Sequence[str]) -> "Metric":
        from tasks.classification.metrics import ClassificationMetrics

        return ClassificationMetrics(classes, multilabel=config.data.multilabel)

    def scored(self, batch: "Batch", predictions: "Tensor") -> tuple[Any, Any]:
        import numpy as np
        import torch

        rows = [row for row, meta in enumerate(batch.meta) if meta.label is not None]
        labels = torch.from_numpy(np.array([batch.meta[row].label for row in rows]))
        return predictions[rows], labels.to(predictions.device)

    def observer(self, config: "Config", classes: Sequence[str]) -> Observer | None:
        from tasks.classification.examples import ConfidentMistakes

        return ConfidentMistakes(classes, config.data.multilabel)

    def report(self, folder: Path, summary: Mapping[str, Any], observer: Observer | None) -> Path:
        from tasks.classification.examples import ConfidentMistakes
        from tasks.classification.report import classification_report

        mistakes = observer.mistakes() if isinstance(observer, ConfidentMistakes) else []
        return classification_report(
            folder, mistakes=mistakes, **{key: value for key, value in summary.items() if key != "statistics"}
        )

    def writer(
        self, config: "Config", out: Path, model: "Model", classes: Sequence[str], tell: Callable[[str], None]
    ) -> Writer:
        return PredictionFiles(out, classes, bool(getattr(model.head, "multilabel", False)), tell)

    def default_classes(self, num_classes: int) -> tuple[str, ...] | None:
        if num_classes != 1000:
            return None
        from torchvision.models import EfficientNet_B0_Weights  # its record of the ImageNet names; nothing is loaded

        return tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])

    def data_names(self, classes: Sequence[str], found: Callable[[], Sequence[str]]) -> Sequence[str]:
        if tuple(classes) != self.default_classes(len(classes)):
            return classes
        from timm.data.imagenet_info import ImageNetInfo  # the synsets that ImageNet's own folders are named by

        synsets = tuple(ImageNetInfo().label_names())  # type: ignore[no-untyped-call]  # timm is untyped
        return synsets if set(found()) <= set(synsets) else classes


TASK = Classification()
