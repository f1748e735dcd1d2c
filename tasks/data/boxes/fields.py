"""Fields of COCO annotations that change what a box means, as tools write them: marks to ignore an object, rotations, other box modes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.files.jsonfile import word
from tasks.data.files.records import NUMBER, Records

IGNORE_MARKS = frozenset(
    ["ignore", "ignored", "is_ignored", "ignore_flag", "iscrowd", "is_crowd", "crowd", "difficult", "is_difficult"]
)
"""Names, in lower case, of fields by which tools say that finding an object is neither right nor wrong."""
_TURNS = ("rotation", "angle")
_PLACES = ("attributes", "extra")
"""Fields of an annotation in which tools keep more of them."""
_XYXY, _XYWH = 0, 1
_MODES = "0 (x0, y0, x1, y1) and 1 (x, y, width, height)"
_LEAST_TURN = 1e-3  # degrees


def _places(row: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """The annotation itself (True), and what it holds of further fields."""
    yield row, True
    for key in _PLACES:
        inner = row.get(key)
        if isinstance(inner, dict):
            yield inner, False


def ignored(records: Records) -> NDArray[np.bool_]:
    """Which annotations have a mark to ignore them, ``iscrowd`` of the annotation itself apart, bool [N]."""
    return np.array([any(_marks(row)) for row in records.rows], np.bool_)


def _marks(row: dict[str, Any]) -> Iterator[bool]:
    for place, itself in _places(row):
        for key, value in place.items():
            if key.lower() in IGNORE_MARKS and not (itself and key == "iscrowd"):
                yield value is True or value in (1, "1") or (isinstance(value, str) and value.lower() == "true")


def turned(records: Records) -> NDArray[np.float64]:
    """Degrees by which a box is to be turned about its middle, 0 where nothing says so, float64 [N]."""
    return np.array([_turn(row) for row in records.rows], np.float64)


def _turn(row: dict[str, Any]) -> float:
    for place, _ in _places(row):
        for key in _TURNS:
            value: Any = place.get(key)
            if type(value) in NUMBER and abs(value) < 1e6 and min(value % 180, -value % 180) > _LEAST_TURN:
                return float(value)
    return 0.0


def enclosed(boxes: NDArray[np.float64], degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes [N, 4] as x, y, width, height around what they are when turned about their middle by ``degrees`` [N]."""
    angle = np.deg2rad(degrees)
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    width, height = boxes[:, 2], boxes[:, 3]
    sides = np.stack([width * cos + height * sin, width * sin + height * cos], 1)
    around = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2 - sides / 2, sides], 1)
    return np.where((degrees != 0)[:, None], around, boxes)


def corner_rows(records: Records) -> NDArray[np.bool_]:
    """Which boxes are corners by their ``bbox_mode``, bool [N]; modes that are neither that nor x, y, width, height raise."""
    modes = [row.get("bbox_mode", _XYWH) for row in records.rows]
    for index, mode in enumerate(modes):
        if mode not in (_XYXY, _XYWH) or isinstance(mode, bool):
            records.refuse(index, f"bbox_mode {word(mode)} is not one of {_MODES}", "write boxes in one of these")
    return np.array([mode == _XYXY for mode in modes], np.bool_)
