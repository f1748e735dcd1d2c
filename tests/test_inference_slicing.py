"""Slices of an image: what a detector that sees each of them by itself finds is found once, and whole."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from effbackbones.inference.boxes import FoundBoxes, joined, overlaps
from effbackbones.inference.fusing import fuse_boxes
from effbackbones.inference.slicing import Grid, merge_slices

Boxes = NDArray[np.float64]


def boxes_of(corners: Boxes, labels: NDArray[np.int64] | None = None) -> FoundBoxes:
    labels = np.arange(len(corners)) if labels is None else labels
    return FoundBoxes(corners.astype(np.float64).reshape(-1, 4), np.linspace(0.9, 0.5, len(corners)), labels)


def seen(
    grid: Grid, objects: FoundBoxes, rng: np.random.Generator, *, unsure: bool = False, jitter: float = 0.0
) -> list[FoundBoxes]:
    """What a detector finds in each slice: everything, cut at its borders, in its pixels. ``unsure``: it misses some pieces, and boxes
    of others end at the border and hold a part of what is seen. What it says is off by up to ``jitter`` pixels."""
    found = []
    for extent in grid.extents:
        origin = np.tile(extent[:2], 2)
        parts = np.clip(objects.corners, origin, np.tile(extent[2:], 2))
        whole = (parts == objects.corners).all(1)
        there = (parts[:, 2:] - parts[:, :2] >= 1).all(1) & (whole | (not unsure) | (rng.random(len(parts)) < 0.6))
        rows = np.flatnonzero(there)
        if unsure:
            parts = np.where(whole[:, None], parts, _shrunk(parts, objects.corners, rng))
        moved = parts[rows] - origin + rng.uniform(-jitter, jitter, (len(rows), 4))
        moved = np.clip(moved, 0, np.tile(extent[2:] - extent[:2], 2))
        scores = objects.scores[rows] - 0.3 * rng.random(len(rows))
        found.append(FoundBoxes(moved, scores, objects.labels[rows]))
    return found


def _shrunk(parts: Boxes, whole: Boxes, rng: np.random.Generator) -> Boxes:
    """Pieces of objects, of which some of the edges that are not cut are nearer to the cut ones."""
    share = rng.uniform(0, 0.8, parts.shape) * (parts == whole)
    sides = np.tile(parts[:, 2:] - parts[:, :2], 2) * np.array([1, 1, -1, -1])
    opposite_cut = np.roll(parts != whole, 2, axis=1)
    return parts + sides * share * opposite_cut


def held(grid: Grid, corners: Boxes) -> NDArray[np.bool_]:
    """Which objects some slice sees whole."""
    inside = (corners[:, None, :2] >= grid.extents[:, :2]) & (corners[:, None, 2:] <= grid.extents[:, 2:])
    whole: NDArray[np.bool_] = inside.all(2).any(1)
    return whole


@st.composite
def cases(draw: st.DrawFn, *, apart: bool = False) -> tuple[Grid, FoundBoxes, np.random.Generator]:
    """Slices of an image, and objects in it: each of a class of its own, or all of one class and ``apart``."""
    window, height, width = draw(st.integers(40, 128)), draw(st.integers(20, 240)), draw(st.integers(20, 240))
    overlap, divisor = draw(st.integers(4, window // 3)), draw(st.sampled_from([1, 8, 32]))
    grid = Grid.of((height, width), (window, window), overlap, divisor)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    objects: list[Boxes] = []
    for _ in range(draw(st.integers(1, 12))):
        # Small, near a slice, or any size: whole pixels, so that edges meet borders too.
        sides = np.minimum(rng.integers(4, rng.choice([12, window, 240]) + 1, 2), (width, height))
        corner = rng.integers(0, np.array([width, height]) - sides + 1)
        box = np.concatenate([corner, corner + sides]).astype(np.float64)
        touching = [
            other for other in objects if (np.minimum(box[2:], other[2:]) + 2 > np.maximum(box[:2], other[:2])).all()
        ]
        if not apart or not touching:
            objects.append(box)
    labels = np.zeros(len(objects), np.int64) if apart else None
    return grid, boxes_of(np.array(objects), labels), rng


def same(found: FoundBoxes, wanted: FoundBoxes) -> bool:
    rows = [sorted(zip(one.labels.tolist(), map(tuple, one.corners.tolist()), strict=True)) for one in (found, wanted)]
    return rows[0] == rows[1]


@given(cases())
@settings(max_examples=60, deadline=None)
def test_each_object_is_found_once_and_whole(case: tuple[Grid, FoundBoxes, np.random.Generator]) -> None:
    grid, objects, rng = case
    assert same(merge_slices(grid, seen(grid, objects, rng), 0.5), objects)


@given(cases(apart=True))
@settings(max_examples=40, deadline=None)
def test_also_among_others_of_its_class(case: tuple[Grid, FoundBoxes, np.random.Generator]) -> None:
    grid, objects, rng = case
    assert same(merge_slices(grid, seen(grid, objects, rng), 0.5), objects)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_what_a_slice_sees_whole_does_not_depend_on_pieces(case: tuple[Grid, FoundBoxes, np.random.Generator]) -> None:
    grid, objects, rng = case
    rows = np.flatnonzero(held(grid, objects.corners))
    found = merge_slices(grid, seen(grid, objects, rng, unsure=True), 0.5)
    assert same(found.take(np.flatnonzero(np.isin(found.labels, rows))), objects.take(rows))


@given(cases())
@settings(max_examples=40, deadline=None)
def test_a_look_at_the_whole_image_finds_what_no_slice_holds(
    case: tuple[Grid, FoundBoxes, np.random.Generator],
) -> None:
    grid, objects, rng = case
    assert same(merge_slices(grid, seen(grid, objects, rng, unsure=True), 0.5, objects), objects)


@given(cases(apart=True))
@settings(max_examples=40, deadline=None)
def test_a_detector_that_wavers_loses_and_doubles_nothing(case: tuple[Grid, FoundBoxes, np.random.Generator]) -> None:
    grid, objects, rng = case
    large = np.flatnonzero((objects.corners[:, 2:] - objects.corners[:, :2] >= 8).all(1) & held(grid, objects.corners))
    objects = objects.take(large)
    found = merge_slices(grid, seen(grid, objects, rng, jitter=0.3), 0.5)
    assert len(found.scores) == len(objects.scores)
    if len(large):
        assert (overlaps(objects.corners, found.corners).max(1) > 0.8).all()


@pytest.mark.parametrize("off", [-1, 0, 1])
def test_slices_that_disagree_on_whose_an_object_is_find_it_once(off: int) -> None:
    grid = Grid.of((64, 112), (64, 64), 16)
    middle = (grid.lefts[1] + 64) / 2
    found = [
        FoundBoxes(
            np.array([[middle - 5 + shift - left, 20, middle + 5 + shift - left, 30.0]]),
            np.array([score]),
            np.array([0]),
        )
        for left, shift, score in zip(grid.lefts, (off, -off), (0.6, 0.7), strict=True)
    ]
    merged = merge_slices(grid, found, 0.5)
    assert len(merged.scores) == 1
    assert abs(merged.corners[0, 0] - (middle - 5)) <= 1


@given(st.integers(1, 700), st.integers(8, 128), st.integers(1, 100), st.sampled_from([1, 8, 64]))
def test_slices_cover_the_image_and_overlap(side: int, window: int, overlap: int, divisor: int) -> None:
    grid = Grid.of((side, window), (window, window), overlap, divisor)
    tops = np.array(grid.tops)
    assert (tops[0], grid.lefts) == (0, (0,))
    assert tops[-1] + window >= side
    wanted = min(overlap, window - 1)
    assert (tops[:-1] + window - tops[1:] >= wanted).all()
    if window - wanted >= divisor:
        assert (tops % divisor == 0).all()
        assert tops[-1] + window - side < divisor or len(tops) == 1
    assert len(grid.extents) == len(grid.cells) == len(tops)


def test_looks_are_averaged_box_by_box() -> None:
    one = FoundBoxes(np.array([[0, 0, 10, 10], [50, 50, 60, 60.0]]), np.array([0.8, 0.6]), np.array([1, 1]))
    other = FoundBoxes(np.array([[1, 0, 11, 10], [0, 0, 10, 10.0]]), np.array([0.4, 0.3]), np.array([1, 0]))
    found = fuse_boxes([one, other], 0.5)
    assert found.labels.tolist() == [1, 1, 0]
    assert found.scores == pytest.approx([0.6, 0.3, 0.15])  # what a look does not see counts 0
    assert found.corners[0] == pytest.approx([1 / 3, 0, 10 + 1 / 3, 10])
    assert fuse_boxes([one, one], 0.5).corners == pytest.approx(one.corners)
    assert len(fuse_boxes([joined([]), joined([])], 0.5).scores) == 0
    within = FoundBoxes(np.tile(one.corners[:1], (2, 1)), np.array([0.5, 0.4]), np.array([1, 1]))
    assert len(fuse_boxes([within], 0.5).scores) == 2  # one look's own boxes are the head's business
