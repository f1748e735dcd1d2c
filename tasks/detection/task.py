"""Object detection: what it adds to the engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effbackbones.errors import UserError
from effbackbones.weights.coco_names import COCO_NAMES, RAW_NAMES
from tasks.data.dataset import Dataset
from tasks.spec import Observer, TaskSpec, Writer

if TYPE_CHECKING:
    from torchmetrics import Metric

    from effbackbones.contracts import Detections
    from effbackbones.model import Model
    from tasks.data.batch import Batch
    from tasks.data.sample import Sample, Transform
    from tasks.settings.sections import Config
    from tasks.telling import Teller


class Detection(TaskSpec):
    """Images to boxes with classes and scores."""

    name: ClassVar[str] = "det"
    command: ClassVar[str] = "detect"

    def monitor(self, config: "Config") -> str:
        return "AP"

    def labels(self, config: "Config") -> tuple[str, ...]:
        return ("boxes",)

    def head_options(self, config: "Config", dataset: Dataset | None) -> dict[str, Any]:
        # What is off is not said, so that a head of the user's need not know it.
        options = (("crowd_ignore", config.data.crowd == "ignore"), ("label_smoothing", config.optim.label_smoothing))
        return {name: value for name, value in options if value}

    def preflight(self, config: "Config", model: "Model", datasets: Mapping[str, Dataset], tell: "Teller") -> None:
        from tasks.detection.check import quick_checks

        quick_checks(self, config, model, datasets, tell)

    def inspect(
        self,
        config: "Config",
        model: "Model",
        datasets: Mapping[str, Dataset],
        out: Path,
        tell: "Teller",
        *,
        deep: bool,
    ) -> None:
        from tasks.detection.check import draw_samples, quick_checks

        tell(f"drawn: {draw_samples(self, config, model, datasets['train'], out)}")
        quick_checks(self, config, model, datasets, tell)
        if deep:
            from tasks.detection.check import GOAL
            from tasks.verbs.deep_check import deep_checks

            deep_checks(self, config, datasets, tell, GOAL)

    def transform(self, config: "Config", model: "Model", *, train: bool, epochs: float = math.inf) -> "Transform":
        from tasks.data.door import view_transform

        divisor = model.head.size_divisor
        return view_transform(config.data, model.image_spec, train=train, epochs=epochs, size_divisor=divisor)

    def targets(self, config: "Config") -> Callable[[Sequence["Sample"]], Any]:
        from tasks.data.collating import box_targets

        return box_targets

    def view(self, config: "Config", dataset: Dataset) -> Dataset:
        threshold = config.data.repeat_threshold
        if threshold is None:
            return dataset
        from tasks.data.sampling import Repeated, repeat_factors

        return Repeated(dataset, repeat_factors(dataset, threshold, config.run.seed))

    def metrics(self, config: "Config", classes: Sequence[str]) -> "Metric":
        from tasks.detection.metrics import DetectionMetrics

        most = config.model.head_options.get("max_detections", 100)
        return DetectionMetrics(classes, max_dets=most if isinstance(most, int) else 100)

    def scored(self, batch: "Batch", predictions: "Detections") -> tuple[Any, Any]:
        from tasks.detection.results import restore

        pairs = zip(restore(batch, predictions), (meta.truth for meta in batch.meta), strict=True)
        known = [(found, truth) for found, truth in pairs if truth is not None]
        return [found for found, _ in known], [truth for _, truth in known]

    def score_file(self, path: Path, config: "Config", dataset: Dataset, tell: Callable[[str], None]) -> dict[str, Any]:
        from tasks.detection.check import score_results

        return score_results(self, config, path, dataset, tell)

    def label_record(self, config: "Config", dataset: Dataset) -> dict[str, Any]:
        return {"category_ids": list(category_ids(dataset))}

    def observer(self, config: "Config", classes: Sequence[str]) -> Observer | None:
        from tasks.detection.examples import DetectionExamples

        return DetectionExamples(classes)

    def statistics(self, config: "Config", model: "Model", dataset: Dataset) -> Any:
        from tasks.detection.check import statistics

        return statistics(self, config, model, dataset)

    def report(self, folder: Path, summary: Mapping[str, Any], observer: Observer | None) -> Path:
        from tasks.detection.examples import DetectionExamples
        from tasks.detection.report import detection_report

        examples = observer if isinstance(observer, DetectionExamples) else None
        given = {key: value for key, value in summary.items() if key != "statistics"}
        return detection_report(folder, examples=examples, boxes=summary.get("statistics"), **given)

    def writer(
        self, config: "Config", out: Path, model: "Model", classes: Sequence[str], tell: Callable[[str], None]
    ) -> Writer:
        from tasks.detection.files import DetectionFiles

        coco = (
            list(COCO_NAMES) if tuple(classes) == tuple(COCO_NAMES.values()) else None
        )  # published weights for its 80 classes
        ids = model.provenance.get("category_ids") or coco or range(1, len(classes) + 1)
        return DetectionFiles(out, classes, [int(number) for number in ids], tell, exif=config.data.exif)

    def default_classes(self, num_classes: int) -> tuple[str, ...] | None:
        known = (RAW_NAMES, tuple(COCO_NAMES.values()))
        return next((names for names in known if len(names) == num_classes), None)


def category_ids(dataset: Dataset) -> tuple[int, ...]:
    """The id of each label in the files of the data set; counted from 1 where it has none."""
    ids: Sequence[int] = getattr(dataset, "category_ids", range(1, len(dataset.classes) + 1))
    if len(ids) != len(dataset.classes):
        raise UserError(
            f"{type(dataset).__name__}.category_ids",
            f"{len(ids)} for {len(dataset.classes)} classes",
            "give one for each",
        )
    return tuple(int(number) for number in ids)


TASK = Detection()
