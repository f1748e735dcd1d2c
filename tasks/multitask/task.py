"""Several tasks on one backbone, trained together: what that adds to the engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchmetrics import Metric

from effbackbones.errors import UserError
from effbackbones.model import Model
from effbackbones.registry import TASKS
from tasks.data.batch import Batch
from tasks.data.collating import collate, targets_by_task
from tasks.data.dataset import Dataset
from tasks.data.door.transforms import view_transform
from tasks.data.sample import Sample, Transform
from tasks.data.sampling import Repeated, spread
from tasks.multitask.metrics import JointMetrics, joined
from tasks.multitask.outcomes import JointRecorder
from tasks.multitask.parts import parts, parts_alone
from tasks.multitask.report import JointReporter
from tasks.settings.sections import Config
from tasks.spec import OutcomeRecorder, Recorder, Reporter, TaskSpec, Writer
from tasks.telling import Teller
from tasks.verbs.outputs import Several

LOOKED_AT = 64
"""Samples of a split in which labels of each task are looked for before a run."""


class Joint(TaskSpec):
    """Images to what several heads on one backbone make of them: everything is a dict by task.

    Each task reads its labels, scores and reports as it does alone; all see the same images, brought to size as for detection.
    Images that lack the labels of a task add nothing to its loss and its scores.
    """

    name: ClassVar[str] = "multi"
    command: ClassVar[str] = "joint"
    looks_deep: ClassVar[bool] = False

    def monitor(self, config: Config) -> str:
        return "mean"

    def labels(self, config: Config) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for task, own in parts(config).values() for label in task.labels(own)))

    def classes(self, config: Config, dataset: Dataset) -> dict[str, tuple[str, ...]]:
        return {word: task.classes(own, dataset) for word, (task, own) in parts(config).items()}

    def heads(self, config: Config, dataset: Dataset | None) -> dict[str, Any]:
        if config.model.head or config.model.head_options or config.model.num_classes:
            raise UserError(
                "model", "head, head_options and num_classes are those of a single task", "write them below heads.TASK"
            )
        told = {}
        for word, (task, own) in parts(config).items():
            try:
                told[word] = task.heads(own, dataset)
            except UserError as error:
                raise UserError(_in_section(word, str(error))) from None
        gathered = {
            key: {word: one[key] for word, one in told.items()} for key in ("head", "num_classes", "head_options")
        }
        weights = {word: config.heads[word].weight for word in told if word in config.heads}
        if config.optim.task_weighting == "fixed":
            return {"task": list(told), "loss_weights": weights, **gathered}
        for word, weight in weights.items():
            if weight != 1:
                raise UserError(
                    f"heads.{word}.weight",
                    "does not go with optim.task_weighting uncertainty, which learns it",
                    "remove one",
                )
        return {"task": list(told), "loss_weights": "uncertainty", **gathered}

    def preflight(
        self, config: Config, model: Model, datasets: Mapping[str, Dataset], tell: Teller, out: Path | None = None
    ) -> None:
        for word, (task, own), alone in parts_alone(config, model):
            labelled, told = _with_labels(datasets, task.labels(own)), _PartTeller(tell, word, task.command)
            task.preflight(own, alone, labelled, told, None if out is None else out / task.command)

    def transform(self, config: Config, model: Model, *, train: bool, epochs: float = math.inf) -> Transform:
        if config.data.mosaic and "label" in self.labels(config):
            what = "sets four images together, which then have no one label"
            raise UserError("data.mosaic", what, "set it to 0, or data.multilabel: true")
        divisor = model.head.size_divisor
        return view_transform(config.data, model.image_spec, train=train, epochs=epochs, size_divisor=divisor)

    def collate(self, config: Config, model: Model) -> Callable[[Sequence[Sample]], Batch]:
        makers = {word: (task.labels(own), task.targets) for word, (task, own) in parts(config).items()}
        targets, divisor = partial(targets_by_task, makers=makers), model.head.size_divisor
        return partial(collate, targets=targets, size_divisor=divisor, fill=model.image_spec.mean)

    def view(self, config: Config, dataset: Dataset) -> Dataset:
        for task, own in parts(config).values():
            dataset = task.view(own, dataset)
        return dataset

    def metrics(self, config: Config, classes: Any) -> Metric:
        found = {
            word: (task.metrics(own, classes[word]), task.monitor(own)) for word, (task, own) in parts(config).items()
        }
        return JointMetrics(
            {word: metric for word, (metric, _) in found.items()}, {word: name for word, (_, name) in found.items()}
        )

    def restored(self, batch: Batch, predictions: Mapping[str, Any]) -> dict[str, Any]:
        return {word: TASKS.get(word).restored(batch, found) for word, found in predictions.items()}

    def merged(self, batch: Batch, found: Sequence[Any]) -> dict[str, Any]:
        return {word: TASKS.get(word).merged(batch, [one[word] for one in found]) for word in found[0]}

    def scored(self, batch: Batch, predictions: Mapping[str, Any]) -> tuple[Any, Any]:
        pairs = {word: TASKS.get(word).scored(batch, found) for word, found in predictions.items()}
        return {word: pair[0] for word, pair in pairs.items()}, {word: pair[1] for word, pair in pairs.items()}

    def outcomes(self, metric: Metric) -> OutcomeRecorder | None:
        return JointRecorder(metric.by_task()) if isinstance(metric, JointMetrics) else None

    def anatomy(self, metric: Metric) -> dict[str, Any]:
        parts = metric.by_task() if isinstance(metric, JointMetrics) else {}
        return {
            f"{word}/{key}": told for word, part in parts.items() for key, told in TASKS.get(word).anatomy(part).items()
        }

    def observer(self, config: Config, classes: Any) -> Reporter:
        reporters = {word: task.observer(own, classes[word]) for word, (task, own) in parts(config).items()}
        return JointReporter(config, reporters)

    def observer_of(self, config: Config, classes: Any, model: Model) -> Reporter:
        found = parts_alone(config, model)
        return JointReporter(
            config, {word: task.observer_of(own, classes[word], alone) for word, (task, own), alone in found}
        )

    def recorder(self, dataset: Dataset, classes: Mapping[str, Any]) -> Recorder | None:
        made = {word: TASKS.get(word).recorder(dataset, own) for word, own in classes.items()}
        kept = {word: recorder for word, recorder in made.items() if recorder is not None}
        return Recorders(kept) if kept else None

    def data_names(self, classes: Mapping[str, Any], found: Callable[[], Sequence[str]]) -> Sequence[str]:
        own = (classes[word] for word in ("det", "cls") if word in classes)  # masks may have one more, the background
        return next(own, None) or found()

    def score_file(
        self,
        path: Path,
        config: Config,
        dataset: Dataset,
        tell: Callable[[str], None],
        training: Dataset | None = None,
    ) -> dict[str, Any]:
        """The scores of each task whose folder (``detect``, ``segment``) is in ``path``, as ``predict`` and ``evaluate`` write it."""
        found, monitors = dict[str, dict[str, Any]](), dict[str, str]()
        for word, (task, own) in parts(config).items():
            if not task.has_written(path / task.command):
                tell(f"{task.command}: no predictions to score in {path / task.command}, left out")
            else:
                told = partial(_tell_of, tell, task.command)
                found[word] = task.score_file(path / task.command, own, dataset, told, training)
                monitors[word] = task.monitor(own)
        if not found:
            known = ", ".join(task.command for task, _ in parts(config).values())
            what = f"holds no folder of predictions of a task ({known})"
            raise UserError(str(path), what, "name the folder that predict or evaluate of joint wrote")
        return joined(found, monitors)

    def label_record(self, config: Config, dataset: Dataset) -> dict[str, Any]:
        records = [task.label_record(own, dataset) for task, own in parts(config).values()]
        return {name: value for record in records for name, value in record.items()}

    def writer(
        self,
        config: Config,
        out: Path,
        model: Model,
        classes: Any,
        tell: Callable[[str], None],
    ) -> Writer:
        made = {
            word: task.writer(own, out / task.command, alone, classes[word], tell)
            for word, (task, own), alone in parts_alone(config, model)
        }
        return Writers(made)

    def forms(self, config: Config) -> tuple[str, ...]:
        return tuple(dict.fromkeys(form for part in parts(config).values() for form in part.task.forms(part.config)))

    def writers(
        self,
        forms: Sequence[str],
        config: Config,
        out: Path,
        model: Model,
        classes: Any,
        tell: Callable[[str], None],
    ) -> list[Writer]:
        made: dict[str, Writer] = {}
        for word, (task, own), alone in parts_alone(config, model):
            if mine := [form for form in forms if form in task.forms(own)]:
                made[word] = Several(task.writers(mine, own, out / task.command, alone, classes[word], tell))
        return [Writers(made)]


def _with_labels(datasets: Mapping[str, Dataset], fields: Sequence[str]) -> dict[str, Dataset]:
    """Each split, or where some of the samples looked at lack all of the labels ``fields``, the others of these alone. A split
    without any raises :class:`UserError`."""
    found = {}
    for split, dataset in datasets.items():
        looked_at = spread(len(dataset), LOOKED_AT)
        rows = [row for row in looked_at.tolist() if _has(dataset, row, fields)]
        if not rows:
            what = f"none of the {len(looked_at)} samples looked at has a {' or '.join(fields)}"
            raise UserError(f"data.{split}", what, "remove the task, or label some images of every split")
        found[split] = dataset if len(rows) == len(looked_at) else Repeated(dataset, np.array(rows))
    return found


def _has(dataset: Dataset, index: int, fields: Sequence[str]) -> bool:
    """Whether a sample has one of the labels ``fields``; one that cannot be read has none."""
    try:
        sample = dataset[index]
    except UserError:  # `check_dataset` has decided whether that is allowed
        return False
    return any(getattr(sample, field) is not None for field in fields)


def _tell_of(tell: Callable[[str], None], command: str, line: str) -> None:
    tell(f"{command}: {line}")


class _PartTeller(Teller):
    """Says of what task a line is, and names the options of its head as they are here."""

    def __init__(self, tell: Teller, word: str, command: str) -> None:
        super().__init__(tell.bars, quiet=tell.quiet)
        self.word, self.command = word, command

    def __call__(self, line: str) -> None:
        super().__call__(f"{self.command}: {_in_section(self.word, line)}")


def _in_section(word: str, text: str) -> str:
    """A text that names options of a head as they are named where there are several."""
    return text.replace("model.head_options.", f"heads.{word}.options.").replace(
        "--model.head ", f"--heads.{word}.name "
    )


class Recorders:
    """Recorders by task: each writes into the folder of its task."""

    def __init__(self, parts: Mapping[str, Recorder]) -> None:
        self.parts = parts

    def update(self, batch: Batch, predictions: Mapping[str, Any]) -> None:
        for word, part in self.parts.items():
            part.update(batch, predictions[word])

    def write(self, folder: Path, tell: Callable[[str], None]) -> Path:
        written = []
        for word, part in self.parts.items():
            command = TASKS.get(word).command
            (folder / command).mkdir(parents=True, exist_ok=True)
            written.append(part.write(folder / command, partial(_tell_of, tell, command)))
        return written[0] if len(written) == 1 else folder


class Writers:
    """Writers by task."""

    def __init__(self, parts: Mapping[str, Writer]) -> None:
        self.parts, self.draws = parts, any(part.draws for part in parts.values())

    def update(self, results: Sequence[Mapping[str, Any]]) -> None:
        for word, part in self.parts.items():
            part.update([result[word] for result in results])

    def number_as(self, dataset: Dataset) -> None:
        """As :meth:`tasks.detection.files.DetectionFiles.number_as`, for the parts that have ids."""
        for part in self.parts.values():
            if hasattr(part, "number_as"):
                part.number_as(dataset)

    def below(self, files: Sequence[str]) -> None:
        """As :meth:`tasks.detection.yolotxt.YoloFiles.below`, for the parts that name their files so."""
        for part in self.parts.values():
            if hasattr(part, "below"):
                part.below(files)

    def close(self) -> None:
        for part in self.parts.values():
            part.close()


TASK = Joint()
