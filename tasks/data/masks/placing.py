"""Whether outlines lie where the boxes of their objects say: two things that an annotation says of one place."""

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from tasks.data.masks.outlines import Outlines

LOOKED_AT = 20_000
"""Objects that are looked at, evenly spread."""
_APART = 0.5
"""IoU below which an outline and a box are of two places: a hand that corrects one of them moves it less."""
_NEARLY_ALL = 0.95
_SMALL = 4.0  # square pixels, below which an outline may have no pixel


def refuse_shares(source: str, outlines: Outlines, sizes: NDArray[np.int32]) -> None:
    """Raise :class:`UserError` where nearly all polygons, of images of ``sizes`` [N, 2], lie in 0..1: shares of the image."""
    known = (sizes[outlines.owners] > _SMALL).all(1)
    extents = outlines.extents()[known]
    inside = np.logical_and.reduce((extents >= 0) & (extents <= 1), axis=(1, 2))
    if len(inside) and inside.mean() > _NEARLY_ALL:
        what = (
            f"{inside.sum():,} of {len(inside):,} polygons lie in 0..1: shares of the image, where pixels are expected"
        )
        raise UserError(source, what, "multiply x by the width of the image, y by its height")


def elsewhere(
    outlines: Outlines, boxes: NDArray[np.float64], sizes: NDArray[np.int32]
) -> tuple[NDArray[np.int64], int, str]:
    """Objects whose outline, as far as it is in its image (``sizes`` [N, 2]; H, W), is not where their box (``boxes`` [N, 4]; x, y, width,
    height) is, int64; how many were looked at; and what would explain it, or nothing. Objects that lack one of the two say nothing."""
    usable = np.flatnonzero(~outlines.missing & (boxes[:, 2:] > 0).all(1))
    looked = usable[np.unique(np.linspace(0, len(usable) - 1, min(LOOKED_AT, len(usable))).astype(int))]
    drawn = outlines.boxes(looked)[looked]
    there = np.isfinite(drawn).all(1)
    looked, sides = looked[there], np.where(sizes > 0, sizes, np.inf)[looked[there], ::-1]
    drawn, said = drawn[there], boxes[looked]
    apart = _overlap(_inside(drawn, sides), _inside(said, sides)) < _APART
    return looked[apart], len(looked), _why(drawn[apart], said[apart], outlines.sizes[looked[apart]])


def _inside(boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of each box that is in its image."""
    low, high = boxes[:, :2].clip(0), np.minimum(boxes[:, :2] + boxes[:, 2:], sides)
    return np.concatenate([low, (high - low).clip(0)], 1)


def _why(drawn: NDArray[np.float64], said: NDArray[np.float64], sizes: NDArray[np.int32]) -> str:
    if not len(drawn):
        return ""
    corners = np.concatenate([said[:, :2], said[:, 2:] - said[:, :2]], 1)
    reasons = {
        "x and y of the outlines are exchanged": _overlap(drawn[:, [1, 0, 3, 2]], said) >= _APART,
        "the boxes are corner boxes (x0, y0, x1, y1)": _overlap(drawn, corners) >= _APART,
        "the runs go along rows, where COCO's go down columns": sizes[:, 0] >= 0,
    }
    return next((reason for reason, fits in reasons.items() if fits.mean() > _NEARLY_ALL), "")


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of boxes row by row, those of less than a pixel taken as a pixel."""
    with np.errstate(all="ignore"):  # sides of any size
        ours, theirs = one[:, 2:].clip(1), other[:, 2:].clip(1)
        ends = np.minimum(one[:, :2] + ours, other[:, :2] + theirs)
        inside = (ends - np.maximum(one[:, :2], other[:, :2])).clip(0).prod(1)
        overlap: NDArray[np.float64] = inside / (ours.prod(1) + theirs.prod(1) - inside)
    return overlap


def without_pixels(outlines: Outlines) -> NDArray[np.bool_]:
    """Objects whose outline has no pixel, bool [N]: polygons thinner than pixels, and runs of none."""
    areas = outlines.areas()
    none: NDArray[np.bool_] = (areas == 0) & (outlines.sizes[:, 0] >= 0)
    small = np.flatnonzero((areas < _SMALL) & (np.diff(outlines.parts) > 0))
    none[[row for row in small.tolist() if not outlines.pixels(row)]] = True
    return none


def nested(outlines: Outlines) -> NDArray[np.bool_]:
    """Objects with a polygon that lies inside another of theirs, bool [N], among :data:`LOOKED_AT` of those of several: COCO fills both."""
    found = np.zeros(len(outlines), np.bool_)
    several, extents = np.flatnonzero(np.diff(outlines.parts) > 1)[:LOOKED_AT], outlines.extents()
    for row in several.tolist():
        parts = range(int(outlines.parts[row]), int(outlines.parts[row + 1]))
        found[row] = any(
            (extents[inner, 0] > extents[outer, 0]).all()
            and (extents[inner, 1] < extents[outer, 1]).all()
            and _holds(outlines, outer, inner)
            for inner in parts
            for outer in parts
        )
    return found


def _holds(outlines: Outlines, outer: int, inner: int) -> bool:
    """Whether all points of one polygon are inside of another: a ray to the right of each crosses its sides an odd number of times."""
    ends, points = outlines.ends // 2, outlines.coordinates.reshape(-1, 2)
    corners, inside = points[ends[outer] : ends[outer + 1]], points[ends[inner] : ends[inner + 1]]
    start, end = corners, np.roll(corners, -1, 0)
    with np.errstate(all="ignore"):  # level sides are never crossed
        x, y = inside[:, None, 0], inside[:, None, 1]
        crossing = (start[:, 1] > y) != (end[:, 1] > y)
        right = start[:, 0] + (y - start[:, 1]) / (end[:, 1] - start[:, 1]) * (end[:, 0] - start[:, 0]) > x
    return bool(((crossing & right).sum(1) % 2 == 1).all())
