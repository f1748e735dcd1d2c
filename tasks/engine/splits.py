"""From a config to the data sets of its splits, divided where they come in one piece."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from effbackbones.errors import UserError
from tasks.data.dataset import DATASETS, Dataset
from tasks.data.division import Division, divided
from tasks.data.knowledge import Knowledge
from tasks.data.sampling import Part, Repeated, spread
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
    return _opened(config, task, (split,), classes)[split]


def open_splits(config: Config, task: TaskSpec) -> dict[str, Dataset]:
    """The splits ``train``, ``val`` and, where the config names it, ``test``, with the label map of the first. Splits that
    number their classes in another way raise :class:`UserError`."""
    datasets = _opened(config, task, ("train", "val", "test") if config.data.test else ("train", "val"), None)
    expected = task.label_record(config, datasets["train"])
    for split, dataset in datasets.items():
        if split != "train":
            same_labels(task, config, dataset, expected, f"data.{split}", "the training data")
    return datasets


def _opened(
    config: Config, task: TaskSpec, splits: Sequence[str], classes: tuple[str, ...] | None
) -> dict[str, Dataset]:
    """These splits; where ``classes`` are None, those of the first are those of the others too. Data of a single list are opened and
    divided once for all of them."""
    asked = replace(config.data, labels=task.labels(config))
    open_data, limits = DATASETS.get(asked.name), {"train": asked.limit_train, "val": asked.limit_val}
    parts = ("train", *asked.shares) if asked.shares else ()
    if any(split in parts for split in splits):
        # Read as in an evaluation, images without objects among them.
        options = {name: value for name, value in asked.options.items() if name != "reduced"}
        whole = open_data(replace(asked, options=options, keep_empty=True), "train", classes)
        ids, division = _divided(whole, asked, config.run.seed)
    for_training_alone = bool(asked.options.get("reduced")) or not asked.keep_empty
    datasets: dict[str, Dataset] = {}
    for split in splits:
        dataset: Any
        if split not in parts:
            dataset = open_data(asked, split, classes)
        else:
            dataset, indices = whole, division.indices(ids, split)
            if split == "train" and for_training_alone:
                dataset, chosen = open_data(asked, split, classes), set(division.parts[split])
                there = [place for place, name in enumerate(Knowledge.of(dataset).ids) if name in chosen]
                indices = np.array(there, np.int64)
            dataset = Part(dataset, indices, division)
        if missing := [name for name in ("classes", "__len__", "__getitem__") if not hasattr(dataset, name)]:
            what = f"gives {type(dataset).__name__}, which has no {missing[0]}"
            raise UserError(f"data.name {asked.name!r}", what, "see Dataset in tasks/data/dataset.py")
        if len(dataset) == 0:
            remedy = "check data.root and the name of the split"
            raise UserError(f"data.{split}", f"data set {asked.name!r} has no sample", remedy)
        _refuse_unwritable(dataset.classes, split)
        if (limit := limits.get(split)) and limit < len(dataset):
            dataset = Repeated(dataset, spread(len(dataset), limit))
        datasets[split], classes = dataset, dataset.classes if classes is None else classes
    return datasets


def _refuse_unwritable(classes: Sequence[str], split: str) -> None:
    """Raise :class:`UserError` for names of classes that would break the lines of what is told and written."""
    for name in classes:
        if not name.strip() or any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
            what = f"the name of a class is blank or holds a control character, such as a line's end: {name[:60]!r}"
            raise UserError(f"data.{split}", what, "correct it in the data")


def _divided(whole: Dataset, asked: DataConfig, seed: int) -> tuple[list[str], Division]:
    """The ids of data of a single list, and their division by shares or as written down."""
    known = Knowledge.of(whole)
    if asked.division:
        return known.ids, Division.read(Path(asked.division))
    by_class, group = asked.split_by == "class", asked.split_group
    return known.ids, divided(known, asked.shares, seed=seed, by_class=by_class, group=group)


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
