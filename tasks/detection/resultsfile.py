"""COCO results files, which carry detections from one program to another: written, and read back with every record checked."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import read_bytes, write_parts
from tasks.data.boxes.repairs import duplicates
from tasks.data.files.jsonfile import RepeatedKeyError, once, refuse_repeated, word
from tasks.detection.doubts import refuse_other_boxes, told_of_scores
from tasks.detection.numbering import Numbering
from tasks.detection.results import ImageDetections, KnownImages, finite_rows

_NUMBER = re.compile(r"-?[0-9]{1,1000}")  # of any length that there is: Python's numbers are exact
_SHOWN = 3
"""So many unknown images or categories are named in a message."""


def write_results(path: Path, detections: Iterable[ImageDetections], category_ids: Sequence[int]) -> int:
    """Write one COCO results file of ``detections``, which are gone through more than once and not held; returns how many were left
    out because JSON has no word for what is not finite.

    A list of records: ``image_id``, ``category_id`` (by ``category_ids``, the number of each label), ``bbox`` (x, y, width,
    height in original pixels), ``score``, and ``file_name`` where the image has a file (relative to the folder that all of them
    share). ``image_id`` is a number where the id is one; an id that is the image's path gives its stem, as a number where it
    is one (``val2017/000000000139.jpg``: 139), and the path itself where two images share the stem.
    """
    left_out = 0

    def records() -> Iterator[bytes]:
        nonlocal left_out
        start = b"[\n"
        for image, id_, name in zip(detections, *_names(detections), strict=True):
            if image.labels.size and not 0 <= image.labels.min() <= image.labels.max() < len(category_ids):
                what = f"labels {image.labels.min()} to {image.labels.max()}, but {len(category_ids)} category ids"
                raise UserError(image.id, what, "give the id of every class")
            fine = finite_rows(image.boxes, image.scores)
            left_out += int((~fine).sum())
            extra = ({"file_name": name} if name else {}) | (image.moment.to_dict() if image.moment else {})
            for box, score, label in zip(
                image.boxes[fine].tolist(), image.scores[fine].tolist(), image.labels[fine].tolist(), strict=True
            ):
                record = {
                    "image_id": id_,
                    "category_id": int(category_ids[label]),
                    "bbox": box,
                    "score": score,
                    **extra,
                }
                yield start + json.dumps(record, allow_nan=False).encode()
                start = b",\n"
        yield b"[]\n" if start == b"[\n" else b"\n]\n"

    write_parts(path, records())
    return left_out


def _names(detections: Iterable[ImageDetections]) -> tuple[list[int | str], list[str]]:
    """``image_id`` and ``file_name`` of each image."""
    said = [(image.id, image.file) for image in detections]
    folders = {os.path.dirname(os.path.abspath(file)) for _, file in said if file}
    root = os.path.commonpath(folders) if folders else ""
    names = [PurePath(os.path.relpath(file, root)).as_posix() if file else "" for _, file in said]
    ids = [PurePath(file).stem if file and id_ == file else id_ for id_, file in said]
    taken = Counter(ids)
    ids = [name if name and taken[id_] > 1 else id_ for id_, name in zip(ids, names, strict=True)]
    numbers = {id_: int(id_) for id_ in set(ids) if _NUMBER.fullmatch(id_)}
    clashing = {number for number, times in Counter(numbers.values()).items() if times > 1}  # 7 and 007 stay texts
    return [numbers[id_] if id_ in numbers and numbers[id_] not in clashing else id_ for id_ in ids], names


def read_results(
    path: Path,
    known: KnownImages,
    tell: Callable[[str], None] = print,
    numbering: Numbering | None = None,
    *,
    allow_bad_boxes: bool = False,
) -> list[ImageDetections]:
    """Detections of a COCO results file, one entry for each image of ``known`` in its order, also where nothing was found.

    ``numbering``: the label of each category id, by default as ``known`` has them.

    An image is found by ``file_name`` where the record has one that fits a single image, otherwise by ``image_id``. Detections
    that are not finite are kept, so that the scores count them, and told, as are images without any, scores outside of 0..1, and boxes
    that are there twice.
    Raises :class:`UserError`: naming file and record (counted from 0) where one is malformed, with the number and the first few
    where images or categories are unknown, and unless ``allow_bad_boxes`` where boxes are corners, or shares of the image.
    """
    records = _records(path)
    images = _ImageIndex(known)
    numbering = numbering or Numbering({number: label for label, number in enumerate(known.category_ids)})
    rows = np.empty((len(records), 5))
    owners, kinds = np.empty(len(records), np.int64), np.empty(len(records), np.int64)
    unknown: dict[str, dict[Any, None]] = {"images": {}, "categories": {}}
    for number, record in enumerate(records):
        rows[number] = _row(record, f"{path}: record {number}")
        owners[number] = images.find(record)
        kinds[number] = numbering.label(record["category_id"])
        if owners[number] < 0:
            unknown["images"][record["image_id"]] = None
        if kinds[number] < 0:
            unknown["categories"][record["category_id"]] = None
    numbering.refuse_ambiguous(path, (record["category_id"] for record in records))
    for what, strange in unknown.items():
        if strange:
            first = ", ".join(repr(item) for item in list(strange)[:_SHOWN])
            raise UserError(
                str(path), f"{len(strange)} unknown {what}: {first}", "score it against the data that it was made from"
            )
    fine = finite_rows(rows[:, :4], rows[:, 4])
    if not allow_bad_boxes:
        refuse_other_boxes(str(path), np.asarray(known.sizes)[owners[fine]], rows[fine, :4])
    bad, found = int((~fine).sum()), len(np.unique(owners))
    bare = f"; {len(known.ids) - found:,} have none and count as empty" if found < len(known.ids) else ""
    wrong = f"; {bad:,} are not finite and count as wrong" if bad else ""
    tell(f"{path}: {len(rows):,} detections in {found:,} of {len(known.ids):,} images{bare}{wrong}")
    if said := told_of_scores(rows[fine, 4]):
        tell(f"{path}: {said}")
    if again := int(duplicates(owners, kinds, rows[:, :4], fine).sum()):
        tell(f"{path}: {again:,} boxes lie in an image twice, alike in class and corners: one of each counts as wrong")
    return _by_image(known, owners, rows, kinds)


def _records(path: Path) -> list[Mapping[str, Any]]:
    text = read_bytes(path)
    try:
        content = json.loads(text, object_pairs_hook=once)
    except RepeatedKeyError as error:
        raise refuse_repeated(path, text.decode(json.detect_encoding(text)), error) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}", f"is not JSON: {error.msg}", "write it again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(str(path), f"is not JSON: {error}", "write it again") from None
    if not isinstance(content, list):
        raise UserError(
            str(path),
            f"expected a list of detections, found {word(content)}",
            "name a COCO results file, not annotations",
        )
    return content


def _row(record: Any, where: str) -> list[float]:
    """Box and score of a record whose fields are all there and of their types."""
    if not isinstance(record, dict):
        raise UserError(where, f"expected an object, found {word(record)}", "correct it")
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in record:
            raise UserError(where, f"has no {key}", "a detection needs image_id, category_id, bbox, score")
    box, id_, category = record["bbox"], record["image_id"], record["category_id"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise UserError(where, f"bbox: expected four numbers, found {word(box)}", "write x, y, width, height")
    if not _is_number(record["score"]):
        raise UserError(where, f"score: expected a number, found {word(record['score'])}", "correct it")
    if not isinstance(id_, int | str) or isinstance(id_, bool):
        raise UserError(where, f"image_id: expected a whole number or a text, found {word(id_)}", "correct it")
    if not isinstance(category, int) or isinstance(category, bool):
        raise UserError(where, f"category_id: expected a whole number, found {word(category)}", "correct it")
    return [_float(value) for value in (*box, record["score"])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


class _ImageIndex:
    """Finds the image of a record."""

    def __init__(self, known: KnownImages) -> None:
        self._ids = {id_: index for index, id_ in enumerate(known.ids)}
        self._numbers = _unique((int(id_), index) for id_, index in self._ids.items() if _NUMBER.fullmatch(id_))
        self._files = _unique((PurePath(file).as_posix(), index) for index, file in enumerate(known.files))
        self._tails = _unique((tail, index) for index, file in enumerate(known.files) for tail in _tails(file))
        self._found: dict[tuple[Any, Any], int] = {}

    def find(self, record: Mapping[str, Any]) -> int:
        """Row of the image; -1 if it is unknown or ambiguous."""
        id_, file = record["image_id"], record.get("file_name")
        key = (id_, file if isinstance(file, str) else None)
        if key not in self._found:
            index = self._by_file(key[1]) if key[1] else None
            by_id = self._numbers.get(id_, -1) if isinstance(id_, int) else self._ids.get(id_, -1)
            self._found[key] = by_id if index is None else index
        return self._found[key]

    def _by_file(self, file: str) -> int | None:
        """The image whose path ends as ``file`` does, or the other way round; None unless there is exactly one."""
        tails = _tails(file)
        candidates = (self._tails.get(tails[0]), *(self._files.get(tail) for tail in tails))
        return next((index for index in candidates if index is not None), None)


def _tails(file: str) -> list[str]:
    """``a/b/c.jpg``: itself, ``b/c.jpg``, ``c.jpg``."""
    parts = PurePath(file).parts
    return ["/".join(parts[start:]) for start in range(len(parts))] or [""]


def _unique(pairs: Iterable[tuple[Any, int]]) -> dict[Any, int]:
    """The pairs whose key occurs once."""
    found: dict[Any, int] = {}
    twice = set()
    for key, index in pairs:
        if key in found:
            twice.add(key)
        found[key] = index
    return {key: index for key, index in found.items() if key not in twice}


def _by_image(
    known: KnownImages, owners: NDArray[np.int64], rows: NDArray[np.float64], labels: NDArray[np.int64]
) -> list[ImageDetections]:
    """One entry for each image; detections of one image stay in the order of the file."""
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(len(known.ids) + 1))
    found = []
    for index, id_ in enumerate(known.ids):
        mine = order[bounds[index] : bounds[index + 1]]
        size = (int(known.sizes[index][0]), int(known.sizes[index][1]))
        found.append(ImageDetections(id_, size, rows[mine, :4], rows[mine, 4], labels[mine], known.files[index]))
    return found
