"""Data set ``voc``: Pascal VOC's layout (Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from effbackbones.errors import UserError, nearest
from tasks.data.boxes.annotations import Annotations, Selection, Wanted, open_boxes
from tasks.data.boxes.fields import counted, enclosed
from tasks.data.boxes.table import BoxDataset
from tasks.data.boxes.vocfile import VocImage, VocObject, read_voc
from tasks.data.files.images import check_files
from tasks.data.files.listing import shown
from tasks.data.sets.vocfolders import VocFiles, find_voc

_EMPTY = VocImage((-1, -1), ())
FIRST_PIXEL = ("auto", "1", "0")
_LOOKED_AT = 1000
"""Annotation files of other splits that are looked at for what the first pixel is."""
_FRACTIONS = 0.01
"""Share of objects with fractions of pixels above which corners are no numbers of pixels (VOC itself has a few)."""


def open_voc(
    root: Path,
    wanted: Wanted,
    *,
    listing: str,
    ignore_difficult: bool = True,
    first_pixel: str = "auto",
    whole: bool = False,
    missing: str = "stop",
    ignored: str = "object",
    rotation: str = "keep",
) -> BoxDataset:
    """The images of the list ``ImageSets/Main/LISTING.txt`` below ``root``: ``JPEGImages/ID.*`` with ``Annotations/ID.xml``; where
    there are no lists, the annotation files in the folder ``LISTING``, or with ``whole`` all below ``root``, with their images
    beside them or in a folder of images (:mod:`tasks.data.sets.vocfolders`).

    An image without annotation file is dealt with as ``missing`` says (:data:`tasks.data.files.absent.MISSING`).

    Corners are pixels counted from 1, both inclusive; boxes become continuous: (xmin - 1, ymin - 1, xmax, ymax). Where ``first_pixel``
    is 0, or ``auto`` and corners at 0 or many fractions show it, they are continuous as they stand. Objects
    marked as difficult are, with ``ignore_difficult``, trained and scored as crowds are: finding them is neither right nor wrong
    (VOC's own scores differ in that one detection alone may match such an object); without, they are objects like all others.
    Labels are in the order of the classes wanted, of which other objects are left out; by default those of the training split,
    sorted.
    """
    found = find_voc(root, listing, wanted.split, links=wanted.links, whole=whole).settled(missing)
    files = check_files(
        found.folder, found.files, found.record.__getitem__, "add the image, or remove the line", links=wanted.links
    )
    read = [_EMPTY if path in found.absent else read_voc(path) for path in found.annotations]
    offset, notes = _offset(first_pixel, found, read)
    labels = _labels(wanted, found.annotations, read)
    said = _columns(found, files, read, labels, ignore=ignore_difficult, offset=offset)
    said = _marked(said, [item for image in read for item in image.objects], ignored, rotation)
    said = replace(said, notes=(*found.notes, *notes, *_passed_over(files, read)))
    return open_boxes(said, found.folder, replace(wanted, selection=Selection()))


def _marked(said: Annotations, objects: Sequence[VocObject], ignored: str, rotation: str) -> Annotations:
    """The same with the marks of labelling tools followed, or noted: see :func:`tasks.data.boxes.cocofile.read_coco`."""
    degrees = np.array([item.rotation for item in objects], np.float64)
    marked = np.array([item.ignored for item in objects], np.bool_) & ~said.crowd
    turned, crowd = degrees != 0, ignored == "crowd"
    return replace(
        said,
        boxes=enclosed(said.boxes, degrees) if rotation == "enclose" else said.boxes,
        crowd=said.crowd | marked if crowd else said.crowd,
        assumed={
            "ignored_crowd" if crowd else "ignored": marked,
            "rotated_enclosed" if rotation == "enclose" else "rotated": turned,
        },
    )


def _passed_over(files: Sequence[str], read: Sequence[VocImage]) -> Iterator[str]:
    """What the annotation files say and nobody follows: parts of objects, names of other images."""
    parts = sum(item.parts for image in read for item in image.objects)
    if parts:
        yield f"{parts:,} parts of objects are not used"
    if unused := Counter(name for image in read for item in image.objects for name in item.unused):
        yield f"fields of objects that are not used: {counted(unused)}"
    others = [
        f"{image.file} for {Path(file).name}"
        for file, image in zip(files, read, strict=True)
        if image.file and Path(image.file.replace("\\", "/")).stem != Path(file).stem
    ]
    if others:
        yield f"{len(others):,} annotation files say another file name than that of their image: {shown(others)}"


def _offset(first_pixel: str, found: VocFiles, read: Sequence[VocImage]) -> tuple[int, tuple[str, ...]]:
    """What is to be taken from the left upper corners, and what to tell of it."""
    if first_pixel != "auto":
        return int(first_pixel), ()
    evidence = _counted_from_0(found.annotations, read)
    if evidence is None:  # a small split may not show it, and must not be read in another way than its neighbours
        mine = set(found.annotations)
        others = [path for path in found.others if path not in mine]
        others = others[:: max(1, len(others) // _LOOKED_AT)]
        evidence = _counted_from_0(others, [image for path in others if (image := _tried(path))])
    if evidence is None:
        return 1, ()
    remedy = "data.options.first_pixel: 1 counts from 1, as VOC does"
    return 0, (f"corners are taken as counted from pixel 0, not from 1: {evidence} ({remedy})",)


def _tried(path: Path) -> VocImage | None:
    try:
        return read_voc(path)
    except UserError:  # none of this split's business
        return None


def _counted_from_0(paths: Sequence[Path], read: Sequence[VocImage]) -> str | None:
    """What shows that corners are not numbers of pixels counted from 1; None: nothing."""
    fractions, total = 0, 0
    for path, image in zip(paths, read, strict=False):
        for item in image.objects:
            if min(item.corners[:2]) == 0:
                return f"an object in {path.name} begins at 0"
            total += 1
            fractions += any(corner != int(corner) for corner in item.corners)
    return f"{fractions:,} of {total:,} objects have fractions of pixels" if fractions > _FRACTIONS * total else None


def _labels(
    wanted: Wanted, annotations: Sequence[Path], read: Sequence[VocImage]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes, and the label of each name that the objects have, -1 of those that are left out.

    A name that is neither in the training split nor left out by the option ``classes`` raises :class:`UserError` with its
    file; so does a class asked for that no object of the training split has.
    """
    selection, training = wanted.selection, wanted.training
    said = sorted({found.name for image in read for found in image.objects})
    new = {name: dict(selection.rename).get(name, name) for name in said}
    classes = training or selection.classes or tuple(sorted(set(new.values())))
    if training is None:
        for option, names, known in (
            ("rename", [old for old, _ in selection.rename], said),
            ("classes", classes, list(new.values())),
        ):
            for name in names:
                if name not in known:
                    raise UserError(
                        f"data.options.{option}", f"no object is called {name!r}", nearest(name, set(known))[:200]
                    )
    strange = {name for name in said if new[name] not in classes}
    if strange and selection.classes is None:
        image, number, name = next(
            (image, number, found.name)
            for image, content in enumerate(read)
            for number, found in enumerate(content.objects, 1)
            if found.name in strange
        )
        where = f"{annotations[image]}: object {number}"
        raise UserError(where, f"no object of the training split is called {name!r}", nearest(name, classes)[:200])
    return classes, {name: -1 if name in strange else classes.index(new[name]) for name in said}


def _columns(
    found: VocFiles,
    files: list[str],
    read: Sequence[VocImage],
    labels: tuple[tuple[str, ...], dict[str, int]],
    *,
    ignore: bool,
    offset: int,
) -> Annotations:
    """The objects of all images as columns; category ids count from 1, as VOC has none."""
    names, label_of = labels
    objects = [item for image in read for item in image.objects]
    owner = np.repeat(np.arange(len(read)), [len(image.objects) for image in read])
    before = np.concatenate([[0], np.cumsum([len(image.objects) for image in read])])
    corners = np.array([item.corners for item in objects], np.float64).reshape(-1, 4) - [offset, offset, 0, 0]
    return Annotations(
        source=found.source,
        files=files,
        ids=found.ids,
        sizes=np.array([image.size for image in read], np.int32),
        owner=owner,
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1),
        categories=np.array([label_of[item.name] for item in objects], np.int64),
        crowd=np.array([item.difficult and ignore for item in objects], np.bool_),
        row_ids=np.arange(1, len(objects) + 1),
        names=names,
        category_ids=tuple(range(1, len(names) + 1)),
        record=lambda row: f"{found.annotations[owner[row]].name} object {row - before[owner[row]] + 1}",
    )
