"""Fields of COCO annotations that change what a box means, as tools write them: marks to ignore an object, rotations, other box modes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.files.jsonfile import word
from tasks.data.files.records import NUMBER, Records

IGNORE_MARKS = frozenset(
    [
        "ignore",
        "ignored",
        "isignore",
        "is_ignore",
        "is_ignored",
        "ignore_flag",
        "iscrowd",
        "is_crowd",
        "crowd",
        "difficult",
        "is_difficult",
        "deleted",
    ]
)
"""Names, in lower case, of fields by which tools say that finding an object is neither right nor wrong."""
_TURNS = ("rotation", "angle")
_PLACES = ("attributes", "extra")
"""Fields of an annotation in which tools keep more of them."""
_XYXY, _XYWH = 0, 1
_MODES = "0 (x0, y0, x1, y1) and 1 (x, y, width, height)"
_LEAST_TURN = 1e-3  # degrees


def _beside(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What an annotation holds of further fields."""
    for key in _PLACES:
        inner = row.get(key)
        if isinstance(inner, dict):
            yield inner


def ignored(records: Records) -> NDArray[np.bool_]:
    """Which annotations have a mark to ignore them, ``iscrowd`` of the annotation itself apart, bool [N]."""
    return np.array(
        [any(marks(row, "iscrowd")) or any(any(marks(inner)) for inner in _beside(row)) for row in records.rows],
        np.bool_,
    )


def marks(fields: Mapping[str, Any], apart: str = "") -> Iterator[bool]:
    """What each mark to ignore an object says among its fields, that called ``apart`` left out."""
    for key, value in fields.items():
        if key.lower() in IGNORE_MARKS and key != apart:
            yield value is True or value in (1, "1") or (isinstance(value, str) and value.lower() in ("true", "yes"))


def turned(records: Records) -> NDArray[np.float64]:
    """Degrees by which a box is to be turned about its middle, 0 where nothing says so, float64 [N]."""
    turns = (next(filter(None, map(turn, (row, *_beside(row)))), 0.0) for row in records.rows)
    return np.fromiter(turns, np.float64, len(records))


def turn(fields: Mapping[str, Any]) -> float:
    """Degrees by which one box is turned, by its fields; 0 where none says so."""
    for key in _TURNS:
        value: Any = fields.get(key)
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
