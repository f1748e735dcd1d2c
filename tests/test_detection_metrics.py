"""Detection scores: equal to pycocotools, independent of batches, order and processes, never raised by what is not finite."""

import contextlib
import copy
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests_support import COCO_SCORES, class_names

from effbackbones import UserError
from tasks.data.sample import Truth
from tasks.detection.metrics import CONFIDENT, DetectionMetrics, match_image
from tasks.detection.results import ImageDetections

Images = list[tuple[ImageDetections, Truth]]


def found(id_: str, rows: Sequence[Sequence[float]]) -> ImageDetections:
    """Rows of x, y, width, height, score, label."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return ImageDetections(id_, (480, 640), table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def truth(rows: Sequence[Sequence[float]], area: Sequence[float] | None = None) -> Truth:
    """Rows of x, y, width, height, label, crowd."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    areas = table[:, 2] * table[:, 3] if area is None else np.array(area, np.float64)
    return Truth(table[:, :4], table[:, 4].astype(np.int64), table[:, 5] > 0, areas)


def score(images: Images, classes: int, max_dets: int = 100, batch: int = 3) -> dict[str, Any]:
    metric = DetectionMetrics(class_names(classes), max_dets)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        metric.update([mine for mine, _ in part], [objects for _, objects in part])
    return metric.compute()


def random_images(seed: int, n: int, k: int, *, levels: int = 10, odd_areas: bool = True, most: int = 8) -> Images:
    """Images whose ids have gaps, some of them empty, with objects, crowds, areas unlike their boxes, and detections near and far
    from them. On whole pixels and with few score levels, so that IoUs and scores tie."""
    rng = np.random.default_rng(seed)
    images = []
    for id_ in rng.choice(np.arange(1, 10 * n + 1), n, replace=False).tolist():
        m = int(rng.integers(0, most)) * int(rng.random() < 0.8)
        sides = np.rint(np.exp(rng.uniform(1, 5.5, (m, 2))))
        boxes = np.concatenate([rng.integers(0, 300, (m, 2)), sides], 1)
        labels, crowd = rng.integers(0, k, m), rng.random(m) < 0.15
        area = boxes[:, 2] * boxes[:, 3] * (rng.choice([1.0, 0.4, 0.0, 1e7], m) if odd_areas else 1.0)
        copies = rng.integers(0, m, int(rng.integers(0, 2 * m))) if m else np.zeros(0, np.int64)
        near = boxes[copies] + np.rint(rng.normal(0, 1, (len(copies), 4)) * boxes[copies][:, [2, 3, 2, 3]] * 0.08)
        far = np.rint(rng.uniform(1, 200, (int(rng.integers(0, most)), 4)))
        rows = np.concatenate([np.abs(near), far])
        kinds = np.concatenate(
            [np.where(rng.random(len(copies)) < 0.9, labels[copies], 0), rng.integers(0, k, len(far))]
        )
        scores = rng.integers(0, levels + 1, len(rows)) / levels
        order = rng.permutation(len(rows))
        mine = ImageDetections(str(id_), (480, 640), rows[order], scores[order], kinds[order].astype(np.int64))
        images.append((mine, Truth(boxes.astype(np.float64), labels, crowd, area)))
    return images


def reference(
    images: Images, classes: int, max_dets: Sequence[int] = (1, 10, 100)
) -> tuple[dict[str, float | None], Any]:
    """The twelve lines by pycocotools, and its evaluation."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sides: list[list[dict[str, Any]]] = [[], []]
    for mine, objects in images:
        common = {"image_id": int(mine.id), "iscrowd": 0}
        for box, label, crowd, area in zip(
            objects.boxes.tolist(), objects.labels, objects.crowd, objects.area, strict=True
        ):
            rest = {"category_id": int(label), "bbox": box, "iscrowd": int(crowd), "area": float(area)}
            sides[0].append(common | rest | {"id": len(sides[0]) + 1})
        for box, label, value in zip(mine.boxes.tolist(), mine.labels, mine.scores, strict=True):
            rest = {"category_id": int(label), "bbox": box, "score": float(value), "area": box[2] * box[3]}
            sides[1].append(common | rest | {"id": len(sides[1]) + 1})
    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for annotations in sides:
            coco = COCO()
            coco.dataset = {
                "images": [{"id": int(mine.id)} for mine, _ in images],
                "annotations": annotations,
                "categories": [{"id": label} for label in range(classes)],
            }
            coco.createIndex()
            sets.append(coco)
        run = COCOeval(*sets, "bbox")
        run.params.maxDets = list(max_dets)
        run.evaluate()
        run.accumulate()
        if list(max_dets) == [1, 10, 100]:
            run.summarize()
    precision, recall = run.eval["precision"], run.eval["recall"]
    values = [
        precision[..., 0, -1],
        precision[0, ..., 0, -1],
        precision[5, ..., 0, -1],
        *(precision[..., a, -1] for a in (1, 2, 3)),
        *(recall[..., 0, m] for m in range(len(max_dets))),
        *(recall[..., a, -1] for a in (1, 2, 3)),
    ]
    lines = [*COCO_SCORES[:6], *(f"AR_{most}" for most in max_dets), *COCO_SCORES[9:]]
    means = [float(value[value > -1].mean()) if (value > -1).any() else None for value in values]
    if list(max_dets) == [1, 10, 100]:
        assert [-1 if mean is None else mean for mean in means] == run.stats.tolist()
    return dict(zip(lines, means, strict=True)), run


def assert_equal(result: dict[str, Any], expected: dict[str, float | None]) -> None:
    assert list(result)[: len(expected)] == list(expected)
    for line, value in expected.items():
        assert result[line] == (None if value is None else pytest.approx(value, abs=1e-9)), line


def coco_images(file: Path, seed: int | None) -> tuple[Images, int]:
    """Images of an annotation file; detections are the truth itself (``seed`` None), or jittered, doubled and thinned."""
    content = json.loads(file.read_text())
    label = {
        category["id"]: index
        for index, category in enumerate(sorted(content["categories"], key=lambda item: item["id"]))
    }
    rng = np.random.default_rng(seed)
    images = []
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        objects = truth([[*a["bbox"], label[a["category_id"]], a["iscrowd"]] for a in mine], [a["area"] for a in mine])
        rows = np.flatnonzero(~objects.crowd) if seed is None else rng.integers(0, max(len(mine), 1), 3 * len(mine))
        boxes, labels = objects.boxes[rows], objects.labels[rows]
        if seed is not None:
            boxes = boxes + rng.normal(0, 0.1, boxes.shape) * boxes[:, [2, 3, 2, 3]]
            labels = np.where(rng.random(len(rows)) < 0.8, labels, rng.integers(0, len(label), len(rows)))
        scores = np.ones(len(rows)) if seed is None else rng.random(len(rows)).round(2)
        images.append(
            (ImageDetections(str(image["id"]), (image["height"], image["width"]), boxes, scores, labels), objects)
        )
    return images, len(label)


@pytest.mark.peer
@pytest.mark.parametrize("max_dets", [100, 10, 300])
def test_real_annotations_with_crowds_equal_pycocotools(
    data_root: Path, max_dets: int, capsys: pytest.CaptureFixture[str]
) -> None:
    crowds = 0
    for split in ("train", "val"):
        images, k = coco_images(data_root / "coco_mini" / "annotations" / f"instances_{split}2017.json", seed=1)
        crowds += sum(int(objects.crowd.sum()) for _, objects in images)
        limits = sorted({1, 10, max_dets})
        expected, run = reference(images, k, limits)
        result = score(images, k, max_dets)
        assert capsys.readouterr() == ("", "")
        assert_equal(result, expected)
        assert 0.05 < result["AP"] < result["AP50"] < 1
        for index, row in enumerate(result["per_class"].values()):
            own = run.eval["precision"][:, :, index, 0, -1]
            assert row["ap"] == (None if (own == -1).all() else pytest.approx(own.mean(), abs=1e-9))
            assert row["ap50"] == (None if (own == -1).all() else pytest.approx(own[0].mean(), abs=1e-9))
    assert crowds >= 5


@pytest.mark.peer
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 8),
    k=st.integers(1, 5),
    levels=st.sampled_from([1, 3, 1000]),
    max_dets=st.sampled_from([100, 100, 1, 3, 10, 300]),
    odd_areas=st.booleans(),
)
def test_made_up_sets_equal_pycocotools(seed: int, n: int, k: int, levels: int, max_dets: int, odd_areas: bool) -> None:
    images = random_images(seed, n, k, levels=levels, odd_areas=odd_areas)
    limits = sorted({1, 10, max_dets} if max_dets >= 10 else {1, max_dets})
    assert_equal(score(images, k, max_dets), reference(images, k, limits)[0])


@pytest.mark.peer
def test_max_dets_governs_the_main_score_too() -> None:
    """Right boxes come after 150 wrong ones: nothing is found among 100, all among 300."""
    objects = truth([[10 * i, 0, 9, 9, 0, 0] for i in range(20)])
    rows = [[10 * i, 300, 9, 9, 0.9, 0] for i in range(150)] + [[10 * i, 0, 9, 9, 0.5, 0] for i in range(20)]
    images = [(found("1", rows), objects)]
    assert score(images, 1)["AP"] == 0.0
    wide = score(images, 1, 300)
    assert wide["AR_300"] == 1.0
    assert "AR_100" not in wide
    assert_equal(wide, reference(images, 1, (1, 10, 300))[0])
    assert wide["AP"] > 0.1


def test_truth_as_predictions_is_exactly_one(data_root: Path) -> None:
    for split in ("train", "val"):
        images, k = coco_images(data_root / "coco_mini" / "annotations" / f"instances_{split}2017.json", seed=None)
        result = score(images, k)
        assert [result[line] for line in ("AP", "AP50", "AP_small", "AP_medium", "AP_large", "AR_100")] == [1.0] * 6
        assert {row["ap"] for row in result["per_class"].values()} <= {1.0, None}


def test_a_case_counted_by_hand() -> None:
    objects = truth([[0, 0, 100, 100, 0, 0], [200, 0, 100, 100, 0, 0]])
    mine = found(
        "7", [[0, 0, 100, 100, 0.9, 0], [400, 300, 50, 50, 0.8, 0], [200, 0, 100, 62, 0.7, 0], [9, 9, 20, 20, 0.5, 1]]
    )
    empty = found("3", [[1, 1, 50, 50, CONFIDENT, 0], [1, 1, 50, 50, 0.1, 0], [5, 5, 10, 10, 0.9, 1]])
    result = score([(mine, objects), (empty, truth([]))], 3)
    # Falling: right, false alarm on "3" (0.9, of class 1: apart), wrong (0.8), right up to IoU 0.6 (its IoU is 0.62), ...
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert result["AP50"] == pytest.approx(loose)
    assert result["AP75"] == pytest.approx(strict)
    assert result["AP"] == pytest.approx((3 * loose + 7 * strict) / 10)
    assert result["AR_1"] == 0.5
    assert result["AR_100"] == pytest.approx((3 * 1 + 7 * 0.5) / 10)
    assert (result["AP_small"], result["AP_medium"]) == (None, None)
    assert result["AP_large"] > result["AP"]  # the small wrong box is not held against large objects
    assert (result["images"], result["boxes"], result["detections"], result["non_finite"]) == (2, 2, 7, 0)
    assert result["false_positives_on_empty"] == 2.0
    first = {"ap": result["AP"], "ap50": result["AP50"], "ar": result["AR_100"], "ground_truth": 2, "detections": 5}
    assert result["per_class"]["class 0"] == pytest.approx(first)
    assert result["per_class"]["class 1"] == {"ap": None, "ap50": None, "ar": None, "ground_truth": 0, "detections": 2}
    curves = result["precision_recall"]
    assert curves["recall"] == pytest.approx(np.linspace(0, 1, 101).tolist())
    assert curves["iou50"] == [1.0] * 51 + [0.6667] * 50
    assert curves["iou75"] == [1.0] * 51 + [0.0] * 50
    assert curves["iou"][-1] == pytest.approx(0.3 * 2 / 3, abs=1e-4)
    assert result["precision_recall_per_class"] == {"class 0": curves["iou50"]}
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_second_box_on_one_object_is_wrong() -> None:
    rows = [[0, 0, 50, 50, 0.9, 0], [0, 0, 50, 50, 0.9, 0], [100, 0, 50, 50, 0.8, 0]]
    result = score([(found("1", rows), truth([[0, 0, 50, 50, 0, 0], [100, 0, 50, 50, 0, 0]]))], 1)
    assert result["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_undefined_is_not_zero_and_nothing_found_is() -> None:
    nothing = DetectionMetrics(class_names(2)).compute()
    unannotated = score([(found("1", [[0, 0, 9, 9, 0.9, 0]]), truth([]))], 2)
    only_crowd = score([(found("1", [[0, 0, 9, 9, 0.9, 0]]), truth([[0, 0, 50, 50, 0, 1]]))], 2)
    for result in (nothing, unannotated, only_crowd):
        assert [result[line] for line in COCO_SCORES] == [None] * 12
        assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (nothing["images"], nothing["false_positives_on_empty"]) == (0, None)
    assert unannotated["false_positives_on_empty"] == 1.0
    assert only_crowd["false_positives_on_empty"] is None
    silent = score([(found("1", []), truth([[0, 0, 50, 50, 1, 0]]))], 2)
    assert [silent[line] for line in ("AP", "AP50", "AP_medium", "AR_1", "AR_100")] == [0.0] * 5
    assert (silent["AP_small"], silent["per_class"]["class 0"]["ap"], silent["per_class"]["class 1"]["ap"]) == (
        None,
        None,
        0.0,
    )


@pytest.mark.peer
def test_ids_that_are_numbers_are_sorted_as_numbers() -> None:
    """Of equal scores the image with the lower id comes first: 9 before 10."""
    right, wrong = [[0, 0, 50, 50, 0.5, 0]], [[200, 0, 50, 50, 0.5, 0]]
    objects = truth([[0, 0, 50, 50, 0, 0]])
    for first, second in (("9", "10"), ("10", "9")):
        images = [(found(first, right), objects), (found(second, wrong), objects)]
        assert_equal(score(images, 1), reference(images, 1)[0])
    assert score([(found("9", right), objects), (found("10", wrong), objects)], 1)["AP"] == pytest.approx(51 / 101)
    assert score([(found("10", right), objects), (found("9", wrong), objects)], 1)["AP"] == pytest.approx(
        0.5 * 51 / 101
    )
    assert score([(found("b", right), objects), (found("a/\udcff", wrong), objects)], 1)["AP"] == pytest.approx(
        0.5 * 51 / 101
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), k=st.integers(1, 4), batch=st.integers(1, 9))
def test_batches_and_order_do_not_matter(seed: int, n: int, k: int, batch: int) -> None:
    images = random_images(seed, n, k, levels=3)
    shuffled = [images[index] for index in np.random.default_rng(seed).permutation(n)]
    assert score(shuffled, k, batch=batch) == score(images, k, batch=n)


def figures(result: dict[str, Any]) -> dict[str, float | None]:
    """Everything in a result that should be high."""
    per_class = {f"{name} {key}": row[key] for name, row in result["per_class"].items() for key in ("ap", "ap50", "ar")}
    alarms = result["false_positives_on_empty"]
    return {line: result[line] for line in COCO_SCORES} | per_class | {"quiet": None if alarms is None else -alarms}


def injected(images: Images, rng: np.random.Generator) -> tuple[Images, int]:
    """The images with one to three detections that are not finite in one of their five numbers; and how many they are."""
    places = [(image, row) for image, (mine, _) in enumerate(images) for row in range(len(mine.labels))]
    chosen = rng.choice(len(places), int(rng.integers(1, 4)), replace=False)
    changed = list(images)
    for image, row in (places[index] for index in chosen.tolist()):
        mine, objects = copy.deepcopy(changed[image])
        table = np.column_stack([mine.boxes, mine.scores])
        table[row, rng.integers(5)] = rng.choice([np.nan, np.inf, -np.inf])
        changed[image] = replace(mine, boxes=table[:, :4], scores=table[:, 4]), objects
    return changed, len(chosen)


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_non_finite_detections_never_raise_a_score(rounds: int) -> None:
    """Fifty times a round, and neither against the result before nor against the one without them."""
    rng = np.random.default_rng(0)
    lowered = 0
    for round_ in range(rounds):
        images = random_images(round_, 6, 2, levels=20, odd_areas=round_ % 2 == 1)
        clean = figures(score(images, 2))
        for _ in range(50):
            changed, count = injected(images, rng)
            result = score(changed, 2)
            assert result["non_finite"] == count
            dirty = figures(result)
            for name, value in clean.items():
                assert value is dirty[name] is None or dirty[name] <= value + 1e-12, name
            lowered += dirty["AP"] < clean["AP"] - 1e-12
    assert lowered > 5 * rounds


def test_a_non_finite_detection_is_wrong_for_every_size() -> None:
    """Alone it finds nothing (pycocotools: AP 1.0); before a right one it is one false positive, whatever the size."""
    objects = truth([[0, 0, 20, 20, 0, 0], [100, 0, 50, 50, 0, 0], [200, 0, 120, 120, 0, 0]])
    right = [[*box, 0.5, 0] for box in objects.boxes.tolist()]
    for row in (
        [np.nan, 0, 20, 20, 0.9, 0],
        [0, 0, 20, np.inf, 0.9, 0],
        [0, 0, 20, 20, np.nan, 0],
        [0, 0, 20, 20, -np.inf, 0],
    ):
        alone = score([(found("1", [row]), objects)], 1)
        assert (alone["AP"], alone["AR_100"], alone["non_finite"]) == (0.0, 0.0, 1)
        result = score([(found("1", [*right, row]), objects)], 1)
        assert result["AP"] == pytest.approx(0.75)
        assert [result[f"AP_{size}"] for size in ("small", "medium", "large")] == pytest.approx([0.5] * 3)
    assert (
        score([(found("1", [*right, [np.nan, 0, 20, 20, 0.1, 0]]), objects)], 1)["AP"] == 1.0
    )  # at its score, the last


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([(found("ab", []), None)], "ab: has no truth to score against; give its sample boxes"),
        ([(found("ab", [[0, 0, 1, 1, 0.5, 2]]), truth([]))], "ab: predicted labels 2 to 2, but 2 classes"),
        ([(found("ab", []), truth([[0, 0, 1, 1, -1, 0]]))], "ab: true labels -1 to -1, but 2 classes"),
        ([(found("ab", []), truth([[0, 0, np.nan, 1, 0, 0]]))], "ab: has a true box that is not finite"),
        ([(found("ab", []), truth([]))] * 2, "image 'ab': is scored twice"),
        ([(replace(found("ab", []), scores=np.zeros(2)), truth([]))], "ab: expected predicted boxes [n, 4]"),
    ],
)
def test_impossible_input_is_named(images: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        score(images, 2)
    assert says in str(error.value)


def test_impossible_settings_are_refused() -> None:
    for classes, max_dets in ((["cat", "cat"], 100), ([], 100), (["cat"], 0)):
        with pytest.raises(UserError, match="distinct class names"):
            DetectionMetrics(classes, max_dets)
    with pytest.raises(UserError, match="1 predicted images, 0 with truth"):
        DetectionMetrics(["cat"]).update([found("1", [])], [])


def test_reset_starts_again_even_under_inference_mode() -> None:
    images = random_images(3, 6, 2)
    metric = DetectionMetrics(class_names(2))
    with torch.inference_mode():
        metric.update(*map(list, zip(*images, strict=True)))
        metric.reset()
        metric.update(*map(list, zip(*images[:4], strict=True)))
    metric.update(*map(list, zip(*images[4:], strict=True)))
    assert metric.compute() == score(images, 2)


def score_share(rank: int) -> list[Any]:
    """Process ``rank`` of 2 scores its share; for one of the sets the second process has no image at all."""
    results = []
    for share in (slice(rank, None, 2), slice(0, None if rank == 0 else 0)):
        metric = DetectionMetrics(class_names(3))
        for mine, objects in random_images(5, 11, 3, levels=3)[share]:
            metric.update([mine], [objects])
        results.append(metric.compute())
    return results


def score_whole() -> list[Any]:
    """What each process of :func:`score_share` has to find."""
    whole = score(random_images(5, 11, 3, levels=3), 3)
    assert 0 < whole["AP"] < 1
    return [whole, whole]


def test_matching_of_one_image_by_hand() -> None:
    objects = truth([[0, 0, 100, 100, 0, 0], [300, 0, 50, 50, 0, 0], [0, 200, 300, 200, 0, 1], [500, 0, 40, 40, 1, 0]])
    rows = [
        [0, 0, 100, 80, 0.6, 0],  # right, but a better one has taken the object
        [0, 0, 100, 60, 0.9, 0],
        [50, 250, 40, 40, 0.8, 0],  # in the crowd, as is the next: both ignored
        [60, 250, 40, 40, 0.7, 0],
        [500, 0, 40, 40, 0.9, 0],  # of another class
        [300, 0, 50, np.nan, 0.9, 0],
        [300, 0, 50, 20, 0.9, 0],  # IoU 0.4
    ]
    matches = match_image(found("1", rows), objects)
    assert matches.correct.tolist() == [False, True, False, False, False, False, False]
    assert matches.ignored.tolist() == [False, False, True, True, False, False, False]
    assert matches.truth.tolist() == [-1, 0, 2, 2, -1, -1, -1]
    assert matches.found.tolist() == [True, False, False, False]
    assert match_image(found("1", rows), objects, iou=0.4).found.tolist() == [True, True, False, False]
    twins = truth([[0, 0, 100, 100, 0, 0], [0, 0, 100, 100, 0, 0]])
    assert match_image(found("1", rows[:1]), twins).truth.tolist() == [1]  # of equals the last, as pycocotools has it
    nobody = match_image(found("1", []), objects)
    assert (nobody.correct.tolist(), nobody.found.tolist()) == ([], [False] * 4)
    nothing = match_image(found("1", rows), truth([]))
    assert (nothing.truth.tolist(), nothing.found.tolist()) == ([-1] * 7, [])


@pytest.mark.peer
def test_matching_of_one_image_equals_pycocotools() -> None:
    right = ignored = 0
    for seed in range(15):
        images = random_images(seed, 6, 2, levels=1000)
        _, run = reference(images, 2)
        cells = {
            (cell["image_id"], cell["category_id"]): cell for cell in run.evalImgs if cell and cell["aRng"] == [0, 1e10]
        }
        first_id = 1
        for mine, objects in images:
            for threshold, iou in ((0, 0.5), (5, 0.75)):
                matches = match_image(mine, replace(objects, area=np.ones(len(objects.labels))), iou)
                for label in range(2):
                    rows = np.flatnonzero(mine.labels == label)
                    rows = rows[np.argsort(-mine.scores[rows], kind="stable")]
                    cell = cells.get((int(mine.id), label))
                    expected = cell["dtMatches"][threshold] if cell else np.zeros(len(rows))
                    assert (matches.truth[rows] + first_id).tolist() == [
                        id_ or first_id - 1 for id_ in expected.tolist()
                    ]
            right += int(matches.correct.sum())
            ignored += int(matches.ignored.sum())
            first_id += len(objects.labels)
    assert right > 30
    assert ignored > 5
