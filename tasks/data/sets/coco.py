"""Data set ``coco``: annotation files in COCO's format and folders of images."""

import os
from pathlib import Path

from effbackbones.errors import UserError
from tasks.data.boxes.annotations import CLASS_OPTIONS, Selection, asked, open_boxes, open_table, selected
from tasks.data.boxes.cocofile import read_coco
from tasks.data.boxes.table import BoxDataset
from tasks.data.files.images import check_files
from tasks.data.files.reading import READ_OPTIONS, ImageReader, check_options, data_root
from tasks.data.sets.painting import PAINT_OPTIONS, PaintedDataset, painting_of
from tasks.settings.data import DataConfig

_DEFAULT_FILES = {"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"}
_FOLDER_OPTIONS = ("images", "train_images", "val_images", "test_images")


def coco(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> BoxDataset:
    """Split ``split`` is the annotation file ``data.train``, ``data.val`` or ``data.test`` below ``data.root``, by default
    ``annotations/instances_{train,val}2017.json``; labels are the categories in the order of their ids.

    Options: ``images``, the folder that ``file_name`` is relative to, or one for each split (``train_images``, ...), default:
    see :func:`image_folder`; ``classes``, names of those wanted, whose boxes alone are kept; ``rename``, a list of
    ``old=new``, which comes before ``classes``; those of :meth:`ImageReader.of`; and for masks those of
    :func:`tasks.data.sets.painting.painting_of`. Images without objects are kept, in training unless ``data.keep_empty`` is false.
    What is refused and what is mended: :func:`tasks.data.boxes.cocofile.read_coco`, :mod:`tasks.data.boxes.repairs`.

    A sample has what ``data.labels`` asks for: ``boxes`` (as if nothing is asked), ``labels`` or ``label`` as in
    :class:`BoxDataset`, ``mask``; any of them at once. Boxes need not be there, or sound, unless they are asked for.
    """
    check_options(data, (*READ_OPTIONS, *_FOLDER_OPTIONS, *CLASS_OPTIONS, *PAINT_OPTIONS))
    root = data_root(data)
    file = _annotation_file(data, root, split)
    said = read_coco(file, boxes="boxes" in asked(data), masks="mask" in asked(data))
    folder = image_folder(data, root, split, file, said.files[0])
    option = f"data.options.{split}_images"
    check_files(
        folder,
        said.files,
        lambda image: f"{file}: images[{image}] (id {said.ids[image]})",
        f"set {option}, or correct file_name",
    )
    if "mask" not in asked(data):
        return open_boxes(said, folder, data, split, classes, Selection.of(data))
    said = selected(said, folder, data, classes, Selection.of(data))
    painting, mask_classes, repairs = painting_of(said, data)
    table, images, notes = open_table(said, folder, data, split)
    painting = painting.take(images) if len(images) < len(said.files) else painting
    return PaintedDataset(table, painting, mask_classes, ImageReader.of(data, split), asked(data), (*notes, *repairs))


def _annotation_file(data: DataConfig, root: Path, split: str) -> Path:
    name = getattr(data, split) or _DEFAULT_FILES.get(split)
    if name is None:
        raise UserError(f"data.{split}", "names no annotation file", f"set data.{split}")
    file = root / name
    if not file.is_file():
        there = sorted(
            path.relative_to(root).as_posix() for folder in (root, file.parent) for path in folder.glob("*.json")
        )
        beside = f"there are {', '.join(dict.fromkeys(there[:6]))}" if there else "nor any other JSON file beside it"
        raise UserError(f"data.{split}", f"there is no file {file}; {beside}", f"set data.{split}")
    return file


def image_folder(data: DataConfig, root: Path, split: str, file: Path, first: str) -> Path:
    """The folder that the file names of a split are relative to.

    What the options say; otherwise the first of these in which the image ``first`` lies, or that exists at all: the folder
    named after the split in the annotation file's name (``instances_train2017.json``: ``train2017``), the same in
    ``images``, ``images``, the annotation file's own folder, ``root``.
    """
    asked = data.options.get(f"{split}_images", data.options.get("images"))
    if asked is not None:
        if not isinstance(asked, str) or not (root / asked).is_dir():
            name = f"{split}_images" if f"{split}_images" in data.options else "images"
            raise UserError(f"data.options.{name}", f"there is no folder {asked!r} in {root}", "correct it")
        return root / asked
    tail = file.stem.rpartition("_")[2]
    candidates = [
        folder
        for folder in (root / tail, root / "images" / tail, root / "images", file.parent, root)
        if folder.is_dir()
    ]
    return next((folder for folder in candidates if os.path.isfile(folder / first)), candidates[0])
