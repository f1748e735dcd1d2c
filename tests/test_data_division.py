"""Data of a single list divided into splits: each has its share of each class, groups stay together, and what was drawn is kept."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from scenes import write_picture
from tests_support import one_line

from effbackbones.errors import UserError
from tasks.classification.task import TASK as CLS
from tasks.data import fingerprint
from tasks.data.dataset import DATASETS
from tasks.data.division import Division, divided
from tasks.data.files.copies import copies
from tasks.data.knowledge import Knowledge
from tasks.data.sampling import Repeated
from tasks.detection.task import TASK as DET
from tasks.engine.splits import DIVISION, open_dataset, open_splits, with_division, write_division
from tasks.segmentation.task import TASK as SEG
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config, RunConfig


class Known:
    """Labels and nothing else."""

    def __init__(self, labels: list[int], classes: int) -> None:
        self.labels, self.classes = np.array(labels, np.int64), tuple(f"c{k}" for k in range(classes))
        self.ids = [f"g{index % 7}_{index}" for index in range(len(labels))]

    def known(self, index: int) -> fingerprint.Known:
        return fingerprint.Known(self.ids[index])

    def __len__(self) -> int:
        return len(self.labels)

    def occurrences(self) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(self)), self.labels

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("nothing is read to divide")


@given(
    labels=st.lists(st.integers(0, 4), min_size=12, max_size=120),
    share=st.floats(0.1, 0.6),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_each_split_has_its_share_of_each_class(labels: list[int], share: float, seed: int) -> None:
    dataset: Any = Known(labels, 5)
    found = divided(Knowledge.of(dataset), {"val": share}, seed=seed)
    train, val = (found.indices(dataset.ids, split) for split in ("train", "val"))
    assert sorted([*train, *val]) == list(range(len(labels)))
    for label, count in Counter(labels).items():
        here = int((dataset.labels[val] == label).sum())
        assert abs(here - share * count) <= 2  # one that rounds, one that an earlier class could not give
        assert count - here >= 1
    assert divided(Knowledge.of(dataset), {"val": share}, seed=seed) == found


@given(st.integers(0, 20), st.booleans())
@settings(max_examples=20, deadline=None)
def test_groups_stay_together(seed: int, by_class: bool) -> None:
    dataset: Any = Known([index % 3 for index in range(70)], 3)
    found = divided(Knowledge.of(dataset), {"val": 0.3, "test": 0.2}, seed=seed, by_class=by_class, group=r"^(g\d)_")
    groups = [{name[:2] for name in part} for part in found.parts.values()]
    assert sum(map(len, groups)) == 7
    assert sum(map(len, found.parts.values())) == 70
    assert "7 groups kept together" in found.told
    for pattern, message in (("(", "is no regular expression"), ("x", r"'x' is not found in the id 'g0_0'")):
        with pytest.raises(UserError, match=message):
            divided(Knowledge.of(dataset), {"val": 0.3}, seed=seed, group=pattern)


def test_a_share_of_nothing_is_refused() -> None:
    dataset: Any = Known([0, 1, 0], 2)
    with pytest.raises(UserError, match=r"data\.val: would have none of the 3 images"):
        divided(Knowledge.of(dataset), {"val": 0.01}, seed=0)


def folders(root: Path, counts: dict[str, int]) -> Config:
    for name, count in counts.items():
        for number in range(count):
            write_picture(root / name / f"{number}.png", (6, 8), number)
    return Config(data=DataConfig(root=str(root), val=0.25), run=RunConfig(seed=3))


@pytest.mark.parametrize("name", ["ap\nple", "ap\x1b[31mple", "ap\u2028ple", " "])
def test_names_of_classes_that_would_break_a_line_are_refused(tmp_path: Path, name: str) -> None:
    config = folders(tmp_path / "data", {name: 4, "pear": 4})
    with pytest.raises(UserError, match="control character") as caught:
        open_splits(config, CLS)
    one_line(caught, "data.train", "correct it")


def test_class_folders_without_splits(tmp_path: Path) -> None:
    config = folders(tmp_path / "data", {"apple": 8, "pear": 4})
    datasets = open_splits(config, CLS)
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 9, "val": 3}
    assert datasets["val"].classes == ("apple", "pear")
    assert Counter(datasets["val"][index].label for index in range(3)) == {0: 2, 1: 1}
    assert "12 images divided by class with seed 3: 9 train, 3 val" in datasets["val"].notes[0]  # type: ignore[attr-defined]
    assert not set(Knowledge.of(datasets["train"]).ids) & set(Knowledge.of(datasets["val"]).ids)
    assert (
        Knowledge.of(open_dataset(config, CLS, "val")).ids == Knowledge.of(datasets["val"]).ids
    )  # as evaluate opens it


def test_the_division_is_written_and_used_again(tmp_path: Path) -> None:
    config, run = folders(tmp_path / "data", {"apple": 8, "pear": 4}), tmp_path / "run"
    run.mkdir()
    before = open_splits(config, CLS)
    write_division(run, before["train"])
    again = with_division(Config(data=config.data, run=RunConfig(seed=99)), run)
    assert Knowledge.of(open_splits(again, CLS)["val"]).ids == Knowledge.of(before["val"]).ids
    assert with_division(Config(data=DataConfig(root="x")), run).data.division is None
    (tmp_path / "data/pear/9.png").write_bytes((tmp_path / "data/pear/0.png").read_bytes())
    with pytest.raises(UserError, match=r"1 samples are in the data and in no split of the division: pear/9\.png"):
        open_splits(again, CLS)
    (tmp_path / "data/pear/9.png").unlink()
    (tmp_path / "data/pear/0.png").unlink()
    with pytest.raises(UserError, match=r"1 samples are in the division and not in the data: pear/0\.png"):
        open_splits(again, CLS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"split\.json:1: is not JSON"),
        ("[]", "expected an object"),
        ('{"train": "ab", "val": []}', "lists no ids"),
        ('{"train": ["a"]}', "lists no ids under train and val"),
        ('{"train": ["a"], "val": ["a"]}', "has 'a' twice"),
        ('{"train": ["a"], "val": [1]}', "lists no ids"),
    ],
)
def test_a_division_file_is_looked_at(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / DIVISION).write_text(content)
    with pytest.raises(UserError, match=message):
        Division.read(tmp_path / DIVISION)


@pytest.mark.parametrize(("train", "val"), [("a.csv", 0.5), ("coco.json", 0.5)])
def test_every_reader_of_one_list(tmp_path: Path, train: str, val: float) -> None:
    for number in range(8):
        write_picture(tmp_path / f"{number}.png", (6, 8))
    (tmp_path / "a.csv").write_text("file,labels\n" + "".join(f"{k}.png,{'xy'[k % 2]}\n" for k in range(8)))
    images = [{"id": k, "file_name": f"{k}.png", "width": 8, "height": 6} for k in range(8)]
    boxes = [
        {"id": k, "image_id": k, "category_id": k % 2, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0} for k in range(8)
    ]
    names = [{"id": k, "name": "xy"[k]} for k in range(2)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": names}))
    name = "table" if train.endswith("csv") else "coco"
    config = Config(data=DataConfig(name=name, root=str(tmp_path), train=train, val=val))
    datasets = open_splits(config, CLS)
    assert [Counter(dataset[index].label for index in range(4)) for dataset in datasets.values()] == [{0: 2, 1: 2}] * 2
    paths = [path for dataset in datasets.values() for path in Knowledge.of(dataset).paths]
    assert sorted(paths) == [str(tmp_path / f"{number}.png") for number in range(8)]


@pytest.mark.parametrize("name", ["folder", "masks", "lines", "voc", "yolo"])
def test_a_split_by_name_is_never_the_whole_list_that_another_is_a_share_of(tmp_path: Path, name: str) -> None:
    folders(tmp_path, {"apple": 4, "pear": 4})
    for label in ("apple", "pear"):
        (tmp_path / f"{label}.txt").write_text(f"one {label}\ntwo {label}s\n")
        for file in (tmp_path / label).glob("*.png"):
            (tmp_path / label / f"{file.stem}.xml").write_text("<annotation/>")
    of_masks = {"classes": ["a", "b"], "images": "apple", "masks": "pear"}
    options: dict[str, Any] = {"masks": of_masks, "yolo": {"names": ["a"]}}.get(name, {})
    data = DataConfig(name=name, root=str(tmp_path), val="nowhere", test=0.25, options=options, labels=("label",))
    with pytest.raises(UserError, match=r"nowhere|\{split\}"):
        DATASETS.get(name)(data, "val", None)


def test_pairs_of_images_and_masks(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(6):
            Image.fromarray(np.array([[0, number % 2]], np.uint8)).save(tmp_path / folder / f"{number}.png")
    data = DataConfig(name="masks", root=str(tmp_path), val=0.34, options={"classes": ["a", "b"]})
    datasets = open_splits(Config(data=data), SEG)
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 4, "val": 2}
    mask = datasets["val"].mask(0)  # type: ignore[attr-defined]
    assert mask.tolist() == [[0, int(Knowledge.of(datasets["val"]).ids[0]) % 2]]
    with pytest.raises(UserError, match=r"expected .* with"):  # without a share the two are the same for all splits
        open_splits(Config(data=DataConfig(name="masks", root=str(tmp_path), options={"classes": ["a", "b"]})), SEG)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"val": 1.5}, r"data\.val: expected a number in \(0, 1\)"),
        ({"val": 0.6, "test": 0.5}, "less than 1 together"),
        ({"test": 0.0}, r"data\.test: expected a number in \(0, 1\)"),
    ],
)
def test_shares_are_looked_at(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(**settings_)


def test_views_of_views_know_their_images() -> None:
    dataset: Any = Known([0, 1, 2, 1], 3)
    view: Any = Repeated(Repeated(dataset, np.array([3, 3, 0, 2])), np.array([0, 3, 1]))
    assert Knowledge.of(view).ids == [dataset.ids[place] for place in (3, 2, 3)]
    images, labels = Knowledge.of(view).occurrences or (None, None)
    assert (images.tolist(), labels.tolist()) == ([0, 1, 2], [1, 2, 1])  # type: ignore[union-attr]  # they are known


def voc_set(root: Path, count: int) -> DataConfig:
    """Annotation files beside their images, without lists; image 3 is there again as 7 and 8."""
    for number in range(count):
        write_picture(root / f"{number}.png", (40, 50), 3 if number in (7, 8) else number)
        box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
        (root / f"{number}.xml").write_text(
            f"<annotation><object><name>{'ab'[number % 2]}</name>{box}</object></annotation>"
        )
    return DataConfig(name="voc", root=str(root), val=0.25)


def yolo_set(root: Path, count: int) -> DataConfig:
    for number in range(count):
        write_picture(root / "images" / f"{number}.png", (40, 50), 3 if number in (7, 8) else number)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{number}.txt").write_text(f"{number % 2} .5 .5 .2 .2\n")
    (root / "classes.txt").write_text("a\nb\n")
    return DataConfig(name="yolo", root=str(root), val=0.25)


@pytest.mark.parametrize("made", [voc_set, yolo_set])
def test_boxes_of_one_folder_are_divided_by_id_and_copies_stay_together(tmp_path: Path, made: Any) -> None:
    data = made(tmp_path / "data", 20)
    for seed in range(6):
        config = Config(data=data, run=RunConfig(seed=seed))
        datasets = open_splits(config, DET)
        train, val = (Knowledge.of(datasets[split]).ids for split in ("train", "val"))
        assert sorted([*train, *val], key=int) == [str(number) for number in range(20)]
        assert 4 <= len(val) <= 6
        assert len({"3", "7", "8"} & set(val)) in (0, 3)
        assert {datasets["val"].classes, datasets["train"].classes} == {("a", "b")}
        assert Knowledge.of(open_dataset(config, DET, "val")).ids == val  # as evaluate opens it
        assert "3 that are there more than once kept together" in datasets["val"].notes[-1]  # type: ignore[attr-defined]
    moved = tmp_path / "moved"
    (tmp_path / "data").rename(moved)
    again = open_splits(Config(data=replace(data, root=str(moved)), run=RunConfig(seed=5)), DET)
    assert Knowledge.of(again["val"]).ids == val


def test_copies_are_files_that_are_the_same_byte_by_byte(tmp_path: Path) -> None:
    contents = [b"x" * 9000, b"y" + b"x" * 8999, b"x" * 9000, b"x" * 8999, b"", b"", b"y" + b"x" * 8999]
    paths = []
    for number, content in enumerate(contents):
        paths.append(str(tmp_path / str(number)))
        (tmp_path / str(number)).write_bytes(content)
    assert copies([*paths, "", "", str(tmp_path / "gone"), str(tmp_path / "gone")]) == [[0, 2], [1, 6], [4, 5]]


def test_where_most_images_are_copies_they_are_not_kept_together(tmp_path: Path) -> None:
    for number in range(8):
        write_picture(tmp_path / "ab"[number % 2] / f"{number}.png", (6, 8))
    division = open_splits(Config(data=DataConfig(root=str(tmp_path), val=0.5)), CLS)["val"]
    assert len(division) == 4
    assert "8 images are there more than once, too many to be kept together" in division.notes[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("made", "says"), [(None, "NoneType, which has no classes"), (["a"], "list, which has no classes")]
)
def test_what_is_no_data_set_is_told(made: Any, says: str, lend: Any) -> None:
    lend(DATASETS, {"odd": lambda data, split, classes: made})
    with pytest.raises(UserError, match=rf"data\.name 'odd': gives {says}"):
        open_splits(Config(data=DataConfig(name="odd")), CLS)
