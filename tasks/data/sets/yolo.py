"""Data set ``yolo``: a text file for each image, with a line ``class cx cy w h`` for each object, all as shares of the image."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from tasks.data.boxes.annotations import Annotations, Wanted, open_boxes
from tasks.data.boxes.table import BoxDataset
from tasks.data.files.images import header_sizes, images_below
from tasks.strictyaml import read_tree

MAX_BYTES = 10_000_000
"""Larger label files are refused."""
_LARGEST_SHARE = 2.0
"""Numbers beyond are no shares of an image, but pixels, say; those between this and 1 reach out of the image."""
_ROUNDING = 2e-6
"""Corners beyond the image by no more are those of six decimals, rounded, and are put on its border."""


@dataclass(frozen=True)
class _Lines:
    """What the label files of a split say: the image, line number and class of each object, and its corners as shares."""

    owner: NDArray[np.int64]
    line: NDArray[np.int64]
    label: NDArray[np.int64]
    corners: NDArray[np.float64]


def open_yolo(root: Path, wanted: Wanted, *, name: str, names: object = None) -> BoxDataset:
    """All images below ``images/NAME`` with label files of the same path below ``labels/NAME``, in ``root``; or, where there is
    no such folder, ``NAME/images`` and ``NAME/labels``. An image without a label file, or with an empty one, has no objects.

    A line with more than five numbers is an outline, class x y x y ..., of which the box around it is taken. Class names are the
    list ``names``, or those of ``names`` in ``data.yaml`` (a list, or number: name); category ids are the numbers in the files.
    Shares become pixels by the image's size, from its header.
    """
    images, labels = _folders(root, name, wanted.split)
    classes = _class_names(names, root)
    files = images_below(images, root=root, links=wanted.links)
    if not files:
        raise UserError(str(images), "holds no image", f"fill it, or set data.{wanted.split}")
    sizes = header_sizes([f"{images}/{file}" for file in files], wanted.read.exif, wanted.on_error)
    return open_boxes(_columns(labels, files, sizes, classes), images, wanted)


def _folders(root: Path, name: str, split: str) -> tuple[Path, Path]:
    """Where images and label files of a split lie."""
    for images, labels in (
        (root / "images" / name, root / "labels" / name),
        (root / name / "images", root / name / "labels"),
    ):
        if images.is_dir():
            if not labels.is_dir():
                raise UserError(str(labels), "there is no such folder of label files", "add it, or correct data.root")
            return images, labels
    raise UserError(
        f"data.{split}",
        f"there is neither {root}/images/{name} nor {root}/{name}/images",
        "correct data.root or the split",
    )


def _class_names(listed: object, root: Path) -> tuple[str, ...]:
    """Names of the classes, in the order of their numbers."""
    where = "data.options.names"
    if listed is None:
        file = root / "data.yaml"
        if not file.is_file():
            raise UserError(where, f"is not set, and there is no {file}", "list the names of the classes")
        where, listed = f"{file}: names", read_tree(file, str(file)).values.get("names")
    if isinstance(listed, dict):
        if sorted(listed) != sorted(map(str, range(len(listed)))):
            what = f"expected the numbers 0 to {len(listed) - 1}, got {', '.join(listed)[:80]}"
            raise UserError(where, what, "give each class its number")
        listed = [listed[str(number)] for number in range(len(listed))]
    if (
        not isinstance(listed, list)
        or not listed
        or not all(isinstance(name, str | int) and name != "" for name in listed)
    ):
        raise UserError(where, f"expected a list of names, got {str(listed)[:60]}", "list the names of the classes")
    names = tuple(str(name) for name in listed)
    if len(set(names)) < len(names):
        raise UserError(
            where,
            f"{next(name for name in names if names.count(name) > 1)!r} stands there twice",
            "give each its own name",
        )
    return names


def _columns(labels: Path, files: list[str], sizes: NDArray[np.int32], names: tuple[str, ...]) -> Annotations:
    """All label files as columns, boxes in pixels."""
    ids = [file.rpartition(".")[0] for file in files]
    texts = [f"{id_}.txt" for id_ in ids]
    known: NDArray[np.bool_] = np.logical_and.reduce(sizes > 0, axis=1)
    found = _read(labels, texts, len(names), known)
    sides = sizes[found.owner][:, ::-1].astype(np.float64)
    corners = np.concatenate([found.corners[:, :2] * sides, found.corners[:, 2:] * sides], 1)
    count = len(found.owner)
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise UserError(
            str(labels / f"{twice}.txt"), "two images differ in their ending alone", "rename or remove one of the two"
        )
    return Annotations(
        source=str(labels),
        files=files,
        ids=ids,
        sizes=sizes,
        owner=found.owner,
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1),
        categories=found.label,
        crowd=np.zeros(count, np.bool_),
        row_ids=np.arange(1, count + 1),
        record=lambda row: f"{texts[found.owner[row]]}:{found.line[row]}",
        names=names,
        category_ids=tuple(range(len(names))),
    )


def _read(labels: Path, texts: list[str], num_classes: int, known: NDArray[np.bool_]) -> _Lines:
    """Every line of every label file that there is, of images whose size is ``known`` [I]."""
    keys: list[tuple[int, int, int]] = []
    corners: list[tuple[float, float, float, float]] = []
    for image, text in enumerate(texts):
        if not known[image]:  # unreadable, and to be skipped
            continue
        for number, words in _lines(labels / text):
            label, box = _parsed(words, f"{labels / text}:{number}", num_classes)
            keys.append((image, number, label))
            corners.append(box)
    owner, line, label_column = np.array(keys, np.int64).reshape(-1, 3).T.copy()
    return _Lines(owner, line, label_column, np.array(corners, np.float64).reshape(-1, 4))


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Lines that are not blank, in words, with their numbers from 1; none where there is no file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        raise UserError(str(path), what, "write a line `class cx cy w h` for each object") from None
    if len(raw) > MAX_BYTES:
        raise UserError(str(path), f"is larger than {MAX_BYTES:,} bytes", "a label file has one line for each object")
    return [(number, words) for number, line in enumerate(text.split("\n"), 1) if (words := line.split())]


def _parsed(words: list[str], where: str, num_classes: int) -> tuple[int, tuple[float, float, float, float]]:
    """The class of a line, and corners as shares of the image."""
    remedy = "write `class cx cy w h`, shares of the image"
    try:
        label, *values = (float(word) for word in words)
    except ValueError:
        raise UserError(where, f"expected numbers, got {' '.join(words)[:60]!r}", remedy) from None
    if not all(map(math.isfinite, (label, *values))):
        raise UserError(where, f"a number is not finite: {' '.join(words)[:60]!r}", remedy)
    if label != int(label) or not 0 <= label < num_classes:
        raise UserError(
            where, f"class {words[0][:20]} is not in 0..{num_classes - 1}", "correct it, or the names of the classes"
        )
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise UserError(
            where, f"expected 5 numbers, or an outline of 3 or more points, got {len(words)} numbers", remedy
        )
    if max(map(abs, values)) > _LARGEST_SHARE:
        raise UserError(where, f"{max(values, key=abs):g} is no share of the image: pixels?", remedy)
    if len(values) == 4:
        cx, cy, width, height = values
        box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    else:
        box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    x0, y0, x1, y1 = (share if min(abs(share), abs(share - 1)) > _ROUNDING else float(round(share)) for share in box)
    return int(label), (x0, y0, x1, y1)
