"""Object detection: what it adds to the engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torchmetrics import Metric

from effbackbones.contracts import Detections
from effbackbones.inference.thresholds import thresholds_of
from effbackbones.model import Model
from effbackbones.weights.coco_names import COCO_NAMES, RAW_NAMES
from tasks.data.batch import Batch
from tasks.data.collating import box_targets, collate
from tasks.data.dataset import Dataset
from tasks.data.door.transforms import view_transform
from tasks.data.sample import Sample, Transform
from tasks.data.sampling import Repeated, repeat_factors
from tasks.detection.check import GOAL, quick_checks, score_results
from tasks.detection.files import DetectionFiles, DetectionRecorder
from tasks.detection.metrics import DetectionMetrics
from tasks.detection.numbering import category_ids
from tasks.detection.outcomes import BoxRecorder
from tasks.detection.report import DetectionReporter
from tasks.detection.results import ImageDetections, merged, restore
from tasks.detection.yolotxt import YoloFiles
from tasks.report.boxes import sample_sheet
from tasks.report.tables import TABLES, TableFiles
from tasks.settings.sections import Config
from tasks.spec import OutcomeRecorder, Recorder, Reporter, TaskSpec, Writer, told_of_head
from tasks.telling import Teller
from tasks.verbs.samples import draw_samples


class Detection(TaskSpec):
    """Images to boxes with classes and scores."""

    name: ClassVar[str] = "det"
    command: ClassVar[str] = "detect"
    targets = staticmethod(box_targets)
    numbered_by_file: ClassVar[tuple[str, ...]] = ("category_ids",)
    goal = GOAL

    def monitor(self, config: Config) -> str:
        return "AP"

    def labels(self, config: Config) -> tuple[str, ...]:
        return ("boxes",)

    def label_record(self, config: Config, dataset: Dataset) -> dict[str, Any]:
        return {"category_ids": list(category_ids(dataset))}

    def default_classes(self, num_classes: int) -> tuple[str, ...] | None:
        known = (RAW_NAMES, tuple(COCO_NAMES.values()))
        return next((names for names in known if len(names) == num_classes), None)

    def heads(self, config: Config, dataset: Dataset | None) -> dict[str, Any]:
        # What is off is not said, so that a head of the user's need not know it.
        options = (("crowd_ignore", config.data.crowd == "ignore"), ("label_smoothing", config.optim.label_smoothing))
        return told_of_head(self, config, dataset, {name: value for name, value in options if value})

    def view(self, config: Config, dataset: Dataset) -> Dataset:
        threshold = config.data.repeat_threshold
        if threshold is None:
            return dataset
        return Repeated(dataset, repeat_factors(dataset, threshold, config.run.seed))

    def transform(self, config: Config, model: Model, *, train: bool, epochs: float = math.inf) -> Transform:
        divisor = model.head.size_divisor
        return view_transform(config.data, model.image_spec, train=train, epochs=epochs, size_divisor=divisor)

    def collate(self, config: Config, model: Model) -> Callable[[Sequence[Sample]], Batch]:
        head, fill = model.head, model.image_spec.mean
        return partial(
            collate, targets=box_targets, size_divisor=head.size_divisor, fill=fill, num_classes=head.num_classes
        )

    def sheet(self, samples: Sequence[Sample], classes: Sequence[str]) -> NDArray[np.uint8]:
        return sample_sheet(samples, classes)

    def preflight(
        self, config: Config, model: Model, datasets: Mapping[str, Dataset], tell: Teller, out: Path | None = None
    ) -> None:
        if out is not None:
            tell(f"drawn: {draw_samples(self, config, model, datasets['train'], out, sample_sheet)}")
        quick_checks(self, config, model, datasets, tell, samples_told=out is not None)

    def restored(self, batch: Batch, predictions: Detections) -> list[ImageDetections]:
        return restore(batch, predictions)

    def merged(self, batch: Batch, found: Sequence[Any]) -> list[ImageDetections]:
        return merged(batch, found)

    def scored(self, batch: Batch, predictions: Sequence[ImageDetections]) -> tuple[Any, Any]:
        pairs = zip(predictions, (meta.truth for meta in batch.meta), strict=True)
        known = [(found, truth) for found, truth in pairs if truth is not None]
        return [found for found, _ in known], [truth for _, truth in known]

    def metrics(self, config: Config, classes: Sequence[str]) -> Metric:
        most = config.model.head_options.get("max_detections", 100)
        return DetectionMetrics(classes, max_dets=most if isinstance(most, int) else 100)

    def score_file(
        self,
        path: Path,
        config: Config,
        dataset: Dataset,
        tell: Callable[[str], None],
        training: Dataset | None = None,
    ) -> dict[str, Any]:
        return score_results(self, config, path, dataset, tell, training)

    def outcomes(self, metric: Metric) -> OutcomeRecorder | None:
        return BoxRecorder(metric) if isinstance(metric, DetectionMetrics) else None

    def anatomy(self, metric: Metric) -> dict[str, Any]:
        return {"errors": metric.anatomy()} if isinstance(metric, DetectionMetrics) else {}

    def has_written(self, folder: Path) -> bool:
        return (folder / "predictions.json").is_file()

    def observer(self, config: Config, classes: Sequence[str]) -> Reporter:
        return DetectionReporter(config, classes)

    def observer_of(self, config: Config, classes: Sequence[str], model: Model) -> Reporter:
        return DetectionReporter(config, classes, thresholds_of(model)["det"].values[0])

    def recorder(self, dataset: Dataset, classes: Sequence[str]) -> Recorder:
        return DetectionRecorder(classes, category_ids(dataset))

    def writer(
        self,
        config: Config,
        out: Path,
        model: Model,
        classes: Sequence[str],
        tell: Callable[[str], None],
    ) -> Writer:
        return DetectionFiles(out, classes, _category_ids(model, classes), tell)

    def forms(self, config: Config) -> tuple[str, ...]:
        return ("coco", "pictures", "yolo", "yolo_scores", *TABLES)

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
        if {"coco", "pictures"} & set(forms):
            ids = _category_ids(model, classes)
            pictures, results = "pictures" in forms, "coco" in forms
            written.append(DetectionFiles(out, classes, ids, tell, pictures=pictures, results=results))
        for word, scores in (("yolo", False), ("yolo_scores", True)):
            if word in forms:
                written.append(YoloFiles(out, classes, scores=scores))
        if kinds := set(TABLES) & set(forms):
            written.append(TableFiles.of_boxes(out, kinds))
        return written


def _category_ids(model: Model, classes: Sequence[str]) -> list[int]:
    """The id of each class in files: that of the training data, for published weights COCO's, else counted from 1."""
    coco = list(COCO_NAMES) if tuple(classes) == tuple(COCO_NAMES.values()) else None
    return [int(number) for number in model.provenance.get("category_ids") or coco or range(1, len(classes) + 1)]


TASK = Detection()
