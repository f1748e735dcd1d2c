"""One mask file for each class of an image: which files belong together, and one mask made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images.geometry import Mask
from tasks.data.masks.file import MaskReader
from tasks.data.masks.pairs import Pairing, Pairs
from tasks.data.sample import IGNORE

NAME, CLASS = "{name}", "{class}"
OVERLAPS = ("stop", "first", "last")
"""What becomes of a pixel that has several classes: refused, the first of them, the last."""


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
    pairing: Pairing, split: str, pattern: str, classes: Sequence[str], *, without_masks: bool = False
) -> ClassFiles:
    """Finds ``pattern``, such as ``{name}_{class}`` or ``{class}/{name}``, for every image and class. A class without a single file is
    that of the pixels that no mask covers; where all have files, those pixels are ignored. Raises :class:`UserError` for two such
    classes, for masks of no image or class, and for images without any mask unless ``without_masks``."""
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
    if len(rest) > 1:
        names = ", ".join(classes[label] for label in rest)
        raise UserError(
            folder, f"has no mask of {names}; one class may be what no mask covers", "correct data.options.classes"
        )
    bare = [name for name in images if not any((name, label) in found for label in labels)]
    if bare and not without_masks:
        what = f"has no mask of any class in {folder}; in all {len(bare):,} such images"
        remedy = "add them, or set data.options.without_masks: background if there is nothing in those images"
        raise UserError(str(pairing.root / images[bare[0]]), what, remedy)
    empty = rest[0] if rest else IGNORE
    ids = tuple(sorted(images))
    files = tuple(found.get((name, label), "") for name in ids for label in labels)
    covered = classes[empty] if rest else "ignored"
    notes = [f"one mask for each class; pixels that none covers are {covered}"]
    if "" in files:
        notes.append(f"{files.count(''):,} of {len(files):,} masks are not there: no pixel of the class in the image")
    pairs = Pairs(pairing.root, ids, tuple(images[name] for name in ids), ("",) * len(ids), folder)
    return ClassFiles(pairs, tuple(labels), files, empty, tuple(notes))


def combined(
    paths: Mapping[int, str], read: MaskReader, size: tuple[int, int] | None, *, empty: int, overlap: str = "stop"
) -> Mask:
    """uint8 [H, W] of the masks of one image, by class: ``read`` gives 0, 1 (of the class) or 255 for each; ``size`` is used where there
    is none. A pixel is ignored where no mask says 1 and one says 255. Masks of several sizes, and a pixel of several classes where
    ``overlap`` is ``stop``, raise :class:`UserError`."""
    mask: Mask | None = None
    for label, path in sorted(paths.items(), reverse=overlap == "first"):
        one = read(path)
        if mask is None:
            mask = np.full(one.shape, empty, np.uint8)
            taken, unknown = np.zeros(one.shape, np.bool_), np.zeros(one.shape, np.bool_)
        if one.shape != mask.shape:
            what = (
                f"has {one.shape[1]} x {one.shape[0]} pixels, those of other classes {mask.shape[1]} x {mask.shape[0]}"
            )
            raise UserError(path, what, "all masks of an image must have one size")
        inside = one == 1
        twice = inside & taken
        if overlap == "stop" and twice.any():
            y, x = divmod(int(twice.argmax()), mask.shape[1])
            what = f"covers {twice.mean():.1%} of the pixels that another class has too, the first at x {x}, y {y}"
            raise UserError(path, what, "set data.options.overlap: last (or first), in the order of the classes")
        mask[inside], taken, unknown = label, taken | inside, unknown | (one == IGNORE)
    if mask is None:
        if size is None:
            raise ValueError("no masks, and no size")
        return np.full(size, empty, np.uint8)
    mask[unknown & ~taken] = IGNORE
    return mask
