"""Boxes that were found in overlapping slices of an image, made those of the image: none doubled, none halved.

What is proven of the rule, for a detector that finds what is in a slice, cut at its borders (``tests/test_inference_slicing.py`` tries
it on drawn cases): **an object that a slice sees whole is found once, with the box of a slice that sees it whole**; one that no slice
sees whole is found once, joined from its pieces.

Cells divide the image, each in the middle of its slice: their borders run through the middle of the overlaps. (1) An object that some
slice sees whole has its centre in the cell of a slice that sees it whole: if slice ``i`` = [a, b] holds [s, e] and the next one, which
begins at a', does not, then s < a' and e <= b, so that (s + e) / 2 lies before the border (a' + b) / 2; likewise on the other side.
(2) A slice that cuts an object which another sees whole has the centre of its piece outside of its cell: the piece [s, b] with s >= a'
has its centre beyond (a' + b) / 2. So pieces whose centre is in the cell of their own slice belong to objects that no slice sees whole,
and the others go. Both hold along each axis by itself, and so for boxes.

A real detector says the same object a little differently in two slices. Therefore uncut boxes stay wherever their centre is, and two
from different slices that overlap as a head's suppression wants it are one: that of the slice whose cell it is in, else the surer one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from effbackbones.images.geometry import Size
from effbackbones.inference.boxes import FoundBoxes, joined, overlaps
from effbackbones.inference.tiling import starts_along

Rows = NDArray[np.int64]
Corners = NDArray[np.float64]
_REACH = 64
"""A box is cut that ends within this part of a slice's side of a border with others: detectors do not end theirs on the pixel."""
_AGREE = 0.5
"""IoU from which two slices that share a strip say the same of it."""


@dataclass(frozen=True)
class Grid:
    """Slices of ``window`` (H, W) pixels of an image of size ``scaled``, that begin in all ``tops`` and all ``lefts``; the last ones may
    stand out of the image."""

    scaled: Size
    window: Size
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def of(cls, scaled: Size, window: Size, overlap: int, divisor: int = 1) -> Self:
        """Slices that overlap by at least ``overlap`` pixels and begin at multiples of ``divisor``, where that leaves an overlap: cells of
        a network then lie in each slice as in the whole image."""
        starts = []
        for side, length in zip(scaled, window, strict=True):
            room = max(1, length - min(overlap, length - 1))
            align = divisor if room >= divisor else 1
            starts.append(tuple(starts_along(side, length, room // align * align, align)))
        return cls(scaled, window, starts[0], starts[1])

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top and left of each slice, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    @property
    def extents(self) -> Corners:
        """What each slice shows of the image: float64 [n, 4] xyxy."""
        (height, width), (high, wide) = self.scaled, self.window
        return np.array(
            [(left, top, min(width, left + wide), min(height, top + high)) for top, left in self.corners], np.float64
        )

    @property
    def cells(self) -> Corners:
        """The cell of each slice: float64 [n, 4] xyxy, infinite at the edges of the image."""
        rows, columns = (
            _between(starts, [min(side, start + length) for start in starts])
            for starts, length, side in zip((self.tops, self.lefts), self.window, self.scaled, strict=True)
        )
        return np.array([(left, top, right, bottom) for top, bottom in rows for left, right in columns])

    @property
    def borders(self) -> NDArray[np.bool_]:
        """Which edges (left, top, right, bottom) of each slice are borders with others, not edges of the image: bool [n, 4]."""
        return np.isfinite(self.cells)

    @property
    def reach(self) -> Corners:
        """Pixels from an edge (xyxy) within which a box counts as cut by it."""
        high, wide = self.window
        return np.tile(np.array([wide, high], np.float64) / _REACH, 2)

    def neighbours(self) -> Iterator[tuple[int, int, Corners]]:
        """Pairs of slices that overlap, the first before the second, and what they share [4]."""
        extents = self.extents
        for first in range(len(extents)):
            shared = np.concatenate(
                [np.maximum(extents[first, :2], extents[:, :2]), np.minimum(extents[first, 2:], extents[:, 2:])], 1
            )
            for second in np.flatnonzero((shared[:, 2:] > shared[:, :2]).all(1)):
                if second > first:
                    yield first, int(second), shared[second]


def merge_slices(grid: Grid, found: list[FoundBoxes], iou: float, overview: FoundBoxes | None = None) -> FoundBoxes:
    """The boxes of an image, in pixels of its ``scaled`` size, from those ``found`` in each slice, in pixels of the slice and clipped to
    what it shows. ``iou``: two boxes of a class that overlap more are one object.

    ``overview``: what was found in the image as a whole, in pixels of its ``scaled`` size. Of it is taken what no slice holds, and there
    no pieces are joined. Order: by falling score.
    """
    boxes, owner = joined(found), np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
    corners = boxes.corners + np.tile(np.array(grid.corners, np.float64).reshape(-1, 2)[owner][:, ::-1], 2)
    boxes = boxes._replace(corners=corners)
    cut = _cut(grid, corners, owner)
    mine = _inside((corners[:, :2] + corners[:, 2:]) / 2, grid.cells[owner], np.where(cut, 1, 0)[:, None] * grid.reach)
    kept = np.flatnonzero(~cut | mine)
    boxes, owner, cut, mine = boxes.take(kept), owner[kept], cut[kept], mine[kept]
    twins, pieces = _pairs(grid, boxes, owner, cut, iou)
    stay = ~cut
    stay[_doubled(twins, np.lexsort((-boxes.scores, ~mine)))] = False
    whole, parts = boxes.take(np.flatnonzero(stay)), _together(boxes, cut, pieces)
    if overview is not None:
        seen = _seen_by_none(grid, overview)
        seen = seen.take(np.flatnonzero(~_same(seen, whole, iou).any(1)))
        parts = parts.take(np.flatnonzero(~_within(parts, seen).any(1)))
        whole = joined([whole, seen])
    result = joined([whole, parts])
    return result.take(np.argsort(-result.scores, kind="stable"))


def _between(starts: tuple[int, ...], ends: list[int]) -> list[tuple[float, float]]:
    """The cells of pieces along an axis: from the middle of one overlap to that of the next."""
    borders = [-np.inf, *((start + end) / 2 for start, end in zip(starts[1:], ends, strict=False)), np.inf]
    return list(pairwise(borders))


def _cut(grid: Grid, corners: Corners, owner: Rows) -> NDArray[np.bool_]:
    """Which boxes [n, 4] end at a border of their slice."""
    ends: NDArray[np.bool_] = (np.abs(corners - grid.extents[owner]) < grid.reach) & grid.borders[owner]
    cut: NDArray[np.bool_] = np.logical_or.reduce(ends, 1)
    return cut


def _inside(centres: Corners, cells: Corners, margin: Corners) -> NDArray[np.bool_]:
    """Which centres [n, 2] lie in their cells [n, 4], or within a margin [n, 4] of them."""
    low, high = cells[:, :2] - margin[:, :2], cells[:, 2:] + margin[:, 2:]
    inside: NDArray[np.bool_] = np.logical_and.reduce((centres >= low) & (centres < high), 1)
    return inside


def _pairs(
    grid: Grid, boxes: FoundBoxes, owner: Rows, cut: NDArray[np.bool_], iou: float
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of rows from two slices that are one object: uncut ones that overlap, and those with a cut one that agree about what both
    slices show."""
    by_slice = [np.flatnonzero(owner == number) for number in range(len(grid.corners))]
    twins: list[tuple[int, int]] = []
    pieces: list[tuple[int, int]] = []
    for first, second, shared in grid.neighbours():
        one, other = by_slice[first], by_slice[second]
        if not len(one) or not len(other):
            continue
        alike = boxes.labels[one][:, None] == boxes.labels[other]
        broken = cut[one][:, None] | cut[other]
        same = alike & ~broken & (overlaps(boxes.corners[one], boxes.corners[other]) > iou)
        strips = [_clipped(boxes.corners[rows], shared) for rows in (one, other)]
        agree = alike & broken & (overlaps(*strips) >= _AGREE)
        for pairs, which in ((twins, same), (pieces, agree)):
            rows, columns = np.nonzero(which)
            pairs += zip(one[rows].tolist(), other[columns].tolist(), strict=True)
    return twins, pieces


def _clipped(corners: Corners, window: Corners) -> Corners:
    clipped: Corners = np.clip(corners, np.tile(window[:2], 2), np.tile(window[2:], 2))
    return clipped


def _doubled(pairs: list[tuple[int, int]], order: Rows) -> list[int]:
    """Rows that go because one that comes before them in ``order``, and stays, is the same object."""
    others: dict[int, list[int]] = {}
    for one, other in pairs:
        others.setdefault(one, []).append(other)
        others.setdefault(other, []).append(one)
    gone: set[int] = set()
    for row in order.tolist():
        if row in others and row not in gone:
            rank = others[row]
            gone.update(rank)
    return sorted(gone)


def _together(boxes: FoundBoxes, cut: NDArray[np.bool_], pairs: list[tuple[int, int]]) -> FoundBoxes:
    """Objects made of cut boxes: those that belong together joined to one, as sure as its surest piece; pieces of what a slice shows
    whole go."""
    root = list(range(len(cut)))

    def top(row: int) -> int:
        while root[row] != row:
            root[row] = row = root[root[row]]
        return row

    for one, other in pairs:
        root[top(one)] = top(other)
    groups: dict[int, list[int]] = {}
    for row in range(len(cut)):
        groups.setdefault(top(row), []).append(row)
    rows = [group for group in groups.values() if cut[group].all()]
    corners = [np.concatenate([boxes.corners[group, :2].min(0), boxes.corners[group, 2:].max(0)]) for group in rows]
    scores, labels = [boxes.scores[group].max() for group in rows], [boxes.labels[group[0]] for group in rows]
    return FoundBoxes(np.array(corners).reshape(-1, 4), np.array(scores, np.float64), np.array(labels, np.int64))


def _seen_by_none(grid: Grid, found: FoundBoxes) -> FoundBoxes:
    """What no slice shows all of."""
    extents = grid.extents
    inside = (found.corners[:, None, :2] >= extents[:, :2]) & (found.corners[:, None, 2:] <= extents[:, 2:])
    return found.take(np.flatnonzero(~np.logical_or.reduce(np.logical_and.reduce(inside, 2), 1)))


def _same(one: FoundBoxes, other: FoundBoxes, iou: float) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (one.labels[:, None] == other.labels) & (overlaps(one.corners, other.corners) > iou)
    return same


def _within(parts: FoundBoxes, whole: FoundBoxes) -> NDArray[np.bool_]:
    """Which parts lie at least half in which whole objects of their class: bool [n, m]."""
    low = np.maximum(parts.corners[:, None, :2], whole.corners[:, :2])
    high = np.minimum(parts.corners[:, None, 2:], whole.corners[:, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas: Any = (parts.corners[:, 2:] - parts.corners[:, :2]).prod(1)
    within: NDArray[np.bool_] = (shared * 2 >= areas[:, None]) & (parts.labels[:, None] == whole.labels)
    return within
