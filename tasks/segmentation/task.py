"""Semantic segmentation: what it adds to the engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effbackbones.errors import UserError
from tasks.data.dataset import Dataset
from tasks.spec import Observer, TaskSpec, Writer

if TYPE_CHECKING:
    from torchmetrics import Metric

    from effbackbones.model import Model
    from tasks.data.batch import Batch
    from tasks.data.sample import Sample, Transform
    from tasks.settings.sections import Config
    from tasks.telling import Teller


class Segmentation(TaskSpec):
    """Images to a class in each pixel."""

    name: ClassVar[str] = "seg"
    command: ClassVar[str] = "segment"

    def monitor(self, config: "Config") -> str:
        return "miou"

    def labels(self, config: "Config") -> tuple[str, ...]:
        return ("mask",)

    def classes(self, config: "Config", dataset: Dataset) -> tuple[str, ...]:
        return tuple(getattr(dataset, "mask_classes", dataset.classes))

    def head_options(self, config: "Config", dataset: Dataset | None) -> dict[str, Any]:
        # What is off is not said, so that a head of the user's need not know it.
        options: dict[str, Any] = (
            {"label_smoothing": config.optim.label_smoothing} if config.optim.label_smoothing else {}
        )
        if config.optim.class_weights and dataset is not None and "class_weights" not in config.model.head_options:
            from tasks.segmentation.check import class_weights

            options["class_weights"] = class_weights(dataset, config.data.on_error)
        return options

    def heads(self, config: "Config", dataset: Dataset | None) -> dict[str, Any]:
        from tasks.data.sample import IGNORE

        classes = () if dataset is None else self.classes(config, dataset)
        if len(classes) == 1:
            what = f"segmentation tells classes apart, there is only {classes[0]!r}"
            raise UserError(
                "data.options.classes", what, "add the background as a class (COCO files: unlabelled: background)"
            )
        if config.model.head_options.get("ignore_index", IGNORE) != IGNORE:
            what = f"masks hold {IGNORE} where nothing is known, in losses and scores alike"
            raise UserError(
                "model.head_options.ignore_index", what, "remove it; data.options.ignore says what is ignored in files"
            )
        if (
            len(classes) == 2 and config.model.num_classes == 1
        ):  # one channel for the second class, the first being background
            both = super().heads(replace(config, model=replace(config.model, num_classes=None)), dataset)
            return both | {"num_classes": 1}
        return super().heads(config, dataset)

    def preflight(self, config: "Config", model: "Model", datasets: Mapping[str, Dataset], tell: "Teller") -> None:
        from tasks.segmentation.check import quick_checks

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
        from tasks.segmentation.check import GOAL, draw_samples, quick_checks

        tell(f"drawn: {draw_samples(self, config, model, datasets['train'], out)}")
        quick_checks(self, config, model, datasets, tell, whole=True)
        if deep:
            from tasks.verbs.deep_check import deep_checks

            deep_checks(self, config, datasets, tell, GOAL)

    def transform(self, config: "Config", model: "Model", *, train: bool, epochs: float = math.inf) -> "Transform":
        from tasks.data.door import view_transform

        tile = _tile(config)
        if tile and min(tile) < model.head.min_size:
            raise UserError(
                "data.tile",
                f"{type(model.head).__name__} needs {model.head.min_size} pixels, got {list(tile)}",
                "raise it",
            )
        divisor = model.head.size_divisor
        return view_transform(config.data, model.image_spec, train=train, epochs=epochs, size_divisor=divisor)

    def targets(self, config: "Config") -> Callable[[Sequence["Sample"]], Any]:
        from tasks.data.collating import mask_targets

        return mask_targets

    def predict(self, config: "Config", model: "Model", batch: "Batch") -> Any:
        tile = _tile(config)
        if tile is None:
            return super().predict(config, model, batch)
        from tasks.segmentation.results import predict_tiled

        return predict_tiled(model, batch, tile, config.data.tile_overlap, config.data.eval_batch_size or 1)

    def restored(self, batch: "Batch", predictions: Any) -> Any:
        from tasks.segmentation.results import restore

        return restore(batch, predictions)

    def metrics(self, config: "Config", classes: Sequence[str]) -> "Metric":
        from tasks.segmentation.metrics import SegmentationMetrics

        return SegmentationMetrics(_two(classes))

    def scored(self, batch: "Batch", predictions: Any) -> tuple[Any, Any]:
        from tasks.segmentation.results import restore

        return restore(batch, predictions), [meta.mask for meta in batch.meta]

    def score_file(self, path: Path, config: "Config", dataset: Dataset, tell: Callable[[str], None]) -> dict[str, Any]:
        from tasks.segmentation.check import score_folder

        return score_folder(self, config, path, dataset, tell)

    def label_record(self, config: "Config", dataset: Dataset) -> dict[str, Any]:
        return {"mask_classes": list(self.classes(config, dataset))}

    def observer(self, config: "Config", classes: Sequence[str]) -> Observer | None:
        from tasks.segmentation.examples import SegmentationExamples

        return SegmentationExamples(classes)

    def statistics(self, config: "Config", model: "Model", dataset: Dataset) -> Any:
        from tasks.segmentation.check import statistics

        return statistics(dataset, config.data.on_error)

    def report(self, folder: Path, summary: Mapping[str, Any], observer: Observer | None) -> Path:
        from tasks.segmentation.examples import SegmentationExamples
        from tasks.segmentation.report import segmentation_report

        examples = observer if isinstance(observer, SegmentationExamples) else None
        given = {key: value for key, value in summary.items() if key != "statistics"}
        return segmentation_report(folder, examples=examples, masks=summary.get("statistics"), **given)

    def writer(
        self, config: "Config", out: Path, model: "Model", classes: Sequence[str], tell: Callable[[str], None]
    ) -> Writer:
        from tasks.segmentation.files import SegmentationFiles

        return SegmentationFiles(out, _two(classes), tell, exif=config.data.exif)


def _tile(config: "Config") -> tuple[int, int] | None:
    """Sides (H, W) of the tiles that images are predicted by."""
    tile = config.data.tile
    return (tile, tile) if isinstance(tile, int) else tile


def _two(classes: Sequence[str]) -> Sequence[str]:
    """The names of the two classes that one channel tells apart, where there are none that would say so."""
    return ("background", "foreground") if len(classes) == 1 else classes


TASK = Segmentation()
