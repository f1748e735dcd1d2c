"""Boxes of a results file that lie beside the objects as they are, and on them read otherwise: as corners, by their middle, with x and y
exchanged, or as of a resized image."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.data.sample import Truth
from tasks.detection.coco_scores import overlaps
from tasks.detection.results import ImageDetections, finite_rows

_IMAGES, _BEST, _ON = 200, 20, 0.5
"""Images that are looked at, boxes of each, and by what IoU these lie on objects."""
_ENOUGH, _OTHER = 4, 2
"""How many must lie on objects in another order, and how many times those that do as they are."""
_RESIZED_IMAGES, _RESIZED, _SHARE = 40, 3, 0.3
"""Of so many images as resized ones; how many times; and which share of what could. (Of many sizes that are tried one may fit a little.)"""
_SIDES = (*range(224, 705, 32), *range(768, 1537, 64), 300, 380, 456, 528, 600, 800, 1333)
"""Sides that networks see images at, pixels."""

Boxes = NDArray[np.float64]
Reading = Callable[[Boxes, tuple[int, int]], Boxes]
"""Boxes of an image of (H, W) as they may be meant."""


class _Looked(NamedTuple):
    """The best boxes [N, 4] of an image, its (H, W), and its objects."""

    boxes: Boxes
    size: tuple[int, int]
    truth: Truth

    def on(self, reading: Reading | None = None) -> NDArray[np.float64]:
        """The IoU of those, otherwise read, that lie on objects."""
        boxes = reading(self.boxes, self.size) if reading else self.boxes
        usable = boxes[(boxes[:, 2:] > 0).all(1)]
        best: NDArray[np.float64] = overlaps(usable, self.truth.boxes, self.truth.crowd).max(1, initial=0)
        return best[best >= _ON]

    @property
    def most(self) -> int:
        """How many could."""
        return min(len(self.boxes), len(self.truth.boxes))


def told_of_readings(found: Sequence[ImageDetections], truths: Sequence[Truth]) -> str:
    """A line where the best boxes of some images lie on objects (IoU 0.5) read in one of :data:`_ORDERS`, or in pixels of an image that was
    resized as for a network, which they miss as x, y, width, height; else nothing. Small corner boxes near the origin lie in their images
    either way."""
    looked = _looked(found, truths)
    plain, orders = _count(looked), {meaning: _count(looked, reading) for meaning, reading in _ORDERS.items()}
    meaning, most = max(orders, key=orders.__getitem__), sum(one.most for one in looked)
    least = (
        _ENOUGH if meaning == _CORNERS else max(_ENOUGH, _SHARE * most)
    )  # others lie on objects by chance more often
    if orders[meaning] >= max(least, _OTHER * plain):
        return _line(looked, plain, orders[meaning], f"{meaning}: write x, y, width, height")
    if plain >= _SHARE * most:
        return ""
    some = [one for one in looked if one.most and min(one.size) > 0]
    some = some[:: -(-len(some) // _RESIZED_IMAGES) or 1]
    tried = {(text, side): partial(way, side=side) for side in _SIDES for text, way in _WAYS.items()}
    best, side = max(tried, key=lambda one: sum(float(image.on(tried[one]).sum()) for image in some))
    plain, resized = _count(some), _count(some, tried[best, side])
    if resized < max(_ENOUGH, _RESIZED * plain, _SHARE * sum(one.most for one in some)):
        return ""
    return _line(some, plain, resized, f"pixels of the image {best.format(side)}: write those of the file's image")


def _count(looked: Sequence[_Looked], reading: Reading | None = None) -> int:
    return sum(len(one.on(reading)) for one in looked)


def _looked(found: Sequence[ImageDetections], truths: Sequence[Truth]) -> list[_Looked]:
    some = np.unique(np.linspace(0, len(found) - 1, min(_IMAGES, len(found))).astype(int)).tolist()
    looked = []
    for image, truth in ((found[index], truths[index]) for index in some):
        fine = np.flatnonzero(finite_rows(image.boxes, image.scores))
        best = image.boxes[fine[np.argsort(-image.scores[fine], kind="stable")[:_BEST]]]
        looked.append(_Looked(best, image.size, truth))
    return looked


def _line(looked: Sequence[_Looked], plain: int, otherwise: int, meaning: str) -> str:
    total = sum(len(one.boxes) for one in looked)
    return f"warning: of {total:,} boxes looked at {plain:,} lie on objects as they are, and {otherwise:,} read as {meaning}"


def _corners(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def _middle(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)


def _exchanged(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    return boxes[:, [1, 0, 3, 2]]


def _corners_exchanged(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    return _corners(_exchanged(boxes, size), size)


_CORNERS = "corners x0, y0, x1, y1"
_ORDERS: Mapping[str, Reading] = {
    _CORNERS: _corners,
    "x and y of the middle, width, height": _middle,
    "y, x, height, width": _exchanged,
    "corners y0, x0, y1, x1": _corners_exchanged,
}


def _stretched(boxes: Boxes, size: tuple[int, int], side: int) -> Boxes:
    height, width = size
    return boxes * (np.array([width, height, width, height]) / side)


def _fitted(boxes: Boxes, size: tuple[int, int], side: int) -> Boxes:
    return boxes * (max(size) / side)


def _centred(boxes: Boxes, size: tuple[int, int], side: int) -> Boxes:
    height, width = size
    left, top = (side - width * side / max(size)) / 2, (side - height * side / max(size)) / 2
    return _fitted(boxes - [left, top, 0, 0], size, side)


def _enlarged(boxes: Boxes, size: tuple[int, int], side: int) -> Boxes:
    return boxes * (min(size) / side)


_WAYS: Mapping[str, Callable[..., Boxes]] = {
    "stretched to {0} x {0}": _stretched,
    "with a longer side of {0}": _fitted,
    "in the middle of {0} x {0}": _centred,
    "with a shorter side of {0}": _enlarged,
}
