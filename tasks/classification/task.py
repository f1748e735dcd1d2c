"""Image classification, one label or several per image: what it adds to the engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from effbackbones.errors import UserError
from effbackbones.images.pixels import are_recordings, to_unit
from effbackbones.model import Model
from tasks.classification.check import quick_checks
from tasks.classification.examples import label_sheet
from tasks.classification.files import SHOWN, PredictionFiles
from tasks.classification.metrics import ClassificationMetrics
from tasks.classification.outcomes import ClassRecorder
from tasks.classification.report import ClassificationReporter
from tasks.classification.results import stacked
from tasks.classification.statistics import class_weights, label_pairs, positive_weights
from tasks.data.batch import Batch
from tasks.data.collating import class_targets, collate
from tasks.data.dataset import Dataset
from tasks.data.door.transforms import class_transform
from tasks.data.sample import Sample, Transform
from tasks.data.sampling import Repeated, balanced
from tasks.data.transforms.mixing import mix, mix_waves
from tasks.report.drawn import PictureFiles
from tasks.report.tables import TABLES, TableFiles
from tasks.settings.sections import Config
from tasks.spec import OutcomeRecorder, Reporter, TaskSpec, Writer, told_of_head
from tasks.telling import Teller
from tasks.verbs.samples import draw_samples


class Classification(TaskSpec):
    """Images to class probabilities."""

    name: ClassVar[str] = "cls"
    command: ClassVar[str] = "classify"
    targets = staticmethod(class_targets)

    def monitor(self, config: Config) -> str:
        return "map" if config.data.multilabel else "top1"

    def labels(self, config: Config) -> tuple[str, ...]:
        return ("labels",) if config.data.multilabel else ("label",)

    def heads(self, config: Config, dataset: Dataset | None) -> dict[str, Any]:
        if dataset is not None and len(dataset.classes) == 1 and not config.data.multilabel:
            what = f"classification tells classes apart, there is only {dataset.classes[0]!r}"
            raise UserError(
                "data", what, "add another class, or set data.multilabel: true for one that is there or not"
            )
        # Mixed targets are smoothed where they are mixed; all others in the loss.
        smoothing = 0.0 if config.data.mixup or config.data.cutmix else config.optim.label_smoothing
        # What is off is not said, so that a head of the user's need not know it.
        options = (("multilabel", config.data.multilabel), ("label_smoothing", smoothing))
        implied = {name: value for name, value in options if value}
        return told_of_head(self, config, dataset, implied | self._weights(config, dataset))

    def _weights(self, config: Config, dataset: Dataset | None) -> dict[str, Any]:
        """Weights of classes that the training data imply; of several tasks class_weights speaks of masks."""
        kind, several = config.optim.class_weights, config.data.multilabel
        if kind is None or dataset is None or not isinstance(config.model.task, str):
            return {}
        if several and kind == "balanced":
            return {} if "pos_weight" in config.model.head_options else {"pos_weight": positive_weights(dataset)}
        if "class_weights" in config.model.head_options:
            return {}
        return {"class_weights": class_weights(dataset, kind, multilabel=several)}

    def view(self, config: Config, dataset: Dataset) -> Dataset:
        if not config.data.balance:
            return dataset
        pairs = label_pairs(dataset, multilabel=config.data.multilabel)
        indices = balanced(*pairs, len(dataset), config.data.balance, config.run.seed)
        return cast(Dataset, Repeated(dataset, indices))

    def transform(self, config: Config, model: Model, *, train: bool, epochs: float = math.inf) -> Transform:
        return class_transform(config.data, model.image_spec, train=train)

    def preflight(
        self, config: Config, model: Model, datasets: Mapping[str, Dataset], tell: Teller, out: Path | None = None
    ) -> None:
        if out is not None:
            tell(f"drawn: {draw_samples(self, config, model, datasets['train'], out, label_sheet)}")
        measured = config.model.normalization == "data"
        quick_checks(model.image_spec, datasets, tell, config.data, measured=measured)

    def collate(self, config: Config, model: Model) -> Callable[[Sequence[Sample]], Batch]:
        # No padding: the head would not know it from the image. Recordings of an evaluation are cut into windows afterwards.
        classes, fill = model.head.num_classes, model.image_spec.mean
        divisor = None if model.image_spec.rate is None else 1
        return partial(collate, targets=class_targets, size_divisor=divisor, fill=fill, num_classes=classes)

    def augment(self, config: Config, batch: Batch, num_classes: int, step: int) -> tuple[Tensor, Any]:
        data = config.data
        if not (data.mixup or data.cutmix):
            return batch.images, batch.targets
        options: dict[str, Any] = {
            "mixup": data.mixup,
            "smoothing": config.optim.label_smoothing,
            "multilabel": data.multilabel,
            "seed": config.run.seed,
            "step": step,
        }
        if are_recordings(batch.images):
            return mix_waves(to_unit(batch.images), batch.targets, num_classes, **options)
        return mix(to_unit(batch.images), batch.targets, num_classes, cutmix=data.cutmix, **options)

    def sheet(self, samples: Sequence[Sample], classes: Sequence[str]) -> NDArray[np.uint8]:
        return label_sheet(samples, classes)

    def restored(self, batch: Batch, predictions: Tensor) -> list[Tensor]:
        return list(predictions)

    def scored(self, batch: Batch, predictions: Sequence[Tensor]) -> tuple[Any, Any]:
        found = [row for row, meta in enumerate(batch.meta) if meta.label is not None]
        labels = torch.from_numpy(np.array([batch.meta[row].label for row in found]))
        together = stacked(predictions)
        return together[found], labels.to(together.device)

    def metrics(self, config: Config, classes: Sequence[str]) -> Metric:
        unknown = bool(config.model.head_options.get("ignore_unknown", False))
        return ClassificationMetrics(classes, multilabel=config.data.multilabel, ignore_unknown=unknown)

    def outcomes(self, metric: Metric) -> OutcomeRecorder | None:
        return ClassRecorder(metric) if isinstance(metric, ClassificationMetrics) else None

    def anatomy(self, metric: Metric) -> dict[str, Any]:
        return {"errors": metric.anatomy()} if isinstance(metric, ClassificationMetrics) else {}

    def observer(self, config: Config, classes: Sequence[str]) -> Reporter:
        return ClassificationReporter(classes, config.data.multilabel)

    def writer(
        self,
        config: Config,
        out: Path,
        model: Model,
        classes: Sequence[str],
        tell: Callable[[str], None],
    ) -> Writer:
        several = bool(getattr(model.head, "multilabel", False))
        return PredictionFiles(out, classes, several, tell, every=config.run.probabilities)

    def forms(self, config: Config) -> tuple[str, ...]:
        return ("json", "pictures", *TABLES)

    def writers(
        self,
        forms: Sequence[str],
        config: Config,
        out: Path,
        model: Model,
        classes: Sequence[str],
        tell: Callable[[str], None],
    ) -> list[Writer]:
        written: list[Writer] = []
        if "json" in forms:
            written.append(self.writer(config, out, model, classes, tell))
        if "pictures" in forms:
            written.append(PictureFiles(out))
        if kinds := set(TABLES) & set(forms):
            written.append(TableFiles.of_classes(out, kinds, min(SHOWN, len(classes))))
        return written

    def default_classes(self, num_classes: int) -> tuple[str, ...] | None:
        if num_classes != 1000:
            return None
        # torchvision's record of the ImageNet names; nothing is loaded. Its models take seconds to import.
        from torchvision.models import EfficientNet_B0_Weights

        return tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])

    def data_names(self, classes: Sequence[str], found: Callable[[], Sequence[str]]) -> Sequence[str]:
        if tuple(classes) != self.default_classes(len(classes)):
            return classes
        # The synsets that ImageNet's own folders are named by; timm takes seconds to import.
        from timm.data.imagenet_info import ImageNetInfo

        synsets = tuple(ImageNetInfo().label_names())  # type: ignore[no-untyped-call]  # timm is untyped
        return synsets if set(found()) <= set(synsets) else classes


TASK = Classification()
