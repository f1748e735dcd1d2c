"""Errors of detectors by kind: what is injected is found, in number; what is mended never lowers AP50."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from test_detection_metrics import Images, found, random_images, truth
from tests_support import class_names

from tasks.detection.anatomy import KINDS
from tasks.detection.metrics import DetectionMetrics

CLASSES = 4
SIDE = 40.0


def anatomy(images: Images, classes: int = CLASSES, max_dets: int = 100) -> tuple[dict[str, Any], dict[str, Any]]:
    metric = DetectionMetrics(class_names(classes), max_dets)
    metric.update([mine for mine, _ in images], [objects for _, objects in images])
    return metric.anatomy(), metric.compute()


def counts(told: dict[str, Any]) -> dict[str, int]:
    return {kind: told["costs"][kind]["count"] for kind in KINDS}


def injected(seed: int, images: int) -> tuple[Images, dict[str, int]]:
    """Objects apart from each other, each found exactly or with one error; how many of each kind there are; and crowds, with
    detections inside, some of them of another class."""
    rng = np.random.default_rng(seed)
    made, number = list[Any](), dict.fromkeys(KINDS, 0)
    for image in range(images):
        rows, objects = list[tuple[float, ...]](), list[tuple[float, ...]]()
        for place in range(int(rng.integers(0, 9))):
            x, y, label = 200.0 * (place % 3), 200.0 * (place // 3), int(rng.integers(CLASSES))
            other, score = (label + int(rng.integers(1, CLASSES))) % CLASSES, float(rng.random())
            objects.append((x, y, SIDE, SIDE, label, 0))
            exact, far = (x, y, SIDE, SIDE), (x + SIDE / 2, y, SIDE, SIDE)  # the second has an IoU of 1/3
            kind = str(rng.choice(["none", *KINDS]))
            if kind in number:
                number[kind] += 1
            match kind:
                case "none":
                    rows.append((*exact, score, label))
                case "classification":
                    rows.append((*exact, score, other))
                case "localisation":
                    rows.append((*far, score, label))
                case "both":  # the object is not found, and nothing is meant for it
                    rows.append((*far, score, other))
                    number["missed"] += 1
                case "duplicate":
                    rows += [(*exact, score, label), (x + 1, y, SIDE, SIDE, score / 2, label)]
                case "background":
                    rows += [(*exact, score, label), (x, y + 100, SIDE, SIDE, float(rng.random()), other)]
        if rng.random() < 0.5:
            objects.append((0, 700, 300, 100, 0, 1))
            rows += [(20.0 * i, 710, 50, 50, float(rng.random()), 0) for i in range(5)]  # count for nothing
            rows.append((200, 710, 50, 50, float(rng.random()), 1))  # no object of any class
            number["background"] += 1
        order = rng.permutation(len(rows))
        made.append((found(str(image), [rows[row] for row in order]), truth(objects)))
    return made, number


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_injected_errors_are_found_in_number(seed: int, images: int) -> None:
    made, number = injected(seed, images)
    told, scores = anatomy(made)
    assert counts(told) == number
    wrong = sum(number[kind] for kind in KINDS[:-1])
    lost = number["missed"] + number["classification"] + number["localisation"]
    assert (told["costs"]["false_positives"]["count"], told["costs"]["false_negatives"]["count"]) == (wrong, lost)
    assert {name: sum(row[name] for row in told["by_class"].values()) for name in KINDS} == number
    sizes = told["by_size"]
    assert sum(row["objects"] for row in sizes.values()) == scores["boxes"] == sizes["medium"]["objects"]
    assert (sizes["medium"]["not_found"], sizes["medium"]["missed"]) == (lost, number["missed"])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([2, 10]), st.sampled_from([2, 100]))
@example(404, 8, 2, 100)  # 7 of 10 found: COCO's recall of 0.7 is a rounding above it
def test_ap50_is_the_one_scored_and_nothing_mended_lowers_it(seed: int, n: int, levels: int, most: int) -> None:
    """Whatever the detections are, with ties, crowds and areas unlike their boxes."""
    images = random_images(seed, n, 3, levels=levels)
    told, scores = anatomy(images, 3, most)
    if scores["AP50"] is None:
        assert told["ap50"] is None
        assert {row["cost"] for row in told["costs"].values()} == {None}
        return
    assert told["ap50"] == pytest.approx(scores["AP50"], abs=1e-12)
    costs = {kind: row["cost"] for kind, row in told["costs"].items()}
    assert min(costs.values()) >= -1e-12
    assert costs["false_positives"] >= max(costs["both"], costs["duplicate"], costs["background"]) - 1e-12
    assert costs["false_negatives"] >= costs["missed"] - 1e-12


def test_perfect_detections_have_no_errors() -> None:
    made, _ = injected(1, 6)
    objects = [
        [(*box, 1.0, label) for box, label, crowd in zip(t.boxes, t.labels, t.crowd, strict=True) if not crowd]
        for _, t in made
    ]
    told, _ = anatomy([(found(mine.id, rows), t) for (mine, t), rows in zip(made, objects, strict=True)])
    assert set(counts(told).values()) == {0}
    assert {row["cost"] for row in told["costs"].values()} == {0}
    assert told["ap50"] == 1


BOX = (0, 0, SIDE, SIDE)
FAR = (SIDE / 2, 0, SIDE, SIDE)
OTHER = (300, 0, SIDE, SIDE)


@pytest.mark.parametrize(
    ("rows", "kind", "costs"),
    [
        ([(*BOX, 0.9, 1)], "classification", {"classification": 0.5, "missed": 0, "false_negatives": 0.5}),
        ([(*FAR, 0.9, 0)], "localisation", {"localisation": 1, "missed": 0}),
        ([(*FAR, 0.9, 1)], "both", {"both": 0, "missed": 0.5}),
        ([(*BOX, 0.9, 0), (*BOX, 0.8, 0)], "duplicate", {"duplicate": 0, "false_positives": 0}),
        ([(*OTHER, 0.9, 0), (*BOX, 0.8, 0)], "background", {"background": 0.5, "false_positives": 0.5}),
        ([], "missed", {"missed": 1, "false_negatives": 1}),
        ([(np.nan, 0, SIDE, SIDE, 0.9, 0), (*BOX, 0.8, 0)], "background", {"background": 0.5}),
    ],
)
def test_costs_by_hand(rows: list[tuple[float, ...]], kind: str, costs: dict[str, float]) -> None:
    """One object of class 0, and one of class 1 elsewhere that is found; AP50 is the mean of both classes."""
    second = (600, 0, SIDE, SIDE)
    two = any(row[5] == 1 for row in rows)
    images = [(found("1", rows), truth([(*BOX, 0, 0)]))]
    if two:
        images.append((found("2", [(*second, 0.95, 1)]), truth([(*second, 1, 0)])))
    told, _ = anatomy(images, 2)
    assert counts(told)[kind] == 1
    assert {name: told["costs"][name]["cost"] for name in costs} == pytest.approx(costs)


def test_of_two_on_one_object_the_better_stays() -> None:
    """A box of the wrong class with a high score, mended, takes the place of the right one with a low score."""
    images = [
        (found("1", [(*BOX, 0.9, 1), (*BOX, 0.2, 0)]), truth([(*BOX, 0, 0)])),
        (found("2", [(*OTHER, 0.5, 0)]), truth([])),
    ]
    told, _ = anatomy(images, 2)
    assert told["ap50"] == pytest.approx(0.5)
    assert told["costs"]["classification"] == {"count": 1, "cost": pytest.approx(0.5)}
