"""Masks of classes, painted object by object from outlines, and the samples that have them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.classsets import UNKNOWN, Sets
from effbackbones.images.geometry import Mask, Size, resize_nearest
from effbackbones.images.reading import MAX_PIXELS
from tasks.data.boxes.repairs import STOP_DROPPED
from tasks.data.boxes.table import BoxDataset, BoxTable
from tasks.data.files.reading import ImageReader
from tasks.data.fingerprint import Known
from tasks.data.masks.outlines import Outlines
from tasks.data.masks.placing import elsewhere, nested, refuse_shares, without_pixels
from tasks.data.sample import IGNORE, Sample

if TYPE_CHECKING:
    from tasks.data.boxes.annotations import Annotations

BACKGROUND = "background"
UNLABELLED, NO_SEGMENTATION = (BACKGROUND, "ignore"), ("ignore", "box", "stop")
"""What :func:`painting_of` can do about pixels without an object, and about objects without an outline."""
_ROUNDING = 1e-6  # pixels: sums of decimal fractions are off by less


@dataclass(frozen=True)
class Painting:
    """The objects of I images in the order in which they are painted, each over those before it.

    Those of image i are ``first[i]`` to ``first[i + 1]``, int64 [I + 1]. Of each: ``rows`` int64 [M], its place in ``outlines``;
    ``values`` uint8 [M]; ``boxes`` float64 [M, 4] as x, y, width, height, painted in place of an outline that is missing.
    ``empty``: the value of pixels without an object. ``sets``: a pixel has the classes of all its objects, ``values`` says which these
    are; it is ignored where one of them is, and where it has none and ``empty`` says so.
    """

    outlines: Outlines
    first: NDArray[np.int64]
    rows: NDArray[np.int64]
    values: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    empty: int
    sets: bool = False

    def take(self, images: NDArray[np.integer]) -> "Painting":
        """The painting of some images, in the order given."""
        counts = np.diff(self.first)[images]
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        chosen = np.repeat(self.first[:-1][images] - first[:-1], counts) + np.arange(first[-1])
        return replace(self, first=first, rows=self.rows[chosen], values=self.values[chosen], boxes=self.boxes[chosen])

    def known(self, index: int) -> bytes:
        """What is painted of one image, as bytes."""
        places = slice(*self.first[index : index + 2])
        outlines = b"".join(self.outlines.known(int(row)) for row in self.rows[places])
        return (
            bytes([self.empty])
            + b"sets" * self.sets
            + self.values[places].tobytes()
            + self.boxes[places].tobytes()
            + outlines
        )

    def mask(self, index: int, size: Size) -> Mask:
        """uint8 [``size``], with ``sets`` int32: the mask of image ``index``, which has that size."""
        height, width = size
        places = range(self.first[index], self.first[index + 1])
        if self.sets:
            return self._sets(places, size)
        canvas = np.full((width, height), self.empty, np.uint8)  # columns first, as the engine has it
        for place in places:
            self._paint(canvas, place, int(self.values[place]), size)
        return np.ascontiguousarray(canvas.T)

    def _sets(self, places: Sequence[int], size: Size) -> Sets:
        height, width = size
        sets = np.zeros((width, height), np.int32)
        free = np.full((width, height), self.empty == IGNORE)
        for value in sorted({int(self.values[place]) for place in places}):  # 255, ignored, is the last
            plane = np.zeros((width, height), np.uint8)
            for place in places:
                if self.values[place] == value:
                    self._paint(plane, place, 1, size)
            if value == IGNORE:
                free |= plane > 0
            else:
                sets |= plane.astype(np.int32) << value
                free &= plane == 0
        sets[free] = UNKNOWN
        return np.ascontiguousarray(sets.T)

    def _paint(self, canvas: NDArray[np.uint8], place: int, value: int, size: Size) -> None:
        row = int(self.rows[place])
        if self._missing(row):
            left, top, right, bottom = _touched(self.boxes[place], size)
            canvas[left:right, top:bottom] = value
        else:
            self.outlines.paint(canvas, row, value)

    def _missing(self, row: int) -> bool:
        return bool(self.outlines.sizes[row, 0] < 0 and self.outlines.parts[row] == self.outlines.parts[row + 1])


def _touched(box: NDArray[np.float64], size: Size) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of an image that a box (x, y, width, height) touches."""
    height, width = size
    sides = np.array([width, height], np.float64)
    low, high = np.floor(box[:2]).clip(0, sides), np.ceil(box[:2] + box[2:].clip(0)).clip(0, sides)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def painting_of(
    said: "Annotations",
    *,
    unlabelled: str = BACKGROUND,
    no_segmentation: str = "ignore",
    max_pixels: int = MAX_PIXELS,
    sets: bool = False,
) -> tuple[Painting, tuple[str, ...], tuple[str, ...]]:
    """How the objects that were selected are painted; the names of the values; and what is to be told of it.

    First come crowds and, with ``no_segmentation`` ``ignore``, the boxes of objects without an outline, both
    as :data:`IGNORE`: nobody knows what each of their pixels is, except where an object is drawn on top. Then the objects by falling
    area, so that small ones lie on large ones; of equal ones the later in the file on top. ``box`` paints such boxes as if they were
    outlines, ``stop`` refuses them. Pixels without an object are class 0, ``background``, or with ``unlabelled`` ``ignore``
    :data:`IGNORE`. With ``sets`` nothing lies on top, and there is no class ``background``: a pixel has the classes of all objects
    there, or none. Raises :class:`UserError` for outlines that are not of their image.
    """
    outlines = said.outlines
    if outlines is None:
        raise ValueError("the annotations were read without outlines")
    mask_classes = _mask_classes(said.names, with_background=unlabelled == BACKGROUND and not sets)
    clipped = _refuse_foreign(said, outlines, max_pixels)
    used = said.categories >= 0
    refuse_shares(said.source, outlines, said.sizes[said.owner])
    missing = outlines.missing & used
    _refuse_unknown(said, missing, stop=no_segmentation == "stop")
    ignored = said.crowd | (missing & (no_segmentation == "ignore"))
    values = np.where(ignored, IGNORE, said.categories + (len(mask_classes) - len(said.names)))
    order = np.lexsort(
        (-_areas(said, outlines), ~ignored, said.owner)
    )  # stable: of equal ones in the order of the file
    rows = order[used[order]]
    first = np.searchsorted(said.owner[rows], np.arange(len(said.files) + 1)).astype(np.int64)
    unknown = 0 if unlabelled == BACKGROUND else IGNORE
    painting = Painting(outlines, first, rows, values[rows].astype(np.uint8), said.boxes[rows], unknown, sets)
    boxes = "ignored" if no_segmentation == "ignore" else "painted"
    told = (
        (missing, f"annotations without a segmentation: their boxes are {boxes}"),
        (outlines.thin & used, "annotations with polygons of fewer than three points: these are left out"),
        (
            nested(outlines) & used,
            "objects have a polygon inside another of theirs: both filled, as COCO does (holes are said by runs)",
        ),
        (clipped & used, "outlines reach out of their image: clipped"),
        (without_pixels(outlines) & used, "outlines have no pixel: these objects are not painted"),
    )
    notes = [f"{rows.sum():,} {what} ({_examples(said, rows)})" for rows, what in told if rows.any()]
    return painting, mask_classes, (*notes, *_told_of_places(said, outlines, used))


def _told_of_places(said: "Annotations", outlines: Outlines, used: NDArray[np.bool_]) -> Iterator[str]:
    """What to tell of outlines that do not lie where the boxes of their objects do: a warning, where they are many."""
    found, looked, why = elsewhere(outlines, np.where(used[:, None], said.boxes, np.nan), said.sizes[said.owner])
    if not len(found):
        return
    apart = np.zeros(len(outlines), np.bool_)
    apart[found] = True
    many = "warning: " if len(found) > STOP_DROPPED * looked else ""
    what = "outlines looked at lie elsewhere than the boxes of their objects: the outlines are painted"
    yield f"{many}{len(found):,} of {looked:,} {what}{f'; it looks as if {why}' if why else ''} ({_examples(said, apart)})"


def _mask_classes(names: tuple[str, ...], *, with_background: bool) -> tuple[str, ...]:
    if with_background and BACKGROUND in names:
        what = f"a category is called {BACKGROUND}, as pixels without an object are"
        raise UserError("data.options.classes", what, "leave it out, rename it, or set data.options.unlabelled: ignore")
    result = (BACKGROUND, *names) if with_background else names
    if len(result) > IGNORE:
        raise UserError(
            "data.options.classes", f"masks have at most {IGNORE} classes, these are {len(result)}", "choose some"
        )
    return result


def _refuse_foreign(said: "Annotations", outlines: Outlines, max_pixels: int) -> NDArray[np.bool_]:
    """Which outlines reach out of their image, bool [N].

    Raises :class:`UserError` for images of more than ``max_pixels``, runs for images of another size, and coordinates that are
    further out than the longer side of the image: no slip of a pen, and what an engine that draws them may never end with.
    """
    pixels = said.sizes.astype(np.int64).prod(1)
    if (pixels > max_pixels).any():
        image = int(pixels.argmax())
        what = f"{said.sizes[image, 1]} x {said.sizes[image, 0]} pixels are more than data.max_pixels"
        raise UserError(
            f"{said.source}: image id {said.ids[image][:40]}", what, "correct width and height, or raise that"
        )
    sizes = said.sizes[said.owner]
    other = (outlines.sizes >= 0).all(1) & (sizes > 0).all(1) & (outlines.sizes != sizes).any(1)
    if other.any():
        row = int(other.argmax())
        what = f"segmentation.size is {outlines.sizes[row].tolist()}, that of its image {sizes[row].tolist()} (height, width)"
        raise UserError(_record(said, row), what, "correct one of the two")
    owners, extents = outlines.owners, outlines.extents()
    sides = np.where(sizes > 0, sizes, max_pixels)[owners][:, ::-1].astype(np.float64)
    beyond = np.maximum(-extents[:, 0], extents[:, 1] - sides).max(1, initial=0)
    far = beyond > sides.max(1, initial=0)
    if far.any():
        part = int(far.argmax())
        what = f"segmentation reaches {beyond[part]:g} pixels out of its image"
        raise UserError(_record(said, int(owners[part])), what, "write x, y, ... in pixels of the image")
    clipped = np.zeros(len(outlines), np.bool_)
    clipped[owners[beyond > _ROUNDING]] = True
    return clipped


def _refuse_unknown(said: "Annotations", missing: NDArray[np.bool_], *, stop: bool) -> None:
    """Raise :class:`UserError` for objects without an outline (``missing``) if told to ``stop``, or if they have no box either."""
    lost = missing if stop else missing & np.isnan(said.boxes).any(1)
    if lost.any():
        what = "has no segmentation" + ("" if stop else ", and no bbox either")
        raise UserError(
            _record(said, int(lost.argmax())), f"{what}; in all {lost.sum():,} records", "add it, or remove the record"
        )


def _areas(said: "Annotations", outlines: Outlines) -> NDArray[np.float64]:
    """Area of each object: what the annotations say, else that of the outline, else of the box."""
    with np.errstate(over="ignore"):
        boxes = np.nan_to_num(said.boxes[:, 2:].clip(0).prod(1), posinf=np.inf)
    areas = np.where(outlines.missing, boxes, outlines.areas())
    return areas if said.area is None else np.where(said.area > 0, said.area, areas)


def _record(said: "Annotations", row: int) -> str:
    return f"{said.source}: annotations[{row}] ({said.record(row)})"


def _examples(said: "Annotations", rows: NDArray[np.bool_]) -> str:
    found = [said.record(row) for row in np.flatnonzero(rows)[:4].tolist()]
    return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")


class PaintedDataset(BoxDataset):
    """The samples of a :class:`BoxDataset` with the ``mask`` of each; ``mask_classes`` names its values."""

    def __init__(
        self,
        table: BoxTable,
        painting: Painting,
        mask_classes: tuple[str, ...],
        reader: ImageReader,
        asked: tuple[str, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(table, reader, asked, notes)
        self.painting, self.mask_classes = painting, mask_classes

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        known = super().known(index)
        return known._replace(label=known.label + self.painting.known(index))

    def mask(self, index: int) -> Mask:
        """The mask uint8 [H, W] of an image in the size that the annotations say; the image itself is not read."""
        height, width = self.table.sizes[index].tolist()
        if min(height, width) <= 0:
            raise UserError(
                self.table.path(index), "cannot be read, and the annotations do not say its size", "repair the file"
            )
        return self.painting.mask(range(len(self))[index], (height, width))

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        height, width = sample.image.shape[:2]
        sample.mask = resize_nearest(self.mask(index), (height, width))
        return sample
