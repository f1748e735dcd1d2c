"""Data sets of labels: class folders, tables, lines of text, and the drawn shapes, which have boxes and masks too. A function has the
name that ``data.name`` calls it by."""

from pathlib import Path

from effbackbones.errors import UserError
from tasks.data.door.reading import CLASSES, READ, image_reader, name_of, root_of, sets_wanted, sides
from tasks.data.files.csvfile import COLUMNS, TableFormat
from tasks.data.files.reading import ImageReader, listed_classes
from tasks.data.lettering.style import LEAST_ASPECT, OPTIONS, Style
from tasks.data.lettering.typefaces import own_typefaces, typefaces
from tasks.data.sets import shapes as drawn
from tasks.data.sets.folders import FolderDataset
from tasks.data.sets.lines import LineDataset
from tasks.data.sets.table import TableDataset
from tasks.settings.data import DataConfig
from tasks.settings.options import DataOptions

TABLE = ("image_root", "suffix", "columns", "group", "delimiter", "separator")
"""Options of tables."""


def folder(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> FolderDataset:
    """Data set ``folder``: split ``split`` lies in ``root/{data.train, data.val or data.test}``, by default its own name; where
    ``data.val`` is a share and there is no folder ``train``, all lies in ``root``.

    Options: ``other_files`` (``stop`` or ``ignore``), ``rename`` (a list of ``folder=class``; several may be of one class) and those
    of :func:`image_reader`.
    """
    options = DataOptions(data.name, data.options, (*READ, "other_files", "rename"))
    where = root_of(data) / name_of(data, split)
    if data.undivided(split) and data.train is None and not where.is_dir():  # one set of class folders, not divided yet
        where = root_of(data)
    return opened_folder(data, where, classes, split, options=options, read=image_reader(data, split))


def opened_folder(
    data: DataConfig,
    where: Path,
    classes: tuple[str, ...] | None,
    split: str,
    *,
    options: DataOptions,
    read: ImageReader,
) -> FolderDataset:
    """The class folders in ``where``, by the options ``other_files`` and ``rename``."""
    return FolderDataset(
        where,
        classes,
        read=read,
        ignore_others=options.word("other_files", ("stop", "ignore")) == "ignore",
        rename=options.renames(),
        least=2 if classes is None and split == "train" else 1,
        root=root_of(data),
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
    options = DataOptions(data.name, data.options, (*READ, *CLASSES, *TABLE))
    name = getattr(data, split) or f"{split}.csv"
    return opened_table(data, name, classes, options=options, read=image_reader(data, split))


def opened_table(
    data: DataConfig,
    name: str,
    classes: tuple[str, ...] | None,
    *,
    options: DataOptions,
    read: ImageReader,
    kept: tuple[str, ...] = (),
    parts: tuple[str, ...] = (),
) -> TableDataset:
    """The table in the file ``name`` below ``data.root``, by the options :data:`TABLE` and :data:`CLASSES`; ``kept`` and ``parts`` are
    columns as :class:`TableDataset` has them."""
    root, image_root = root_of(data), data.options.get("image_root")
    if image_root is not None and not (isinstance(image_root, str) and (root / image_root).is_dir()):
        raise UserError("data.options.image_root", f"there is no folder {image_root!r}", "correct it")
    return TableDataset(
        root / name,
        classes or listed_classes(data.options.get("classes"), root),
        multilabel=data.multilabel,
        root=None if image_root is None else root / image_root,
        read=read,
        form=_table_format(options, kept),
        suffix=options.text("suffix") or "",
        rename=options.renames(),
        links=data.links,
        parts=parts,
    )


def _table_format(options: DataOptions, kept: tuple[str, ...]) -> TableFormat:
    """How the options say that a table is written, of which the columns ``kept`` are kept."""
    columns, delimiter = options.names("columns") or COLUMNS, options.text("delimiter")
    if len(columns) < 2:
        what = f"expected the column of files, and that of labels or those of all classes, got {len(columns)} names"
        raise UserError("data.options.columns", what, "write [file, labels]")
    if delimiter is not None and len(delimiter) != 1:
        raise UserError("data.options.delimiter", f"expected one character, got {delimiter!r}", "correct it")
    return TableFormat(columns, options.text("group"), delimiter, options.text("separator"), kept)


def lines(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> LineDataset:
    """Data set ``lines``: split ``split`` is the text files of ``root/{data.train, data.val or data.test}``, by default its own name;
    where ``data.val`` is a share and there is no folder ``train``, those of ``root``.

    Options: ``fonts`` (a list of files, in ``data.root`` too, or of families; default: DejaVu Sans, Serif and Sans Mono, which come with
    matplotlib), ``seed`` (0), and the looks of :class:`tasks.data.lettering.style.Style`, each a number or [low, high]. ``aspect`` is by
    default that of ``data.image_size``.
    """
    options, root = DataOptions(data.name, data.options, ("fonts", "seed", *OPTIONS)), root_of(data)
    named = options.names("fonts")
    fonts = own_typefaces() if named is None else typefaces(named, root, "data.options.fonts")
    looks = {name: value for name, value in data.options.items() if name in OPTIONS}
    if "aspect" not in looks and (size := sides(data.image_size)) is not None:
        if size[1] < LEAST_ASPECT * size[0]:
            what = f"expected a width of {LEAST_ASPECT} heights at least for a line of text, got {list(size)}"
            raise UserError("data.image_size", what, "write [32, 512], or set data.options.aspect")
        looks["aspect"] = size[1] / size[0]
    where = root / name_of(data, split)
    if data.undivided(split) and data.train is None and not where.is_dir():  # one set of files, not divided yet
        where = root
    style = Style(fonts).changed(looks, "data.options")
    least = 2 if classes is None and split == "train" else 1
    return LineDataset(where, style, classes, seed=options.whole("seed", 0, 0), least=least)


def shapes(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> drawn.ShapesDataset:
    """Data set ``shapes``: images of ``data.image_size`` (64 when null), no files.

    Options: ``train``, ``val``, ``test`` (numbers of images), ``objects`` (largest number of shapes in an image, 4),
    ``seed`` (0).
    """
    options = DataOptions(data.name, data.options, (*drawn.SPLITS, "objects", "seed"))
    if classes is not None and classes != drawn.CLASSES:
        what = f"the shapes are {', '.join(drawn.CLASSES)}; the model has {len(classes)} other classes"
        raise UserError("classes", what, "train a new model")
    count, seed = options.whole(split, drawn.SPLITS[split], 1), options.whole("seed", 0, 0)
    objects = options.whole("objects", 4, 1)
    size = sides(data.image_size) or (64, 64)
    return drawn.ShapesDataset(size, count, seed=seed, split=split, objects=objects, sets=sets_wanted(data))
