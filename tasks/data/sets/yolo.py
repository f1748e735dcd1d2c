"""Data set ``yolo``: a text file for each image, with a line ``class cx cy w h`` for each object, all as shares of the image."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.data.boxes.annotations import Annotations, Wanted, open_boxes
from tasks.data.boxes.table import BoxDataset
from tasks.data.files.decoding import lines_of
from tasks.data.files.images import header_sizes
from tasks.data.sets.yolofiles import Described, YoloFiles, find_files
from tasks.data.sets.yolonames import class_names
from tasks.data.sets.yolorows import Row, corners as corners_of, key_points, parsed

MAX_BYTES = 10_000_000
"""Larger label files are refused."""


@dataclass(frozen=True)
class _Lines:
    """What the label files of a split say: the image, line number and class of each object, and its corners as shares; which of them
    are ``outlines``, and which have key points beside a box (``poses``)."""

    owner: NDArray[np.int64]
    line: NDArray[np.int64]
    label: NDArray[np.int64]
    corners: NDArray[np.float64]
    outlines: NDArray[np.bool_]
    poses: NDArray[np.bool_]


def open_yolo(
    root: Path,
    wanted: Wanted,
    *,
    name: str | None = None,
    names: object = None,
    rows: str = "auto",
    whole: bool = False,
    missing: str = "empty",
) -> BoxDataset:
    """A split of the data in the folder ``root``, or of what a ``data.yaml`` describes (``root``: that file).

    With ``name`` all images below ``images/NAME`` with label files of the same path below ``labels/NAME``, in ``root``; or, where
    there is no such folder, ``NAME/images`` and ``NAME/labels``; or the folder or text file of paths ``NAME``. Without, what
    ``data.yaml`` has for the split: a folder, a text file of paths, or several of them; else ``name`` is the split's own; with
    ``whole``, all images where nothing is called so. An image without a label file, or with an empty one, has no objects, unless
    ``missing`` says otherwise (:data:`tasks.data.files.absent.MISSING`); label files without an image are told.

    A line with more than five numbers is an outline, class x y x y ..., of which the box around it is taken, or a pose, a box with key
    points, which are left out: ``rows`` says so, or ``kpt_shape`` in ``data.yaml``, or the numbers themselves
    (:func:`tasks.data.sets.yolorows.key_points`). Class names are the list ``names``, or what :func:`tasks.data.sets.yolonames.class_names`
    finds; category ids are the numbers in the files. Shares become pixels by the image's size, from its header.
    """
    described = Described.of(root)
    found = find_files(described, wanted.split, name, wanted.links, whole=whole)
    classes, told = class_names(names, described, found)
    found = replace(found, told=(*told, *found.told)).settled(missing)
    sizes = header_sizes([f"{found.root}/{file}" for file in found.files], wanted.read.exif, wanted.on_error)
    if wanted.split != "test" and not any(found.texts):
        raise found.refusal()
    return open_boxes(_columns(found, sizes, classes, described, rows), found.root, wanted)


def _columns(
    files: YoloFiles, sizes: NDArray[np.int32], names: tuple[str, ...], described: Described, rows: str
) -> Annotations:
    """All label files as columns, boxes in pixels."""
    found = _read(files, len(names), described, rows, known=np.logical_and.reduce(sizes > 0, axis=1))
    sides = sizes[found.owner][:, ::-1].astype(np.float64)
    corners = np.concatenate([found.corners[:, :2] * sides, found.corners[:, 2:] * sides], 1)
    count, texts = len(found.owner), files.texts
    return Annotations(
        source=files.source,
        files=files.files,
        ids=files.ids,
        sizes=sizes,
        owner=found.owner,
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1),
        categories=found.label,
        crowd=np.zeros(count, np.bool_),
        row_ids=np.arange(1, count + 1),
        record=lambda row: f"{Path(texts[found.owner[row]] or '').name}:{found.line[row]}",
        names=names,
        category_ids=tuple(range(len(names))),
        assumed={"outline": found.outlines, "key_points": found.poses},
        notes=files.notes(),
        centred=True,
    )


def _read(files: YoloFiles, num_classes: int, described: Described, said: str, known: NDArray[np.bool_]) -> _Lines:
    """Every line of every label file that there is, of images whose size is ``known`` [I]."""
    keys: list[tuple[int, int, int]] = []
    rows: list[Row] = []
    for image, text in enumerate(files.texts):
        if text is None or not known[image]:  # unreadable, and to be skipped
            continue
        for number, words in _lines(Path(text)):
            row = parsed(words, f"{text}:{number}", num_classes)
            keys.append((image, number, row.label))
            rows.append(row)
    shape = described.values.get("kpt_shape")
    points = key_points(rows, shape, str(described.file), said)
    corners = [corners_of(row, points, None if said == "outline" else shape) for row in rows]
    owner, line, label_column = np.array(keys, np.int64).reshape(-1, 3).T.copy()
    longer = np.array([len(row.values) > 4 for row in rows], np.bool_)
    poses = longer if points is not None else np.zeros(len(rows), np.bool_)
    found = np.array(corners, np.float64).reshape(-1, 4)
    return _Lines(owner, line, label_column, found, longer & ~poses, poses)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Lines that are not blank, in words, with their numbers from 1."""
    lines = lines_of(path, "write a line `class cx cy w h` for each object", most=MAX_BYTES)
    return [(number, line.split()) for number, line in lines]
