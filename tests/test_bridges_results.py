"""Results in the words of other tools."""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tests_support import one_line

import effbackbones.bridges as bridges
from effbackbones import UserError
from effbackbones.bridges.labelstudio import brush_runs
from effbackbones.inference.results import Boxes, Classes, Mask

NAMES = ("cat", "dog", "red panda")
HEAD = {"source": "a/b.jpg", "size": (40, 80), "classes": NAMES, "original": lambda: np.zeros((40, 80, 3), np.uint8)}


def classes_result(**options):
    return Classes(**HEAD, probabilities=np.array([0.2, 0.7, 0.6], np.float32), **options)


def boxes_result(count=2):
    boxes = np.array([[8.0, 4, 40, 24], [0, 0, 80, 40]])[:count]
    return Boxes(**HEAD, boxes=boxes, scores=np.array([0.9, 0.4])[:count], labels=np.array([2, 0])[:count])


def mask_result():
    labels = np.full((40, 80), 255, np.uint8)
    labels[4:24, 8:40], labels[30:, :] = 2, 0
    return Mask(**HEAD, labels=labels, confidence=np.where(labels == 2, 0.75, 0.5).astype(np.float32))


def decoded(runs: list[int], size: tuple[int, int]) -> np.ndarray:
    """The first channel of a picture in the run lengths of Label Studio's brush, by a reader of the format's description."""
    bits = "".join(f"{byte:08b}" for byte in runs)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    fields = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        same, length = take(1), take(fields[take(2)]) + 1
        values += [take(word)] * length if same else [take(word) for _ in range(length)]
    return np.array(values, np.uint8).reshape(*size, 4)[..., 3]


@pytest.mark.parametrize("seed", range(3))
def test_brush_runs_are_the_mask(seed):
    draw = np.random.default_rng(seed)
    mask = draw.random((37, 61)) < (0.5, 0.02, 0.999)[seed]
    np.testing.assert_array_equal(decoded(brush_runs(mask), mask.shape), mask * 255)


def test_brush_runs_are_long_where_the_mask_is_plain():
    mask = np.zeros((400, 300), bool)
    mask[100:300] = True
    assert len(brush_runs(mask)) < 100
    np.testing.assert_array_equal(decoded(brush_runs(mask), mask.shape), mask * 255)


def test_brush_runs_are_read_by_label_studio():
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    mask = np.random.default_rng(0).random((37, 61)) < 0.3
    found = brush.decode_rle(brush_runs(mask)).reshape(37, 61, 4)[..., 3]
    np.testing.assert_array_equal(found, mask * 255)


def test_label_studio_tasks():
    cls, det, seg = bridges.to_label_studio(
        [classes_result(), boxes_result(), mask_result()], url=lambda s: f"http://x/{s}"
    )
    assert cls["data"] == {"image": "http://x/a/b.jpg"}
    (region,) = cls["predictions"][0]["result"]
    assert (region["type"], region["value"]) == ("choices", {"choices": ["dog"]})
    first, second = det["predictions"][0]["result"]
    assert (first["original_width"], first["original_height"]) == (80, 40)
    assert first["value"] == {
        "x": 10,
        "y": 10,
        "width": 40,
        "height": 50,
        "rotation": 0,
        "rectanglelabels": ["red panda"],
    }
    assert (first["score"], second["score"], det["predictions"][0]["score"]) == (0.9, 0.4, pytest.approx(0.65))
    regions = seg["predictions"][0]["result"]
    assert [one["value"]["brushlabels"] for one in regions] == [["cat"], ["red panda"]]
    np.testing.assert_array_equal(decoded(regions[1]["value"]["rle"], (40, 80)) > 0, mask_result().labels == 2)
    assert json.loads(json.dumps([cls, det, seg]))
    assert bridges.to_label_studio([boxes_result(0)])[0]["predictions"][0]["result"] == []
    assert bridges.to_label_studio([classes_result(multilabel=True)])[0]["predictions"][0]["result"][0]["value"] == {
        "choices": ["dog", "red panda"]
    }
    with pytest.raises(UserError) as error:
        bridges.to_label_studio([{"det": boxes_result()}])
    one_line(error, "to_label_studio", "dict", "one task")


def test_label_studio_takes_its_config_and_tasks():
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    for task, result in (("cls", classes_result()), ("det", boxes_result()), ("seg", mask_result())):
        config = interface(bridges.label_studio_config(task, [*NAMES, 'a "b" & <c>']))
        (found,) = bridges.to_label_studio([result])
        assert config.validate_prediction(found["predictions"][0])
        (control,) = config.controls
        assert list(control.labels)[:3] == list(NAMES)


def test_label_studio_config_of_an_unknown_task_is_one_line():
    with pytest.raises(UserError) as error:
        bridges.label_studio_config("pose", NAMES)
    one_line(error, "'pose'", "cls, det, seg")


def test_supervision_has_boxes_masks_and_classes():
    sv = pytest.importorskip("supervision")
    found = bridges.to_supervision(boxes_result())
    assert isinstance(found, sv.Detections)
    np.testing.assert_array_equal(found.xyxy, boxes_result().boxes)
    assert list(found.data["class_name"]) == ["red panda", "cat"]
    assert list(found[found.confidence > 0.5].class_id) == [2]
    assert len(bridges.to_supervision(boxes_result(0))) == 0
    masks = bridges.to_supervision(mask_result())
    assert list(masks.class_id) == [0, 2]
    np.testing.assert_array_equal(masks.mask[1], mask_result().labels == 2)
    np.testing.assert_array_equal(masks.xyxy[1], [8, 4, 40, 24])
    assert list(masks.confidence) == [0.5, 0.75]
    names = bridges.to_supervision({"cls": classes_result()})["cls"]
    assert (list(names.class_id), names.get_top_k(1)[0][0]) == ([1, 2, 0], 1)
    picture = sv.BoxAnnotator().annotate(np.zeros((40, 80, 3), np.uint8), found)
    assert picture.any()
    with pytest.raises(UserError) as error:
        bridges.to_supervision(3)
    one_line(error, "to_supervision", "int")


@pytest.fixture
def fiftyone(monkeypatch, tmp_path):
    """FiftyOne itself where it is installed, without asking anybody; else what stands for its labels."""
    for name, value in {"FIFTYONE_DO_NOT_TRACK": "1", "FIFTYONE_DATABASE_DIR": str(tmp_path)}.items():
        monkeypatch.setitem(os.environ, name, value)
    try:
        import fiftyone
    except ImportError:
        kinds = ("Classification", "Classifications", "Detection", "Detections", "Segmentation")
        fiftyone = SimpleNamespace(**{kind: type(kind, (SimpleNamespace,), {}) for kind in kinds})
        monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    monkeypatch.delitem(sys.modules, "effbackbones.bridges.fiftyone", raising=False)
    return fiftyone


def test_fiftyone_has_labels(fiftyone):
    found = bridges.to_fiftyone(classes_result())
    assert isinstance(found, fiftyone.Classification)
    assert (found.label, found.confidence) == ("dog", pytest.approx(0.7))
    several = bridges.to_fiftyone(classes_result(multilabel=True)).classifications
    assert [one.label for one in several] == ["dog", "red panda"]
    boxes = bridges.to_fiftyone({"det": boxes_result()})["det"].detections
    assert boxes[0].bounding_box == [0.1, 0.1, 0.4, 0.5]
    assert (boxes[0].label, boxes[1].confidence) == ("red panda", 0.4)
    np.testing.assert_array_equal(bridges.to_fiftyone(mask_result()).mask, mask_result().labels)
    with pytest.raises(UserError) as error:
        bridges.to_fiftyone(3)
    one_line(error, "to_fiftyone", "int")
