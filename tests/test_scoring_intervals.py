"""Bootstrap intervals: the same for the same outcomes, around the published score, and right as often as they say."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_scoring_outcomes import KINDS, made
from tests_support import class_names

from tasks.report.metricsfile import write_metrics
from tasks.report.records import EvaluationResults, Summary
from tasks.report.skeleton import add_classes, begun, finished
from tasks.scoring.boxes import BoxOutcomes, Found, Objects
from tasks.scoring.intervals import FEWEST, REPLICATES, drawn_scores, drawn_sets, interval_of, intervals, replicates_of
from tasks.scoring.labelled import ClassOutcomes
from tasks.scoring.outcomes import Outcomes
from tasks.scoring.pixels import PixelOutcomes

Rng = np.random.Generator


def about(n: int, k: int) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.uint32]]:
    return tuple(map(str, range(n))), tuple(class_names(k)), np.zeros(n, np.uint32)


def labels(rng: Rng, n: int, share: float = 0.8, k: int = 5) -> ClassOutcomes:
    """Images of which a share is right."""
    true, right = rng.integers(0, k, n), rng.random(n) < share
    predicted = np.where(right, true, (true + rng.integers(1, k, n)) % k)
    columns = true.astype(np.int32), predicted.astype(np.int32), np.ones(n, np.float32), (~right).astype(np.int32)
    return ClassOutcomes(*about(n, k), *columns)


def regions(rng: Rng, n: int, good: float = 8.0, k: int = 4) -> PixelOutcomes:
    """Images of some classes, each found to a part that varies."""
    true = rng.multinomial(1000, rng.dirichlet(np.full(k, 0.5), n))
    hits = rng.binomial(true, rng.beta(good, 2, (n, k)))
    missed = true - hits
    extra = np.zeros_like(true)
    for label in range(k):
        others = [other for other in range(k) if other != label]
        extra[:, others] += rng.multinomial(missed[:, label], np.full(k - 1, 1 / (k - 1)))
    counts = np.stack([hits, extra, true, np.zeros_like(hits), np.zeros_like(hits)], 1)
    return PixelOutcomes(*about(n, k), counts.astype(np.int64), hits.sum(1), true.sum(1))


def boxes(rng: Rng, n: int, easy: float = 1.2, k: int = 3, objects: int = 3) -> BoxOutcomes:
    """Images, some of them hard, whose objects are found or not, with false alarms of lower scores."""
    owner = np.repeat(np.arange(n), rng.poisson(objects, n))
    label, hard = rng.integers(0, k, len(owner)), rng.normal(0, 0.7, n)[owner]
    seen = rng.random(len(owner)) < 1 / (1 + np.exp(hard - easy))
    fit = np.clip(np.floor((rng.beta(8, 2, len(owner)) - 0.5) / 0.05) + 1, 0, 10).astype(int)
    score = 1 / (1 + np.exp(hard - rng.normal(1, 1, len(owner))))
    false = np.repeat(np.arange(n), rng.poisson(objects, n))
    low = 1 / (1 + np.exp(-rng.normal(-1, 1, len(false))))
    image, kinds = np.append(owner[seen], false), np.append(label[seen], rng.integers(0, k, len(false)))
    scores, right = np.append(score[seen], low), np.append((1 << fit[seen]) - 1, np.zeros(len(false), int))
    order = np.lexsort((-scores, kinds))
    flags = np.zeros((2, len(order), 4), np.uint16)
    flags[0, :, 0], flags[1, :, 1:] = right[order], 1023
    found = Found(image[order].astype(np.int32), kinds[order].astype(np.int32), scores[order], *flags)
    rows = np.argsort(label, kind="stable")
    true = Objects(owner[rows].astype(np.int32), label[rows].astype(np.int32), np.ones(len(rows), np.uint8))
    return BoxOutcomes(*about(n, k), found, true)


def coverage(make: Callable[[Rng, int], Outcomes], name: str, n: int, sets: int, replicates: int, large: int) -> float:
    """How many of so many simulated sets of ``n`` images have an interval that holds the score of a large set."""
    truth = float(np.mean([float(make(np.random.default_rng(10**6 + i), large).point()[name]) for i in range(3)]))
    held = 0
    for seed in range(sets):
        outcomes = make(np.random.default_rng(seed), n)
        drawn = drawn_scores(outcomes, replicates, seed)[name]
        found = interval_of(drawn, float(outcomes.point()[name]))
        held += found is not None and found[0] <= truth <= found[1]
    return held / sets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "name", "n", "sets", "replicates", "least"),
    [
        (labels, "top1", 100, 1000, 1000, 0.93),
        (labels, "top1", 1000, 1000, 400, 0.93),
        (regions, "miou", 100, 1000, 600, 0.93),
        (regions, "miou", 400, 1000, 400, 0.93),
        (boxes, "AP", 500, 1000, 200, 0.90),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    make: Any, name: str, n: int, sets: int, replicates: int, least: float
) -> None:
    held = coverage(make, name, n, sets, replicates, 100_000 if make is labels else 20_000)
    print(f"{name}, {n} images: {held:.1%} of {sets} sets")
    assert least <= held <= (0.98 if make is boxes else 0.97)


def test_intervals_of_some_simulated_sets_hold_the_truth() -> None:
    assert 0.88 <= coverage(labels, "top1", 200, 150, 300, 50_000) <= 0.99
    assert 0.88 <= coverage(regions, "miou", 100, 100, 200, 5_000) <= 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_are_around_the_score_and_the_same_each_time(kind: str) -> None:
    published, outcomes = made(kind, 11, 30, 3)
    found = intervals(outcomes, replicates=100)
    assert found == intervals(outcomes, replicates=100)
    assert found != intervals(outcomes, replicates=100, seed=1)
    assert found is not None
    assert outcomes.lead[0] in found.scores
    for name, (low, high) in found.scores.items():
        assert low <= published[name] <= high
        assert name in ("pixel_accuracy", "top1") or low < high
    for label, row in found.per_class.items():
        for name, (low, high) in row.items():
            assert low <= published["per_class"][label][name] <= high


def test_drawn_sets_are_as_large_as_the_set_whatever_fits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(drawn_sets(7, 50, 3)), 1)
    assert whole.shape == (7, 50)
    assert (whole.sum(0) == 7).all()
    assert whole.mean() == 1
    monkeypatch.setattr("tasks.scoring.intervals._CELLS", 70)
    assert [part.shape for part in drawn_sets(7, 25, 3)] == [(7, 10), (7, 10), (7, 5)]


def test_what_is_undefined_has_no_interval_and_few_images_are_told() -> None:
    few = labels(np.random.default_rng(0), 12)
    found = intervals(few, replicates=50)
    assert found is not None
    assert found.rough
    assert "rough" in found.told()
    assert "50 sets drawn" in found.told()
    absent = replace(few, label=np.where(few.label == 2, 1, few.label).astype(np.int32))
    without, many = (intervals(one, replicates=50) for one in (absent, labels(np.random.default_rng(0), 40)))
    assert without is not None
    assert "recall" not in without.per_class.get("class 2", {})
    assert many is not None
    assert not many.rough
    assert intervals(labels(np.random.default_rng(0), 0)) is None


def test_so_many_boxes_that_it_would_take_long_have_fewer_sets_which_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = boxes(np.random.default_rng(0), 30)
    assert replicates_of(outcomes) == REPLICATES
    monkeypatch.setattr(BoxOutcomes, "cost", lambda _: 5.0)
    assert replicates_of(outcomes) == REPLICATES * 2 // 5
    assert replicates_of(*[outcomes] * 10) == FEWEST
    found = intervals(outcomes)
    assert found is not None
    assert "not 1,000" in found.told()


def test_the_report_and_the_file_have_them(tmp_path: Path) -> None:
    published, outcomes = made("pixels", 5, 24, 3)
    spans = intervals(outcomes, replicates=50)
    assert spans is not None
    results = EvaluationResults({"model": published}, intervals={"": spans})
    report = begun(Summary("t", {}, [], results, {}), ("miou",), {})
    add_classes(report, published, spans)
    page = finished(report, Summary("t", {}, [], results, {}), tmp_path).read_text()
    low, high = spans.scores["miou"]
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in page
    low, high = spans.per_class["class 1"]["iou"]
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in page
    assert "95 % intervals by bootstrap over 24 images" in page
    write_metrics(tmp_path, results, [])
    record = json.loads((tmp_path / "metrics.json").read_text())["intervals"]
    assert record["scores"]["miou"] == list(spans.scores["miou"])
    assert (record["images"], record["replicates"], record["rough"]) == (24, 50, False)
