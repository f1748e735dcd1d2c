"""What a task adds to the engine, and the door for tasks: one for ours and for users' own.

The engine trains any :class:`TaskSpec`; none of its code names a task. The door for data sets can be imported from here too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from effbackbones.errors import UserError
from effbackbones.model import Model
from effbackbones.registry import TASKS
from tasks.data.batch import Batch
from tasks.data.collating import collate
from tasks.data.dataset import (
    DATASETS as DATASETS,
    Dataset as Dataset,
    DatasetFactory as DatasetFactory,
    register_dataset as register_dataset,
)
from tasks.data.sample import Sample, Transform
from tasks.data.transforms.listed import register_transform as register_transform
from tasks.report.records import Summary
from tasks.scoring.added import register_metric as register_metric
from tasks.scoring.outcomes import Outcomes
from tasks.settings.sections import Config
from tasks.settings.verboptions import Option as Option
from tasks.settings.verbs import register_verb as register_verb
from tasks.telling import Teller

T = TypeVar("T")


def register_task(name: str) -> Callable[[T], T]:
    """Register a :class:`TaskSpec`, or a subclass of it, of which one is made, under ``name``, the word that its heads carry in
    ``task``; ``python -m tasks.run NAME`` is its command then. Anything else raises :class:`UserError`."""

    def decorate(thing: T) -> T:
        made = thing() if isinstance(thing, type) and issubclass(thing, TaskSpec) else thing
        if not isinstance(made, TaskSpec):
            raise UserError(
                f"task {name!r}", f"expected a TaskSpec, got {thing!r:.60}", "derive it from tasks.spec.TaskSpec"
            )
        TASKS.register(name)(made)
        return thing

    return decorate


class Observer(Protocol):
    """Sees every evaluated batch."""

    def update(self, batch: Batch, predictions: Any) -> None:
        """``predictions`` as :meth:`TaskSpec.restored` gives them."""


class Recorder(Observer, Protocol):
    """Keeps what an evaluation found, image by image."""

    def write(self, folder: Path, tell: Callable[[str], None]) -> Path:
        """Write it into ``folder``, and ``tell`` what had to be left out; returns the path of the file."""


class OutcomeRecorder(Observer, Protocol):
    """Keeps what became of each image, for scores of any choice of them; sees a batch after the metric has."""

    def outcomes(self) -> Outcomes | Mapping[str, Outcomes]:
        """Of all images so far, of all processes, which must all ask; by task where there are several."""


class Reporter(Observer, Protocol):
    """Collects examples during the last evaluation, and writes the report."""

    def write(self, folder: Path, summary: Summary, model: Model, dataset: Dataset) -> Path:
        """Write ``report.html`` of a finished run or evaluation; returns its path. ``dataset``: the one that the report shows
        figures of, that of training in a run."""


class Writer(Protocol):
    """Writes predictions into files, and tells the essential ones."""

    draws: bool
    """Whether it draws on the images, which are kept for it then."""

    def update(self, results: Sequence[Any]) -> None:
        """Results of images as :class:`effbackbones.inference.predictor.Predictor` gives them; of a task of the user's ``Values``,
        or what :func:`effbackbones.inference.results.register_result` says."""

    def close(self) -> None:
        """Write what is left."""


class Goal(NamedTuple):
    """What shows, on eight images learnt by heart, that data, targets, loss and decoding agree: a ``score`` over ``least`` on
    images of which ``has`` says that they have what is learnt."""

    score: str
    least: float
    has: Callable[[Sample], bool]


class TaskSpec(ABC):
    """How one task reads, collates, augments, scores and reports. Stateless."""

    name: ClassVar[str]
    """Word of the task: ``cls``."""
    command: ClassVar[str]
    """Name of its command and of its folders of configs and runs: ``classify``."""
    looks_deep: ClassVar[bool] = True
    """Whether ``check --deep`` may be asked of it."""
    numbered_by_file: ClassVar[tuple[str, ...]] = ()
    """Words of :meth:`label_record` in which the files of splits may differ, whose classes are matched by name."""
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    """Its scores that are better when they are lower."""
    goal: ClassVar[Goal | None] = None
    """What ``check --deep`` wants of eight images learnt by heart; None: it does not look deeper."""

    # What is read, and by what it is judged --------------------------------------------------------------------------

    @abstractmethod
    def monitor(self, config: Config) -> str:
        """The score that chooses the best weights, unless ``run.monitor`` names another; higher is better, unless
        :attr:`lower_is_better` lists it, its metric says ``higher_is_better = False``, or it is a known error such as ``mae``."""

    def labels(self, config: Config) -> tuple[str, ...]:
        """What is read of each image: words of ``data.labels``."""
        return ()

    def classes(self, config: Config, dataset: Dataset) -> Any:
        """Names of the classes that the model tells apart; JSON-like where there is more than one list of them."""
        return dataset.classes

    def default_classes(self, num_classes: int) -> tuple[str, ...] | None:
        """Names of the classes that published weights with so many know, or None."""
        return None

    def data_names(self, classes: Any, found: Callable[[], Sequence[str]]) -> Sequence[str]:
        """The names by which a data set knows the ``classes`` of a model that knows none of its data, in their order; ``found`` gives
        those it has."""
        known: Sequence[str] = classes
        return known

    def label_record(self, config: Config, dataset: Dataset) -> dict[str, Any]:
        """What a checkpoint must remember of the labels beside the names of the classes, and what all splits must agree in;
        JSON-like."""
        return {}

    def remembered(self, config: Config, dataset: Dataset) -> dict[str, Any]:
        """What a checkpoint remembers beside :meth:`label_record`, in which data may differ; JSON-like."""
        return {}

    # From samples to a training step ---------------------------------------------------------------------------------

    def heads(self, config: Config, dataset: Dataset | None) -> dict[str, Any]:
        """What :func:`effbackbones.build_model` is told of the head; the training data (None: there are none) decide how many
        classes it has. Another number in the config raises :class:`UserError`."""
        return told_of_head(self, config, dataset, {})

    def view(self, config: Config, dataset: Dataset) -> Dataset:
        """The training set as it is sampled: rare classes repeated, say. Default: as it is."""
        return dataset

    @abstractmethod
    def transform(self, config: Config, model: Model, *, train: bool, epochs: float = math.inf) -> Transform:
        """Sample -> sample of the size that ``model`` gets, still uint8. ``epochs``: how many are planned. Picklable."""

    @staticmethod
    def targets(samples: Sequence[Sample]) -> Any:
        """Samples that have the labels of this task -> targets of its head."""
        raise NotImplementedError

    def collate(self, config: Config, model: Model) -> Callable[[Sequence[Sample]], Batch]:
        """Samples -> batch. Picklable."""
        divisor, fill = model.head.size_divisor, model.image_spec.mean
        return partial(collate, targets=self.targets, size_divisor=divisor, fill=fill)

    def augment(self, config: Config, batch: Batch, num_classes: int, step: int) -> tuple[Tensor, Any]:
        """Images and targets of a training batch after augmentation on the device, drawn from (seed, step)."""
        return batch.images, batch.targets

    def preflight(  # noqa: B027  # a task need not look at anything
        self, config: Config, model: Model, datasets: Mapping[str, Dataset], tell: Teller, out: Path | None = None
    ) -> None:
        """What is looked at before a run trains, by split (``train``, ``val``, ``test``): told, or refused by a UserError. With
        ``out``, for the verb ``check``, all of it, and training samples are drawn into that folder."""

    def sheet(self, samples: Sequence[Sample], classes: Any) -> NDArray[np.uint8] | None:
        """Training samples as they go into the network, drawn as one picture [H, W, 3]; None: it draws none."""
        return None

    # From predictions to scores and files ----------------------------------------------------------------------------

    def predict(self, config: Config, model: Model, batch: Batch) -> Any:
        """Predictions for a batch of an evaluation, :meth:`restored`."""
        return self.restored(batch, model.predict(batch.images, batch.sizes))

    @abstractmethod
    def restored(self, batch: Batch, predictions: Any) -> Any:
        """The head's predictions as scores, examples and files take them: a list with one for each image, in pixels of its
        original; a dict of such lists where there are several tasks."""

    def merged(self, batch: Batch, found: Sequence[Any]) -> Any:
        """What :meth:`restored` gives, from what several looks at each image of a batch were merged to
        (:class:`effbackbones.inference.merging.Merged`). Default: that."""
        return list(found)

    @abstractmethod
    def scored(self, batch: Batch, predictions: Any) -> tuple[Any, Any]:
        """What a batch adds to the scores: of the images that have a truth (in ``batch.meta``) the predictions, :meth:`restored`,
        and that, in the form that the metric compares."""

    @abstractmethod
    def metrics(self, config: Config, classes: Any) -> Metric:
        """Scores of a whole set: ``update(predictions, targets)`` on what :meth:`scored` gives, ``compute() -> dict``, JSON-like."""

    def score_file(
        self,
        path: Path,
        config: Config,
        dataset: Dataset,
        tell: Callable[[str], None],
        training: Dataset | None = None,
    ) -> dict[str, Any]:
        """Scores of predictions that a file holds, for ``evaluate --predictions``. ``training``: the training data, if any."""
        raise UserError("--predictions", f"{self.command} scores models, not files", "give --checkpoint")

    def has_written(self, folder: Path) -> bool:
        """Whether ``folder`` holds predictions that :meth:`score_file` reads."""
        return False

    @abstractmethod
    def observer(self, config: Config, classes: Any) -> Reporter:
        """What sees the last evaluation and writes the report."""

    def observer_of(self, config: Config, classes: Any, model: Model) -> Reporter:
        """:meth:`observer` of what ``model`` predicts. A task whose report counts from the model's threshold on makes its own here."""
        return self.observer(config, classes)

    def outcomes(self, metric: Metric) -> OutcomeRecorder | None:
        """What keeps, beside ``metric`` (:meth:`metrics`), what became of each image: for intervals and comparisons. None: nothing."""
        return None

    def anatomy(self, metric: Metric) -> dict[str, Any]:
        """What the last evaluation says beside the scores of ``metric`` (:meth:`metrics`), which saw it: what its errors are."""
        return {}

    def recorder(self, dataset: Dataset, classes: Any) -> Recorder | None:
        """What keeps the predictions for ``dataset``, for other programs to read; None: nothing does."""
        return None

    @abstractmethod
    def writer(
        self,
        config: Config,
        out: Path,
        model: Model,
        classes: Any,
        tell: Callable[[str], None],
    ) -> Writer:
        """What writes predictions into the folder ``out`` and tells the essential ones."""

    no_form: ClassVar[Mapping[str, str]] = {}
    """Why there is none of some forms that one might look for."""

    def forms(self, config: Config) -> tuple[str, ...]:
        """Words for the forms that :meth:`writers` writes predictions in."""
        return ()

    def writers(
        self,
        forms: Sequence[str],
        config: Config,
        out: Path,
        model: Model,
        classes: Any,
        tell: Callable[[str], None],
    ) -> list[Writer]:
        """What writes predictions in some of the :meth:`forms`."""
        return []


def told_of_head(task: TaskSpec, config: Config, dataset: Dataset | None, implied: Mapping[str, Any]) -> dict[str, Any]:
    """What :meth:`TaskSpec.heads` says of a single head; ``implied`` are its options that follow from other sections of the config
    and the training data: explicit ones win."""
    wanted, classes = config.model, None if dataset is None else task.classes(config, dataset)
    if classes and wanted.num_classes not in (None, len(classes)):
        text = f"is {wanted.num_classes}, and the training data has {len(classes)} classes"
        raise UserError("model.num_classes", text, "remove it, or correct the data")
    count = len(classes) if classes else wanted.num_classes
    options = {**implied, **wanted.head_options}
    return {"task": task.name, "head": wanted.head, "num_classes": count, "head_options": options}
