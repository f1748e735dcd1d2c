"""Detections brought back to original pixels, and COCO results files: what is written is read again, what is wrong is named."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from effbackbones import Detections, ImageSizes, UserError
from effbackbones.images.geometry import ResizePlan, Size
from tasks.data.batch import Batch, ImageMeta
from tasks.data.sample import Truth
from tasks.detection.metrics import DetectionMetrics
from tasks.detection.results import ImageDetections, restore
from tasks.detection.resultsfile import read_results, write_results


@dataclass
class Known:
    """A data set as results files need it."""

    ids: Sequence[str]
    files: Sequence[str]
    category_ids: Sequence[int]
    sizes: np.ndarray = field(default_factory=lambda: np.full((9, 2), 100))


def image(id_: str, rows: Sequence[Sequence[float]], file: str = "") -> ImageDetections:
    """Rows of x, y, width, height, score, label."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return ImageDetections(id_, (100, 100), table[:, :4], table[:, 4], table[:, 5].astype(np.int64), file)


def same(one: ImageDetections, other: ImageDetections) -> bool:
    columns = ((one.boxes, other.boxes), (one.scores, other.scores), (one.labels, other.labels))
    return one.id == other.id and all(np.array_equal(a, b, equal_nan=True) for a, b in columns)


def batch_and_detections(
    plans: Sequence[ResizePlan | None], boxes: Tensor, count: Sequence[int], original: Size
) -> tuple[Batch, Detections]:
    scores, labels = (
        values.expand(boxes.shape[:2])
        for values in (torch.linspace(1, 0.5, boxes.shape[1]), torch.arange(boxes.shape[1]))
    )
    detections = Detections(boxes, scores, labels, torch.tensor(count))
    images = torch.zeros(len(plans), 3, 64, 64, dtype=torch.uint8)
    meta = [ImageMeta(str(number), f"{number}.jpg", original, plan) for number, plan in enumerate(plans)]
    return Batch(images, ImageSizes.of(images), None, meta), detections


def test_restored_boxes_lie_in_the_original_image() -> None:
    """Letterbox of 100 x 200 (H, W) to 64 x 64: scale 0.32; what reaches into the padding is cut off."""
    plan = ResizePlan.letterbox((100, 200), (64, 64))
    boxes = torch.tensor([[[16.0, 8, 32, 24], [32, 16, 80, 60], [1, 2, 3, 4]]]).repeat(2, 1, 1)
    first, second = restore(*batch_and_detections([plan, plan], boxes, [2, 0], (100, 200)))
    np.testing.assert_allclose(first.boxes, [[50, 25, 50, 50], [100, 50, 100, 50]])
    assert (first.id, first.size, first.file) == ("0", (100, 200), "0.jpg")
    assert first.labels.tolist() == [0, 1]
    assert (first.boxes.dtype, first.scores.dtype, first.labels.dtype) == (np.float64, np.float64, np.int64)
    assert (second.boxes.shape, second.scores.shape, second.labels.shape) == ((0, 4), (0,), (0,))


def test_restoring_leaves_what_is_not_finite_for_the_scores_to_count() -> None:
    plan = ResizePlan.letterbox((100, 200), (64, 64))
    boxes = torch.tensor(
        [[[0.0, 0, float("inf"), 10], [float("nan"), 0, 5, 5], [-float("inf"), 0, float("inf"), 5], [-5, -5, 5, 5]]]
    )
    (restored,) = restore(*batch_and_detections([plan], boxes, [4], (100, 200)))
    assert np.isfinite(restored.boxes).all(1).tolist() == [False, False, False, True]
    assert restored.boxes[3].tolist() == [0.0, 0.0, 15.625, 15.625]


def test_images_without_a_plan_are_as_they_were_or_are_refused() -> None:
    boxes = torch.tensor([[[1.0, 2, 30, 40]]])
    (restored,) = restore(*batch_and_detections([None], boxes, [1], (64, 64)))
    assert restored.boxes.tolist() == [[1, 2, 29, 38]]
    with pytest.raises(UserError, match=r"0\.jpg: is \[64, 64\] pixels large and was \[100, 64\]"):
        restore(*batch_and_detections([None], boxes, [1], (100, 64)))


class Copies(torch.utils._python_dispatch.TorchDispatchMode):
    """Stands in for a device: counts how often tensors are read by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.scalars += func._schema.name in ("aten::_local_scalar_dense", "aten::item")
        return func(*args, **(kwargs or {}))


def test_restoring_reads_no_single_values() -> None:
    plan = ResizePlan.letterbox((100, 200), (64, 64))
    given = batch_and_detections([plan] * 8, torch.rand(8, 5, 4) * 60, [5] * 8, (100, 200))
    with Copies() as watch:
        restore(*given)
    assert watch.scalars == 0


@pytest.mark.parametrize("category_ids", [(0, 1), (3, 7, 90)])
def test_what_is_written_is_read_again(tmp_path: Path, category_ids: tuple[int, ...]) -> None:
    rng, k = np.random.default_rng(0), len(category_ids)
    rows = [[*rng.uniform(0, 50, 4), rng.random(), label] for label in range(k) for _ in range(3)]
    written = [image("12", rows), image("7", []), image("scan-3", rows[::-1])]
    assert write_results(tmp_path / "r.json", written, category_ids) == 0
    records = json.loads((tmp_path / "r.json").read_text())
    assert {record["category_id"] for record in records} == set(category_ids)
    assert {record["image_id"] for record in records} == {12, "scan-3"}
    assert set(records[0]) == {"image_id", "category_id", "bbox", "score"}
    said: list[str] = []
    known = Known(["7", "12", "scan-3"], ["7.jpg", "12.jpg", "c.jpg"], category_ids)
    read = read_results(tmp_path / "r.json", known, said.append)
    assert [found.id for found in read] == ["7", "12", "scan-3"]
    assert all(same(a, b) for a, b in zip(read, [written[1], written[0], written[2]], strict=True))
    assert said == [f"{tmp_path / 'r.json'}: {6 * k} detections in 2 of 3 images; 1 have none and count as empty"]
    truths = [
        Truth(found.boxes, found.labels, np.zeros(len(found.labels), bool), np.ones(len(found.labels)))
        for found in read
    ]
    metric = DetectionMetrics([f"class {i}" for i in range(k)])
    metric.update(read, truths)
    assert metric.compute()["AP"] == 1.0


@pytest.mark.peer
def test_pycocotools_reads_the_file(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO(str(data_root / "coco_mini" / "annotations" / "instances_val2017.json"))
    ids = sorted(coco.cats)
    written = []
    for number, entry in coco.imgs.items():
        mine = [a for a in coco.imgToAnns[number] if not a["iscrowd"]]
        rows = [[*a["bbox"], 0.9, ids.index(a["category_id"])] for a in mine]
        path = f"{data_root}/coco_mini/val2017/{entry['file_name']}"
        written.append(image(path, rows, path))  # as of files that are predicted: the id is the path
    write_results(tmp_path / "r.json", written, ids)
    run = COCOeval(coco, coco.loadRes(str(tmp_path / "r.json")), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert run.stats[0] == 1.0
    first = json.loads((tmp_path / "r.json").read_text())[0]
    assert first["file_name"] == f"{first['image_id']:012d}.jpg"


def test_no_detections_make_an_empty_list(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [image("1", [])], [5])
    assert json.loads((tmp_path / "r.json").read_text()) == []
    (read,) = read_results(tmp_path / "r.json", Known(["1"], ["1.jpg"], [5]), lambda _: None)
    assert read.boxes.shape == (0, 4)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """The ids of predicted files are their paths; where stems collide the path itself is the id."""
    box = [[1, 2, 3, 4, 0.5, 0]]
    paths = [str(tmp_path / name) for name in ("a/1.jpg", "b/1.jpg", "b/0002.jpg", "b/x.y.png")]
    write_results(tmp_path / "r.json", [image(path, box, path) for path in paths], [4])
    records = json.loads((tmp_path / "r.json").read_text())
    assert [record["image_id"] for record in records] == ["a/1.jpg", "b/1.jpg", 2, "x.y"]
    assert [record["file_name"] for record in records] == ["a/1.jpg", "b/1.jpg", "b/0002.jpg", "b/x.y.png"]
    # In the data set the numbers are others: names decide.
    known = Known(["1", "2", "3", "9"], ["b/0002.jpg", "b/1.jpg", "a/1.jpg", "b/x.y.png"], [4])
    read = read_results(tmp_path / "r.json", known, lambda _: None)
    assert [len(found.labels) for found in read] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"image_id": 10}, 0),
        ({"image_id": "10"}, 0),
        ({"image_id": 2}, 1),  # "0002"
        ({"image_id": "0002"}, 1),
        ({"image_id": "x"}, 2),
        ({"image_id": 10, "file_name": "elsewhere.jpg"}, 0),
        ({"image_id": 10, "file_name": "c.jpg"}, 2),
        ({"image_id": 10, "file_name": "some/where/sub/c.jpg"}, 2),
        ({"image_id": 10, "file_name": "other/c.jpg"}, 0),
        ({"image_id": 10, "file_name": 5}, 0),
        ({"image_id": 11}, None),
        ({"image_id": "2"}, None),
    ],
)
def test_images_are_found_by_file_or_id(tmp_path: Path, record: dict[str, Any], row: int | None) -> None:
    known = Known(["10", "0002", "x"], ["a.jpg", "b.jpg", "sub/c.jpg"], [1])
    (tmp_path / "r.json").write_text(json.dumps([record | {"category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]))
    if row is None:
        with pytest.raises(UserError, match="1 unknown images: "):
            read_results(tmp_path / "r.json", known)
    else:
        read = read_results(tmp_path / "r.json", known, lambda _: None)
        assert [len(found.labels) for found in read] == [int(index == row) for index in range(3)]


def test_names_and_numbers_of_several_images_decide_nothing(tmp_path: Path) -> None:
    known = Known(["5", "7", "07", "9"], ["a/1.jpg", "b/1.jpg", "c.jpg", "d.jpg"], [1])
    record = {"category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}
    (tmp_path / "r.json").write_text(
        json.dumps([record | {"image_id": 5, "file_name": "1.jpg"}, record | {"image_id": "07"}])
    )
    assert [len(found.labels) for found in read_results(tmp_path / "r.json", known, lambda _: None)] == [1, 0, 1, 0]
    (tmp_path / "r.json").write_text(json.dumps([record | {"image_id": 7}]))
    with pytest.raises(UserError, match="1 unknown images: 7"):
        read_results(tmp_path / "r.json", known)


def test_unknown_images_and_categories_stop_with_count_and_first_three(tmp_path: Path) -> None:
    def records(change: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5} | change(number)
            for number in range(10)
        ]

    known, path = Known(["1"], ["1.jpg"], [3]), tmp_path / "r.json"
    path.write_text(json.dumps(records(lambda number: {"image_id": 90 + number // 2})))
    with pytest.raises(UserError, match=r"r\.json: 5 unknown images: 90, 91, 92; score it against"):
        read_results(path, known)
    path.write_text(json.dumps(records(lambda number: {"category_id": number})))
    with pytest.raises(UserError, match=r"r\.json: 9 unknown categories: 0, 1, 2; score it against"):
        read_results(path, known)


def test_what_is_not_finite_is_read_told_and_scored_as_wrong(tmp_path: Path) -> None:
    text = (
        '[{"image_id": 1, "category_id": 3, "bbox": [1, 2, NaN, 4], "score": 0.9},\n'
        '{"image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40], "score": 1e999},\n'
        '{"image_id": 1, "category_id": 3, "bbox": [1, 2, 1' + "0" * 400 + ', 40], "score": 0.9},\n'
        '{"image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40], "score": 0.5}]'
    )
    (tmp_path / "r.json").write_text(text)
    said: list[str] = []
    read = read_results(tmp_path / "r.json", Known(["1"], ["1.jpg"], [3]), said.append)
    assert "4 detections in 1 of 1 images; 3 are not finite and count as wrong" in said[0]
    metric = DetectionMetrics(["thing"])
    metric.update(read, [Truth(np.array([[1.0, 2, 30, 40]]), np.array([0]), np.array([False]), np.array([1200.0]))])
    result = metric.compute()
    assert (result["non_finite"], result["AP"]) == (3, pytest.approx(0.25))
    # JSON has no word for them: they are left out of a file that is written, and counted.
    assert write_results(tmp_path / "again.json", read, [3]) == 3
    assert [record["score"] for record in json.loads((tmp_path / "again.json").read_text())] == [0.5]


GOOD = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "r.json: is empty"),
        (json.dumps([GOOD])[:40], "r.json:1: is not JSON: "),
        (json.dumps([GOOD, GOOD], indent=1)[:90], "r.json:11: is not JSON: "),
        (b"\xff\xfe\x00", "r.json: is not JSON: "),
        ("[" * 200_000, "r.json: is not JSON: "),
        (json.dumps({"annotations": [GOOD]}), "r.json: expected a list of detections, found {"),
        (json.dumps([GOOD, 5]), "r.json: record 1: expected an object, found 5"),
        *(
            (
                json.dumps([GOOD, {key: value for key, value in GOOD.items() if key != gone}]),
                f"r.json: record 1: has no {gone}",
            )
            for gone in GOOD
        ),
        *(
            (json.dumps([GOOD, GOOD, GOOD | {key: value}]), f"r.json: record 2: {key}: expected ")
            for key, value in (
                ("bbox", [1, 2, 3]),
                ("bbox", ["1", "2", "3", "4"]),
                ("bbox", [1, 2, 3, True]),
                ("bbox", None),
                ("bbox", [1, 2, [3], 4]),
                ("score", "0.5"),
                ("score", None),
                ("score", False),
                ("image_id", None),
                ("image_id", 1.0),
                ("image_id", [1]),
                ("category_id", "3"),
                ("category_id", 3.0),
                ("category_id", True),
            )
        ),
    ],
)
def test_malformed_files_are_named_with_the_record(tmp_path: Path, content: str | bytes, says: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_results(path, Known(["1"], ["1.jpg"], [3]))
    assert str(error.value).startswith(f"{tmp_path}/{says}")
    assert "\n" not in str(error.value)


def test_missing_files_and_impossible_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.json: no such file"):
        read_results(tmp_path / "no.json", Known(["1"], ["1.jpg"], [3]))
    with pytest.raises(UserError, match="ab: labels 2 to 2, but 2 category ids"):
        write_results(tmp_path / "r.json", [image("ab", [[1, 2, 3, 4, 0.5, 2]])], [3, 4])
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    write_results(path, [image("1", [[1, 2, 3, 4, 0.5, 0]])], [3])
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_results(path, [replace(image("1", []), id="2")], [3])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_image_ids_of_any_length_stay_exact_and_those_that_would_clash_stay_texts(tmp_path: Path) -> None:
    ids = ["1623456789123456789", "1623456789123456790", "9" * 40, "7", "007"]
    one = np.array([[1.0, 2.0, 3.0, 4.0]])
    found = [ImageDetections(id_, (9, 9), one, np.array([0.5]), np.zeros(1, np.int64)) for id_ in ids]
    write_results(tmp_path / "r.json", found, (1,))
    written = [record["image_id"] for record in json.loads((tmp_path / "r.json").read_text())]
    assert written == [1623456789123456789, 1623456789123456790, int("9" * 40), "7", "007"]
