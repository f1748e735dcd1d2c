"""Data set ``coco``: annotation files in COCO's format and folders of images."""

from dataclasses import replace
from pathlib import Path

from effbackbones.errors import UserError
from tasks.data.boxes.annotations import Wanted, open_boxes, open_table, selected
from tasks.data.boxes.cocofile import read_coco
from tasks.data.boxes.table import BoxDataset
from tasks.data.files.absent import remedy_for_split
from tasks.data.files.images import check_files
from tasks.data.files.listing import Spelling
from tasks.data.sets.painting import PaintedDataset, painting_of

_DEFAULT_FILES = {"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"}


def open_coco(
    root: Path,
    wanted: Wanted,
    *,
    file: str | None = None,
    folder: Path | None = None,
    unlabelled: str = "background",
    no_segmentation: str = "ignore",
    ignored: str = "object",
    rotation: str = "keep",
    sets: bool = False,
    without_images: bool = False,
) -> BoxDataset:
    """The split that the annotation ``file`` below ``root`` describes, by default
    ``annotations/instances_{train,val}2017.json``; labels are the categories in the order of their ids.

    ``folder``: what ``file_name`` is relative to, by default as :func:`image_folder` finds it. ``unlabelled``, ``no_segmentation`` and
    ``sets`` as in :func:`tasks.data.sets.painting.painting_of`; ``ignored`` and ``rotation`` as in
    :func:`tasks.data.boxes.cocofile.read_coco`; ``without_images``: files need not be there, for what reads annotations alone. What is
    refused and what is mended:
    :func:`tasks.data.boxes.cocofile.read_coco`, :mod:`tasks.data.boxes.repairs`. Boxes need not be there, or sound, unless they
    are wanted.
    """
    path = _annotation_file(root, wanted.split, file)
    masks = "mask" in wanted.labels
    boxes = "boxes" in wanted.labels
    said = read_coco(path, boxes=boxes, masks=masks, ignored_as=ignored, rotation=rotation)
    folder = folder or image_folder(root, path, said.files[0])
    ids = said.ids
    files = check_files(
        folder,
        said.files,
        lambda image: f"{path}: images[{image}] (id {ids[image]})",
        f"set data.options.{wanted.split}_images, or correct file_name",
        links=wanted.links,
        absent=without_images,
    )
    said = replace(said, files=files)
    if not masks:
        return open_boxes(said, folder, wanted)
    said = selected(said, folder, wanted)
    painting, mask_classes, repairs = painting_of(
        said, unlabelled=unlabelled, no_segmentation=no_segmentation, max_pixels=wanted.read.max_pixels, sets=sets
    )
    table, images, notes = open_table(said, folder, wanted)
    painting = painting.take(images) if len(images) < len(said.files) else painting
    return PaintedDataset(table, painting, mask_classes, wanted.read, wanted.labels, (*said.notes, *notes, *repairs))


def _annotation_file(root: Path, split: str, name: str | None) -> Path:
    name = name or _DEFAULT_FILES.get(split)
    if name is None:
        raise UserError(f"data.{split}", "names no annotation file", remedy_for_split(split))
    file = root / name
    if not file.is_file():
        there = sorted(
            path.relative_to(root).as_posix() for folder in (root, file.parent) for path in folder.glob("*.json")
        )
        beside = f"there are {', '.join(dict.fromkeys(there[:6]))}" if there else "nor any other JSON file beside it"
        raise UserError(f"data.{split}", f"there is no file {file}; {beside}", remedy_for_split(split))
    return file


def image_folder(root: Path, file: Path, first: str) -> Path:
    """The folder that the file names of a split are relative to, where nobody says.

    The first of these in which the image ``first`` lies, or that exists at all: the folder named after the split in the
    annotation file's name (``instances_train2017.json``: ``train2017``), the same in ``images``, ``images``, the annotation
    file's own folder, ``root``.
    """
    tail = file.stem.rpartition("_")[2]
    candidates = [
        folder
        for folder in (root / tail, root / "images" / tail, root / "images", file.parent, root)
        if folder.is_dir()
    ]
    return next((folder for folder in candidates if Spelling(folder).find(first) is not None), candidates[0])
