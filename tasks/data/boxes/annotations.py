"""From what annotation files say to a table of boxes: the part that is the same for every format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError, nearest
from tasks.data.boxes.repairs import (
    MIN_SIDE,
    RepairCount,
    Repairs,
    duplicates,
    mend,
    other_areas,
    refuse_bad_boxes,
    refuse_corners,
    refuse_shares,
)
from tasks.data.boxes.table import BoxDataset, BoxTable
from tasks.data.files.images import header_sizes
from tasks.data.files.reading import DEFAULT_READER, ImageReader, PackedNames
from tasks.data.masks.outlines import Outlines


@dataclass(frozen=True)
class Annotations:
    """What the files of a split say, each record sound by itself, boxes not yet mended.

    ``source``: file or folder, for messages. I images: ``files``, ``ids``, ``sizes`` int32 [I, 2] (H, W), -1 unknown. N boxes:
    ``owner`` int64 [N], the image of each; ``boxes`` float64 [N, 4] as x, y, width, height, finite (all NaN where there is none,
    which only formats have whose reader was told that boxes are not needed); ``categories`` int64 [N],
    positions in ``names`` and ``category_ids`` (-1: of none of these); ``numbers``: once classes are selected, each id in the file and
    its label (several ids may have one); ``crowd`` bool [N]; ``row_ids`` int64 [N]; ``record``:
    how row n is named in messages; ``area`` float64 [N], NaN where absent, or None in formats that have none. ``assumed``: rows
    bool [N] of each kind of repair made while reading. ``outlines`` of the N objects, where masks are asked for. ``parents``: names of
    classes that are only the class above others, and have no object. ``notes``: what the user should hear. ``centred``: whether boxes
    are told by their middle in the file.
    """

    source: str
    files: list[str]
    ids: list[str]
    sizes: NDArray[np.int32]
    owner: NDArray[np.int64]
    boxes: NDArray[np.float64]
    categories: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    row_ids: NDArray[np.int64]
    record: Callable[[int], str]
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    numbers: tuple[tuple[int, int], ...] = ()
    area: NDArray[np.float64] | None = None
    assumed: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    outlines: Outlines | None = None
    parents: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    centred: bool = False


@dataclass(frozen=True)
class Selection:
    """Which classes are wanted, and under which names: the options ``rename`` (a list of ``old=new``, which comes first) and
    ``classes`` (a list of names; None: all)."""

    classes: tuple[str, ...] | None = None
    rename: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, classes: tuple[str, ...] | None, renamed: Sequence[str] = ()) -> "Selection":
        """From what the options say: ``renamed`` are texts ``old=new``."""
        pairs = []
        for text in renamed:
            old, equals, new = (part.strip() for part in text.partition("="))
            if not (old and equals and new):
                raise UserError("data.options.rename", f"expected old=new, got {text!r}", "correct it")
            pairs.append((old, new))
        if len(dict(pairs)) < len(pairs):
            raise UserError("data.options.rename", "a class is renamed twice", "remove one of the two")
        return cls(classes, tuple(pairs))

    def renamed(self, names: Sequence[str], *, all_there: bool = True) -> tuple[str, ...]:
        """``names`` with some replaced, several of them by one perhaps; names that do not occur raise :class:`UserError`, unless they need
        not be ``all_there``."""
        for old, _ in self.rename:
            if old not in names and all_there:
                raise UserError("data.options.rename", f"there is no class {old!r}", nearest(old, names)[:200])
        return tuple(dict(self.rename).get(name, name) for name in names)

    def positions(self, names: Sequence[str], *, all_there: bool = True) -> NDArray[np.int64]:
        """The positions in ``names`` of the classes that are wanted, in the order of ``names``."""
        for name in self.classes or ():
            if name not in names and all_there:
                raise UserError("data.options.classes", f"there is no class {name!r}", nearest(name, names)[:200])
        return np.array([k for k, name in enumerate(names) if self.classes is None or name in self.classes], np.int64)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of the annotations of the ``split`` train, val or test.

    ``labels``: what is to be read of each image, as :class:`BoxDataset` has it, and ``mask`` where a format has masks;
    ``training``: the classes of the training split, which this one must have, None if there is nothing to compare with;
    ``selection``: the classes that are kept. ``keep_empty``: whether images without objects are trained on; ``allow_bad_boxes``:
    go on although too many boxes had to be dropped; ``on_error`` ``skip``: go on past headers that cannot be read. ``read``: how
    images are read. ``links``: where links among the files may lead. ``duplicates``: whether objects that are there twice are kept
    (``keep``) or one of them (``drop``); ``supercategories``: whether classes that are only above others are left out (``drop``) or
    kept (``keep``).
    """

    split: str
    labels: tuple[str, ...] = ("boxes",)
    training: tuple[str, ...] | None = None
    selection: Selection = Selection()
    keep_empty: bool = True
    allow_bad_boxes: bool = False
    on_error: str = "stop"
    read: ImageReader = DEFAULT_READER
    links: str = "inside"
    duplicates: str = "keep"
    supercategories: str = "drop"


def refuse_other_classes(source: str, names: Sequence[str], training: Sequence[str], *, by_name: bool = False) -> None:
    """Raise :class:`UserError` that says name by name where the classes of a file are not those of training; with ``by_name`` they may
    have another order, and lack some."""
    if tuple(names) == tuple(training) or (by_name and set(names) <= set(training)):
        return
    here, there = _listed(set(names) - set(training)), _listed(set(training) - set(names))
    differences = [f"not in training: {here}"] * bool(here) + [f"not in this file: {there}"] * bool(there)
    if not differences:
        label = next(k for k, (one, other) in enumerate(zip(names, training, strict=True)) if one != other)
        differences = [f"label {label} is {names[label]!r} here and {training[label]!r} in training"]
    raise UserError(
        source,
        f"the classes differ from those of training: {'; '.join(differences)}",
        "use files with one list of categories",
    )


def _listed(names: set[str]) -> str:
    shown = ", ".join(repr(name[:30]) for name in sorted(names)[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def open_boxes(said: Annotations, root: Path, wanted: Wanted) -> BoxDataset:
    """The data set of a split, of whose images ``root`` is the folder: the classes selected, held against those of training, with
    boxes and labels as wanted."""
    said = selected(said, root, wanted)
    table, _, notes = open_table(said, root, wanted)
    return BoxDataset(table, wanted.read, wanted.labels, (*said.notes, *notes))


def selected(said: Annotations, root: Path, wanted: Wanted) -> Annotations:
    """The same with ``categories`` as labels of the classes selected, -1 for others: those of training by their names, where there are
    such. Sizes that are unknown are taken from the files."""
    first = wanted.training is None  # another split may lack some classes
    renamed, notes = wanted.selection.renamed(said.names, all_there=first), list(said.notes)
    above = _left_out(said, renamed, wanted)
    if above:
        shown = ", ".join(repr(name[:30]) for name in sorted(above)[:4])
        remedy = "data.options.supercategories: keep keeps such"
        notes.append(f"left out: {shown}, only the supercategory of other categories, without objects ({remedy})")
    names = tuple(dict.fromkeys(name for old, name in zip(said.names, renamed, strict=True) if old not in above))
    kept = tuple(names[k] for k in wanted.selection.positions(names, all_there=first).tolist())
    if wanted.training is not None and kept != wanted.training:
        refuse_other_classes(said.source, kept, wanted.training, by_name=True)
        notes.append(
            f"its classes are those of training by their names, in another order or not all: {', '.join(kept)[:80]}"
        )
        kept = wanted.training
    if (said.sizes <= 0).any():
        said = replace(said, sizes=_completed(said, root, wanted))
    label_of = {name: label for label, name in enumerate(kept)}
    left_out = [old in above for old in said.names]
    labels = [-1 if left else label_of.get(new, -1) for new, left in zip(renamed, left_out, strict=True)]
    ids = dict(zip(reversed(labels), reversed(said.category_ids), strict=True))  # of several the first
    unused = max((0, *said.category_ids)) + 1
    category_ids = tuple(ids.get(label, unused + label) for label in range(len(kept)))
    columns = np.array([*labels, -1], np.int64)  # the last is that of category -1
    numbers = tuple((id_, label) for id_, label in zip(said.category_ids, labels, strict=True) if label >= 0)
    return replace(
        said,
        categories=columns[said.categories],
        names=kept,
        category_ids=category_ids,
        numbers=numbers,
        notes=tuple(notes),
    )


def _left_out(said: Annotations, renamed: Sequence[str], wanted: Wanted) -> frozenset[str]:
    """Names in the file of classes that are only above others, unless they are asked for, or trained."""
    if wanted.supercategories == "keep":
        return frozenset()
    asked = {*(wanted.selection.classes or ()), *(wanted.training or ())}
    return frozenset(
        old for old, new in zip(said.names, renamed, strict=True) if old in said.parents and new not in asked
    )


def open_table(said: Annotations, root: Path, wanted: Wanted) -> tuple[BoxTable, NDArray[np.int64], tuple[str, ...]]:
    """The table of what was selected, boxes mended if they are asked for; the positions of its images among those of ``said``;
    and what is to be told of that.

    Images without objects are left out of training unless wanted, and everywhere if one label is asked for.
    Raises :class:`UserError` where too many boxes are bad, or no object is left to train on or to validate with.
    """
    training = wanted.split == "train"
    if "boxes" in wanted.labels:
        # Scored boxes stay as thin as they are, as in COCO's own scorer; to train on less than a pixel makes no sense.
        table = mended_table(
            said,
            root,
            allow_bad=wanted.allow_bad_boxes,
            min_side=MIN_SIDE if training else 0.0,
            drop_duplicates=wanted.duplicates == "drop",
        )
    else:
        table = plain_table(said, root)
    if wanted.split in ("train", "val"):
        _refuse_nothing(said, table, wanted.split)
    empty, notes = table.empty_images(), []
    if "label" in wanted.labels and len(empty):
        such = table.ids[int(empty[0])]
        notes.append(
            f"{len(empty):,} of {len(table):,} images have no object, so no label: left out (such as id {such})"
        )
    if len(empty) and (notes or (training and not wanted.keep_empty)):
        images = np.flatnonzero(table.objects())
        return table.take(images), images, tuple(notes)
    return table, np.arange(len(table)), ()


def _completed(said: Annotations, root: Path, wanted: Wanted) -> NDArray[np.int32]:
    """Sizes with those that are unknown taken from the headers of the files."""
    sizes = said.sizes.copy()
    unknown = np.flatnonzero((sizes <= 0).any(1))
    sizes[unknown] = header_sizes(
        [f"{root}/{said.files[image]}" for image in unknown.tolist()], wanted.read.exif, wanted.on_error
    )
    return sizes


def mended_table(
    said: Annotations,
    root: Path,
    *,
    allow_bad: bool = False,
    min_side: float = MIN_SIDE,
    drop_duplicates: bool = False,
) -> BoxTable:
    """The table of mended boxes; ``said.categories`` are labels, -1 what is left out. Too many bad boxes, and boxes that are no
    pixels, raise :class:`UserError` unless ``allow_bad``."""
    used = said.categories >= 0
    sides = np.where(said.sizes > 0, said.sizes, np.inf)[said.owner][:, ::-1]
    count = RepairCount(said.record)
    if not allow_bad:
        refuse_shares(said.source, said.boxes[used], sides[used])
    boxes, keep = mend(said.boxes, sides, used, count, min_side)
    again = duplicates(said.owner, said.categories, boxes, keep & ~said.crowd)
    count.add("duplicate_dropped" if drop_duplicates else "duplicate", again)
    whole = keep & ~said.crowd & ~again
    count.add("two_classes", duplicates(said.owner, np.zeros_like(said.categories), boxes, whole))
    count.add("other_class", ~used)
    for kind, rows in said.assumed.items():
        count.add(kind, rows & keep)
    if said.area is not None:
        count.add("area", ~(said.area > 0) & keep)
        count.add("other_area", other_areas(said.boxes, said.area, keep & ~said.crowd))
    repairs = count.result(int(used.sum()))
    keep = keep & ~again if drop_duplicates else keep
    if not allow_bad:
        refuse_bad_boxes(said.source, said.boxes[used], sides[used], repairs, said.centred)
        if said.area is not None:
            mine = np.flatnonzero(used)
            refuse_corners(said.source, said.boxes[used], said.area[used], lambda place: said.record(int(mine[place])))
    return _table(said, root, boxes, keep, repairs)


def plain_table(said: Annotations, root: Path) -> BoxTable:
    """The table of all that was selected, boxes as they are: for tasks that do not use them."""
    used = said.categories >= 0
    return _table(said, root, said.boxes, used, RepairCount(said.record).result(int(used.sum())))


def _table(
    said: Annotations, root: Path, boxes: NDArray[np.float64], keep: NDArray[np.bool_], repairs: Repairs
) -> BoxTable:
    """The rows to ``keep`` in the order of their images; an area that is not given is that of the box."""
    with np.errstate(over="ignore"):  # sides of a size that no image has, where the image's is not known
        area = np.nan_to_num(boxes[:, 2] * boxes[:, 3], posinf=np.inf)
    if said.area is not None:
        area = np.where(said.area > 0, said.area, area)
    order = np.argsort(said.owner, kind="stable")
    kept = order[keep[order]]
    first = np.searchsorted(said.owner[kept], np.arange(len(said.files) + 1)).astype(np.int64)
    return BoxTable(
        root=root,
        files=PackedNames(said.files),
        ids=PackedNames(said.ids),
        sizes=said.sizes,
        first=first,
        boxes=boxes[kept],
        labels=said.categories[kept],
        crowd=said.crowd[kept],
        area=area[kept],
        row_ids=said.row_ids[kept],
        classes=said.names,
        category_ids=said.category_ids,
        numbers=said.numbers,
        repairs=repairs,
    )


def _refuse_nothing(said: Annotations, table: BoxTable, split: str) -> None:
    """Raise :class:`UserError` if no object is left, saying where they went."""
    if (~table.crowd).any():
        return
    others, dropped, crowds = int((said.categories < 0).sum()), table.repairs.dropped, int(table.crowd.sum())
    where_to = [(others, "of other classes"), (dropped, "dropped as bad"), (crowds, "crowds")]
    told = ", ".join(f"{count:,} {word}" for count, word in where_to if count)
    what = f"of {len(said.boxes):,} boxes none is usable: {told}" if told else "there are no annotations"
    raise UserError(
        said.source, f"split {split} has no object: {what}", "check the annotations and data.options.classes"
    )
