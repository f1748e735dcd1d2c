"""What is mended in boxes on reading, and how that is told: nothing is changed or left out without being counted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError

MIN_SIDE = 1.0
"""Pixels; boxes with a smaller side after clipping are dropped."""
WARN_DROPPED, STOP_DROPPED = 0.01, 0.20
"""Shares of dropped boxes that are warned of, and that stop the run."""
_ROUNDING = 1e-6  # pixels: sums of decimal fractions are off by less
_ENOUGH, _ROUNDED = 4, 0.01  # boxes whose areas may speak for corner boxes, and how far off they may be rounded
_BEYOND = 1.0  # pixels that a box must reach out of its image to speak for corner boxes
_NEARLY_ALL = 0.95
_ALIKE = 0.01  # share of a side by which boxes of one object may differ
_NEIGHBOURS = 4  # how many are compared, in the order of their x
_AREAS = (1e-3, 1.01)  # shares of its box that the area of an object may be
_EXAMPLES = 3
Rows = NDArray[np.bool_]
"""Which boxes, bool [N]."""

KINDS = {
    "other_class": "of classes that are not asked for: left out",
    "clipped": "reach out of their image: clipped",
    "empty": "with a width or height of 0 or less: dropped",
    "outside": "wholly outside of their image: dropped",
    "thin": f"with a side under {MIN_SIDE:g} pixel: dropped",
    "outline_box": "without a bbox: that of their segmentation taken",
    "corners": "are corners by their bbox_mode: read as such",
    "ignored": "are marked to be ignored: objects like all others (data.options.ignored: crowd takes them for crowds)",
    "ignored_crowd": "are marked to be ignored: taken for crowds",
    "rotated": "are turned by their rotation, which is not looked at (data.options.rotation: enclose takes the boxes around)",
    "rotated_enclosed": "are turned by their rotation: the boxes around taken",
    "duplicate": "lie in an image twice, alike in class and corners: kept (data.options.duplicates: drop leaves one)",
    "duplicate_dropped": "lay in an image twice, alike in class and corners: one kept",
    "two_classes": "lie in an image twice, alike in corners and of different classes: both kept",
    "outline": "are outlines: the boxes around taken",
    "key_points": "have key points beside, which are left out",
    "area": "without a positive area: that of the box taken",
    "other_area": "with an area of more than their box, or less than a thousandth of it: kept (AP by size goes by it)",
    "scored": "have a score, as predictions of a model have: objects like all others",
    "iscrowd": "without iscrowd: 0 taken",
    "id_zero": "with annotation id 0: kept (scores number them anew)",
}
"""Kinds of repairs and what is done."""
_DROPPED = ("empty", "outside", "thin")


@dataclass(frozen=True)
class Repairs:
    """``boxes``, how many boxes of the classes asked for the annotations have; ``counts`` of each kind that occurred (keys of
    :data:`KINDS`), ``examples``, the first three records of each."""

    boxes: int
    counts: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]

    @property
    def dropped(self) -> int:
        """How many boxes were dropped as bad."""
        return sum(self.counts.get(kind, 0) for kind in _DROPPED)

    def lines(self) -> list[str]:
        """What to print: a line for each kind, and a warning above 1 % dropped; nothing where nothing was repaired."""
        lines = [f"{count:,} boxes {KINDS[kind]} ({self._shown(kind)})" for kind, count in self.counts.items()]
        if self.dropped > WARN_DROPPED * self.boxes:
            lines.append(f"warning: {self.dropped:,} of {self.boxes:,} boxes dropped ({self.dropped / self.boxes:.1%})")
        return lines

    def rows(self) -> list[dict[str, str | int]]:
        """The same as rows of a table for a report."""
        return [
            {"boxes": count, "what": KINDS[kind], "such as": self._shown(kind)} for kind, count in self.counts.items()
        ]

    def _shown(self, kind: str) -> str:
        return ", ".join(self.examples[kind]) + (", ..." if self.counts[kind] > len(self.examples[kind]) else "")


class RepairCount:
    """Collects repairs while boxes are mended; ``name`` gives the record of a row."""

    def __init__(self, name: Callable[[int], str]) -> None:
        self.name = name
        self._counts: dict[str, int] = {}
        self._examples: dict[str, tuple[str, ...]] = {}

    def add(self, kind: str, rows: Rows) -> None:
        """Count the true ones of ``rows`` [N]."""
        found = np.flatnonzero(rows)
        if len(found):
            self._counts[kind] = len(found)
            self._examples[kind] = tuple(self.name(row) for row in found[:_EXAMPLES].tolist())

    def result(self, boxes: int) -> Repairs:
        """What was collected, in the order of :data:`KINDS`."""
        kinds = [kind for kind in KINDS if kind in self._counts]
        return Repairs(
            boxes, {kind: self._counts[kind] for kind in kinds}, {kind: self._examples[kind] for kind in kinds}
        )


def mend(
    boxes: NDArray[np.float64], sides: NDArray[np.float64], used: Rows, count: RepairCount, min_side: float = MIN_SIDE
) -> tuple[NDArray[np.float64], Rows]:
    """Boxes clipped to their images, and which of them to keep.

    ``boxes`` [N, 4] as x, y, width, height, finite; ``sides`` [N, 2], width and height of the image of each, infinite where
    unknown; ``used`` [N], the boxes asked for: no others are counted or kept. A box inside of its image
    stays bit by bit. Sides under ``min_side`` pixels are too thin.
    """
    with np.errstate(over="ignore"):  # a sum beyond the largest number is infinite, and clipped
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    empty: Rows = np.logical_or.reduce(boxes[:, 2:] <= 0, axis=1)
    beyond: Rows = np.logical_or.reduce((low < -_ROUNDING) | (high > sides + _ROUNDING), axis=1)
    over = beyond & ~empty
    corner = np.clip(low, 0, sides)
    outwards = over[:, None]
    extent = np.where(outwards, np.clip(high, 0, sides) - corner, boxes[:, 2:])
    mended = np.concatenate([np.where(outwards, corner, low), extent], 1)
    outside = over & (extent <= 0).any(1)
    thin = ~empty & ~outside & (extent < min_side - _ROUNDING).any(1)
    keep = used & ~(empty | outside | thin)
    for kind, rows in (
        ("clipped", over & keep),
        ("empty", empty & used),
        ("outside", outside & used),
        ("thin", thin & used),
    ):
        count.add(kind, rows)
    return mended, keep


def refuse_shares(source: str, boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> None:
    """Raise :class:`UserError` where boxes [n, 4] are shares of their images (of ``sides`` [n, 2]), not pixels: most lie in 0..1."""
    with np.errstate(over="ignore"):
        inside = (boxes >= 0).all(1) & (boxes[:, :2] + boxes[:, 2:] <= 1 + _ROUNDING).all(1) & (sides > 2).all(1)
    broken = inside & (boxes != np.round(boxes)).any(1)
    if not len(boxes) or 2 * int(inside.sum()) <= len(boxes) or not broken.any():
        return
    what = f"{int(inside.sum()):,} of {len(boxes):,} boxes lie in 0..1: shares of the image, where pixels are expected"
    raise UserError(source, what, "multiply x and width by the width of the image, y and height by its height")


def duplicates(
    owner: NDArray[np.int64], labels: NDArray[np.int64], boxes: NDArray[np.float64], considered: Rows
) -> Rows:
    """Which of the rows ``considered`` [N] come again: image, class and box are those of an earlier one, but for :data:`_ALIKE` of a
    side, as rounding leaves it. (Of many boxes that begin at the same x, some that differ so may be missed.)"""
    rows = np.flatnonzero(considered)
    rows = rows[np.lexsort((*boxes[rows].T[::-1], labels[rows], owner[rows]))]
    keys, sides = np.concatenate([owner[rows, None], labels[rows, None], boxes[rows]], 1), boxes[rows][:, 2:]
    again: Rows = np.zeros(len(considered), np.bool_)
    for step in range(1, min(_NEIGHBOURS, len(rows) - 1) + 1):
        apart, allowed = np.abs(keys[step:] - keys[:-step]), _ALIKE * np.minimum(sides[step:], sides[:-step])
        alike = (apart[:, :2] == 0).all(1) & (apart[:, 2:4] <= allowed).all(1) & (apart[:, 4:] <= allowed).all(1)
        again[np.maximum(rows[step:], rows[:-step])[alike]] = True
    return again


def other_areas(boxes: NDArray[np.float64], areas: NDArray[np.float64], considered: Rows) -> Rows:
    """Which of the rows ``considered`` [N] have positive ``areas`` that those of no object in their ``boxes`` [N, 4] can be."""
    with np.errstate(all="ignore"):
        share = areas / boxes[:, 2:].prod(1)
    odd: Rows = considered & (areas > 0) & ((share < _AREAS[0]) | (share > _AREAS[1]))
    return odd


def refuse_bad_boxes(
    source: str, boxes: NDArray[np.float64], sides: NDArray[np.float64], repairs: Repairs, centred: bool = False
) -> None:
    """Raise :class:`UserError` where more than 20 % of the boxes were dropped, or most reach out of their image; or more than 20 % do,
    and none would if the four numbers meant something else.

    ``boxes`` [n, 4] (x, y, width, height) and ``sides`` [n, 2]: as the annotations say, of the classes asked for. ``centred``: the four
    numbers in the file begin with the middle of the box.
    """
    with np.errstate(over="ignore"):
        over = ((boxes[:, :2] + boxes[:, 2:] > sides + _BEYOND) | (boxes[:, :2] < -_BEYOND)).any(1)
    most = 2 * int(over.sum()) > len(boxes)
    many = repairs.dropped > STOP_DROPPED * repairs.boxes
    other = _other_layout(boxes, sides, centred) if int(over.sum()) > STOP_DROPPED * len(boxes) else ""
    if not (most or many or other):
        return
    examples = [repairs.examples[kind][0] for kind in (*_DROPPED, "clipped") if kind in repairs.examples]
    if many:
        whys = ", ".join(
            f"{repairs.counts[kind]:,} {KINDS[kind].partition(':')[0]}" for kind in _DROPPED if kind in repairs.counts
        )
        what = f"{repairs.dropped:,} of {repairs.boxes:,} boxes are not usable: {whys}"
    else:
        what = f"{int(over.sum()):,} of {len(boxes):,} boxes reach out of their image"
    looks = f"; these look like {other}" if other else ""
    raise UserError(source, f"{what}, such as {examples[0]}{looks}", "correct them, or set data.allow_bad_boxes: true")


def refuse_corners(
    source: str, boxes: NDArray[np.float64], areas: NDArray[np.float64], record: Callable[[int], str]
) -> None:
    """Raise :class:`UserError` where the ``areas`` [n] that annotations say are those of nearly all ``boxes`` [n, 4] read as corners, and
    of hardly any read as x, y, width and height. (Small ones lie in their images either way.)"""
    with np.errstate(over="ignore", invalid="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
        as_corners = (sides > 0).all(1) & np.isclose(sides.prod(1), areas, rtol=_ROUNDED, atol=0)
        as_they_are = np.isclose(boxes[:, 2:].prod(1), areas, rtol=_ROUNDED, atol=0)
    telling = (areas > 0) & np.isfinite(boxes).all(1) & ~(as_corners & as_they_are)  # at the origin both are the same
    count, said = int((as_corners & telling).sum()), int(telling.sum())
    if count >= _ENOUGH and count > _NEARLY_ALL * said and (as_they_are & telling).sum() < (1 - _NEARLY_ALL) * said:
        what = f"the areas of {count:,} of {said:,} boxes are those of corner boxes (x0, y0, x1, y1)"
        such = record(int((as_corners & telling).argmax()))
        raise UserError(
            source, f"{what}, such as {such}", "write x, y, width, height, or set data.allow_bad_boxes: true"
        )


def _other_layout(boxes: NDArray[np.float64], sides: NDArray[np.float64], centred: bool) -> str:
    """What the four numbers of nearly all boxes may mean instead, so that they lie in their images; empty where nothing fits."""
    extent = boxes[:, 2:]
    first = boxes[:, :2] + extent / 2 if centred else boxes[:, :2]  # as in the file
    other = ("x and y of the upper left corner", first) if centred else ("x and y of the middle", first - extent / 2)
    turned = "boxes of images whose width and height are exchanged"
    for name, low, high, inside in (
        (turned, boxes[:, :2], boxes[:, :2] + extent, sides[:, ::-1]),
        ("corner boxes (x0, y0, x1, y1)", first, extent, sides),
        (f"{other[0]}, width, height", other[1], other[1] + extent, sides),
    ):
        sound = (high > low).all(1) & (low >= -_BEYOND).all(1) & (high <= inside + _BEYOND).all(1)
        if float(sound.mean()) > _NEARLY_ALL:
            return name
    return ""
