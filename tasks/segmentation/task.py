"""Semantic segmentation: what it adds to the engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from effbackbones.errors import UserError
from effbackbones.images.classsets import MOST
from effbackbones.inference.thresholds import thresholds_of
from effbackbones.model import Model
from tasks.data.batch import Batch
from tasks.data.collating import collate, mask_targets, set_targets
from tasks.data.dataset import Dataset
from tasks.data.door.transforms import view_transform
from tasks.data.sample import IGNORE, Sample, Transform
from tasks.report.masks import mask_sheet
from tasks.report.tables import TABLES, TableFiles
from tasks.segmentation.check import GOAL, quick_checks, score_folder
from tasks.segmentation.files import FORMS, SegmentationFiles
from tasks.segmentation.metrics import SegmentationMetrics
from tasks.segmentation.outcomes import PixelRecorder
from tasks.segmentation.report import SegmentationReporter
from tasks.segmentation.results import Segmented, predict_tiled, restore
from tasks.segmentation.setfiles import SetFiles
from tasks.segmentation.setmetrics import SetMetrics
from tasks.segmentation.statistics import class_weights
from tasks.segmentation.values import stored_values
from tasks.settings.sections import Config
from tasks.spec import OutcomeRecorder, Reporter, TaskSpec, Writer, told_of_head
from tasks.telling import Teller
from tasks.verbs.samples import draw_samples

MULTILABEL = "multilabel"
"""The mode of heads that give each class a sigmoid."""


class Segmentation(TaskSpec):
    """Images to a class in each pixel, or with ``data.multilabel`` to any number of classes, which overlap."""

    name: ClassVar[str] = "seg"
    command: ClassVar[str] = "segment"
    targets = staticmethod(mask_targets)
    goal = GOAL

    def monitor(self, config: Config) -> str:
        return "miou"

    def labels(self, config: Config) -> tuple[str, ...]:
        _several(config)  # looked at before data are
        return ("mask",)

    def classes(self, config: Config, dataset: Dataset) -> tuple[str, ...]:
        return tuple(getattr(dataset, "mask_classes", dataset.classes))

    def label_record(self, config: Config, dataset: Dataset) -> dict[str, Any]:
        return {"mask_classes": list(self.classes(config, dataset))}

    def remembered(self, config: Config, dataset: Dataset) -> dict[str, Any]:
        values = stored_values(dataset)
        return {} if values is None else {"mask_values": values}

    def heads(self, config: Config, dataset: Dataset | None) -> dict[str, Any]:
        classes = () if dataset is None else self.classes(config, dataset)
        several = _several(config)
        if len(classes) == 1 and not several:
            what = f"segmentation tells classes apart, there is only {classes[0]!r}"
            remedy = "add the background as a class (COCO files: unlabelled: background), or set data.multilabel: true"
            raise UserError("data.options.classes", what, remedy)
        if several and len(classes) > MOST:
            what = f"masks of classes that overlap have at most {MOST}, these are {len(classes)}"
            raise UserError("data.options.classes", what, "choose some, or set data.multilabel: false")
        if config.model.head_options.get("ignore_index", IGNORE) != IGNORE:
            what = f"masks hold {IGNORE} where nothing is known, in losses and scores alike"
            raise UserError(
                "model.head_options.ignore_index", what, "remove it; data.options.ignore says what is ignored in files"
            )
        implied = self._implied_options(config, dataset)
        if len(classes) == 2 and config.model.num_classes == 1 and not several:
            # One channel for the second class, the first being background.
            both = replace(config, model=replace(config.model, num_classes=None))
            return told_of_head(self, both, dataset, implied) | {"num_classes": 1}
        return told_of_head(self, config, dataset, implied)

    def _implied_options(self, config: Config, dataset: Dataset | None) -> dict[str, Any]:
        # What is off is not said, so that a head of the user's need not know it.
        smoothing = config.optim.label_smoothing
        options: dict[str, Any] = {"mode": MULTILABEL} if config.data.multilabel else {}
        if smoothing:
            options["label_smoothing"] = smoothing
        if config.optim.class_weights and dataset is not None and "class_weights" not in config.model.head_options:
            options["class_weights"] = class_weights(dataset, config.data.on_error, config.optim.class_weights)
        return options

    def collate(self, config: Config, model: Model) -> Callable[[Sequence[Sample]], Batch]:
        divisor, fill = model.head.size_divisor, model.image_spec.mean
        targets = set_targets if config.data.multilabel else mask_targets
        return partial(collate, targets=targets, size_divisor=divisor, fill=fill)

    def transform(self, config: Config, model: Model, *, train: bool, epochs: float = math.inf) -> Transform:
        tile = _tile(config)
        if tile and min(tile) < model.head.min_size:
            raise UserError(
                "data.tile",
                f"{type(model.head).__name__} needs {model.head.min_size} pixels, got {list(tile)}",
                "raise it",
            )
        divisor = model.head.size_divisor
        return view_transform(config.data, model.image_spec, train=train, epochs=epochs, size_divisor=divisor)

    def sheet(self, samples: Sequence[Sample], classes: Sequence[str]) -> NDArray[np.uint8]:
        return mask_sheet(samples, classes)

    def preflight(
        self, config: Config, model: Model, datasets: Mapping[str, Dataset], tell: Teller, out: Path | None = None
    ) -> None:
        if out is not None:
            tell(f"drawn: {draw_samples(self, config, model, datasets['train'], out, mask_sheet)}")
        quick_checks(self, config, model, datasets, tell, whole=out is not None)

    def predict(self, config: Config, model: Model, batch: Batch) -> list[Segmented]:
        tile = _tile(config)
        keep, cut = config.run.probabilities, thresholds_of(model).get("seg")
        over = None if cut is None else cut.values
        if tile is None:
            return restore(batch, model.predict(batch.images, batch.sizes), keep=keep, over=over)
        data = config.data
        return predict_tiled(model, batch, tile, data.tile_overlap, data.eval_batch_size or 1, keep=keep, over=over)

    def restored(self, batch: Batch, predictions: Tensor) -> list[Segmented]:
        return restore(batch, predictions)

    def scored(self, batch: Batch, predictions: Sequence[Segmented]) -> tuple[Any, Any]:
        return predictions, [meta.mask for meta in batch.meta]

    def metrics(self, config: Config, classes: Sequence[str]) -> Metric:
        return SetMetrics(classes) if _several(config) else SegmentationMetrics(_two(classes))

    def score_file(
        self,
        path: Path,
        config: Config,
        dataset: Dataset,
        tell: Callable[[str], None],
        training: Dataset | None = None,
    ) -> dict[str, Any]:
        return score_folder(self, config, path, dataset, tell)

    def outcomes(self, metric: Metric) -> OutcomeRecorder | None:
        return PixelRecorder(metric) if isinstance(metric, SegmentationMetrics | SetMetrics) else None

    def anatomy(self, metric: Metric) -> dict[str, Any]:
        return {"errors": metric.anatomy()} if isinstance(metric, SegmentationMetrics | SetMetrics) else {}

    def has_written(self, folder: Path) -> bool:
        return any((folder / kind).is_dir() for kind in ("index", "masks"))

    def observer(self, config: Config, classes: Sequence[str]) -> Reporter:
        return SegmentationReporter(classes, config.data.on_error)

    def writer(
        self,
        config: Config,
        out: Path,
        model: Model,
        classes: Sequence[str],
        tell: Callable[[str], None],
    ) -> Writer:
        return _mask_files(config, out, model, classes, tell, FORMS)

    no_form = {
        "yolo": "YOLO has outlines, which lose holes and where areas touch: masks keep them",
        "coco": "COCO has an outline or a mask for each object, and a segmentation knows no objects: masks keep them",
    }

    def forms(self, config: Config) -> tuple[str, ...]:
        return (*FORMS, *TABLES)

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
        if {"masks", "pictures"} & set(forms):
            written.append(_mask_files(config, out, model, classes, tell, forms))
        if kinds := set(TABLES) & set(forms):
            several = getattr(model.head, "multilabel", False)
            written.append(TableFiles.of_masks(out, kinds, classes if several else _two(classes)))
        return written


def _mask_files(
    config: Config,
    out: Path,
    model: Model,
    classes: Sequence[str],
    tell: Callable[[str], None],
    forms: Sequence[str],
) -> Writer:
    probabilities = config.run.probabilities
    if getattr(model.head, "multilabel", False):
        return SetFiles(out, classes, tell, probabilities=probabilities, forms=forms)
    return SegmentationFiles(
        out,
        _two(classes),
        tell,
        values=model.provenance.get("mask_values"),
        probabilities=probabilities,
        forms=forms,
    )


def _several(config: Config) -> bool:
    """Whether a pixel may have several classes; :class:`UserError` where data and head are told differently."""
    several, mode = config.data.multilabel, config.model.head_options.get("mode")
    if mode == MULTILABEL and not several:
        what = f"is {MULTILABEL}, and data.multilabel false: its masks give a pixel one class"
        raise UserError("model.head_options.mode", what, "set data.multilabel: true, with the command segment")
    if several and mode not in (None, MULTILABEL):
        what = f"is {mode}, and data.multilabel lets a pixel have several classes"
        raise UserError("model.head_options.mode", what, "remove one of the two")
    return several


def _tile(config: Config) -> tuple[int, int] | None:
    """Sides (H, W) of the tiles that images are predicted by."""
    tile = config.data.tile
    return (tile, tile) if isinstance(tile, int) else tile


def _two(classes: Sequence[str]) -> Sequence[str]:
    """The names of the two classes that one channel tells apart, where there are none that would say so."""
    return ("background", "foreground") if len(classes) == 1 else classes


TASK = Segmentation()
