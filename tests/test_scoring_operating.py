"""The threshold of the best F1: by hand, by trying all, and in what a model file keeps and ``predict`` draws by."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_detection_metrics import random_images
from test_scoring_intervals import labels, regions
from test_scoring_outcomes import made, of_images

from effbackbones.inference.inputs import ImageSource
from effbackbones.inference.results import Boxes
from tasks.detection.files import DetectionFiles
from tasks.detection.metrics import CONFIDENT, match_image
from tasks.detection.task import drawing_threshold
from tasks.scoring.operating import CURVE, best_f1, operating_point, operating_points


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


def drawn(point: Any, tmp_path: Path, threshold: float | None = None) -> list[str]:
    """What the writer of a model that keeps ``point`` tells of an image with boxes of scores 0.9, 0.5 and 0.1."""
    told: list[str] = []
    model: Any = SimpleNamespace(provenance=point)
    files = DetectionFiles(tmp_path, ["cat"], [1], told.append, *drawing_threshold(model))
    corners, scores = np.array([[1.0, 1, 9, 9]] * 3), np.array([0.9, 0.5, 0.1])
    image: Any = ImageSource("a.png", np.zeros((20, 20, 3), np.uint8))
    files.update([Boxes("a.png", (20, 20), ("cat",), image, corners, scores, np.zeros(3, np.int64), threshold)])
    files.close()
    return told


def test_boxes_are_drawn_from_the_threshold_that_the_model_file_keeps(tmp_path: Path) -> None:
    kept = {"operating_point": {"": {"threshold": 0.7, "f1": 0.8}}}
    told = drawn(kept, tmp_path / "kept")
    assert told[0].startswith("drawn from score 0.700 on, which gave the best F1 on the validation split (0.800)")
    assert told[1].endswith("1 cat")
    assert drawn({}, tmp_path / "older") == ["a.png: 2 cat"]  # at CONFIDENT, as before
    assert drawing_threshold(SimpleNamespace(provenance={})) == (CONFIDENT, "")  # type: ignore[arg-type]
    assert drawn(kept, tmp_path / "asked", 0.05) == ["a.png: 3 cat"]
    assert (tmp_path / "kept" / "predictions.json").read_text().count("score") == 3
