"""Results files whose numbers do not mean what the format says, and images that have no detections: each told or refused in a line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests_support import QUIET

from effbackbones import UserError
from tasks.data.sample import Truth
from tasks.detect import main
from tasks.detection.readings import told_of_readings
from tasks.detection.results import ImageDetections
from tasks.detection.resultsfile import read_results


class Known:
    """Three images of 100 x 200 (H, W)."""

    ids, files, category_ids = ["1", "2", "3"], ["a.png", "b.png", "c.png"], [7]
    sizes = np.array([[100, 200]] * 3)


def record(box: list[float], image: int = 1, score: float = 0.5, category: int = 7) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def told(folder: Path, records: list[dict[str, Any]], **more: Any) -> list[str]:
    (folder / "r.json").write_text(json.dumps(records))
    said: list[str] = []
    read_results(folder / "r.json", Known(), said.append, **more)
    return said


def test_images_without_detections_are_counted(tmp_path: Path) -> None:
    assert told(tmp_path, [record([1, 2, 30, 40], 2)])[0].endswith(
        "1 detections in 1 of 3 images; 2 have none and count as empty"
    )


def test_boxes_that_are_there_twice_are_told(tmp_path: Path) -> None:
    rows = [record([1, 2, 30, 40]), record([1, 2, 30, 40], 2), record([1, 2, 30, 41])]
    assert len(told(tmp_path, rows)) == 1
    said = told(tmp_path, [*rows, record([1, 2, 30, 40], score=0.1)])
    assert said[1].endswith(
        "r.json: 1 boxes lie in an image twice, alike in class and corners: one of each counts as wrong"
    )


def test_scores_of_another_scale_are_told(tmp_path: Path) -> None:
    said = told(tmp_path, [record([k, 2, 30, 40], score=score) for k, score in enumerate((-0.5, 0.25, 1.0, 97.5))])
    assert len(said) == 2
    assert "warning: 2 of 4 scores lie outside of 0..1 (-0.5 to 97.5)" in said[1]
    assert len(told(tmp_path, [record([k, 2, 30, 40], score=float(k)) for k in (0, 1)])) == 1


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        (
            [[10, 20, 60, 70], [120, 30, 190, 90], [100, 10, 199.5, 100.0]],
            r"2 of 3 boxes reach out of their images, and as corners",
        ),
        ([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]], r"all 2 boxes have their numbers in 0..1: shares"),
    ],
)
def test_corners_and_shares_are_refused(tmp_path: Path, boxes: list[list[float]], says: str) -> None:
    rows = [record(box) for box in boxes]
    with pytest.raises(UserError, match=rf"r\.json: {says}.*; write x, y, width, height in pixels"):
        told(tmp_path, rows)
    assert len(told(tmp_path, rows, allow_bad_boxes=True)) == 1


@pytest.mark.parametrize(
    "boxes",
    [
        [[10, 20, 60, 70], [120, 30, 75, 60]],  # all inside of it
        [[150, 60, 80, 30], [100, 50, 120, 60]],  # beyond the image, but no corners: the width is less than x
        [[0, 0, 200, 100], [0, 0, 199, 99], [1, 1, 120, 90]],  # whole images
        [],
    ],
)
def test_boxes_as_the_format_has_them_pass(tmp_path: Path, boxes: list[list[float]]) -> None:
    assert len(told(tmp_path, [record(box) for box in boxes])) == 1


@pytest.mark.peer
def test_a_file_scored_without_images_has_the_ap_of_pycocotools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(5)
    boxes = [[float(x), float(y), float(w), float(h)] for x, y, w, h in rng.integers(8, 90, (60, 4))]
    truth = {
        "images": [{"id": 10**9 + n, "file_name": f"{n}.png", "width": 200, "height": 200} for n in range(12)],
        "categories": [{"id": 4, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [
            {
                "id": n + 1,
                "image_id": 10**9 + n % 12,
                "category_id": (4, 90)[n % 2],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for n, box in enumerate(boxes)
        ],
    }
    records = [
        record(
            [value + float(move) for value, move in zip(box, rng.normal(0, 4, 4), strict=True)],
            10**9 + n % 11,  # the last image has none
            float(rng.random()),
            (4, 90)[int(rng.integers(2))],
        )
        for n, box in enumerate(boxes)
    ]
    data, results = tmp_path / "data", tmp_path / "r.json"
    (data / "images").mkdir(parents=True)  # empty
    (data / "val.json").write_text(json.dumps(truth))
    shutil.copy(data / "val.json", data / "train.json")
    results.write_text(json.dumps(records))
    line = ["--data.root", str(data), "--data.train", "train.json", "--data.val", "val.json", "--data.image_size", "64"]
    assert (
        main(["evaluate", "--config", "coco", *line, "--predictions", str(results), "--out", str(tmp_path), *QUIET])
        == 0
    )
    ours = json.loads((tmp_path / "metrics.json").read_text())["model"]
    coco = COCO(data / "val.json")
    run = COCOeval(coco, coco.loadRes(str(results)), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    for place, name in enumerate(("AP", "AP50", "AP75")):
        assert ours[name] == pytest.approx(run.stats[place], abs=1e-9)
    assert 0 < ours["AP"] < 1
    assert "in 11 of 12 images; 1 have none and count as empty" in "".join(capsys.readouterr())


def test_corners_that_lie_in_their_images_are_known_by_the_objects() -> None:
    boxes = np.array([[10.0, 20, 15, 12], [40, 10, 20, 30], [5, 60, 10, 20], [30, 40, 12, 9]])
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    truths = [Truth(boxes[:2], np.zeros(2, np.int64), np.zeros(2, np.bool_), np.ones(2))] * 2

    def said(rows: np.ndarray) -> str:
        found = [
            ImageDetections(str(number), (100, 200), rows[:2], np.array([0.9, 0.5]), np.zeros(2, np.int64), "")
            for number in range(2)
        ]
        return told_of_readings(found, truths)

    assert said(boxes) == said(np.add(boxes, [0, 0, 3, 3])) == said(boxes[2:]) == said(np.full((4, 4), np.nan)) == ""
    assert said(corners) == (
        "warning: of 4 boxes looked at 0 lie on objects as they are, and 4 read as corners x0, y0, x1, y1: write x, y, width, height"
    )
    assert told_of_readings([], []) == ""


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (lambda b: np.concatenate([b[:, :2] + b[:, 2:] / 2, b[:, 2:]], 1), "x and y of the middle, width, height"),
        (lambda b: b[:, [1, 0, 3, 2]], "y, x, height, width"),
        (lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1)[:, [1, 0, 3, 2]], "corners y0, x0, y1, x1"),
    ],
)
def test_boxes_in_another_order_are_told(order: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    truths = [objects(SIZES[number % len(SIZES)], number) for number in range(20)]
    found = [
        ImageDetections(str(n), SIZES[n % len(SIZES)], order(truth.boxes), np.ones(6), truth.labels, "")
        for n, truth in enumerate(truths)
    ]
    assert told_of_readings(found, truths).endswith(f"read as {words}: write x, y, width, height")


SIZES = ((480, 640), (375, 500), (640, 427), (333, 500))


def objects(size: tuple[int, int], seed: int) -> Truth:
    rng, (height, width) = np.random.default_rng(seed), size
    sides = rng.uniform(0.1, 0.4, (6, 2)) * [width, height]
    starts = rng.uniform(0, 1, (6, 2)) * ([width, height] - sides)
    return Truth(np.concatenate([starts, sides], 1), np.zeros(6, np.int64), np.zeros(6, np.bool_), sides.prod(1))


@pytest.mark.parametrize("side", [320, 800, 1280])
@pytest.mark.parametrize(
    "words",
    ["stretched to {0} x {0}", "with a longer side of {0}", "in the middle of {0} x {0}", "with a shorter side of {0}"],
)
def test_boxes_of_resized_images_are_told(words: str, side: int) -> None:
    """Each way of resizing written out forwards, with a few pixels of error."""
    truths, found, rng = [], [], np.random.default_rng(1)
    for number in range(40):
        size = SIZES[number % len(SIZES)]
        truths.append(objects(size, number))
        scale = np.array([side / max(size)] * 4)
        if "stretched" in words:
            scale = np.array([side / size[1], side / size[0]] * 2)
        elif "shorter" in words:
            scale = np.array([side / min(size)] * 4)
        rows = truths[-1].boxes * scale + rng.uniform(-2, 2, (6, 4))
        if "middle" in words:
            rows[:, :2] += (side - np.array(size[::-1]) * side / max(size)) / 2
        found.append(ImageDetections(str(number), size, rows, rng.uniform(size=6), np.zeros(6, np.int64), ""))
    assert told_of_readings(found, truths).endswith(
        f"read as pixels of the image {words.format(side)}: write those of the file's image"
    )


def test_boxes_that_miss_everything_are_not_called_resized() -> None:
    truths = [objects(SIZES[number % len(SIZES)], number) for number in range(60)]
    wrong = [objects(SIZES[number % len(SIZES)], 1000 + number) for number in range(60)]
    found = [
        ImageDetections(str(number), SIZES[number % len(SIZES)], truth.boxes, np.ones(6), truth.labels, "")
        for number, truth in enumerate(wrong)
    ]
    assert told_of_readings(found, truths) == ""
