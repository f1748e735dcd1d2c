"""One mask file for each class of an image: which files belong together, and one mask made of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images.classsets import UNKNOWN, Sets
from effbackbones.images.geometry import Mask
from tasks.data.masks.file import MaskReader
from tasks.data.masks.pairs import Pairing, Pairs
from tasks.data.sample import IGNORE

NAME, CLASS = "{name}", "{class}"
OVERLAPS = ("stop", "first", "last")
"""What becomes of a pixel that has several classes: refused, the first of them, the last."""
KEEP = "keep"
"""It has them all: masks are of sets of classes."""


@dataclass(frozen=True)
class ClassFiles:
    """Images of a split with the mask files of each class: ``files`` has, image by image, a path for each of ``labels`` (rising), empty
    where there is no such file. ``empty``: the class of pixels that none covers, which has no files. ``notes``: what to tell."""

    pairs: Pairs
    labels: tuple[int, ...]
    files: tuple[str, ...]
    empty: int
    notes: tuple[str, ...]


def class_files(
    pairing: Pairing,
    split: str,
    pattern: str,
    classes: Sequence[str],
    *,
    without_masks: bool = False,
    sets: bool = False,
) -> ClassFiles:
    """Finds ``pattern``, such as ``{name}_{class}`` or ``{class}/{name}``, for every image and class. A class without a single file is
    that of the pixels that no mask covers; where all have files, those pixels are ignored. With ``sets`` such pixels have no class,
    and in training every class has files. Raises :class:`UserError` for classes without files beyond that, for masks of no image or
    class, and for images without any mask unless ``without_masks``."""
    images, masks, folder = pairing.sides(split)
    wanted = {
        (name, label): pattern.replace(NAME, name).replace(CLASS, text)
        for name in images
        for label, text in enumerate(classes)
    }
    found = {key: masks[stem] for key, stem in wanted.items() if stem in masks}
    left = sorted(set(masks) - set(wanted.values()))
    if left:
        what = f"belongs to no image and class by {pattern!r}; in all {len(left):,} such; the classes are {', '.join(classes)[:80]}"
        remedy = "correct data.options.mask_names or classes, or add the image"
        raise UserError(str(pairing.root / masks[left[0]]), what, remedy)
    labels = sorted({label for _, label in found})
    rest = [label for label in range(len(classes)) if label not in labels]
    names = ", ".join(classes[label] for label in rest)
    if sets and rest and split == "train":
        what = f"has no mask of {names}; with data.multilabel a pixel that no mask covers has no class"
        raise UserError(folder, what, "leave it out of data.options.classes, or add its masks")
    if len(rest) > 1 and not sets:
        raise UserError(
            folder, f"has no mask of {names}; one class may be what no mask covers", "correct data.options.classes"
        )
    bare = [name for name in images if not any((name, label) in found for label in labels)]
    if bare and not without_masks:
        what = f"has no mask of any class in {folder}; in all {len(bare):,} such images"
        remedy = "add them, or set data.options.without_masks: background if there is nothing in those images"
        raise UserError(str(pairing.root / images[bare[0]]), what, remedy)
    empty = rest[0] if rest and not sets else IGNORE
    ids = tuple(sorted(images))
    files = tuple(found.get((name, label), "") for name in ids for label in labels)
    if sets:
        notes = ["one mask for each class, which may overlap: a pixel has any number of classes"]
        notes += [f"no mask of {names}"] if rest else []
    else:
        notes = [f"one mask for each class; pixels that none covers are {classes[empty] if rest else 'ignored'}"]
    if "" in files:
        notes.append(f"{files.count(''):,} of {len(files):,} masks are not there: no pixel of the class in the image")
    pairs = Pairs(pairing.root, ids, tuple(images[name] for name in ids), ("",) * len(ids), folder)
    return ClassFiles(pairs, tuple(labels), files, empty, tuple(notes))


def combined(
    paths: Mapping[int, str], read: MaskReader, size: tuple[int, int] | None, *, empty: int, overlap: str = "stop"
) -> Mask:
    """uint8 [H, W] of the masks of one image, by class: ``read`` gives 0, 1 (of the class) or 255 for each; ``size`` is used where there
    is none. A pixel is ignored where no mask says 1 and one says 255. Masks of several sizes, and a pixel of several classes where
    ``overlap`` is ``stop``, raise :class:`UserError`.

    Where it is ``keep``, int32 [H, W]: the set of the classes of each pixel. One that a mask says 255 of is ignored, whatever the
    others say: which set it has nobody knows."""
    if overlap == KEEP:
        return _sets(paths, read, size)
    mask: Mask | None = None
    for label, path, one in _read_alike(paths, read, backwards=overlap == "first"):
        if mask is None:
            mask = np.full(one.shape, empty, np.uint8)
            taken, unknown = np.zeros(one.shape, np.bool_), np.zeros(one.shape, np.bool_)
        inside = one == 1
        twice = inside & taken
        if overlap == "stop" and twice.any():
            y, x = divmod(int(twice.argmax()), mask.shape[1])
            what = f"covers {twice.mean():.1%} of the pixels that another class has too, the first at x {x}, y {y}"
            remedy = "set data.options.overlap: last (or first), in the order of the classes; or data.multilabel: true for both"
            raise UserError(path, what, remedy)
        mask[inside], taken, unknown = label, taken | inside, unknown | (one == IGNORE)
    if mask is None:
        if size is None:
            raise ValueError("no masks, and no size")
        return np.full(size, empty, np.uint8)
    mask[unknown & ~taken] = IGNORE
    return mask


def _sets(paths: Mapping[int, str], read: MaskReader, size: tuple[int, int] | None) -> Sets:
    sets: Sets | None = None
    for label, _, one in _read_alike(paths, read):
        sets = np.zeros(one.shape, np.int32) if sets is None else sets
        sets |= (one == 1).astype(np.int32) << label
        sets[one == IGNORE] = UNKNOWN  # and stays so, whatever bit is set in it
    if sets is None:
        if size is None:
            raise ValueError("no masks, and no size")
        return np.zeros(size, np.int32)
    return sets


def _read_alike(
    paths: Mapping[int, str], read: MaskReader, *, backwards: bool = False
) -> Iterator[tuple[int, str, Mask]]:
    """Class, path and pixels of each mask of an image; :class:`UserError` where they have several sizes."""
    first: Mask | None = None
    for label, path in sorted(paths.items(), reverse=backwards):
        one = read(path)
        first = one if first is None else first
        if one.shape != first.shape:
            sizes = f"has {one.shape[1]} x {one.shape[0]} pixels, those of other classes {first.shape[1]} x {first.shape[0]}"
            raise UserError(path, sizes, "all masks of an image must have one size")
        yield label, path, one
