"""Data sets are known by ids, labels and files: the same in another place, another after any change."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.data import fingerprint as module
from tasks.data.dataset import DATASETS, Dataset
from tasks.data.fingerprint import difference, fingerprint
from tasks.data.sample import Sample
from tasks.data.sampling import Repeated
from tasks.settings.data import DataConfig

SIZE = 16


def photo(path: Path, level: int, *, at: int = 0) -> None:
    """A grey image with one pixel of another colour: files of one length, whatever the level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIZE, SIZE, 3), level, np.uint8)
    pixels[at, at] = 255 - level
    Image.fromarray(pixels).save(path)


def mask(path: Path, rows: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((SIZE, SIZE), np.uint8)
    values[:rows] = 1
    Image.fromarray(values).save(path)


def folder(root: Path) -> None:
    for name in ("cat", "dog"):
        for index in range(3):
            photo(root / f"train/{name}/{index}.png", 50 + index + 100 * (name == "dog"))


def table(root: Path) -> None:
    for index in range(4):
        photo(root / f"{index}.png", 50 + index)
    (root / "train.csv").write_text("file,labels\n" + "".join(f"{index}.png,{'ab'[index % 2]}\n" for index in range(4)))


def coco(root: Path) -> None:
    for index in range(3):
        photo(root / f"{index}.png", 50 + index)
    images = [{"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in range(3)]
    square = [[1, 1, 9, 1, 9, 9, 1, 9]]
    objects = [
        {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [1, 1, 8, 8], "area": 64, "segmentation": square}
        for i in range(3)
    ]
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (root / "train.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": names}))


def masks(root: Path) -> None:
    for index in range(3):
        photo(root / f"train/images/{index}.png", 50 + index)
        mask(root / f"train/masks/{index}.png", 4 + index)


def edited(change: Callable[[Any], object]) -> Callable[[Path], object]:
    """A change of the COCO file."""

    def edit(root: Path) -> None:
        said = json.loads((root / "train.json").read_text())
        change(said)
        (root / "train.json").write_text(json.dumps(said))

    return edit


def swap(*names: str) -> Callable[[Path], object]:
    def exchange(root: Path) -> None:
        one, other = (root / name for name in names)
        one.rename(root / "away")
        other.rename(one)
        (root / "away").rename(other)

    return exchange


def written(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / "train.csv").write_text((root / "train.csv").read_text().replace(old, new))


KINDS: dict[str, tuple[Callable[[Path], None], DataConfig]] = {
    "folder": (folder, DataConfig(name="folder")),
    "table": (table, DataConfig(name="table", train="train.csv")),
    "coco": (coco, DataConfig(name="coco", train="train.json", labels=("boxes",))),
    "coco masks": (coco, DataConfig(name="coco", train="train.json", labels=("mask",))),
    "masks": (masks, DataConfig(name="masks", options={"classes": ["ground", "road"]})),
}
CHANGES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("folder", "renamed", lambda root: (root / "train/cat/2.png").rename(root / "train/cat/3.png"), "samples"),
    ("folder", "moved", lambda root: (root / "train/cat/2.png").rename(root / "train/dog/3.png"), "samples"),
    ("folder", "swapped", swap("train/cat", "train/dog"), "files"),
    ("folder", "replaced", lambda root: photo(root / "train/cat/1.png", 52), "files"),
    ("folder", "fewer", lambda root: (root / "train/cat/1.png").unlink(), "samples were 6 and are now 5"),
    ("table", "labels swapped", written("1.png,b\n2.png,a", "1.png,a\n2.png,b"), "labels"),
    ("table", "lines in another order", written("0.png,a\n1.png,b\n2.png,a", "2.png,a\n1.png,b\n0.png,a"), "samples"),
    ("table", "files swapped", swap("0.png", "2.png"), "files"),
    ("coco", "box moved", edited(lambda said: said["annotations"][1].update(bbox=[2, 1, 8, 8])), "labels"),
    ("coco", "box of another class", edited(lambda said: said["annotations"][1].update(category_id=1)), "labels"),
    ("coco", "crowd", edited(lambda said: said["annotations"][1].update(iscrowd=1)), "labels"),
    ("coco", "files swapped", swap("0.png", "2.png"), "files"),
    (
        "coco masks",
        "outline moved",
        edited(lambda said: said["annotations"][1].update(segmentation=[[1, 1, 9, 1, 9, 9, 1, 8]])),
        "labels",
    ),
    ("masks", "mask replaced", lambda root: mask(root / "train/masks/1.png", 7), "files"),
    ("masks", "masks swapped", swap("train/masks/0.png", "train/masks/1.png"), "files"),
    ("masks", "images swapped", swap("train/images/0.png", "train/images/1.png"), "files"),
]


def opened(kind: str, root: Path) -> Dataset:
    name = KINDS[kind][1].name
    dataset: Dataset = DATASETS.get(name)(replace(KINDS[kind][1], root=str(root)), "train", None)
    return dataset


@pytest.mark.parametrize(("kind", "what", "change", "expected"), CHANGES, ids=[f"{c[0]}: {c[1]}" for c in CHANGES])
def test_a_change_is_seen_and_named(
    kind: str, what: str, change: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    KINDS[kind][0](tmp_path / "data")
    before = json.loads(json.dumps(fingerprint(opened(kind, tmp_path / "data"))))
    copied = Path(shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile))
    assert difference(before, fingerprint(opened(kind, copied))) is None  # another place, other times
    change(copied)
    found = difference(before, fingerprint(opened(kind, copied)))
    assert found is not None
    assert found.startswith(expected)


def test_no_image_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, (make, _) in KINDS.items():
        make(tmp_path / kind)
        dataset = opened(kind, tmp_path / kind)
        with monkeypatch.context() as patch:
            patch.setattr("PIL.Image.open", lambda *given: pytest.fail("decoded"))
            fingerprint(dataset)
            fingerprint(Repeated(dataset, np.array([2, 0, 0])))


def test_a_part_of_a_data_set_is_known_by_its_samples(tmp_path: Path) -> None:
    coco(tmp_path)
    dataset = opened("coco", tmp_path)
    parts = [fingerprint(Repeated(dataset, np.array(chosen))) for chosen in ([0, 1], [1, 0], [0, 1, 2])]
    assert difference(parts[0], parts[1]) == "samples are others, or in another order"
    assert difference(parts[0], parts[2]) == "samples were 2 and are now 3"
    assert difference(parts[2], fingerprint(dataset)) is None


class Own:
    """A data set of the user's that says no more than it must."""

    classes = ("a", "b")

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((4, 4, 3), np.uint8), str(index), label=self.labels[index])


def test_of_a_data_set_of_the_users_some_samples_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(Own([0, 1, 0, 1]))
    assert difference(before, fingerprint(Own([0, 1, 0, 1]))) is None
    assert difference(before, fingerprint(Own([0, 1, 1, 0]))) == "labels were changed"
    assert difference(before, fingerprint(Repeated(Own([0, 1, 0, 1, 1]), np.arange(4)))) is None
    asked: list[int] = []
    monkeypatch.setattr(Own, "__getitem__", lambda self, index: asked.append(index) or Sample(np.zeros((1, 1, 3)), ""))
    fingerprint(Own([0] * 1000))
    assert len(asked) == module.READ


def test_of_many_files_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path)
    monkeypatch.setattr(module, "LOOKED_AT", 3)
    looked: list[str] = []
    honest = module._file
    monkeypatch.setattr(module, "_file", lambda path: looked.append(path) or honest(path))
    fingerprint(opened("folder", tmp_path))
    assert len(looked) == 3
