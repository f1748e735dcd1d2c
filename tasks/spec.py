"""What a task adds to the engine, and the door for tasks: one for ours and for users' own.

The engine trains any :class:`TaskSpec`; none of its code names a task. The door for data sets can be imported from here too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from effbackbones.errors import UserError
from effbackbones.registry import TASKS
from tasks.data.dataset import (
    DATASETS as DATASETS,
    Dataset as Dataset,
    DatasetFactory as DatasetFactory,
    register_dataset as register_dataset,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torchmetrics import Metric

    from effbackbones.model import Model
    from tasks.data.batch import Batch
    from tasks.data.sample import Sample, Transform
    from tasks.settings.sections import Config
    from tasks.telling import Teller

T = TypeVar("T")


def register_task(name: str) -> Callable[[T], T]:
    """Register a :class:`TaskSpec` under ``name``, the word that its heads carry in ``task``."""
    return TASKS.register(name)


class Observer(Protocol):
    """Sees every evaluated batch: the drawings of a report, the rows of a prediction file."""

    def update(self, batch: "Batch", predictions: Any) -> None:
        """``predictions`` are the head's, on the device."""


class Writer(Observer, Protocol):
    """An observer that has something to finish."""

    def close(self) -> None:
        """Write what is left."""


class TaskSpec(ABC):
    """How one task reads, collates, augments, scores and reports. Stateless."""

    name: ClassVar[str]
    """Word of the task: ``cls``."""
    looks_deep: ClassVar[bool] = True
    """Whether :meth:`inspect` has something to look at that takes minutes."""
    command: ClassVar[str]
    """Name of its command and of its folders of configs and runs: ``classify``."""

    @abstractmethod
    def monitor(self, config: "Config") -> str:
        """The score (higher is better) that chooses the best weights."""

    def labels(self, config: "Config") -> tuple[str, ...]:
        """What is read of each image: words of ``data.labels``."""
        return ()

    def classes(self, config: "Config", dataset: "Dataset") -> Any:
        """Names of the classes that the model tells apart; JSON-like where there is more than one list of them."""
        return dataset.classes

    def head_options(self, config: "Config", dataset: "Dataset | None") -> dict[str, Any]:
        """Options of the head that follow from other sections of the config and the training data (None: there are none);
        explicit ones win."""
        return {}

    def heads(self, config: "Config", dataset: "Dataset | None") -> dict[str, Any]:
        """What :func:`effbackbones.build_model` is told of the head; the training data (None: there are none) decide how many
        classes it has. Another number in the config raises :class:`UserError`."""
        wanted, classes = config.model, None if dataset is None else self.classes(config, dataset)
        if classes and wanted.num_classes not in (None, len(classes)):
            text = f"is {wanted.num_classes}, and the training data has {len(classes)} classes"
            raise UserError("model.num_classes", text, "remove it, or correct the data")
        count = len(classes) if classes else wanted.num_classes
        options = {**self.head_options(config, dataset), **wanted.head_options}
        return {"task": self.name, "head": wanted.head, "num_classes": count, "head_options": options}

    def preflight(  # noqa: B027  # a task need not look at anything
        self, config: "Config", model: "Model", datasets: Mapping[str, "Dataset"], tell: "Teller"
    ) -> None:
        """What is looked at before a run trains, by split (``train``, ``val``, ``test``): told, or refused by a UserError."""

    def inspect(  # noqa: B027  # nor at more
        self,
        config: "Config",
        model: "Model",
        datasets: Mapping[str, "Dataset"],
        out: "Path",
        tell: "Teller",
        *,
        deep: bool,
    ) -> None:
        """What the verb ``check`` looks at beyond what holds for every task; drawings go into ``out``."""

    @abstractmethod
    def transform(self, config: "Config", model: "Model", *, train: bool, epochs: float = math.inf) -> "Transform":
        """Sample -> sample of the size that ``model`` gets, still uint8. ``epochs``: how many are planned. Picklable."""

    @abstractmethod
    def targets(self, config: "Config") -> Callable[[Sequence["Sample"]], Any]:
        """Samples that have the labels of this task -> targets of its head. Picklable."""

    def collate(self, config: "Config", model: "Model") -> Callable[[Sequence["Sample"]], "Batch"]:
        """Samples -> batch. Picklable."""
        from tasks.data.collating import collate

        return partial(
            collate, targets=self.targets(config), size_divisor=model.head.size_divisor, fill=model.image_spec.mean
        )

    def augment(self, config: "Config", batch: "Batch", num_classes: int, step: int) -> tuple["Tensor", Any]:
        """Images and targets of a training batch after augmentation on the device, drawn from (seed, step)."""
        return batch.images, batch.targets

    def view(self, config: "Config", dataset: "Dataset") -> "Dataset":
        """The training set as it is sampled: rare classes repeated, say. Default: as it is."""
        return dataset

    def predict(self, config: "Config", model: "Model", batch: "Batch") -> Any:
        """Predictions for a batch in the form of :meth:`restored`."""
        return self.restored(batch, model.predict(batch.images, batch.sizes))

    def restored(self, batch: "Batch", predictions: Any) -> Any:
        """The head's predictions as scores, examples and files take them: tensors of the batch, or a list by image."""
        return predictions

    @abstractmethod
    def metrics(self, config: "Config", classes: Any) -> "Metric":
        """Scores of a whole set: ``update(predictions, targets)`` on what :meth:`scored` gives, ``compute() -> dict``, JSON-like."""

    @abstractmethod
    def scored(self, batch: "Batch", predictions: Any) -> tuple[Any, Any]:
        """What a batch adds to the scores: predictions and truth (in ``batch.meta``) of the images that have one, in the form and
        the pixels that they are compared in."""

    def observer(self, config: "Config", classes: Any) -> Observer | None:
        """What collects examples for the report during the last evaluation."""
        return None

    def score_file(
        self, path: "Path", config: "Config", dataset: "Dataset", tell: Callable[[str], None]
    ) -> dict[str, Any]:
        """Scores of predictions that a file holds, for ``evaluate --predictions``."""
        raise UserError("--predictions", f"{self.command} scores models, not files", "give --checkpoint")

    def label_record(self, config: "Config", dataset: "Dataset") -> dict[str, Any]:
        """What a checkpoint must remember of the labels beside the names of the classes, and what all splits must agree in;
        JSON-like."""
        return {}

    def statistics(self, config: "Config", model: "Model", dataset: "Dataset") -> Any:
        """What a report shows of the data itself."""
        return None

    @abstractmethod
    def report(self, folder: "Path", summary: Mapping[str, Any], observer: Observer | None) -> "Path":
        """Write ``report.html`` of a finished run or evaluation; returns its path. ``summary``: config, history, results,
        facts, and ``statistics``, what the method of that name gave."""

    @abstractmethod
    def writer(
        self, config: "Config", out: "Path", model: "Model", classes: Any, tell: Callable[[str], None]
    ) -> "Writer":
        """What writes predictions into the folder ``out`` and tells the essential ones."""

    def default_classes(self, num_classes: int) -> tuple[str, ...] | None:
        """Names of the classes that published weights with so many know, or None."""
        return None

    def data_names(self, classes: Sequence[str], found: Callable[[], Sequence[str]]) -> Sequence[str]:
        """The names by which a data set knows the :meth:`default_classes`, in their order; ``found`` gives those it has."""
        return classes
