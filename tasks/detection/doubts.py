"""What numbers of a results file show by themselves that they do not mean what its format says: boxes as corners or shares, scores of
another scale."""

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError

_OUTSIDE = 0.2
"""Share of boxes beyond their image above which numbers that are corners inside of it are taken for such."""
_ANYWAY = "write x, y, width, height in pixels of the image, or set data.allow_bad_boxes to score them as they are"


def refuse_other_boxes(where: str, sizes: NDArray[np.integer], boxes: NDArray[np.float64]) -> None:
    """Raise :class:`UserError` where ``boxes`` [N, 4], finite, of images of ``sizes`` [N, 2] (H, W; not positive: unknown), are all of
    them corners x0, y0, x1, y1 that lie in their image, and as x, y, width, height many of them reach out of it by more than a
    pixel; or where all are shares of the image."""
    known = (sizes > 0).all(1)
    boxes, sides = boxes[known], sizes[known][:, ::-1].astype(np.float64)
    if not len(boxes):
        return
    if (np.abs(boxes) <= 1).all() and boxes[:, 2:].max() > 0 and sides.min() > 2:
        what = f"all {len(boxes):,} boxes have their numbers in 0..1: shares of the image, not pixels"
        raise UserError(where, what, _ANYWAY)
    first, last = boxes[:, :2], boxes[:, 2:]
    corners = ((first >= -1) & (last > first) & (last <= sides + 1)).all()
    outside = (first + last > sides + 1).any(1)
    if corners and outside.mean() > _OUTSIDE:
        what = f"{int(outside.sum()):,} of {len(boxes):,} boxes reach out of their images, and as corners x0, y0, x1, y1 all lie inside"
        raise UserError(where, what, _ANYWAY)


def told_of_scores(scores: NDArray[np.float64]) -> str:
    """A line where ``scores`` [N], finite, lie outside of 0..1; else nothing."""
    count = int(((scores < 0) | (scores > 1)).sum())
    if not count:
        return ""
    return (
        f"warning: {count:,} of {len(scores):,} scores lie outside of 0..1 ({scores.min():g} to {scores.max():g}): AP goes by their "
        "order alone, but scores at a threshold are wrong"
    )
