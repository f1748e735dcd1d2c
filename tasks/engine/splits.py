"""From a config to the data sets of its splits, divided where they come in one piece."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from effbackbones.errors import UserError
from tasks.data.dataset import DATASETS, Dataset
from tasks.data.division import Division, divided
from tasks.data.knowledge import ids_of
from tasks.data.sampling import Repeated, spread
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config
from tasks.spec import TaskSpec

DIVISION = "split.json"
"""Where a run writes down which image is in which split, if it divided the data itself."""


def open_dataset(config: Config, task: TaskSpec, split: str, classes: tuple[str, ...] | None = None) -> Dataset:
    """A split of the configured data set with the labels that the task needs; ``classes`` are those of the training split,
    None to derive them.

    An empty one raises :class:`UserError`.
    """
    return _opened(config, task, split, classes, None)


def _opened(
    config: Config, task: TaskSpec, split: str, classes: tuple[str, ...] | None, whole: Dataset | None
) -> Dataset:
    """As :func:`open_dataset`; ``whole``: the undivided data, where they are open already."""
    asked = replace(config.data, labels=task.labels(config))
    if split in ("train", *asked.shares) and asked.shares:
        dataset = _part(config, asked, split, classes, whole)
    else:
        dataset = DATASETS.get(config.data.name)(asked, split, classes)
    if len(dataset) == 0:
        raise UserError(
            f"data.{split}", f"data set {config.data.name!r} has no sample", "check data.root and the name of the split"
        )
    limit = {"train": config.data.limit_train, "val": config.data.limit_val}.get(split)
    return Repeated(dataset, spread(len(dataset), limit)) if limit and limit < len(dataset) else dataset


def _part(
    config: Config, asked: DataConfig, split: str, classes: tuple[str, ...] | None, whole: Dataset | None
) -> Dataset:
    """One split of data of a single list: those of train, divided by shares or as written down."""
    whole = whole or _whole(asked, classes)
    if asked.division:
        division = Division.read(Path(asked.division))
    else:
        by_class, group = asked.split_by == "class", asked.split_group
        division = divided(whole, asked.shares, seed=config.run.seed, by_class=by_class, group=group)
    indices = division.indices(whole, split)
    if split == "train" and (asked.options.get("reduced") or not asked.keep_empty):  # what is for training alone
        chosen = set(division.parts[split])
        whole = DATASETS.get(asked.name)(asked, split, classes)
        indices = np.array([place for place, name in enumerate(ids_of(whole)) if name in chosen], np.int64)
    part: Any = Repeated(whole, indices)
    part.division = division
    part.notes = (*getattr(whole, "notes", ()), division.told)
    return cast(Dataset, part)


def _whole(asked: DataConfig, classes: tuple[str, ...] | None) -> Dataset:
    """The data before they are divided: read as in an evaluation, images without objects among them."""
    options = {name: value for name, value in asked.options.items() if name != "reduced"}
    dataset: Dataset = DATASETS.get(asked.name)(replace(asked, options=options, keep_empty=True), "train", classes)
    return dataset


def with_division(config: Config, folder: Path) -> Config:
    """The config with the division that the run in ``folder`` has written down, if it has and the config names none."""
    if not config.data.shares or config.data.division or not (folder / DIVISION).is_file():
        return config
    return replace(config, data=replace(config.data, division=str(folder / DIVISION)))


def write_division(folder: Path, dataset: Dataset) -> None:
    """Write down which image is in which split, where ``dataset`` is a part of a divided one."""
    division: Division | None = getattr(dataset, "division", None)
    if division is not None:
        division.write(folder / DIVISION)


def open_splits(config: Config, task: TaskSpec) -> dict[str, Dataset]:
    """The splits ``train``, ``val`` and, where the config names it, ``test``, with the label map of the first. Splits that
    number their classes in another way raise :class:`UserError`."""
    whole = _whole(replace(config.data, labels=task.labels(config)), None) if config.data.shares else None
    train = _opened(config, task, "train", None, whole)
    others = ("val", "test") if config.data.test else ("val",)
    datasets = {"train": train} | {split: _opened(config, task, split, train.classes, whole) for split in others}
    for split in others:
        same_labels(
            task, config, datasets[split], task.label_record(config, train), f"data.{split}", "the training data"
        )
    return datasets


def same_labels(
    task: TaskSpec, config: Config, dataset: Dataset, expected: Mapping[str, Any], where: str, other: str
) -> None:
    """Refuse a data set whose label record differs from ``expected``, that of ``other``; what that does not know is passed over."""
    for name, value in task.label_record(config, dataset).items():
        if name not in task.numbered_by_file and expected.get(name, value) != value:
            raise UserError(
                where,
                f"its {name} are {str(value)[:60]}, those of {other} {str(expected[name])[:60]}",
                "use one numbering",
            )
