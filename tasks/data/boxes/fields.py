"""Fields of COCO annotations that change what a box means, as tools write them: marks to ignore an object, rotations, other box modes."""

import re
from collections import Counter
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
        "is_group_of",
        "isgroupof",
        "group_of",
    ]
)
"""Names, in lower case, of fields by which tools say that finding an object is neither right nor wrong."""
TURNS = ("rotation", "angle")
"""Names of fields that turn a box."""
_PLACES = ("attributes", "extra")
"""Fields of an annotation in which tools keep more of them."""
_READ = {
    "images": frozenset(["id", "file_name", "width", "height", "license", "date_captured", "coco_url", "flickr_url"]),
    "annotations": frozenset(
        ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "bbox_mode", "score", *TURNS]
    )
    | {"num_keypoints", "keypoints"},
}
"""Fields of records that are read, or told of by themselves, or say nothing of what is learnt."""
_NOT_ALL = ("not_exhaustive_category_ids", "neg_category_ids")
"""Fields of images of which not all objects are labelled, as LVIS has them."""
_NOTHING = frozenset(["", "0", "0.0", "false", "no", "none", "null", "unspecified"])
_XYXY, _XYWH = 0, 1
_MODES = "0 (x0, y0, x1, y1) and 1 (x, y, width, height)"
_LEAST_TURN = 1e-3  # degrees
_NUMBER = re.compile(r"[+-]?\d{1,6}(\.\d*)?", re.ASCII)


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
    for key in TURNS:
        value: Any = fields.get(key)
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            value = float(value)
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


def told_of_fields(images: Records, annotations: Records) -> Iterator[str]:
    """What records say beyond what is read of them."""
    lacking = sum(any(row.get(key) for key in _NOT_ALL) for row in images.rows)
    if lacking:
        what = f"warning: not all objects of {lacking:,} images are labelled ({', '.join(_NOT_ALL)})"
        yield f"{what}: those that are not are trained, and scored, as background"
    for records in (annotations, images):
        read = _READ[records.key]
        found: Counter[str] = Counter()
        for row in records.rows:
            for key in sorted(row.keys() - read - {*_NOT_ALL}):
                found.update(_saying(key, row[key]))
        if found:
            yield f"fields of {records.key} that are not used: {counted(found)}"


def _saying(key: str, value: Any) -> Iterator[str]:
    """The names of the fields at a key that say anything, and are no marks to ignore an object, which are told by themselves."""
    if key in _PLACES and isinstance(value, dict):
        for inner in sorted(value.keys() - set(TURNS)):
            yield from (f"{key}.{name}" for name in _saying(inner, value[inner]))
    elif key.lower() not in IGNORE_MARKS and says(value):
        yield key


def says(value: object) -> bool:
    """Whether the value of a field says more than that nothing is there."""
    return bool(value) and str(value).strip().lower() not in _NOTHING


def counted(names: Counter[str]) -> str:
    """Names of fields with how often each occurs, for a message."""
    return ", ".join(f"{name} ({count:,})" for name, count in names.most_common(8)) + ", ..." * (len(names) > 8)
