"""What in a data set looks like a mistake though it can be read: told before a run, and by ``check``."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images.reading import is_image_name, opened_image, orientation_of
from tasks.data.boxes.table import BoxTable
from tasks.data.dataset import Dataset
from tasks.data.files.copies import copies
from tasks.data.files.listing import files_below, shown
from tasks.data.files.names import normalised
from tasks.data.files.reading import SoundReader
from tasks.data.knowledge import Knowledge
from tasks.data.pixels import LOOKED_AT, told_of_range

_SHOWN = 3
_BETWEEN = re.compile(r"[\s_\-]+")
_MANY_BOXES, _MANY_IMAGES, _CORNER = 50, 20, 0.75
"""So many boxes of so many images do not all lie in this part of their width and height by chance."""
_LETTERS = re.compile(r"[\W_]+")
_IGNORED = frozenset(
    [
        "ignore",
        "ignored",
        "ignoredregion",
        "ignoredregions",
        "ignoreregion",
        "dontcare",
        "void",
        "unlabeled",
        "unlabelled",
    ]
)
"""Names, as letters alone, by which data sets call what is of no class."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
_MISSING = frozenset(["nan", "none", "null", "n/a", "na", "undefined"])
"""Names, in lower case, that programs write where a value is missing."""
_MANY_EMPTY = 0.5
"""Share of training images without an object above which it is told: perhaps nobody has labelled them."""
_OTHERS = tuple(
    f".{ending}"
    for ending in re.findall(r"\w+", "heic heif jxl dng cr2 cr3 nef arw raf orf tga psd pcx ico svg exr hdr dcm")
)
"""Endings of images that are not read."""
_SAME_SIDES = (2, 3, 4)
"""EXIF orientations that leave height and width as they are: mirrored, turned by 180 degrees."""


def told_of_data(datasets: Mapping[str, Dataset], *, compared: int | None = None) -> Iterator[str]:
    """A line for each thing that looks like a mistake in the data sets of a run, by split. Of more files than ``compared`` (None: of any
    number) it is not looked up which are copies of each other."""
    known = {split: Knowledge.of(dataset) for split, dataset in datasets.items()}
    yield from told_of_shared_images(known)
    if compared is None or sum(len(one.paths) for one in known.values()) <= compared:
        yield from _told_of_copies(known)
    if "train" in datasets:
        yield from _told_of_names(datasets["train"].classes)
        yield from _told_of_empty(known["train"].table)
    yield from _told_of_unnamed(known.values())
    for split, one in known.items():
        for line in (*_told_of_corner(one.table), *_told_of_files(one)):
            yield f"{split}: {line}"


def told_of_scored(dataset: Dataset, measured: bool) -> Iterator[str]:
    """What readers noticed of a split that a trained model is scored on: how it is read, what was mended in it, the range of its pixels.
    ``measured``: whether images are normalised by mean and deviation of the model's own data."""
    known = Knowledge.of(dataset)
    yield from getattr(known.base, "notes", ())
    if known.table is not None:
        yield from known.table.repairs.lines()
    if not isinstance(known.reader, SoundReader) and (line := told_of_range(dataset, measured, trained=True)):
        yield line


def told_of_shared_images(known: Mapping[str, Knowledge]) -> list[str]:
    """A line for each split whose image files are those of training too, wholly or in part; or what its samples are made of."""
    real = cache(os.path.realpath)
    files = {
        split: [f"{real(os.path.dirname(path))}/{os.path.basename(path)}" for path in one.paths if path]
        or [content.partition(b"\0")[0].decode(errors="replace") for content in one.contents if content]
        for split, one in known.items()
    }
    training, lines = set(files.pop("train", [])), []
    for split, paths in files.items():
        shared = [path for path in paths if path in training]
        if shared:
            some = ", ".join(os.path.basename(path) for path in shared[:_SHOWN]) + (
                ", ..." if len(shared) > _SHOWN else ""
            )
            noun = known[split].noun
            text = f"warning: {len(shared):,} of {len(paths):,} {noun}s of {split} are training {noun}s too ({some})"
            lines.append(f"{text}: its scores do not tell how the model does on others")
    return lines


def _told_of_copies(known: Mapping[str, Knowledge]) -> Iterator[str]:
    """Files that are the same byte by byte under several names: in training and in another split, or in training with other classes."""
    places = {path: (split, place) for split, one in known.items() for place, path in enumerate(one.paths) if path}
    paths = list(places)
    groups = [[(*places[paths[number]], paths[number]) for number in group] for group in copies(paths)]
    for split in known:
        shared = [
            (found, path)
            for group in groups
            for found in [next((path for where, _, path in group if where == "train"), "")]
            for where, _, path in group
            if split != "train" and where == split and found
        ]
        if shared:
            some = ", ".join(f"{path}: {found}" for found, path in shared[:_SHOWN])
            noun = known[split].noun
            what = (
                f"{len(shared):,} {noun}s of {split} are training {noun}s too, byte by byte under another name ({some})"
            )
            yield f"warning: {what}: its scores do not tell how the model does on others"
    training = known.get("train")
    if training is None or (pairs := training.occurrences) is None:
        return
    odd: list[list[str]] = []
    samples, labels = pairs
    for group in groups:
        alike = [(place, path) for where, place, path in group if where == "train"]
        spans = np.searchsorted(samples, [(place, place + 1) for place, _ in alike])
        if len({frozenset(labels[first:last].tolist()) for first, last in spans}) > 1:
            odd.append([path for _, path in alike])
    if odd:
        such = " and ".join(odd[0][:_SHOWN])
        what = f"{len(odd):,} training {training.noun}s are there more than once with other classes, such as {such}"
        yield f"warning: {what}: remove those that are wrong"


def _told_of_unnamed(known: Iterable[Knowledge]) -> Iterator[str]:
    """Images beside those of annotation files that none of these names, and those beside labels or masks in formats that are not read."""
    known = list(known)
    tables = [one.table for one in known if one.table is not None]
    used = {os.path.normpath(table.path(index)) for table in tables for index in range(len(table))}
    roots = [getattr(one.base, "root", None) for one in known if hasattr(one.base, "read_mask")]
    for root in dict.fromkeys((*(table.root for table in tables), *(root for root in roots if root))):
        try:
            every = files_below(
                root, lambda name: is_image_name(name) or name.lower().endswith(_OTHERS), links="anywhere"
            )
        except UserError:  # a loop of links, or no such folder: nothing that is read lies there
            continue
        found = [name for name in every if is_image_name(name)]
        unused = [name for name in found if os.path.normpath(f"{root}/{name}") not in used] if tables else []
        if unused:
            yield f"{len(unused):,} of {len(found):,} image files below {root} are in no split that is read: {shown(unused)}"
        if others := [name for name in every if not is_image_name(name)]:
            what = f"{len(others):,} files below {root} are images of formats that are not read: {shown(others)}"
            yield f"warning: {what}; write them as PNG or JPEG"


def _told_of_empty(table: BoxTable | None) -> Iterator[str]:
    """Training images without an object, where most are."""
    if table is None or len(empty := table.empty_images()) <= _MANY_EMPTY * len(table):
        return
    what = f"{len(empty):,} of {len(table):,} images have no object, and are trained on as background"
    such = f"such as {table.files[int(empty[0])]}"
    yield f"train: warning: {what} ({such}): data.keep_empty: false leaves them out, if nobody has labelled them"


def _told_of_corner(table: BoxTable | None) -> Iterator[str]:
    """Boxes that all lie in the upper left part of their images, as those of smaller copies, or in percent, do."""
    if table is None or len(table.boxes) < _MANY_BOXES or np.count_nonzero(np.diff(table.first)) < _MANY_IMAGES:
        return
    sides = np.repeat(table.sizes, np.diff(table.first), 0)[:, ::-1].astype(np.float64)
    known = (sides > 0).all(1)
    if not known.all() or not np.isfinite(table.boxes).all():
        return
    reach = ((table.boxes[:, :2] + table.boxes[:, 2:]) / sides).max(0)
    if (reach < _CORNER).all():
        what = f"all {len(sides):,} boxes lie in the upper left {reach[0]:.0%} by {reach[1]:.0%} of their images"
        yield f"warning: {what}: are their numbers pixels of smaller copies, or percent?"


def _told_of_names(classes: Sequence[str]) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_BETWEEN.sub(" ", normalised(name)).strip().casefold(), []).append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    if alike:
        first, *others = alike[0]
        which = " and ".join(map(repr, (first, *others)))
        more = f", and {len(alike) - 1} more such groups," if len(alike) > 1 else ""
        remedy = f"data.options.rename: [{', '.join(f'{name}={first}' for name in others)}] makes them one"
        accents = len(set(map(normalised, alike[0]))) < len(alike[0])
        if accents or any(name != name.strip() for name in alike[0]):  # which no option can say
            remedy = "correct the names in the files"
        how = "how accents are written" if accents else "case, spaces or hyphens"
        yield f"warning: the classes {which}{more} differ in {how} alone ({remedy})"
    numbers: dict[float, list[str]] = {}
    for name in classes:
        if _NUMBER.fullmatch(name.strip()):
            numbers.setdefault(float(name), []).append(name)
    same = [names for names in numbers.values() if len(names) > 1]
    if same:
        which = " and ".join(map(repr, same[0])) + (f", and {len(same) - 1} more such groups," if len(same) > 1 else "")
        remedy = f"data.options.rename: [{', '.join(f'{name}={same[0][0]}' for name in same[0][1:])}] makes them one"
        yield f"warning: the classes {which} are one number, written in several ways ({remedy})"
    unknown = [name for name in classes if _LETTERS.sub("", name.casefold()) in _IGNORED]
    if unknown and len(classes) > len(unknown):
        remedy = "leave it out of data.options.classes; in masks, give its value in data.options.ignore"
        yield f"warning: the class {unknown[0]!r} looks like what is to be ignored, and is learnt as the others are ({remedy}, if so)"
    missing = [name for name in classes if name.strip().casefold() in _MISSING]
    if missing and len(classes) > len(missing):
        yield f"warning: the class {missing[0]!r} looks like labels that are missing; remove those samples, if so"


def _told_of_files(known: Knowledge) -> Iterator[str]:
    """What a look at some files shows: colours that are hidden by transparency, orientations that no size can confirm."""
    if (read := known.reader) is None or isinstance(read, SoundReader):
        return
    alpha: list[str] = []
    turned: list[str] = []
    paths = known.some_paths(LOOKED_AT)
    for path in paths:
        if path.lower().endswith((".npy", ".tif", ".tiff")):  # numbers, and bands, which their readers look at
            continue
        try:
            with opened_image(path, read.max_pixels) as image:
                turned += [path] * (orientation_of(image) in _SAME_SIDES)
                if read.channels in (1, 3) and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
                    least = np.asarray(image.convert("RGBA"))[..., 3].min()
                    alpha += [path] * bool(least < 255)
        except UserError:  # told where it is read
            continue
    if alpha:
        remedy = "the colours stored there are used; paint them on a background if they are arbitrary"
        yield f"warning: {_counted(alpha, paths)} are transparent in parts, which is not looked at: {remedy}"
    if turned and read.exif == "apply" and any(hasattr(known.base, name) for name in ("table", "read_mask")):
        remedy = "data.exif: ignore, if they were drawn on the pixels as stored"
        what = "are by EXIF upside down or mirrored, and their labels taken as drawn on the upright image"
        yield f"warning: {_counted(turned, paths)} {what} ({remedy})"


def _counted(found: Sequence[str], looked_at: Sequence[str]) -> str:
    names = ", ".join(os.path.basename(path) for path in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    return f"{len(found)} of {len(looked_at)} images looked at ({names})"
