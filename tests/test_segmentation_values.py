"""What predict writes on request: masks in the values of the user's own, probabilities of every class and pixel."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import letterboxed, write_picture

from effbackbones.errors import UserError
from effbackbones.inference.results import Classes, Mask
from tasks.classification.files import PredictionFiles
from tasks.data.door.masks import masks
from tasks.data.sample import Sample
from tasks.segmentation.files import SegmentationFiles
from tasks.segmentation.results import restore
from tasks.segmentation.task import TASK
from tasks.segmentation.values import OwnValues, stored_values
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config, RunConfig

CLASSES = ["other", "road", "sky"]


def dataset(root: Path, values: Any, options: dict[str, Any]) -> Any:
    for folder in ("images", "masks"):
        (root / "train" / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 1)).save(root / "train/images/0.png")
    Image.fromarray(values).save(root / "train/masks/0.png")
    return masks(DataConfig(name="masks", root=str(root), options=options), "train", None)


def result_of(file: Path, scores: torch.Tensor, *, keep: bool = False) -> Mask:
    """What a predictor makes of probabilities [1, K, 64, 64] of an image."""
    image = np.asarray(Image.open(file))
    batch = letterboxed([Sample(image, "a", str(file))])
    (found,) = restore(batch, scores, keep=keep)
    kept = None if found.probabilities is None else found.probabilities.numpy()
    about: Any = str(file), image.shape[:2], tuple(CLASSES), lambda: image
    return Mask(*about, found.labels.numpy(), found.confidence.numpy(), kept)


GREY = np.array([[0, 128, 255]], np.uint8)
DEEP = np.array([[7, 700, 9]], np.uint16)
COLOURS = np.array([[[0, 0, 0], [128, 64, 128], [70, 130, 180]]], np.uint8)
CASES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "grey": (GREY, {"classes": CLASSES, "values": [0, 128, 255]}),
    "16 bits": (DEEP, {"classes": CLASSES, "values": [7, 700, 9]}),
    "colours": (COLOURS, {"colors": ["other=0,0,0", "road=128,64,128", "sky=70,130,180"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_predictions_in_the_values_of_the_training_masks(tmp_path: Path, name: str) -> None:
    """What is written reads, as the user's own masks do, to the classes that were predicted."""
    stored, options = CASES[name]
    data = dataset(tmp_path / "data", stored, options)
    record = json.loads(json.dumps(TASK.remembered(Config(), data)))["mask_values"]  # as a model file keeps it
    file = write_picture(tmp_path / "a.png", (64, 64))
    labels = (np.arange(64 * 64).reshape(64, 64) % 3).astype(np.uint8)
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 3).permute(2, 0, 1)[None].float()
    writer = SegmentationFiles(tmp_path / "out", CLASSES, lambda text: None, values=record)
    writer.update([result_of(file, scores)])
    writer.close()
    np.testing.assert_array_equal(data.read_mask(tmp_path / "out/values/a.png"), labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/index/a.png")), labels)
    said = json.loads((tmp_path / "out/classes.json").read_text())
    assert [row["stored"] for row in said["classes"]] == {
        "grey": [0, 128, 255],
        "16 bits": [7, 700, 9],
        "colours": ["0,0,0", "128,64,128", "70,130,180"],
    }[name]
    assert said["undefined"]["stored"] not in [row["stored"] for row in said["classes"]]


VOC = np.array([[0, 0, 0], [128, 64, 128], [70, 130, 180], [1, 2, 3]], np.uint8)


def palette_file(path: Path, indices: list[int], colours: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array([indices], np.uint8))
    image.putpalette(colours.tobytes())
    image.save(path)


@pytest.mark.parametrize("colours", [VOC, np.resize(VOC, (256, 3))], ids=["few", "256"])
@pytest.mark.parametrize(
    ("stored", "options", "values"),
    [
        ([0, 1, 2], {}, [0, 1, 2]),
        ([2, 0, 3], {"values": [2, 0, 3], "ignore": [1]}, [2, 0, 3]),
        ([2, 0, 1], {"format": "rgb", "colors": ["other=0,0,0", "road=128,64,128", "sky=70,130,180"]}, [0, 1, 2]),
    ],
    ids=["numbers", "others", "colours decide"],
)
def test_masks_with_a_palette_are_answered_with_it(
    tmp_path: Path, stored: list[int], options: dict[str, Any], values: list[int], colours: np.ndarray
) -> None:
    """Same indices, same colours, and the user's reader has back what was predicted, pixels without a class too."""
    data = dataset(tmp_path / "data", GREY, {"classes": CLASSES, "values": [0, 128, 255]})  # the image
    palette_file(tmp_path / "data/train/masks/0.png", stored, colours)
    named = {} if "colors" in options else {"classes": CLASSES}
    data = masks(DataConfig(name="masks", root=str(tmp_path / "data"), options={**named, **options}), "train", None)
    own = OwnValues.of(json.loads(json.dumps(stored_values(data))), CLASSES)
    assert own is not None
    assert own.values == values
    labels = np.array([[0, 1, 2] if "colors" in options else [0, 1, 2, 255]], np.uint8)
    own.picture(labels).save(tmp_path / "a.png")
    written = Image.open(tmp_path / "a.png")
    assert written.mode == "P"
    table = np.array(written.getpalette("RGB"), np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(table[: len(VOC)], VOC)
    np.testing.assert_array_equal(np.asarray(written)[0, :3], values)
    np.testing.assert_array_equal(data.read_mask(tmp_path / "a.png"), labels)


def test_palettes_that_differ_from_file_to_file_are_answered_with_a_whole_one(tmp_path: Path) -> None:
    for number, (indices, colours) in enumerate([([0, 1, 1], VOC[[0, 2]]), ([0, 1, 2], VOC), ([0, 1, 2], VOC)]):
        palette_file(tmp_path / f"train/masks/{number}.png", indices, colours)
        (tmp_path / "train/images").mkdir(exist_ok=True)
        Image.new("RGB", (3, 1)).save(tmp_path / f"train/images/{number}.png")
    data = masks(DataConfig(name="masks", root=str(tmp_path), options={"classes": CLASSES}), "train", None)
    assert data.read_mask.format == "rgb"
    own = OwnValues.of(stored_values(data), CLASSES)
    assert own is not None
    own.picture(np.array([[2, 0, 1]], np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))[0], VOC[[2, 0, 1]])
    assert Image.open(tmp_path / "a.png").mode == "P"


def test_numbers_of_classes_need_no_second_file(tmp_path: Path) -> None:
    data = dataset(tmp_path, np.array([[0, 1, 2]], np.uint8), {"classes": CLASSES})
    assert stored_values(data) is None
    merged = dataset(tmp_path, GREY, {"classes": CLASSES, "values": [0, 128, 255], "rename": ["sky=other"]})
    assert stored_values(merged) == {"format": "index", "values": [0, 128], "undefined": 254}  # 255 is a class
    assert OwnValues.of({"format": "index", "values": [0, 128]}, CLASSES) is None  # of a model with other classes


def test_probabilities_of_each_pixel(tmp_path: Path) -> None:
    file = write_picture(tmp_path / "a.png", (48, 64))
    torch.manual_seed(0)
    scores = torch.rand(1, 3, 64, 64).softmax(1)
    for _ in range(2):  # a second time into the same folder: under the same name
        writer = SegmentationFiles(tmp_path / "out", CLASSES, lambda text: None, probabilities=True)
        writer.update([result_of(file, scores, keep=True)])
        writer.close()
    assert [path.name for path in (tmp_path / "out/probabilities").iterdir()] == ["a.npy"]
    found = np.load(tmp_path / "out/probabilities/a.npy")
    assert (found.dtype, found.shape) == (np.float16, (3, 48, 64))
    np.testing.assert_allclose(found, scores[0, :, :48].numpy(), atol=1e-3)
    chosen = np.take_along_axis(found, np.asarray(Image.open(tmp_path / "out/index/a.png"))[None].astype(int), 0)[0]
    np.testing.assert_array_equal(chosen, found.max(0))  # where two are equal in float16, the one that was larger
    with pytest.raises(UserError, match=r"run\.probabilities: .*segment"):
        SegmentationFiles(tmp_path / "o", CLASSES, print, probabilities=True).update([result_of(file, scores)])
    assert Config(run=RunConfig(probabilities=True)).run.probabilities


@pytest.mark.parametrize(
    ("classes", "multilabel", "every", "written"),
    [
        (20, False, False, 20),
        (100, False, False, 100),
        (101, False, False, 5),
        (101, True, False, 101),
        (101, False, True, 101),
    ],
)
def test_all_classes_or_the_file_says_how_many(
    tmp_path: Path, classes: int, multilabel: bool, every: bool, written: int
) -> None:
    told: list[str] = []
    writer = PredictionFiles(tmp_path, [f"c{k}" for k in range(classes)], multilabel, told.append, every=every)
    probabilities = torch.rand(classes)
    names = tuple(f"c{k}" for k in range(classes))
    writer.update([Classes("a.png", (8, 8), names, lambda: np.zeros((8, 8, 3), np.uint8), probabilities.numpy())])
    writer.close()
    record = json.loads((tmp_path / "predictions.json").read_text())
    rows = record["images"][0]["predictions"]
    assert record["written"].startswith(f"{written} of {classes} classes")
    assert {row["label"]: row["probability"] for row in rows} == pytest.approx(
        {int(k): float(probabilities[k]) for k in probabilities.topk(written).indices}
    )
    with (tmp_path / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == written
    assert told[0].count("c") == 5
