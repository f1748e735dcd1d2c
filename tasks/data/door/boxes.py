"""Data sets of boxes. A function has the name that ``data.name`` calls it by."""

from pathlib import Path

from effbackbones.errors import UserError
from tasks.data.boxes.annotations import Selection, Wanted
from tasks.data.boxes.table import BoxDataset
from tasks.data.door.reading import CLASSES, READ, image_reader, name_of, root_of, sets_wanted
from tasks.data.files.absent import MISSING
from tasks.data.sets.coco import open_coco
from tasks.data.sets.painting import NO_SEGMENTATION, UNLABELLED
from tasks.data.sets.voc import FIRST_PIXEL, open_voc
from tasks.data.sets.yolo import open_yolo
from tasks.data.sets.yolorows import ROWS
from tasks.settings.data import DataConfig
from tasks.settings.options import DataOptions

_BOXES = (*CLASSES, "duplicates")
_IMAGES = ("train_images", "val_images", "test_images", "images")
IGNORED, ROTATION = ("object", "crowd"), ("keep", "enclose")


def coco(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> BoxDataset:
    """Data set ``coco``: split ``split`` is the annotation file ``data.train``, ``data.val`` or ``data.test`` below
    ``data.root``, by default that of COCO 2017; see :func:`tasks.data.sets.coco.open_coco`.

    Options: ``images``, the folder that ``file_name`` is relative to, or one for each split (``train_images``, ...);
    ``classes``, names of those wanted, whose boxes alone are kept; ``rename``, a list of ``old=new``, which comes before
    ``classes``, and where several may become one; those of :func:`image_reader`; for masks ``unlabelled`` (``background`` or ``ignore``)
    and ``no_segmentation`` (``ignore``, ``box`` or ``stop``); and for what tools write, each told where it occurs:

    * ``ignored`` (``object`` or ``crowd``): what annotations are that have a mark to be ignored;
    * ``rotation`` (``keep`` or ``enclose``): boxes that are turned as they are, or those around them;
    * ``duplicates`` (``keep`` or ``drop``): objects that are there twice;
    * ``supercategories`` (``drop`` or ``keep``): categories without objects that are only above others.

    ``without_images`` (false): images need not be there, as where a file of predictions is scored.

    A sample has what ``data.labels`` asks for: ``boxes`` (as if nothing is asked), ``labels`` or ``label`` as in
    :class:`BoxDataset`, ``mask``; any of them at once. With ``data.multilabel`` masks keep all classes of a pixel.
    """
    known = (
        *READ,
        *_IMAGES,
        *_BOXES,
        "unlabelled",
        "no_segmentation",
        "ignored",
        "rotation",
        "supercategories",
        "without_images",
    )
    options, root = DataOptions(data.name, data.options, known), root_of(data)
    return open_coco(
        root,
        _wanted(data, split, classes, options),
        file=getattr(data, split),
        folder=_image_folder(data, split, root),
        unlabelled=options.word("unlabelled", UNLABELLED),
        no_segmentation=options.word("no_segmentation", NO_SEGMENTATION),
        ignored=options.word("ignored", IGNORED),
        rotation=options.word("rotation", ROTATION),
        sets=sets_wanted(data),
        without_images=options.truth("without_images"),
    )


def voc(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> BoxDataset:
    """Data set ``voc``: split ``split`` is the list ``data.train``, ``data.val`` or ``data.test`` of ``ImageSets/Main`` below
    ``data.root``, by default the split's own; see :func:`tasks.data.sets.voc.open_voc`.

    Options: ``difficult`` (``ignore`` or ``keep``), ``first_pixel`` (1 as in VOC, 0, or ``auto``: 0 where corners show it), ``classes`` (a
    list, labels in its order), ``rename`` (a list of ``old=new``, several may become one), ``duplicates`` (``keep`` or ``drop``),
    ``missing`` (``stop``, ``skip`` or ``empty``: images without annotation file), ``ignored`` and ``rotation`` as of :func:`coco`, and
    those of :func:`image_reader`.
    """
    known = (*READ, *_BOXES, "difficult", "first_pixel", "missing", "ignored", "rotation")
    options = DataOptions(data.name, data.options, known)
    root, wanted = root_of(data), _wanted(data, split, classes, options)
    _refuse_masks(data)
    return open_voc(
        root,
        wanted,
        listing=name_of(data, split),
        ignore_difficult=options.word("difficult", ("ignore", "keep")) == "ignore",
        first_pixel=options.word("first_pixel", FIRST_PIXEL),
        whole=data.undivided(split),
        missing=options.word("missing", MISSING),
        ignored=options.word("ignored", IGNORED),
        rotation=options.word("rotation", ROTATION),
    )


def yolo(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> BoxDataset:
    """Data set ``yolo``: split ``split`` lies in the folders (or is the text file of paths) ``data.train``, ``data.val`` or ``data.test``
    below ``data.root``, by default what ``data.yaml`` says there, or the split's own; ``data.root`` may be a ``data.yaml`` itself. See
    :func:`tasks.data.sets.yolo.open_yolo`.

    Options: ``names``; ``missing`` (``empty``, ``skip`` or ``stop``: images without label file); ``rows`` (``auto``, ``outline`` or
    ``pose``: what lines of more than five numbers are); ``classes`` (names of
    those wanted), ``rename`` (a list of ``old=new``, several may become one), ``duplicates`` (``keep`` or ``drop``) and those of
    :func:`image_reader`.
    """
    options = DataOptions(data.name, data.options, (*READ, *_BOXES, "names", "rows", "missing"))
    root = root_of(data, or_file=True)
    wanted = _wanted(data, split, classes, options)
    _refuse_masks(data)
    name: str | None = getattr(data, split)
    names, rows = data.options.get("names"), options.word("rows", ROWS)
    missing = options.word("missing", tuple(reversed(MISSING)))
    return open_yolo(root, wanted, name=name, names=names, rows=rows, whole=data.undivided(split), missing=missing)


def _wanted(data: DataConfig, split: str, classes: tuple[str, ...] | None, options: DataOptions) -> Wanted:
    """What is wanted of annotations; boxes where nothing is said."""
    return Wanted(
        split,
        data.labels or ("boxes",),
        classes,
        Selection.of(options.names("classes"), options.names("rename") or ()),
        data.keep_empty,
        data.allow_bad_boxes,
        data.on_error,
        image_reader(data, split),
        data.links,
        options.word("duplicates", ("keep", "drop")),
        options.word("supercategories", ("drop", "keep")),
    )


def _refuse_masks(data: DataConfig) -> None:
    if "mask" in data.labels:
        raise UserError("data.name", f"data set {data.name!r} has no masks", "use coco or masks")


def _image_folder(data: DataConfig, split: str, root: Path) -> Path | None:
    """The folder of a split's images that the options name."""
    name = f"{split}_images" if f"{split}_images" in data.options else "images"
    asked = data.options.get(name)
    if asked is None:
        return None
    if not isinstance(asked, str) or not (root / asked).is_dir():
        raise UserError(f"data.options.{name}", f"there is no folder {asked!r} in {root}", "correct it")
    return root / asked
