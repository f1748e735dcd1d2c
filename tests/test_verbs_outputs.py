"""In which forms ``predict`` writes what it finds, and that those who read them have it back."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import write_picture
from tests_support import QUIET, error_of

from effbackbones import build_model, load_predictor, save_model
from tasks.classify import main as classify
from tasks.data.door.boxes import yolo
from tasks.detect import main as detect
from tasks.joint import main as joint
from tasks.segment import main as segment
from tasks.settings.data import DataConfig

MAINS = {"cls": classify, "det": detect, "seg": segment}
CLASSES = ("a", "b: c", "é")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model file of each task, of random weights."""
    found = {}
    for task in MAINS:
        torch.manual_seed(0)
        model = build_model(task, "b0", num_classes=3, backbone_options={"width": 0.25, "depth": 0.3})
        model.classes = CLASSES
        found[task] = str(tmp_path_factory.mktemp(task) / "model.safetensors")
        save_model(model.eval(), found[task])
    return found


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two images in ``data/images``, one of them in a folder."""
    rng = np.random.default_rng(0)
    found = [write_picture(tmp_path / "data" / "images" / name, size) for name, size in PLACES.items()]
    for path, size in zip(found, PLACES.values(), strict=True):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return found


PLACES = {"deep/a.b.png": (50, 90), "c d.png": (64, 40)}


def line(model: str, out: Path, *more: str) -> list[str]:
    return ["predict", "--checkpoint", model, "--out", str(out), *QUIET, *more]


def test_yolo_text_is_read_back_as_the_boxes_that_were_found(
    models: Any, images: list[Path], tmp_path: Path, capsys: Any
) -> None:
    root = tmp_path / "data"
    words = line(models["det"], root, "--write", "yolo", str(root / "images"))
    assert detect([*words, "--threshold", "0"]) == 0, error_of(capsys)
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        *("classes.txt", "data.yaml", "images/c d.png", "images/deep/a.b.png", "labels/c d.txt", "labels/deep/a.b.txt")
    ]
    dataset = yolo(DataConfig(name="yolo", root=str(root), train="."), "train", None)
    assert dataset.classes == CLASSES
    expected = {one.source: one for one in load_predictor(models["det"], threshold=0.0)(images)}
    for index in range(len(dataset)):
        sample = dataset[index]
        result = expected[str(root / "images" / sample.path) if not Path(sample.path).is_absolute() else sample.path]
        assert sample.boxes is not None
        assert len(sample.boxes) > 10
        kept = (result.boxes[:, 2:] - result.boxes[:, :2] >= 1).all(1)  # thinner ones are no objects to train on
        assert np.abs(np.asarray(sample.boxes) - result.boxes[kept]).max() < 1e-3
        assert np.asarray(sample.box_labels).tolist() == result.labels[kept].tolist()
    assert detect([*words, "--threshold", "1"]) == 0  # our own are overwritten
    assert (root / "labels" / "c d.txt").read_text() == ""
    assert (root / "classes.txt").read_text(encoding="utf-8").split("\n") == [*CLASSES, ""]
    assert detect([*line(models["det"], tmp_path / "s", "--write", "yolo_scores"), str(images[1])]) == 0
    rows = [row.split() for row in (tmp_path / "s" / "labels" / "c d.txt").read_text().splitlines()]
    found = expected[str(images[1])]
    assert [float(row[5]) for row in rows] == pytest.approx(found.scores.tolist(), abs=1e-6)


def test_labels_of_others_and_images_of_one_stem_are_no_ones_to_overwrite(
    models: Any, tmp_path: Path, capsys: Any
) -> None:
    for name in ("x.png", "x.jpg"):
        write_picture(tmp_path / "images" / name)
    words = line(models["det"], tmp_path / "out", "--write", "yolo,csv", str(tmp_path / "images"))
    assert detect(words) == 2
    assert "would have the same labels, x.txt" in error_of(capsys)
    assert list((tmp_path / "out" / "labels").iterdir()) == []
    (tmp_path / "mine" / "labels").mkdir(parents=True)
    (tmp_path / "mine" / "labels" / "x.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    words = line(models["det"], tmp_path / "mine", "--write", "yolo", str(tmp_path / "images" / "x.png"))
    assert detect(words) == 2
    assert "was not written by predict" in error_of(capsys)
    assert (tmp_path / "mine" / "labels" / "x.txt").read_text() == "0 0.5 0.5 0.1 0.1\n"


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_have_a_row_for_each_box_and_one_for_an_image_without(
    models: Any, images: list[Path], tmp_path: Path, capsys: Any
) -> None:
    words = line(models["det"], tmp_path / "out", "--write", "csv,coco", *map(str, images))
    results = load_predictor(models["det"], top_k=4)(images)
    assert detect([*words, "--top-k", "4"]) == 0, error_of(capsys)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("predictions.categories.json", "predictions.json", "table.csv")
    ]
    rows = read_table(tmp_path / "out")
    assert len(rows) == len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 8
    for row, (path, result, place) in zip(
        rows, [(p, r, n) for p, r in zip(images, results, strict=True) for n in range(4)], strict=True
    ):
        assert (row["image"], int(row["height"]), int(row["width"])) == (str(path), *result.size)
        assert (row["video"], row["frame"], row["class"]) == ("", "", result.names[place])
        assert [float(row[key]) for key in ("x1", "y1", "x2", "y2")] == pytest.approx(result.boxes[place].tolist())
    assert detect([*words, "--threshold", "1"]) == 0
    rows = read_table(tmp_path / "out")
    assert [(row["image"], row["class"], row["score"]) for row in rows] == [(str(path), "", "") for path in images]


def test_tables_of_classes_and_of_masks(models: Any, images: list[Path], tmp_path: Path, capsys: Any) -> None:
    for task, forms, more in (("cls", "csv,pictures", ["--top-k", "2"]), ("seg", "csv,masks", [])):
        words = line(models[task], tmp_path / task, "--write", forms, *more, *map(str, images))
        assert MAINS[task](words) == 0, error_of(capsys)
    names = sorted(path.name for path in (tmp_path / "cls").iterdir())
    assert names == ["a.b.jpg", "c d.jpg", "table.csv"]
    for row, result in zip(read_table(tmp_path / "cls"), load_predictor(models["cls"])(images), strict=True):
        assert [row[f"class_{place}"] for place in (1, 2)] == [CLASSES[label] for label in result.order[:2]]
        assert "class_3" not in row
        assert float(row["probability_1"]) == pytest.approx(result.score)
    names = sorted(path.name for path in (tmp_path / "seg").iterdir())
    assert names == ["classes.json", "color", "index", "table.csv"]
    for row, path in zip(read_table(tmp_path / "seg"), images, strict=True):
        with Image.open(tmp_path / "seg" / "index" / path.name) as index:
            shares = np.bincount(np.asarray(index).ravel(), minlength=3)[:3] / (index.width * index.height)
        assert [float(row[f"share_{name}"]) for name in CLASSES] == pytest.approx(shares.tolist())


def test_parquet_has_what_csv_has(models: Any, images: list[Path], tmp_path: Path, capsys: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    words = line(models["det"], tmp_path / "out", "--write", "csv,parquet", "--top-k", "3", *map(str, images))
    assert detect(words) == 0, error_of(capsys)
    table = parquet.read_table(tmp_path / "out" / "table.parquet")
    assert [str(kind) for kind in table.schema.types[:4]] == ["string", "string", "int64", "double"]
    texts = [{key: "" if value is None else str(value) for key, value in row.items()} for row in table.to_pylist()]
    assert texts == read_table(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["table.csv", "table.parquet"]


def test_forms_that_a_task_has_not_are_one_line(
    models: Any, images: list[Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    cases = [
        ("seg", "yolo", "--write: YOLO has outlines, which lose holes"),
        ("seg", "coco", "--write: COCO has an outline or a mask for each object"),
        ("cls", "yolo", "--write: classify writes no 'yolo'"),
        ("det", "coc", "did you mean coco"),
        ("det", "", "--write: detect writes no ''"),
        ("det", "csv,parquet", 'install "effbackbones[parquet]"'),
    ]
    for task, forms, said in cases:
        assert MAINS[task](line(models[task], tmp_path / "out", "--write", forms, str(images[0]))) == 2
        assert said in error_of(capsys)
    (tmp_path / "file").touch()
    assert detect(line(models["det"], tmp_path / "file" / "out", "--write", "csv", str(images[0]))) == 2
    assert "cannot be made a folder" in error_of(capsys)


def test_several_tasks_write_each_what_it_has(images: list[Path], tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    small = {"width": 0.25, "depth": 0.3}
    model = build_model(("det", "seg"), "b0", num_classes={"det": 3, "seg": 3}, backbone_options=small)
    model.classes = {"det": CLASSES, "seg": CLASSES}
    save_model(model.eval(), tmp_path / "model.safetensors")
    words = line(str(tmp_path / "model.safetensors"), tmp_path / "out", "--write", "yolo,csv", *map(str, images))
    assert joint(words) == 0, error_of(capsys)
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    labels = {"detect/labels/deep/a.b.txt", "detect/labels/c d.txt"}
    assert written == labels | {"detect/classes.txt", "detect/data.yaml", "detect/table.csv", "segment/table.csv"}
