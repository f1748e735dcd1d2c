"""Lines of YOLO label files: boxes, outlines and poses, which look alike, told apart."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from effbackbones.errors import UserError
from effbackbones.numbers import plain_number

ROWS = ("auto", "outline", "pose")
"""What lines of more than five numbers are: ``data.options.rows``."""
_LARGEST_SHARE = 2.0
"""Numbers beyond are no shares of an image, but pixels, say; those between this and 1 reach out of the image."""
_ROUNDING = 2e-6
"""Corners beyond the image by no more are those of six decimals, rounded, and are put on its border."""
_SLACK = 0.005  # key points may be drawn a little outside of their box
_FLAGS = (0.0, 1.0, 2.0)
_REMEDY = "write `class cx cy w h`, shares of the image"
Corners = tuple[float, float, float, float]


class Row(NamedTuple):
    """A line: what it is called in messages, its class, and the numbers that follow."""

    where: str
    label: int
    values: tuple[float, ...]


def parsed(words: Sequence[str], where: str, num_classes: int) -> Row:
    """A line of numbers, of a class that there is."""
    try:
        label, *values = map(plain_number, words)
    except ValueError:
        raise UserError(where, f"expected numbers, got {' '.join(words)[:60]!r}", _REMEDY) from None
    if not all(map(math.isfinite, (label, *values))):
        raise UserError(where, f"a number is not finite: {' '.join(words)[:60]!r}", _REMEDY)
    if label != int(label) or not 0 <= label < num_classes:
        raise UserError(
            where, f"class {words[0][:20]} is not in 0..{num_classes - 1}", "correct it, or the names of the classes"
        )
    if len(values) < 4 or len(values) == 5:
        what = f"expected 5 numbers, or an outline of 3 or more points, got {len(words)} numbers"
        raise UserError(where, what, _REMEDY)
    return Row(where, int(label), tuple(values))


def key_points(rows: Sequence[Row], shape: object, where: str, said: str = "auto") -> int | None:
    """How many numbers each key point of the poses has, 2 (x, y) or 3 (x, y, seen); None where lines of more than five numbers are
    outlines.

    ``shape``: ``kpt_shape`` of a ``data.yaml``, which decides. Else rows are poses whose first four numbers are a box around the other
    points: three each if every third is 0, 1 or 2; two each if all rows are alike in length and most boxes have their middle in
    the midst of the points. ``said``: one of :data:`ROWS`.
    """
    if shape is not None and said != "outline":
        return _shape(shape, where)[1]
    longer = [row.values for row in rows if len(row.values) > 4]
    if not longer or said == "outline":
        return None
    lengths = {len(values) for values in longer}
    for size in (3, 2):
        if len(lengths) > 1 or (len(longer[0]) - 4) % size:
            continue
        if all(_boxes_points(values, size) for values in longer) and (
            size == 3 or said == "pose" or 2 * sum(map(_is_middle, longer)) >= len(longer)
        ):
            return size
    if said == "pose":
        raise UserError("data.options.rows", "the first four numbers do not box the others", "set it to auto")
    return None


def _shape(shape: object, where: str) -> tuple[int, int]:
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or any(not isinstance(number, int) for number in shape)
        or shape[1] not in (2, 3)
    ):
        raise UserError(f"{where}: kpt_shape", f"expected [number, 2 or 3], got {str(shape)[:40]}", "correct it")
    return shape[0], shape[1]


def _boxes_points(values: Sequence[float], size: int) -> bool:
    """Whether the first four numbers are a box around the points (of ``size`` numbers) after them that are seen."""
    cx, cy, width, height = values[:4]
    points = [values[start : start + size] for start in range(4, len(values), size)]
    if size == 3 and not all(point[2] in _FLAGS for point in points):
        return False
    seen = [point for point in points if point[:2] != (0.0, 0.0) and (size == 2 or point[2] > 0)]
    return bool(seen or size == 3) and all(
        abs(x - cx) <= width / 2 + _SLACK and abs(y - cy) <= height / 2 + _SLACK for x, y, *_ in seen
    )


def _is_middle(values: Sequence[float]) -> bool:
    """Whether the first point lies in the midst of those after the second, as the middle of a pose does, and a corner of an outline
    only where that is dented: no straight line through it has all of them on one side."""
    cx, cy = values[:2]
    angles = sorted(
        math.atan2(y - cy, x - cx) for x, y in zip(values[4::2], values[5::2], strict=True) if (x, y) != (0.0, 0.0)
    )
    gaps = [
        after - before
        for before, after in zip(angles, [*angles[1:], *(a + 2 * math.pi for a in angles[:1])], strict=True)
    ]
    return bool(gaps) and max(gaps) < math.pi


def corners(row: Row, points: int | None, shape: object = None) -> Corners:
    """The box of a row, as corners, shares of the image; ``points`` as :func:`key_points` says."""
    values, where = row.values, row.where
    pose = points is not None and len(values) > 4
    if pose:
        expected = shape[0] * points if isinstance(shape, list) and points else None
        if (len(values) - 4) % (points or 1) or expected not in (None, len(values) - 4):
            what = f"expected 5 numbers and key points of {points} numbers each, got {len(values) + 1} numbers"
            raise UserError(where, what, "correct it, or kpt_shape in data.yaml")
        values = values[:4]
    elif len(values) % 2:
        what = f"expected 5 numbers, or an outline of 3 or more points, got {len(values) + 1} numbers"
        raise UserError(where, what, f"{_REMEDY}; poses need kpt_shape in data.yaml")
    if max(map(abs, values)) > _LARGEST_SHARE:
        raise UserError(where, f"{max(values, key=abs):g} is no share of the image: pixels?", _REMEDY)
    if len(values) == 4:
        cx, cy, width, height = values
        box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    else:
        box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    x0, y0, x1, y1 = (share if min(abs(share), abs(share - 1)) > _ROUNDING else float(round(share)) for share in box)
    return x0, y0, x1, y1
