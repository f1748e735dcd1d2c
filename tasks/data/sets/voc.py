"""Data set ``voc``: Pascal VOC's layout (Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from effbackbones.errors import UserError, nearest
from tasks.data.boxes.annotations import Annotations, Selection, Wanted, open_boxes
from tasks.data.boxes.table import BoxDataset
from tasks.data.boxes.vocfile import VocImage, read_voc
from tasks.data.files.images import by_stem, check_files


def open_voc(root: Path, wanted: Wanted, *, listing: str, ignore_difficult: bool = True) -> BoxDataset:
    """The images of the list ``ImageSets/Main/LISTING.txt`` below ``root``: ``JPEGImages/ID.*`` with ``Annotations/ID.xml``.

    Corners are pixels counted from 1, both inclusive; boxes become continuous: (xmin - 1, ymin - 1, xmax, ymax). Objects
    marked as difficult are, with ``ignore_difficult``, trained and scored as crowds are: finding them is neither right nor wrong
    (VOC's own scores differ in that one detection alone may match such an object); without, they are objects like all others.
    Labels are in the order of the classes wanted, of which other objects are left out; by default those of the training split,
    sorted.
    """
    path = root / "ImageSets" / "Main" / f"{listing.removesuffix('.txt')}.txt"
    lines = _listed(path, wanted.split)
    ids, folder = list(lines), root / "JPEGImages"
    images = by_stem(folder)
    for id_, line in lines.items():
        if id_ not in images:
            raise UserError(f"{path}:{line}", f"there is no image {id_!r} in {folder}", "add it, or remove the line")
    files = [images[id_] for id_ in ids]
    check_files(
        folder,
        files,
        lambda image: f"{path}:{lines[ids[image]]}",
        "add the image, or remove the line",
        links=wanted.links,
    )
    read = [read_voc(root / "Annotations" / f"{id_}.xml") for id_ in ids]
    labels = _labels(wanted, root, ids, read)
    said = _columns(str(path), ids, files, read, labels, ignore=ignore_difficult)
    return open_boxes(said, folder, replace(wanted, selection=Selection()))


def _listed(listing: Path, split: str) -> dict[str, int]:
    """Ids of images, and the line each stands in; of lines with more, as in VOC's lists for a class, the first word counts."""
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt") if "_" not in path.stem)[:8])
        what = f"cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}" + (
            f"; there are lists {there}" if there else ""
        )
        raise UserError(str(listing), what, f"set data.{split} to a list in ImageSets/Main") from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and found.setdefault(words[0], number) != number:
            raise UserError(
                f"{listing}:{number}", f"{words[0]!r} stands in line {found[words[0]]} already", "remove one of the two"
            )
    if not found:
        raise UserError(str(listing), "lists no image", "list one id on each line")
    return found


def _labels(
    wanted: Wanted, root: Path, ids: Sequence[str], read: Sequence[VocImage]
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
        where = f"{root / 'Annotations' / ids[image]}.xml: object {number}"
        raise UserError(where, f"no object of the training split is called {name!r}", nearest(name, classes)[:200])
    return classes, {name: -1 if name in strange else classes.index(new[name]) for name in said}


def _columns(
    source: str,
    ids: list[str],
    files: list[str],
    read: Sequence[VocImage],
    labels: tuple[tuple[str, ...], dict[str, int]],
    *,
    ignore: bool,
) -> Annotations:
    """The objects of all images as columns; category ids count from 1, as VOC has none."""
    names, label_of = labels
    objects = [found for image in read for found in image.objects]
    owner = np.repeat(np.arange(len(read)), [len(image.objects) for image in read])
    before = np.concatenate([[0], np.cumsum([len(image.objects) for image in read])])
    corners = np.array([found.corners for found in objects], np.float64).reshape(-1, 4) - [1, 1, 0, 0]
    return Annotations(
        source=source,
        files=files,
        ids=ids,
        sizes=np.array([image.size for image in read], np.int32),
        owner=owner,
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1),
        categories=np.array([label_of[found.name] for found in objects], np.int64),
        crowd=np.array([found.difficult and ignore for found in objects], np.bool_),
        row_ids=np.arange(1, len(objects) + 1),
        names=names,
        category_ids=tuple(range(1, len(names) + 1)),
        record=lambda row: f"{ids[owner[row]]}.xml object {row - before[owner[row]] + 1}",
    )
