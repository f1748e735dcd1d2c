"""Outcomes of images: all of them give the published scores to the last digit, some of them those of an evaluation on these alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_classification_metrics import probabilities_and_targets
from test_detection_metrics import Images, coco_images, injected, random_images
from test_segmentation_metrics import random_regions, spoil
from test_segmentation_sets import found as found_sets
from tests_support import class_names

from effbackbones import UserError
from tasks.classification.metrics import ClassificationMetrics
from tasks.classification.task import TASK as CLASSIFICATION
from tasks.data.batch import ImageMeta
from tasks.detection.metrics import DetectionMetrics
from tasks.detection.task import TASK as DETECTION
from tasks.scoring.outcomefile import read_outcomes, write_outcomes
from tasks.scoring.outcomes import Outcomes
from tasks.segmentation.metrics import SegmentationMetrics
from tasks.segmentation.setmetrics import SetMetrics
from tasks.segmentation.task import TASK as SEGMENTATION
from tasks.spec import TaskSpec

KINDS = ("class", "binary", "classes", "pixels", "sets", "boxes")


def judged(task: TaskSpec, metric: Any, parts: Sequence[tuple[Any, Any, list[ImageMeta]]]) -> tuple[Any, Outcomes]:
    """Published scores and outcomes of batches: predictions, truths, and what is known of the images."""
    recorder = task.outcomes(metric)
    assert recorder is not None
    for predictions, truths, meta in parts:
        metric.update(torch.stack(predictions) if task is CLASSIFICATION else predictions, truths)
        recorder.update(SimpleNamespace(meta=meta), predictions)  # type: ignore[arg-type]  # nothing else is read
    scores, outcomes = metric.compute(), recorder.outcomes()
    assert isinstance(outcomes, Outcomes)
    return scores, outcomes


def of_images(images: Images, k: int, most: int = 100) -> tuple[Any, Outcomes]:
    metric = DetectionMetrics(class_names(k), most)
    parts = [([mine], [objects], [ImageMeta(mine.id, "", mine.size)]) for mine, objects in images]
    return judged(DETECTION, metric, parts)


def of_regions(images: Sequence[Any], k: int, names: Sequence[str] | None = None) -> tuple[Any, Outcomes]:
    metas = [
        ImageMeta(name, "", (1, 1), mask=mask)
        for name, (_, mask) in zip(names or class_names(len(images)), images, strict=True)
    ]
    parts = [([found], [mask], [meta]) for (found, mask), meta in zip(images, metas, strict=True)]
    return judged(SEGMENTATION, SegmentationMetrics(class_names(k)), parts)


def of_labels(probabilities: Any, targets: Any, metric: ClassificationMetrics, batch: int = 5) -> tuple[Any, Outcomes]:
    parts = []
    for start in range(0, len(targets), batch):
        some = slice(start, start + batch)
        labels = targets[some].numpy() if targets.ndim > 1 else targets[some].tolist()
        metas = [ImageMeta(f"{start + row}", "", (1, 1), label=label) for row, label in enumerate(labels)]
        parts.append((list(probabilities[some]), targets[some], metas))
    return judged(CLASSIFICATION, metric, parts)


def made(kind: str, seed: int, n: int, k: int) -> tuple[Any, Outcomes]:
    """Scores and outcomes of a random set of a kind."""
    rng = np.random.default_rng(seed)
    if kind == "boxes":
        return of_images(random_images(seed, n, k), k, int(rng.choice([1, 3, 100])))
    if kind == "pixels":
        images = [random_regions(seed + i, k, 12) for i in range(n)]
        return of_regions([(spoil(f, torch.rand(f.labels.shape) < 0.02, k), m) for f, m in images], k)
    if kind == "sets":
        pairs = [rng.integers(0, 2**k, (2, 4, 5)).astype(np.int32) for _ in range(n)]
        parts = [([found_sets(a)], [b], [ImageMeta(str(i), "", (4, 5), mask=b)]) for i, (a, b) in enumerate(pairs)]
        return judged(SEGMENTATION, SetMetrics(class_names(k)), parts)
    several = kind == "classes"
    probabilities, targets = probabilities_and_targets(seed, n, 2 if kind == "binary" else k, several)
    if kind == "binary":
        return of_labels(probabilities[:, 1:], targets, ClassificationMetrics(["cat"]))
    probabilities[rng.random(probabilities.shape) < 0.05] = torch.nan
    return of_labels(probabilities, targets, ClassificationMetrics(class_names(k), several))


def assert_published(outcomes: Outcomes, published: dict[str, Any]) -> None:
    """Each score under weights of one is the published one."""
    for name, value in outcomes.point().items():
        group, _, key = name.rpartition("/")
        expected = [row[key] for row in published["per_class"].values()] if group else published[name]
        known = np.array(expected, np.float64)  # None becomes NaN
        np.testing.assert_allclose(value, known, rtol=0, atol=1e-9, err_msg=name)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 7))
def test_all_images_once_give_the_published_scores(kind: str, seed: int, n: int, k: int) -> None:
    published, outcomes = made(kind, seed, n, k)
    assert len(outcomes.ids) == n
    assert_published(outcomes, published)
    assert set(outcomes.point()) >= {outcomes.lead[0], f"per_class/{outcomes.lead[1]}"}


def test_recall_has_the_name_of_its_number_of_boxes_and_files_keep_it(tmp_path: Path) -> None:
    published, outcomes = of_images(random_images(1, 14, 2), 2, 3)
    assert_published(outcomes, published)
    assert {"AR_3", "AR_small", "AR_medium", "AR_large"} <= set(outcomes.point())
    write_outcomes(tmp_path / "o.npz", outcomes, {"task": "det", "split": "val"})
    again = read_outcomes(tmp_path / "o.npz").outcomes
    assert_published(again, published)
    assert "AR_3" in again.take(np.arange(7)).point()


def test_boxes_that_are_not_finite_are_wrong_in_outcomes_too() -> None:
    images, _ = injected(random_images(3, 14, 2), np.random.default_rng(3))
    published, outcomes = of_images(images, 2)
    assert published["non_finite"]
    assert_published(outcomes, published)


def test_real_annotations_give_the_published_scores(data_root: Path) -> None:
    published, outcomes = of_images(*coco_images(data_root / "coco_mini" / "annotations" / "instances_val2017.json", 1))
    assert_published(outcomes, published)


@pytest.mark.parametrize("kind", KINDS)
def test_some_images_give_the_scores_of_these_alone(kind: str) -> None:
    _, outcomes = made(kind, 7, 9, 3)
    rows = np.array([6, 0, 3, 4])
    weights = np.zeros((9, 1), np.int64)
    weights[rows] = 1
    some = outcomes.take(rows)
    assert some.ids == tuple(outcomes.ids[row] for row in rows)
    assert some.truth.tolist() == outcomes.truth[rows].tolist()
    for name, value in outcomes.scores(weights).items():
        np.testing.assert_allclose(some.point()[name], value[..., 0], atol=1e-12, err_msg=name)


def test_an_image_that_counts_twice_is_two_images() -> None:
    rng = np.random.default_rng(5)
    images = random_images(5, 12, 3)
    for mine, _ in images:  # scores without ties, whose order would be arbitrary
        mine.scores[:] = rng.random(len(mine.scores))
    _, outcomes = of_images(images, 3)
    by_id = {mine.id: (mine, objects) for mine, objects in images}
    weights = rng.integers(0, 4, 12)
    doubled = [
        (type(mine)(f"{row}{copy}", mine.size, mine.boxes, mine.scores, mine.labels), objects)
        for row, id_ in enumerate(outcomes.ids)
        for copy in range(weights[row])
        for mine, objects in [by_id[id_]]
    ]
    published, _ = of_images(doubled, 3)
    for name, value in outcomes.scores(np.stack([weights, np.ones(12, int)], 1)).items():
        group, _, key = name.rpartition("/")
        expected = [row[key] for row in published["per_class"].values()] if group else published[name]
        np.testing.assert_allclose(value[..., 0], np.array(expected, float), atol=1e-3, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_outcomes_whole(kind: str, tmp_path: Path) -> None:
    _, outcomes = made(kind, 2, 6, 3)
    write_outcomes(tmp_path / "a" / "o.npz", outcomes, {"split": "val"})
    read = read_outcomes(tmp_path / "a" / "o.npz")
    assert read.about == {"split": "val"}
    assert (read.outcomes.ids, read.outcomes.classes) == (outcomes.ids, outcomes.classes)
    assert read.outcomes.truth.tolist() == outcomes.truth.tolist()
    for name, value in outcomes.point().items():
        np.testing.assert_array_equal(read.outcomes.point()[name], value)


def test_a_file_of_a_thousand_images_is_small(tmp_path: Path) -> None:
    _, outcomes = of_images(random_images(1, 400, 8), 8)
    write_outcomes(tmp_path / "o.npz", outcomes, {})
    assert (tmp_path / "o.npz").stat().st_size < 400 * 100


@pytest.mark.parametrize("content", [b"PK", b"{}", None])
def test_what_is_no_file_of_outcomes_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "o.npz"
    if content is None:
        head = np.frombuffer(json.dumps({"format": 9, "kind": "boxes", "classes": []}).encode(), np.uint8)
        np.savez(path, head=head)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"o\.npz: .*evaluate --checkpoint RUN"):
        read_outcomes(path)


def test_another_truth_has_another_checksum() -> None:
    images = random_images(4, 6, 2)
    _, before = of_images(images, 2)
    images[2][1].boxes[:1] += 1
    _, after = of_images(images, 2)
    assert (before.truth != after.truth).sum() == (len(images[2][1].labels) > 0)


def score_share(rank: int) -> list[Any]:
    """What both of two processes gather of images that alternate between them."""
    return gathered(rank, 2)


def score_whole() -> list[Any]:
    """The same by one process."""
    return gathered(0, 1)


def gathered(rank: int, world: int) -> list[Any]:
    regions, names = [random_regions(seed, 3, 12) for seed in range(5)], class_names(5)
    _, pixels = of_regions(regions[rank::world], 3, names[rank::world])
    _, boxes = of_images(random_images(2, 7, 2)[rank::world], 2)
    return [
        [
            sorted([id_, number] for id_, number in zip(one.ids, one.truth.tolist(), strict=True)),
            {name: np.nan_to_num(value, nan=-1).round(12).tolist() for name, value in one.point().items()},
        ]
        for one in (pixels, boxes)
    ]
