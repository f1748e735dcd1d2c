"""The threshold of the best F1: by hand, by trying all, in what a model file keeps, and in what results are cut by."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_detection_metrics import random_images
from test_scoring_intervals import labels, regions
from test_scoring_outcomes import made, of_images

from effbackbones.images.classsets import UNKNOWN
from effbackbones.images.geometry import ResizePlan
from effbackbones.inference.inputs import ImageSource
from effbackbones.inference.masks import restore_mask
from effbackbones.inference.results import Boxes, Classes
from effbackbones.inference.thresholds import BOXES, thresholds_of
from tasks.detection.files import DetectionFiles
from tasks.detection.metrics import match_image
from tasks.detection.yolotxt import YoloFiles
from tasks.scoring.labelled import LabelSetOutcomes
from tasks.scoring.operating import CURVE, best_f1, operating_point, operating_points
from tasks.scoring.pixels import PixelOutcomes
from tasks.segmentation.setmetrics import SetMetrics


def test_a_case_counted_by_hand() -> None:
    scores, hits = np.array([0.9, 0.8, 0.7, 0.4, 0.2]), np.array([True, False, True, True, False])
    point = best_f1(scores, hits, 4)
    # 3 of the first 4 are right, of 4 that there are: F1 6 / 8; the next lower score is 0.2.
    assert point == {"threshold": pytest.approx(0.3), "precision": 0.75, "recall": 0.75, "f1": 0.75}
    assert best_f1(scores, hits, 0) is None
    assert best_f1(scores, np.zeros(5, bool), 4) is None
    lowest = best_f1(np.array([0.5, 0.5]), np.array([True, False]), 1)  # equal scores are taken together
    assert lowest == {"threshold": 0.25, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=20), st.integers(0, 5))
def test_no_other_threshold_is_better(rows: list[tuple[int, bool]], missed: int) -> None:
    scores, hits = np.array([row[0] for row in rows]) / 6, np.array([row[1] for row in rows])
    positives = int(hits.sum()) + missed
    point = best_f1(scores, hits, positives)
    tried = [2 * int((hits & (scores >= t)).sum()) / (int((scores >= t).sum()) + positives or 1) for t in scores]
    if point is None:
        assert max(tried) == 0
    else:
        taken = scores >= point["threshold"]
        assert 2 * (hits & taken).sum() / (taken.sum() + positives) == pytest.approx(point["f1"])
        assert point["f1"] == pytest.approx(max(tried))


def test_boxes_are_judged_at_an_iou_of_a_half() -> None:
    images = random_images(4, 12, 2, levels=1000, odd_areas=False)
    _, outcomes = of_images(images, 2)
    point = operating_point(outcomes)
    assert point is not None
    right = taken = there = 0
    for mine, objects in images:
        kept = mine.scores >= point["threshold"]
        chosen = type(mine)(mine.id, mine.size, mine.boxes[kept], mine.scores[kept], mine.labels[kept])
        matches = match_image(chosen, objects)
        right, taken = right + int(matches.correct.sum()), taken + int((~matches.ignored).sum())
        there += int((~objects.crowd).sum())
    assert point["f1"] == pytest.approx(2 * right / (taken + there))
    assert set(point["per_class"]) == {"class 0", "class 1"}
    assert len(point["curve"]["f1"]) == CURVE
    assert max(point["curve"]["f1"]) <= point["f1"] + 1e-4


def test_what_has_a_threshold_and_what_has_none() -> None:
    assert operating_point(labels(np.random.default_rng(0), 30)) is None  # five classes of which each image has one
    assert operating_point(regions(np.random.default_rng(0), 30)) is None
    assert operating_points(None) == {}
    for kind in ("classes", "binary"):
        _, outcomes = made(kind, 3, 60, 3)
        point = operating_points({"cls": outcomes})["cls"]
        assert 0 < point["threshold"] < 1
        assert 0.3 < point["f1"] <= 1
    assert list(point["per_class"]) == ["cat"]


def detector(point: Any = None) -> Any:
    """As much of a detector of two classes as thresholds need."""
    head = SimpleNamespace(task="det", num_classes=2)
    kept = {} if point is None else {"operating_point": {"": point}}
    return SimpleNamespace(head=head, provenance=kept, config={}, classes=("cat", "dog"))


def boxes(threshold: float) -> Boxes:
    """An image with boxes of scores 0.9, 0.5 and 0.1."""
    corners, scores = np.array([[1.0, 1, 9, 9]] * 3), np.array([0.9, 0.5, 0.1])
    image: Any = ImageSource("a.png", np.zeros((20, 20, 3), np.uint8))
    return Boxes("a.png", (20, 20), ("cat", "dog"), image, corners, scores, np.zeros(3, np.int64), threshold)


def test_one_rule_says_from_which_score_on_a_box_counts(tmp_path: Path) -> None:
    point = {"threshold": 0.7, "f1": 0.8, "thresholds": {"cat": 0.1, "dog": 0.2}}
    (own,) = thresholds_of(detector(point)).values()
    assert own.values == (0.7, 0.7)  # one ranking has one threshold
    said = "boxes are drawn and counted from score 0.700 on: the best F1 on the validation split (0.800), kept in the model file"
    assert own.told("det", ("cat", "dog")) == said
    assert thresholds_of(detector(point), 0.05)["det"].values == (0.05, 0.05)
    older = thresholds_of(detector())["det"]
    assert older.values == (BOXES, BOXES)
    assert "the model file keeps none" in older.told("det", ("cat", "dog"))
    for threshold, count in ((0.7, 1), (BOXES, 2), (0.05, 3)):
        told: list[str] = []
        result, out = boxes(threshold), tmp_path / str(threshold)
        files: list[Any] = [DetectionFiles(out, ["cat", "dog"], [1, 2], told.append), YoloFiles(out, ["cat", "dog"])]
        for writer in files:
            writer.update([result])
            writer.close()
        assert told == [f"a.png: {count} cat"]
        assert len((out / "labels" / "a.txt").read_text().splitlines()) == count
        assert (out / "predictions.json").read_text().count("score") == 3
        assert (result.to_dict()["threshold"], len(result.to_dict()["boxes"])) == (threshold, 3)
    # What is drawn is cut there as well: without boxes above it the picture is the image.
    assert not np.asarray(boxes(0.95).draw()).any()
    assert np.asarray(boxes(0.7).draw()).any()


def test_classes_that_may_be_there_together_have_a_threshold_each() -> None:
    head = SimpleNamespace(task="cls", num_classes=3, multilabel=True)
    point = {"threshold": 0.4, "f1": 0.7, "thresholds": {"a": 0.25, "c": 0.6}}
    model: Any = SimpleNamespace(
        head=head, provenance={"operating_point": {"": point}}, config={}, classes=("a", "b", "c")
    )
    own = thresholds_of(model)["cls"]
    assert own.values == (0.25, 0.4, 0.6)
    assert "a 0.250, b 0.400, c 0.600" in own.told("cls", model.classes)
    ground: Any = lambda: np.zeros((8, 8, 3), np.uint8)  # noqa: E731
    scores = np.array([0.3, 0.35, 0.7], np.float32)
    result = Classes("a.png", (8, 8), model.classes, ground, scores, True, own.values)
    assert result.names == ("c", "a")
    told = result.to_dict()
    assert told["there"] == ["c", "a"]
    assert [row["threshold"] for row in told["predictions"]] == [0.6, 0.4, 0.25]
    # Of heads that train together each has its own; what excludes the others needs none.
    both = SimpleNamespace(task="multi", heads={"cls": head, "seg": SimpleNamespace(multilabel=False)})
    joint: Any = SimpleNamespace(
        head=both, provenance={"operating_point": {"cls": point}}, config={}, classes={"cls": model.classes}
    )
    assert thresholds_of(joint) == {"cls": own}
    by_hand = SimpleNamespace(task="seg", num_classes=2, multilabel=True, thresholds=(0.5, 0.2))
    masks: Any = SimpleNamespace(
        head=by_hand,
        provenance={"operating_point": {"": point}},
        config={"head_options": {"threshold": [0.5, 0.2]}},
        classes=("a", "b"),
    )
    assert thresholds_of(masks)["seg"].values == (0.5, 0.2)  # said by hand
    masks.config = {}
    assert thresholds_of(masks)["seg"].values == (0.25, 0.4)


def test_a_class_with_few_examples_gets_the_threshold_of_all() -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((80, 2), np.int8)
    label[:40, 0], label[:3, 1] = 1, 1
    probability = (0.25 + 0.4 * label + rng.uniform(-0.2, 0.2, label.shape)).astype(np.float32)
    probability[:, 1] -= 0.1
    ids = tuple(map(str, range(80)))
    outcomes = LabelSetOutcomes(ids, ("often", "rare"), np.zeros(80, np.uint32), probability, label)
    point = operating_point(outcomes)
    assert point is not None
    own = point["per_class"]
    assert point["thresholds"] == {"often": own["often"]["threshold"], "rare": point["threshold"]}
    assert own["rare"]["threshold"] != point["threshold"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_pixels_of_classes_that_overlap_are_cut_where_f1_is_best(seed: int) -> None:
    """The thresholds of a set against all that were tried on its pixels; unknown pixels count nowhere."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, (40, 50)).astype(np.int32)
    there = np.stack([truth & 1, truth >> 1 & 1])
    plane = np.clip(rng.normal(0.3 + 0.3 * there, 0.2), 0, 1).astype(np.float16)
    truth[rng.random(truth.shape) < 0.1] = UNKNOWN
    scores, metric = torch.from_numpy(plane), SetMetrics(["a", "b"])
    metric.update([restore_mask(scores.float(), ResizePlan.squash((40, 50), (40, 50)), over=(0.5, 0.5))], [truth])
    ranked = metric.ranks()
    assert ranked.sum() == 2 * (truth != UNKNOWN).sum()
    outcomes = PixelOutcomes(("0",), ("a", "b"), *(np.zeros(1, np.uint32),) * 4, ranked)  # type: ignore[arg-type]
    point = operating_point(outcomes)
    assert point is not None
    for label, name in enumerate(("a", "b")):
        mine, right = plane[label][truth != UNKNOWN].astype(np.float32), there[label][truth != UNKNOWN] == 1
        tried = [2 * (right & (mine >= t)).sum() / ((mine >= t).sum() + right.sum()) for t in np.arange(100) / 100]
        assert point["per_class"][name]["f1"] == pytest.approx(max(tried), abs=2e-3)  # float16 at the edges
    assert set(point["thresholds"]) == {"a", "b"}


def test_large_masks_are_sampled_alike_in_bands() -> None:
    plan = ResizePlan.squash((700, 900), (700, 900))
    scores = torch.linspace(0, 1, 2 * 700 * 900).reshape(2, 700, 900)
    found = restore_mask(scores, plan, over=(0.5, 0.5))
    assert found.step == 3
    assert found.samples is not None
    torch.testing.assert_close(found.samples, plan.restore_rows(scores, 0, 700)[:, ::3, ::3].half(), atol=1e-3, rtol=0)
