"""COCO annotation files to columns, every record checked."""

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from tasks.data.boxes.annotations import Annotations
from tasks.data.boxes.fields import corner_rows, enclosed, ignored, told_of_fields, turned
from tasks.data.files.jsonfile import parse, word
from tasks.data.files.names import plain
from tasks.data.files.records import FLAG, ID, LIST, NUMBER, TEXT, WHOLE, Records, as_float
from tasks.data.masks.coco import read_outlines
from tasks.data.masks.placing import elsewhere

_LOOKED_AT, _APART = 256, 0.05
"""Outlines that are held against boxes where nobody asks for masks, and the share of them from which it is told that they disagree."""
_SKIPPED = ("segmentation", "keypoints")
"""Most of a file, and let go unless it is asked for."""


def read_coco(
    path: Path, *, boxes: bool = True, masks: bool = False, ignored_as: str = "object", rotation: str = "keep"
) -> Annotations:
    """Images, annotations and categories of a file; categories sorted by id.

    ``boxes``: whether every annotation must have one; that of its ``segmentation`` is taken where there is no other. ``masks``: whether
    to read and check ``segmentation``, to ``outlines``. ``ignored_as``, for what is marked to be ignored: ``object`` (like all others)
    or ``crowd``. ``rotation``, for boxes that are said to be turned: ``keep`` (as they are) or ``enclose`` (the box around them).

    Raises :class:`UserError`, one line with file and record, for whatever cannot be read without guessing: no JSON (with
    the line), missing keys, wrong types, boxes that are not four finite numbers, ids twice, references to what is not
    there. Absent ``area`` and ``iscrowd`` and the id 0 are noted in ``assumed``.
    """
    parsed = parse(path, _SKIPPED[1:] if masks else _SKIPPED, spared=_Spared() if boxes else None)
    categories, images = Records(path, parsed.content, "categories"), Records(path, parsed.content, "images")
    annotations = Records(path, parsed.content, "annotations", empty=True)
    if parsed.word:
        raise UserError(f"{path}:{parsed.line}", f"{parsed.word} is not JSON{_holder(annotations)}", "write a number")
    names, category_ids = _categories(categories)
    ids = [str(id_) for id_ in images.unique("id", images.column("id", ID))]
    files = images.unique(
        "file_name",
        [plain(name) for name in images.column("file_name", TEXT)],
        "merge the two: each would lack the other's boxes",
    )
    ordinals = {id_: number for number, id_ in enumerate(ids)}
    labels = {number: label for label, number in enumerate(category_ids)}
    row_ids = np.array(annotations.unique("id", annotations.whole("id")), np.int64)
    iscrowd = annotations.column("iscrowd", FLAG, required=False)
    crowd, marked, degrees = _crowds(annotations, iscrowd), ignored(annotations), turned(annotations)
    marked &= ~crowd
    from_outline = _boxes_of_outlines(annotations) if boxes else np.zeros(len(annotations), np.bool_)
    found, corners = _boxes(annotations, required=boxes), corner_rows(annotations)
    found[corners, 2:] -= found[corners, :2]
    outlines = read_outlines(annotations) if masks else None
    marks = {"ignored_crowd" if ignored_as == "crowd" else "ignored": marked}
    turns = {"rotated_enclosed" if rotation == "enclose" else "rotated": degrees != 0}
    sizes, owner = _sizes(images), annotations.references("image_id", ID, ordinals, "images", str)
    places = _told_of_places(annotations, found, sizes[owner]) if boxes and not masks else ()
    return Annotations(
        source=str(path),
        files=files,
        ids=ids,
        sizes=sizes,
        owner=owner,
        boxes=enclosed(found, degrees) if rotation == "enclose" else found,
        categories=annotations.references("category_id", WHOLE, labels, "categories", int),
        crowd=crowd | marked if ignored_as == "crowd" else crowd,
        area=annotations.floats("area", annotations.column("area", NUMBER, required=False)),
        row_ids=row_ids,
        record=lambda row: f"id {row_ids[row]}",
        names=names,
        category_ids=category_ids,
        assumed={
            "iscrowd": np.array([value is None for value in iscrowd], np.bool_),
            "id_zero": row_ids == 0,
            "outline_box": from_outline,
            "corners": corners,
            "key_points": np.array([bool(row.get("num_keypoints")) for row in annotations.rows], np.bool_),
            "scored": np.array(["score" in row for row in annotations.rows], np.bool_),
            **marks,
            **turns,
        },
        outlines=outlines,
        parents=_parents(categories, annotations),
        notes=(*told_of_fields(images, annotations), *places),
    )


class _Spared:
    """Says of which annotations the segmentation is kept: those without a box, and the first few, which are held against theirs."""

    def __init__(self) -> None:
        self.left = _LOOKED_AT

    def __call__(self, record: dict[str, Any]) -> bool:
        if "category_id" not in record:
            return False
        if not record.get("bbox"):
            return True
        self.left -= bool(record.get("segmentation"))
        return self.left >= 0


def _told_of_places(annotations: Records, boxes: NDArray[np.float64], sizes: NDArray[np.int32]) -> Iterator[str]:
    """What to tell of boxes that do not lie where the outlines of their objects do; ``boxes`` [N, 4], ``sizes`` [N, 2] of their images."""
    rows = [index for index, row in enumerate(annotations.rows) if row.get("segmentation")][:_LOOKED_AT]
    try:
        outlines = read_outlines(annotations.some(rows), keep=True)
    except UserError:  # of no outline that is used
        return
    found, looked, why = elsewhere(outlines, boxes[rows], sizes[rows])
    if len(found) > _APART * looked:
        such = ", ".join(f"id {word(annotations.rows[rows[place]].get('id'))}" for place in found[:3].tolist())
        what = f"{len(found):,} of {looked:,} boxes looked at lie elsewhere than the outlines of their objects: the boxes are taken"
        yield f"warning: {what}{f'; it looks as if {why}' if why else ''} ({such}{', ...' * (len(found) > 3)})"


def _boxes_of_outlines(records: Records) -> NDArray[np.bool_]:
    """Give annotations without a box (or with an empty one) that of their segmentation; which these are, bool [N]."""
    lacking = [
        index for index, row in enumerate(records.rows) if row.get("bbox") in (None, []) and row.get("segmentation")
    ]
    rows = np.zeros(len(records), np.bool_)
    if not lacking:
        return rows
    some = records.some(lacking)
    outlines = read_outlines(some, keep=True)
    for index, row, box in zip(lacking, some.rows, outlines.boxes().tolist(), strict=True):
        if math.isfinite(box[0]):
            row["bbox"], rows[index] = box, True
    return rows


def _parents(categories: Records, annotations: Records) -> frozenset[str]:
    """Names of the categories that others have as their ``supercategory`` and no annotation has."""
    used = {row.get("category_id") for row in annotations.rows}
    above = {row.get("supercategory") for row in categories.rows if row.get("supercategory") != row["name"]}
    return frozenset(row["name"] for row in categories.rows if row["name"] in above and row["id"] not in used)


def _holder(annotations: Records) -> str:
    """The annotation whose box, area or polygons hold a NaN, in words; nothing if it stands elsewhere."""
    for index, row in enumerate(annotations.rows):
        box, polygons = row.get("bbox"), row.get("segmentation")
        lists = [part for part in (box, *(polygons if isinstance(polygons, list) else ())) if isinstance(part, list)]
        for value in (*chain.from_iterable(lists), row.get("area")):
            if isinstance(value, float) and not math.isfinite(value):
                return f"; it stands in annotations[{index}] (id {word(row.get('id'))})"
    return ""


def _categories(records: Records) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids, sorted by id."""
    ids = records.unique("id", records.whole("id"))
    names = records.unique("name", records.column("name", TEXT))
    for index, name in enumerate(names):
        if not name.strip():
            records.refuse(index, "name is empty", "give it one")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return tuple(names[k] for k in order), tuple(ids[k] for k in order)


def _sizes(records: Records) -> NDArray[np.int32]:
    """(H, W) int32 [I, 2], -1 where absent."""
    known = []
    for key in ("height", "width"):
        values = records.column(key, NUMBER, required=False)
        for index, value in enumerate(values):
            if value is not None and not (1 <= value < 2**31 and value == int(value)):
                records.refuse(
                    index, f"{key}: expected a positive whole number, got {word(value)}", "correct it, or leave it out"
                )
        known.append([-1 if value is None else int(value) for value in values])
    sizes: NDArray[np.int32] = np.array(known, np.int32).T.copy()
    return sizes


def _boxes(records: Records, *, required: bool) -> NDArray[np.float64]:
    """``bbox`` as float64 [N, 4]: four finite numbers each, or all NaN where there is none (or an empty one) unless ``required``."""
    boxes = records.column("bbox", LIST, required=required)
    absent = [] if required else [index for index, box in enumerate(boxes) if not box]
    for index in absent:
        boxes[index] = [0, 0, 0, 0]
    odd_lengths, odd_types = set(map(len, boxes)) - {4}, set(map(type, chain.from_iterable(boxes))) - NUMBER
    if odd_lengths or odd_types:
        index = next(index for index, box in enumerate(boxes) if len(box) != 4 or set(map(type, box)) - NUMBER)
        records.refuse(index, f"bbox: expected four numbers (x, y, width, height), got {word(boxes[index])}")
    try:
        flat = np.fromiter(chain.from_iterable(boxes), np.float64, 4 * len(boxes))
    except OverflowError:  # a whole number of hundreds of digits
        flat = np.fromiter(map(as_float, chain.from_iterable(boxes)), np.float64, 4 * len(boxes))
    bad = ~np.isfinite(flat.reshape(-1, 4)).all(1)
    if bad.any():
        index = int(bad.argmax())
        records.refuse(index, f"bbox is not finite: {word(boxes[index])}")
    found = flat.reshape(-1, 4)
    found[absent] = np.nan
    return found


def _crowds(records: Records, values: list[Any]) -> NDArray[np.bool_]:
    """``iscrowd`` as bool [N]; absent is 0."""
    if set(values) - {None, 0, 1}:
        index = next(index for index, value in enumerate(values) if value not in (None, 0, 1))
        records.refuse(index, f"iscrowd: expected 0 or 1, got {word(values[index])}")
    return np.array([bool(value) for value in values], np.bool_)
