"""Errors of segmentations by place and class: what is injected is found, pixel by pixel."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings, strategies as st
from test_report_page import NASTY
from test_segmentation_metrics import random_regions, segmented
from test_segmentation_report import segmentation_page, stripes
from tests_support import class_names

from tasks.segmentation.anatomy import NOT_FINITE
from tasks.segmentation.metrics import SegmentationMetrics

HEIGHT, WIDTH, STRIPE = 90, 120, 40
REACH = 3  # 2 % of the diagonal of 150


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_injected_errors_are_found_where_they_are(seed: int, images: int) -> None:
    """Borders moved by less than the band is wide, and squares inside of stripes."""
    rng = np.random.default_rng(seed)
    metric = SegmentationMetrics(class_names(4))
    swapped = np.zeros((4, 4, 2), np.int64)
    for _ in range(images):
        order = rng.permutation(4)[:3].tolist()
        mask = stripes(HEIGHT, WIDTH, order)
        labels = mask.copy()
        for border in (1, 2):
            moved, rows = int(rng.integers(0, REACH + 1)), int(rng.integers(0, HEIGHT + 1))
            labels[:rows, border * STRIPE : border * STRIPE + moved] = order[border - 1]
            swapped[order[border], order[border - 1], 1] += moved * rows
        for place, label in enumerate(order):
            side, other = int(rng.integers(0, 12)), int(rng.integers(4))
            left = place * STRIPE + 10
            labels[30 : 30 + side, left : left + side] = other
            if other != label:
                swapped[label, other, 0] += side * side
        metric.update([segmented(labels)], [mask])
    told = metric.anatomy()
    assert [told[place]["wrong"] for place in ("boundary", "interior")] == [
        swapped[..., 1].sum(),
        swapped[..., 0].sum(),
    ]
    assert told["boundary"]["pixels"] + told["interior"]["pixels"] == images * HEIGHT * WIDTH
    inside = 3 * (STRIPE - 2 * REACH) * (HEIGHT - 2 * REACH)
    assert told["interior"]["pixels"] == images * inside
    for label, row in enumerate(told["by_class"].values()):
        assert (row["missed"], row["missed_boundary"]) == (swapped[label].sum(), swapped[label, :, 1].sum())
        assert (row["extra"], row["extra_boundary"]) == (swapped[:, label].sum(), swapped[:, label, 1].sum())
        as_, of = swapped[label].sum(1), swapped[:, label].sum(1)
        assert row["missed_as"] == {f"class {k}": as_[k] for k in range(4) if as_[k]}
        assert row["extra_of"] == {f"class {k}": of[k] for k in range(4) if of[k]}
        assert [*row["missed_as"].values()] == sorted(row["missed_as"].values(), reverse=True)


def test_errors_add_up_to_what_is_scored() -> None:
    """With ignored pixels, and some that are not finite."""
    found, mask = random_regions(3, 4)
    found.confidence[0, :3] = np.nan
    metric = SegmentationMetrics(class_names(4))
    metric.update([found], [mask])
    told, scores = metric.anatomy(), metric.compute()
    wrong = told["boundary"]["wrong"] + told["interior"]["wrong"]
    assert wrong == round((1 - scores["pixel_accuracy"]) * scores["pixels"])
    lost = sum(row["missed_as"].get(NOT_FINITE, 0) for row in told["by_class"].values())
    assert sum(row["missed"] for row in told["by_class"].values()) == wrong
    assert sum(row["extra"] for row in told["by_class"].values()) == wrong - scores["non_finite"]
    assert lost <= scores["non_finite"] > 0


def test_the_page_tells_places_and_classes(tmp_path: Path) -> None:
    mask = stripes(HEIGHT, WIDTH, [0, 1, 2])
    labels = mask.copy()
    labels[:10, STRIPE : STRIPE + 2] = 0
    labels[40:50, 10:16] = 2
    for name, guess in (("wrong", labels), ("right", mask)):
        metric = SegmentationMetrics([NASTY, "b", "c"])
        metric.update([segmented(guess)], [mask])
        page = segmentation_page(tmp_path / name, metric.compute() | {"errors": metric.anatomy()})
        lines = [line for line in page.seen.splitlines() if line.strip()]
        if name == "right":
            assert "Errors by class" not in lines
            continue
        assert lines[(at := lines.index("boundary")) : at + 3] == ["boundary", "20", "25.0 %"]
        assert lines[(at := lines.index("interior")) : at + 3] == ["interior", "60", "75.0 %"]
        table = lines[lines.index("Errors by class") :]
        assert table[(at := table.index(NASTY)) : at + 4] == [NASTY, "60", "0.0 %", "c 100.0 %"]
        assert table[at + 4 : at + 7] == ["20", "100.0 %", "b 100.0 %"]
