"""The data set of mask files. The function has the name that ``data.name`` calls it by."""

from pathlib import Path

from effbackbones.errors import UserError
from tasks.data.door.reading import CLASSES, READ, image_reader, name_of, root_of, sets_wanted
from tasks.data.files.absent import MISSING
from tasks.data.files.reading import ImageReader, listed_classes
from tasks.data.masks.declared import Declared
from tasks.data.masks.file import FORMATS, OTHERS
from tasks.data.masks.pairs import Pairing
from tasks.data.masks.perclass import CLASS, KEEP, NAME, OVERLAPS
from tasks.data.sets.masks import MaskDataset, open_class_masks, open_masks
from tasks.settings.data import DataConfig
from tasks.settings.options import DataOptions

_PER_CLASS = ("mask_names", "overlap", "without_masks")
_PAIRS = ("images", "masks", "list", "image_suffix", "mask_suffix")


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
    known = (*READ, *_PAIRS, *CLASSES, *_PER_CLASS, "format", "colors", "values", "ignore", "other", "missing")
    options, root = DataOptions(data.name, data.options, known), root_of(data)
    declared = _declared(options, root).renamed(options.renames())
    images, masks_in, listing, before, behind = (options.text(name) for name in _PAIRS)
    names = {one: name_of(data, one) for one in ("train", split)}
    single = data.undivided(split)
    missing = options.word("missing", MISSING)
    pairing = Pairing(root, names, images, masks_in, listing, before, behind, single, data.links, missing)
    read, pattern = image_reader(data, split), options.text("mask_names")
    if pattern is not None:
        if "missing" in options.given:
            what = "is for one mask for each image, and data.options.mask_names says one for each class"
            raise UserError("data.options.missing", what, "set data.options.without_masks in its place")
        return _class_masks(options, pairing, split, declared, pattern, classes, read, sets=sets_wanted(data))
    for name in _PER_CLASS[1:]:
        if name in options.given:
            raise UserError(f"data.options.{name}", "goes with mask_names alone", "remove it")
    if sets_wanted(data):
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
