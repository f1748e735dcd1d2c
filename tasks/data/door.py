"""The door of the data: what the section ``data`` of a config says, as plain arguments of readers and transforms.

No other file of this room knows a config. The functions with the name of a data set are what ``data.name`` calls.
"""

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from effbackbones.errors import UserError
from effbackbones.images.geometry import Size
from effbackbones.images.reading import FRAMES
from effbackbones.images.spec import ReadingSpec
from tasks.data.boxes.annotations import Selection, Wanted
from tasks.data.boxes.table import BoxDataset
from tasks.data.files.absent import MISSING
from tasks.data.files.csvfile import COLUMNS, TableFormat
from tasks.data.files.reading import ImageReader, listed_classes
from tasks.data.masks.declared import Declared
from tasks.data.masks.file import FORMATS, OTHERS
from tasks.data.masks.pairs import Pairing
from tasks.data.masks.perclass import CLASS, KEEP, NAME, OVERLAPS
from tasks.data.sets.coco import open_coco
from tasks.data.sets.folders import FolderDataset
from tasks.data.sets.masks import MaskDataset, open_class_masks, open_masks
from tasks.data.sets.painting import NO_SEGMENTATION, UNLABELLED
from tasks.data.sets.shapes import CLASSES, SPLITS, ShapesDataset
from tasks.data.sets.table import TableDataset
from tasks.data.sets.voc import FIRST_PIXEL, open_voc
from tasks.data.sets.yolo import open_yolo
from tasks.data.sets.yolorows import ROWS
from tasks.data.transforms.images import ClassificationTransform
from tasks.data.transforms.listed import Listed, check_listed, names_in
from tasks.data.transforms.window import ViewTransform
from tasks.settings.checks import choice
from tasks.settings.data import DataConfig
from tasks.settings.options import DataOptions

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec

_READ = ("channels", "depth", "reduced", "frames")
_CLASSES = ("classes", "rename")
_BOXES = (*_CLASSES, "duplicates")
IGNORED, ROTATION = ("object", "crowd"), ("keep", "enclose")
_IMAGES = ("train_images", "val_images", "test_images", "images")
_PER_CLASS = ("mask_names", "overlap", "without_masks")
_PAIRS = ("images", "masks", "list", "image_suffix", "mask_suffix")


def folder(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> FolderDataset:
    """Data set ``folder``: split ``split`` lies in ``root/{data.train, data.val or data.test}``, by default its own name; where
    ``data.val`` is a share and there is no folder ``train``, all lies in ``root``.

    Options: ``other_files`` (``stop`` or ``ignore``), ``rename`` (a list of ``folder=class``; several may be of one class) and those
    of :func:`image_reader`.
    """
    options = DataOptions(data.name, data.options, (*_READ, "other_files", "rename"))
    where = _root(data) / _named(data, split)
    if data.shares and data.train is None and not where.is_dir():  # one set of class folders, not divided yet
        where = _root(data)
    return FolderDataset(
        where,
        classes,
        read=image_reader(data, split),
        ignore_others=options.word("other_files", ("stop", "ignore")) == "ignore",
        rename=options.renames(),
        least=2 if classes is None and split == "train" else 1,
        root=_root(data),
        links=data.links,
    )


def table(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> TableDataset:
    """Data set ``table``: split ``split`` is the CSV file ``data.train``, ``data.val`` or ``data.test`` in ``data.root``,
    by default ``train.csv`` and so on; ``data.multilabel`` says how many labels a row has.

    Options: ``classes`` (a list, or a file in ``data.root`` with one name on each line; default: those of the training
    table), ``rename`` (a list of ``old=new``, which comes first; several may become one), ``image_root`` (folder that file names
    are relative to; default: the CSV's), ``suffix`` (added to file names without the ending of an image), ``columns`` (the names of
    the columns of files and of labels, or of files and of one for each class that holds 1 or 0), ``group``
    (that of another one, whose rows of one value stay together where ``data.val`` is a share), ``delimiter`` (between cells; default:
    found from the header), ``separator`` (between labels, ``;``), and those of :func:`image_reader`.
    """
    known = (*_READ, *_CLASSES, "image_root", "suffix", "columns", "group", "delimiter", "separator")
    options, root = DataOptions(data.name, data.options, known), _root(data)
    image_root = data.options.get("image_root")
    if image_root is not None and not (isinstance(image_root, str) and (root / image_root).is_dir()):
        raise UserError("data.options.image_root", f"there is no folder {image_root!r}", "correct it")
    return TableDataset(
        root / (getattr(data, split) or f"{split}.csv"),
        classes or listed_classes(data.options.get("classes"), root),
        multilabel=data.multilabel,
        root=None if image_root is None else root / image_root,
        read=image_reader(data, split),
        form=_table_format(options),
        suffix=options.text("suffix") or "",
        rename=options.renames(),
        links=data.links,
    )


def _table_format(options: DataOptions) -> TableFormat:
    """How the options say that a table is written."""
    columns, delimiter = options.names("columns") or COLUMNS, options.text("delimiter")
    if len(columns) < 2:
        what = f"expected the column of files, and that of labels or those of all classes, got {len(columns)} names"
        raise UserError("data.options.columns", what, "write [file, labels]")
    if delimiter is not None and len(delimiter) != 1:
        raise UserError("data.options.delimiter", f"expected one character, got {delimiter!r}", "correct it")
    return TableFormat(columns, options.text("group"), delimiter, options.text("separator"))


def shapes(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> ShapesDataset:
    """Data set ``shapes``: images of ``data.image_size`` (64 when null), no files.

    Options: ``train``, ``val``, ``test`` (numbers of images), ``objects`` (largest number of shapes in an image, 4),
    ``seed`` (0).
    """
    options = DataOptions(data.name, data.options, (*SPLITS, "objects", "seed"))
    if classes is not None and classes != CLASSES:
        what = f"the shapes are {', '.join(CLASSES)}; the model has {len(classes)} other classes"
        raise UserError("classes", what, "train a new model")
    count, seed = options.whole(split, SPLITS[split], 1), options.whole("seed", 0, 0)
    objects = options.whole("objects", 4, 1)
    size = sides(data.image_size) or (64, 64)
    return ShapesDataset(size, count, seed=seed, split=split, objects=objects, sets=_sets_wanted(data))


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
        *_READ,
        *_IMAGES,
        *_BOXES,
        "unlabelled",
        "no_segmentation",
        "ignored",
        "rotation",
        "supercategories",
        "without_images",
    )
    options, root = DataOptions(data.name, data.options, known), _root(data)
    return open_coco(
        root,
        _wanted(data, split, classes, options),
        file=getattr(data, split),
        folder=_image_folder(data, split, root),
        unlabelled=options.word("unlabelled", UNLABELLED),
        no_segmentation=options.word("no_segmentation", NO_SEGMENTATION),
        ignored=options.word("ignored", IGNORED),
        rotation=options.word("rotation", ROTATION),
        sets=_sets_wanted(data),
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
    known = (*_READ, *_BOXES, "difficult", "first_pixel", "missing", "ignored", "rotation")
    options = DataOptions(data.name, data.options, known)
    root, wanted = _root(data), _wanted(data, split, classes, options)
    _refuse_masks(data)
    return open_voc(
        root,
        wanted,
        listing=_named(data, split),
        ignore_difficult=options.word("difficult", ("ignore", "keep")) == "ignore",
        first_pixel=options.word("first_pixel", FIRST_PIXEL),
        whole=bool(data.shares),
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
    options = DataOptions(data.name, data.options, (*_READ, *_BOXES, "names", "rows", "missing"))
    root = _root(data, or_file=True)
    wanted = _wanted(data, split, classes, options)
    _refuse_masks(data)
    name: str | None = getattr(data, split)
    names, rows = data.options.get("names"), options.word("rows", ROWS)
    missing = options.word("missing", tuple(reversed(MISSING)))
    return open_yolo(root, wanted, name=name, names=names, rows=rows, whole=bool(data.shares), missing=missing)


def masks(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> MaskDataset:
    """Data set ``masks``: folders of images and of masks, paired by name. Options, beside those of :func:`image_reader`:

    * ``images``, ``masks``, ``list``, ``image_suffix``, ``mask_suffix``: where the files are, as in :class:`Pairing`;
      ``{split}`` stands for ``data.train``, ``data.val`` or ``data.test``, by default the split's own name;
    * ``classes``: a list of names, or a file in ``data.root`` with one on each line; default ``classes.txt`` there;
    * ``rename``: a list of ``old=new``; several classes may become one;
    * ``format``: ``index``, ``palette``, ``rgb`` or ``binary`` as :class:`tasks.data.masks.file.MaskReader` reads them; ``auto``
      (default) looks at some masks;
    * ``colors``, for ``rgb``: a list of ``name=red,green,blue``, which names the classes in their order; a name may come again;
    * ``values``: the value of each class in the masks, where they are not 0, 1, ...;
    * ``ignore``: a list of values (of colours, ``red,green,blue``) that are ignored; in ``index`` and ``palette`` 255 is, unless
      it is in ``values``;
    * ``mask_names``: where each class has a mask file of its own, how these are called: ``{name}_{class}``, ``{class}/{name}``; a class
      without files is what no mask covers. ``overlap``: ``stop`` (default), ``first`` or ``last`` of the classes that a pixel has;
      ``data.multilabel`` in its place keeps them all. ``without_masks``: ``stop`` (default) or ``background``, for images without any;
    * ``missing``: images without mask: ``stop`` (default), ``skip``, or ``empty``, as if it were 0, or black, everywhere;
    * ``other``: for values that are no class: ``stop`` (default), ``ignore``, or ``nearest``, what the nearest known value is.
    """
    known = (*_READ, *_PAIRS, *_CLASSES, *_PER_CLASS, "format", "colors", "values", "ignore", "other", "missing")
    options, root = DataOptions(data.name, data.options, known), _root(data)
    declared = _declared(options, root).renamed(options.renames())
    images, masks_in, listing, before, behind = (options.text(name) for name in _PAIRS)
    names = {one: _named(data, one) for one in ("train", split)}
    single = bool(data.shares)
    missing = options.word("missing", MISSING)
    pairing = Pairing(root, names, images, masks_in, listing, before, behind, single, data.links, missing)
    read, pattern = image_reader(data, split), options.text("mask_names")
    if pattern is not None:
        if "missing" in options.given:
            what = "is for one mask for each image, and data.options.mask_names says one for each class"
            raise UserError("data.options.missing", what, "set data.options.without_masks in its place")
        return _class_masks(options, pairing, split, declared, pattern, classes, read, sets=_sets_wanted(data))
    for name in _PER_CLASS[1:]:
        if name in options.given:
            raise UserError(f"data.options.{name}", "goes with mask_names alone", "remove it")
    if _sets_wanted(data):
        what = "wants masks whose classes overlap, and here a pixel has one class"
        remedy = "give each class a mask (data.options.mask_names), or outlines (data.name coco); or set it to false"
        raise UserError("data.multilabel", what, remedy)
    return open_masks(pairing, split, declared, training=classes, on_error=data.on_error, read=read)


def _class_masks(
    options: DataOptions,
    pairing: Pairing,
    split: str,
    declared: Declared,
    pattern: str,
    classes: tuple[str, ...] | None,
    read: ImageReader,
    *,
    sets: bool,
) -> MaskDataset:
    """Masks of one file for each class."""
    if NAME not in pattern or CLASS not in pattern:
        what = f"expected {NAME} and {CLASS} in it, got {pattern!r}"
        raise UserError("data.options.mask_names", what, f"write such as '{NAME}_{CLASS}' or '{CLASS}/{NAME}'")
    if sets and "overlap" in options.given:
        what = "chooses one class of a pixel, and data.multilabel keeps them all"
        raise UserError("data.options.overlap", what, "remove one of the two")
    overlap = KEEP if sets else options.word("overlap", OVERLAPS)
    bare = options.word("without_masks", ("stop", "background")) == "background"
    return open_class_masks(
        pairing, split, declared, pattern, overlap=overlap, without_masks=bare, training=classes, read=read
    )


def _sets_wanted(data: DataConfig) -> bool:
    """Whether masks are to hold sets of classes. Of several tasks together ``data.multilabel`` speaks of the labels of images."""
    return data.multilabel and data.labels == ("mask",)


def _declared(options: DataOptions, root: Path) -> Declared:
    """What the options say of masks."""
    form, others = (
        options.word("format", ("auto", *FORMATS)),
        options.word("other", OTHERS),
    )
    colors = options.listed("colors")
    if colors is None and form != "rgb":
        named = options.given.get("classes", "classes.txt" if (root / "classes.txt").is_file() else None)
        values, ignored = options.numbers("values"), options.numbers("ignore") or ()
        return Declared.numbers(form, listed_classes(named, root), values, ignored, others)
    if colors is None or form not in ("auto", "rgb"):
        what = f"goes with format rgb and with no other, got format {form}"
        raise UserError("data.options.colors", what, "give both or none")
    for name in ("classes", "values"):
        if name in options.given:
            what = "does not go with colors, which name the classes themselves"
            raise UserError(f"data.options.{name}", what, "remove it")
    return Declared.colors(colors, options.listed("ignore") or (), others)


def image_reader(data: DataConfig, split: str) -> ImageReader:
    """By ``data.exif``, ``data.max_pixels`` and the options ``channels`` (3), ``depth`` (``8`` or ``native``), ``frames`` (of files with
    several: ``stop``, or ``first``), ``reduced``
    (false; true: JPEGs of the training split may be decoded at 1/2, 1/4 or 1/8 as long as both sides stay twice
    ``data.image_size``; evaluation always reads them whole)."""
    channels, depth, reduced = (
        data.options.get("channels", 3),
        str(data.options.get("depth", "8")),
        data.options.get("reduced", False),
    )
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        what = f"expected a number of channels, got {channels!r}"
        raise UserError("data.options.channels", what, "give 1, 3, 4, ...")
    choice("data.options.depth", depth, ("8", "native"))
    frames = str(data.options.get("frames", "stop"))
    choice("data.options.frames", frames, FRAMES)
    size = sides(data.image_size)
    if not isinstance(reduced, bool) or (reduced and size is None):
        what = f"expected true or false, and true with data.image_size; got {reduced!r}"
        raise UserError("data.options.reduced", what, "correct it")
    at_least = (2 * size[0], 2 * size[1]) if size and reduced and split == "train" else None
    return ImageReader(channels, depth, data.exif, data.max_pixels, at_least, frames)


def reading_spec(data: DataConfig) -> ReadingSpec:
    """How evaluation reads images, as a model file says it."""
    depth = str(data.options.get("depth", "8"))
    depth = depth if depth in ("8", "native") else "8"  # a data set from outside may call something else so
    return ReadingSpec(depth, data.exif, sides(data.tile), data.tile_overlap, data.batch_shape)


def read_as(data: DataConfig, reading: ReadingSpec, kept: Collection[str]) -> tuple[DataConfig, tuple[str, ...]]:
    """``data`` that reads images as ``reading`` says, but for the dotted keys ``kept``, which stay as they are; and a sentence for
    each in which the two differed."""
    configured, changed, told = reading_spec(data), {}, []
    for field in fields(reading):
        ours, trained = getattr(configured, field.name), getattr(reading, field.name)
        if ours == trained or (field.name == "tile_overlap" and reading.tile is None):
            continue
        key = "data.options.depth" if field.name == "depth" else f"data.{field.name}"
        if key in kept or (field.name == "depth" and "data.options" in kept and "depth" in data.options):
            told.append(f"{key} {_shown(ours)} as asked for; the model was made with {_shown(trained)}")
        else:
            told.append(f"{key} {_shown(trained)} as the model was made with, not {_shown(ours)} as configured")
            changed[field.name] = trained
    depth = changed.pop("depth", None)
    options = data.options if depth is None else {**data.options, "depth": depth}
    return replace(data, options=options, **changed), tuple(told)


def _shown(value: object) -> str:
    return "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)


def class_transform(data: DataConfig, spec: "ImageSpec", *, train: bool) -> ClassificationTransform:
    """Images for a classifier that wants them as ``spec`` says."""
    data = beside_listed(data)
    augment = data.randaugment
    return ClassificationTransform(
        spec,
        spec.size,
        train,
        crop="none" if data.crop == "whole" else data.crop,
        scale=data.scale,
        ratio=data.ratio,
        flip=data.flip,
        randaugment=None if augment is None else (augment.num_ops, augment.magnitude),
        color_jitter=data.color_jitter,
        erasing=data.erasing,
        first=_listed(data),
        quick=data.resize == "quick",
    )


def view_transform(
    data: DataConfig, spec: "ImageSpec", *, train: bool, epochs: float, size_divisor: int
) -> ViewTransform:
    """Images with boxes and masks for a network that wants them as ``spec`` and ``size_divisor`` say, over so many ``epochs``."""
    data = beside_listed(data)
    return ViewTransform(
        spec,
        spec.size,
        train,
        scale_jitter=data.scale_jitter,
        vertical_flip=data.vertical_flip,
        flip=data.flip,
        crop_size=sides(data.crop_size),
        mosaic=data.mosaic,
        closed_from=epochs - data.close_mosaic,
        color_jitter=data.color_jitter,
        min_box=data.min_box,
        crowd=data.crowd,
        batch_shape=data.batch_shape,
        size_divisor=size_divisor,
        own_size=data.tile is not None,
        first=_listed(data),
        quick=data.resize == "quick",
    )


def _listed(data: DataConfig) -> Listed | None:
    return Listed(data.augment) if data.augment else None


def beside_listed(data: DataConfig) -> DataConfig:
    """``data`` as it is where ``data.augment`` lists transforms: our own flips, colours, RandAugment and erasing rest, and so does
    the random crop of classification where the list crops. What makes batches of one size, mosaic and mixing stay."""
    if not data.augment:
        return data
    crops = data.crop in ("resized", "pad") and any("Crop" in name for name in names_in(data.augment))
    return replace(
        data,
        flip=0.0,
        vertical_flip=0.0,
        color_jitter=0.0,
        randaugment=None,
        erasing=0.0,
        crop="none" if crops else data.crop,
    )


def told_of_listed(data: DataConfig, labels: Sequence[str]) -> list[str]:
    """What ``data.augment`` does, what rests for it and what follows it, in a line; refused where it is wrong
    (:func:`tasks.data.transforms.listed.check_listed`). Empty where it lists nothing. ``labels``: what the task reads."""
    if not data.augment:
        return []
    check_listed(data.augment, labels, sets=data.multilabel and tuple(labels) == ("mask",))
    beside, windows = beside_listed(data), {"boxes", "mask"} & set(labels)
    own = ["flip", "color_jitter", *(("vertical_flip",) if windows else ("crop", "randaugment", "erasing"))]
    following = ("scale_jitter", "crop_size", "mosaic") if windows else ("crop", "mixup", "cutmix")
    plain = DataConfig()
    rest = [f"data.{name} {getattr(data, name)}" for name in own if getattr(beside, name) != getattr(data, name)]
    after = [
        f"data.{name} {getattr(beside, name)}"
        for name in following
        if getattr(beside, name) != ("none" if name == "crop" else getattr(plain, name))
    ]
    names = ", ".join(names_in(data.augment))
    return [
        f"data.augment: {names}, on each training image as it is read; "
        f"at rest for it: {', '.join(rest) or 'nothing'}; after it: {', '.join([*after, 'resizing'])}"
    ]


def told_of_resizing(data: DataConfig) -> list[str]:
    """In a line, where training images are not resized as those of evaluation are."""
    if data.resize == "exact":
        return []
    text = "training images are resized by torch's kernels, up to two grey levels off those of evaluation"
    return [f"{text} (data.resize: exact has none)"]


def sides(size: int | tuple[int, int] | None) -> Size | None:
    """(H, W) of what a config says in one number or two."""
    return (size, size) if isinstance(size, int) else size


def _named(data: DataConfig, split: str) -> str:
    """What the config calls a split; by default its own name."""
    name: str | None = getattr(data, split)
    return name or split


def _root(data: DataConfig, *, or_file: bool = False) -> Path:
    """``data.root`` as a folder that exists, or perhaps a YAML file."""
    if data.root is None:
        raise UserError("data.root", f"data set {data.name!r} needs a folder", "set data.root")
    root = Path(data.root).expanduser()
    if not root.is_dir() and not (or_file and root.is_file() and root.suffix in (".yaml", ".yml")):
        raise UserError("data.root", f"there is no folder {root}", "correct data.root")
    return root


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
