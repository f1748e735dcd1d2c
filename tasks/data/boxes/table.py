"""Boxes of a whole data set in columns, and the samples made of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels, Size
from tasks.data.boxes.repairs import Repairs
from tasks.data.files.reading import DEFAULT_READER, ImageReader, PackedNames
from tasks.data.fingerprint import Known
from tasks.data.sample import Sample, Truth

_REDUCTIONS = (1, 2, 4, 8)
"""By what a JPEG decoder can shrink (``ImageReader.at_least``); sides are rounded up."""


@dataclass(frozen=True)
class BoxTable:
    """I images with N boxes, K classes. Arrays and packed names only, so that forked workers share them uncopied.

    ``root``, the folder that ``files`` are relative to; ``ids`` of images as text; ``sizes`` int32 [I, 2], (H, W) as the
    annotations say, -1 where unknown. Boxes of image i are the rows ``first[i]`` to ``first[i + 1]``, ``first`` int64
    [I + 1], in the order of the file. Of each row: ``boxes`` float64 [N, 4] as x, y, width, height in pixels of the
    original, repaired (where nobody asks for boxes: as they are, NaN where there is none); ``labels`` int64 [N] in 0..K-1;
    ``crowd`` bool [N]; ``area`` float64 [N] in square pixels; ``row_ids`` int64 [N], the annotation's id in the file, by which
    what is not kept here (key points) can be found there. ``category_ids``: the number of each label in the file (of several
    that became one, the first; where the file lacks a class, a free number); ``numbers``: each number that is in the file, and its label.
    ``repairs``: what was changed on reading.
    """

    root: Path
    files: PackedNames
    ids: PackedNames
    sizes: NDArray[np.int32]
    first: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    row_ids: NDArray[np.int64]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    repairs: Repairs
    numbers: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, index: int) -> slice:
        """The rows of one image."""
        position = range(len(self))[index]
        return slice(int(self.first[position]), int(self.first[position + 1]))

    def path(self, index: int) -> str:
        """The file of one image."""
        return f"{self.root}/{self.files[index]}"

    def truth(self, index: int) -> Truth:
        """What one image is scored against."""
        rows = self.rows(index)
        return Truth(self.boxes[rows].copy(), self.labels[rows].copy(), self.crowd[rows].copy(), self.area[rows].copy())

    def known(self, index: int) -> bytes:
        """All that the table holds of one image, as bytes."""
        rows = self.rows(index)
        columns = (self.sizes[index], self.boxes[rows], self.labels[rows], self.crowd[rows], self.area[rows])
        return os.fsencode(self.files[index]) + b"".join(column.tobytes() for column in columns)

    def counts(self) -> NDArray[np.int64]:
        """How many objects each class has, int64 [K]; crowds are not counted."""
        return np.bincount(self.labels[~self.crowd], minlength=len(self.classes)).astype(np.int64)

    def objects(self) -> NDArray[np.int64]:
        """How many objects each image has, int64 [I]; crowds are not counted."""
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(~self.crowd, dtype=np.int64)])
        counts: NDArray[np.int64] = np.diff(before[self.first])
        return counts

    def empty_images(self) -> NDArray[np.int64]:
        """Indices of the images without an object (a crowd is none)."""
        return np.flatnonzero(self.objects() == 0)

    @property
    def aspects(self) -> NDArray[np.float64]:
        """Width / height of each image, float64 [I]; 1 where unknown."""
        height, width = self.sizes.T.astype(np.float64)
        aspects: NDArray[np.float64] = np.divide(
            width, height, out=np.ones(len(self)), where=(height > 0) & (width > 0)
        )
        return aspects

    def take(self, images: NDArray[np.integer]) -> "BoxTable":
        """The table of some images, in the order given; ``repairs`` stay those of the whole file."""
        counts = np.diff(self.first)[images]
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        rows = np.repeat(self.first[:-1][images] - first[:-1], counts) + np.arange(first[-1])
        return replace(
            self,
            files=PackedNames(self.files[i] for i in images.tolist()),
            ids=PackedNames(self.ids[i] for i in images.tolist()),
            sizes=self.sizes[images],
            first=first,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            area=self.area[rows],
            row_ids=self.row_ids[rows],
        )

    def summary(self) -> str:
        """One line: images, images without objects, boxes, boxes of each class."""
        counts = self.counts()
        most = np.argsort(-counts, kind="stable")
        named = ", ".join(f"{self.classes[k]} {counts[k]:,}" for k in most[:10].tolist())
        more = f" and {len(most) - 10} more classes" if len(most) > 10 else ""
        crowds = f", {int(self.crowd.sum()):,} crowds" if self.crowd.any() else ""
        return f"{len(self):,} images, {len(self.empty_images()):,} without objects; {counts.sum():,} objects{crowds}: {named}{more}"


class BoxDataset:
    """Samples of a table's images, with what is ``asked`` of: ``boxes`` (xyxy clipped to the image, ``box_labels``, ``crowd``,
    and ``truth`` for the scores), ``labels`` (the classes that occur, crowds included), ``label`` (the class of the largest
    object by area, the first of several; no crowd). ``notes``: what the user should hear of it before a run.

    An image must have the size that the annotations say (where they say one). If only turning it as its EXIF tag says, or
    leaving it unturned, gives that size, this is done, whatever the reader's ``exif`` says, for boxes were drawn on the image
    as it was seen then; if neither does, reading the sample raises :class:`UserError` naming the file and both sizes.
    Where the reader may give it at a reduced size, boxes and truth are reduced with the image.
    """

    def __init__(
        self,
        table: BoxTable,
        reader: ImageReader = DEFAULT_READER,
        asked: Sequence[str] = ("boxes",),
        notes: tuple[str, ...] = (),
    ) -> None:
        self.table, self.reader, self.asked, self.notes = table, reader, tuple(asked), notes
        self.classes = table.classes
        self.category_ids = table.category_ids

    @property
    def only_reads(self) -> bool:
        """Whether nothing but an image's size is looked at; see :mod:`tasks.data.batch`."""
        return "boxes" not in self.asked

    @property
    def aspects(self) -> NDArray[np.float64]:
        """Width / height of each image, float64 [I]."""
        return self.table.aspects

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        table, path = self.table, self.table.path(index)
        claimed = (int(table.sizes[index, 0]), int(table.sizes[index, 1]))
        image, full = self._image(path, claimed)
        height, width = image.shape[:2]
        truth = table.truth(index)
        sample = Sample(image, table.ids[index], path)
        if "labels" in self.asked:
            sample.labels = np.zeros(len(self.classes), np.float32)
            sample.labels[truth.labels] = 1
        if "label" in self.asked:
            sample.label = int(truth.labels[np.where(truth.crowd, -np.inf, truth.area).argmax()])
        if "boxes" in self.asked:
            if (height, width) != full:
                truth = _reduced(truth, width / full[1], height / full[0])
            boxes = np.clip(xyxy(truth.boxes), 0, [width, height, width, height]).astype(np.float32)
            sample.boxes, sample.box_labels, sample.crowd, sample.truth = (
                boxes,
                truth.labels.copy(),
                truth.crowd.copy(),
                truth,
            )
        return sample

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        return Known(self.table.ids[index], self.table.known(index), (self.table.path(index),))

    def _image(self, path: str, claimed: Size) -> tuple[Pixels, Size]:
        """The image, and the size that its boxes are in: what the annotations say, else the file's."""
        image, found = self.reader.with_size(path)
        if min(claimed) <= 0:
            return image, found
        if self._fits(found, claimed):
            return image, claimed
        if self._fits(found[::-1], claimed):  # a quarter turn would do: does the file's tag speak of one?
            turned = replace(self.reader, exif="ignore" if self.reader.exif == "apply" else "apply")
            other, size = turned.with_size(path)
            if self._fits(size, claimed):
                return other, claimed
        what = f"the annotations say {claimed[1]} x {claimed[0]} pixels (width x height), the file has {found[1]} x {found[0]}"
        raise UserError(
            path, what, "correct width and height there, or the file: what is annotated would lie elsewhere"
        )

    def _fits(self, found: tuple[int, ...], claimed: Size) -> bool:
        factors = _REDUCTIONS if self.reader.at_least else (1,)
        return any(tuple(found) == tuple(-(-side // factor) for side in claimed) for factor in factors)


def xyxy(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners [n, 4] of boxes [n, 4] given as x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _reduced(truth: Truth, across: float, down: float) -> Truth:
    """The truth in pixels of an image decoded at a smaller size, by factors of width and height."""
    return replace(truth, boxes=truth.boxes * [across, down, across, down], area=truth.area * (across * down))
