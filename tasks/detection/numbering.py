"""Which class a category id of a results file means: by the names written beside the file, or by the numbers of the data."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import write_atomically
from tasks.data.dataset import Dataset
from tasks.data.files.jsonfile import parse, word

_SHOWN = 3
"""So many categories are named in a message."""


def categories_file(results: Path) -> Path:
    """The file beside a results file that names its categories: ``predictions.json`` has ``predictions.categories.json``."""
    return results.with_suffix(".categories.json")


def write_categories(results: Path, numbers: Sequence[int], classes: Sequence[str]) -> None:
    """Write beside a results file what its category ids mean, as annotation files say it: ``{"categories": [{"id", "name"}]}``."""
    said = [{"id": int(number), "name": name} for number, name in zip(numbers, classes, strict=True)]
    write_atomically(categories_file(results), (json.dumps({"categories": said}, indent=1) + "\n").encode())


def read_categories(results: Path) -> dict[int, str] | None:
    """The name of each category id, as the file beside a results file says; None where there is none. What is no such file, and an id
    that is there twice, raises :class:`UserError`."""
    path = categories_file(results)
    if not path.exists():
        return None
    said, names = parse(path, ("images", "annotations")).content.get("categories"), dict[int, str]()
    if not isinstance(said, list):
        raise UserError(
            str(path), f"categories: expected a list, found {word(said)}", 'write [{"id": 1, "name": "cat"}]'
        )
    for place, record in enumerate(said):
        number, name = (record.get("id"), record.get("name")) if isinstance(record, dict) else (None, None)
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str):
            what = f"categories[{place}]: expected a whole number id and a name, found {word(record)}"
            raise UserError(str(path), what, "correct it")
        if number in names:
            raise UserError(str(path), f"categories[{place}]: id {number} is there twice", "give each category its own")
        names[number] = name
    return names


class Numbering:
    """The label of each category id in a results file. ``labels``: what is known; ``ambiguous``: ids that mean one class in the data that
    are scored and another in those of training, with both names. ``told``: what the user should hear of it, or empty."""

    def __init__(self, labels: Mapping[int, int], ambiguous: Mapping[int, str] | None = None, told: str = "") -> None:
        self.labels, self.ambiguous, self.told = dict(labels), dict(ambiguous or {}), told

    def label(self, number: int) -> int:
        """-1 for an id that is not known."""
        return self.labels.get(number, -1)

    def refuse_ambiguous(self, results: Path, used: Iterable[Any]) -> None:
        """Raise :class:`UserError` where a results file has an id that two files mean different classes by."""
        found = [number for number in dict.fromkeys(used) if number in self.ambiguous]
        if found:
            shown = "; ".join(f"{number} is {self.ambiguous[number]}" for number in found[:_SHOWN])
            what = f"nothing says which numbering its category ids follow: {shown}"
            beside = categories_file(results).name
            remedy = (
                f'lay {beside} beside it, {{"categories": [{{"id": ..., "name": ...}}]}} (an annotation file will do)'
            )
            raise UserError(str(results), what, remedy)


def numbering_of(
    results: Path,
    classes: Sequence[str],
    numbers: Mapping[int, int],
    trained: Mapping[int, int],
    names_in_file: Mapping[str, str],
) -> Numbering:
    """How the ids of a results file are read: by the names beside it, otherwise as both files number ``classes``.

    ``numbers``: the label of each id in the file that is scored, ``trained``: the same in that of training, empty if nobody knows.
    ``names_in_file``: the class that a name in annotation files becomes, for categories that were renamed.
    """
    said, label_of = read_categories(results), {name: label for label, name in enumerate(classes)}
    unnamed = said is not None and [*said.values()] == [str(label) for label in range(len(said))]
    if said is not None and not (
        unnamed and label_of.keys().isdisjoint(said.values())
    ):  # a model whose classes have no names
        labels = {
            number: label_of[known]
            for number, name in said.items()
            if (known := name if name in label_of else names_in_file.get(name, name)) in label_of
        }
        held = set(numbers.values())
        other = any(numbers.get(number) != label for number, label in labels.items() if label in held)
        beside = f"{results}: classes are matched by the names in {categories_file(results).name}, not by id"
        return Numbering(labels, told=f"{beside}; the annotations number them otherwise" if other else "")
    ambiguous = {
        number: f"{classes[label]!r} in the data scored and {classes[trained[number]]!r} in those of training"
        for number, label in numbers.items()
        if trained.get(number, label) != label
    }
    return Numbering({**trained, **numbers}, ambiguous)


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
