"""Does a data set keep its promises? The first broken one, in words."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.classsets import UNKNOWN, are_sets
from effbackbones.images.geometry import Pixels
from tasks.data.batch import MAX_SKIPPED, READING
from tasks.data.dataset import Dataset
from tasks.data.knowledge import Knowledge
from tasks.data.sample import IGNORE, Sample

_FIELDS = ("label", "labels", "boxes", "box_labels", "crowd", "mask", "target")


LOOKED_AT = 64
"""Samples that are read, unless fewer or more are asked for."""


def check_dataset(
    dataset: Dataset, limit: int = LOOKED_AT, *, on_error: str = "stop", labels: Sequence[str] = ()
) -> str:
    """Read up to ``limit`` samples, evenly spread, and raise :class:`UserError` that names the first violation. Returns what is to
    be told of samples that cannot be read, where these may be skipped; else nothing.

    Looked at: class names, length, and of each sample what :class:`Sample` promises of its fields, unique ids, the same
    fields and image channels in all samples, and that reading a sample twice gives the same. The values of a mask are
    held against the data set's ``mask_classes`` where it has that, for a background that is no class of objects. With
    ``on_error`` ``skip``, samples that cannot be read are passed over. ``labels``: the fields that a task learns from, of which
    each sample must have one; where there are several, a sample may lack some that others have.
    """
    _check_classes(dataset)
    seen: dict[str, int] = {}
    first: Sample | None = None
    unreadable: list[str] = []
    looked_at = np.unique(np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).astype(int)).tolist()
    for index in looked_at:
        try:
            sample = dataset[index]
        except UserError as error:
            if on_error == "stop":
                raise
            unreadable.append(str(error))
            continue
        except Exception as error:
            text = " ".join(f"{type(error).__name__} {error}".split())[:300]
            error.add_note(f"{READING} {_name(dataset, index, None)}: {text}")
            raise
        where = _name(dataset, index, sample)
        for what in _violations(sample, len(dataset.classes), len(getattr(dataset, "mask_classes", dataset.classes))):
            raise UserError(where, what, "see Sample in tasks/data/sample.py")
        if sample.id in seen:
            raise UserError(
                where, f"id {sample.id!r} belongs to sample {seen[sample.id]} too", "give each sample its own id"
            )
        seen[sample.id] = index
        first = first or sample
        if labels and all(getattr(sample, field) is None for field in labels):
            has = ", ".join(field for field in _FIELDS if getattr(sample, field) is not None) or "no label"
            raise UserError(
                where, f"has {has}; wanted is {' or '.join(labels)}", "choose another data.name, or label it"
            )
        for what in (
            *_unlike(sample, first, "the first sample", () if len(labels) > 1 else _FIELDS),
            *_changed(sample, dataset[index]),
        ):
            raise UserError(where, what, "make all samples alike, and __getitem__ a function of the index alone")
    if not unreadable:
        return ""
    much = f", where a run stops at {MAX_SKIPPED:.0%}" if len(unreadable) > MAX_SKIPPED * len(looked_at) else ""
    return f"{len(unreadable)} of {len(looked_at)} samples looked at cannot be read{much}; the first: {unreadable[0]}"


def _name(dataset: Dataset, index: int, sample: object) -> str:
    path = f" ({sample.path})" if isinstance(sample, Sample) and sample.path else ""
    known = Knowledge.of(dataset)  # of a view, what its author wrote
    return f"{type(known.base).__name__}[{known.indices[index]}]{path}"


def _check_classes(dataset: Dataset) -> None:
    name = type(Knowledge.of(dataset).base).__name__
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, tuple) or not classes or not all(isinstance(word, str) and word for word in classes):
        raise UserError(
            f"{name}.classes", f"expected a tuple of names, got {str(classes)[:100]}", "give one name per class"
        )
    if len(set(classes)) < len(classes):
        twice = next(word for word in classes if classes.count(word) > 1)
        raise UserError(f"{name}.classes", f"{twice!r} stands there twice", "give each class its own name")
    if len(dataset) < 1:
        raise UserError(f"len({name})", "there are no samples", "check the paths")


def _violations(sample: object, num_classes: int, mask_classes: int) -> Iterator[str]:
    """What is wrong with one sample by itself."""
    if not isinstance(sample, Sample):
        yield f"expected a Sample, got {type(sample).__name__}"
        return
    if not isinstance(sample.id, str) or not sample.id:
        yield f"expected an id, a text that is not empty, got {sample.id!r}"
    wrong_image = _image_violation(sample.image)
    if wrong_image:
        yield wrong_image
        return  # the others are measured against the image
    if sample.label is not None and (not isinstance(sample.label, int) or not 0 <= sample.label < num_classes):
        yield f"label: expected an int in 0..{num_classes - 1}, got {sample.label!r}"
    if sample.labels is not None:
        yield from _array_violations("labels", sample.labels, np.float32, (num_classes,))
        if not np.isin(sample.labels, (0, 1)).all():
            yield "labels: expected zeros and ones"
    yield from _box_violations(sample, num_classes)
    if are_sets(sample.mask):
        yield from _array_violations("mask", sample.mask, np.int32, sample.image.shape[:2])
        if len(odd := np.unique(sample.mask[(sample.mask != UNKNOWN) & (sample.mask >> mask_classes != 0)])):
            yield f"mask: expected sets of {mask_classes} classes or {UNKNOWN} (ignored), got {', '.join(map(str, odd[:5]))}"
    elif sample.mask is not None:
        yield from _array_violations("mask", sample.mask, np.uint8, sample.image.shape[:2])
        values = np.unique(sample.mask)
        odd = values[(values >= mask_classes) & (values != IGNORE)]
        if len(odd):
            yield f"mask: expected 0..{mask_classes - 1} or {IGNORE} (ignored), got {', '.join(map(str, odd[:5]))}"


def _image_violation(image: Pixels) -> str:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or 0 in image.shape:
        return f"image: expected an array [H, W, C], got {getattr(image, 'shape', type(image).__name__)}"
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        return f"image: expected uint8, uint16 or float32, got {image.dtype}"
    if image.shape[0] <= 4 and image.shape[2] > 16:
        return f"image: expected [H, W, C], got {image.shape}, which looks like [C, H, W]"
    if image.dtype == np.float32 and not (image.min() >= 0 and image.max() <= 1):  # NaN fails too
        return f"image: float32 must lie in 0..1, got {image.min():g}..{image.max():g}"
    return ""


def _array_violations(
    name: str, array: object, dtype: type[np.generic], shape: tuple[int | None, ...]
) -> Iterator[str]:
    """Whether ``array`` is one of ``dtype`` and ``shape``; None in it stands for any length."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        yield f"{name}: expected an array of {np.dtype(dtype).name}, got {getattr(array, 'dtype', type(array).__name__)}"
    elif len(array.shape) != len(shape) or any(
        want not in (None, got) for want, got in zip(shape, array.shape, strict=True)
    ):
        yield f"{name}: expected shape [{', '.join('M' if side is None else str(side) for side in shape)}], got {list(array.shape)}"


def _box_violations(sample: Sample, num_classes: int) -> Iterator[str]:
    boxes = sample.boxes
    if boxes is None:
        return
    yield from _array_violations("boxes", boxes, np.float32, (None, 4))
    yield from _array_violations("box_labels", sample.box_labels, np.int64, (len(boxes),))
    if sample.crowd is not None:
        yield from _array_violations("crowd", sample.crowd, np.bool_, (len(boxes),))
    height, width = sample.image.shape[:2]
    for what, bad in _bad_boxes(boxes, height, width):
        if bad.any():
            row = int(bad.argmax())
            yield f"boxes: row {row} is {boxes[row].tolist()}, {what}"
    assert sample.box_labels is not None  # checked above
    wrong = sample.box_labels[(sample.box_labels < 0) | (sample.box_labels >= num_classes)]
    if len(wrong):
        yield f"box_labels: expected 0..{num_classes - 1}, got {wrong[0]}"


def _bad_boxes(boxes: NDArray[np.float32], height: int, width: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    x0, y0, x1, y1 = boxes.T
    yield "not finite", ~np.isfinite(boxes.sum(1))
    yield "not x0 < x1 and y0 < y1 (is it x, y, width, height?)", ~((x0 < x1) & (y0 < y1))
    yield (
        f"outside of the image of width {width} and height {height}",
        (x0 < 0) | (y0 < 0) | (x1 > width) | (y1 > height),
    )


def _unlike(sample: Sample, first: Sample, name: str, fields: Iterable[str]) -> Iterable[str]:
    """In what a sample differs in kind from another; ``fields``: labels that both have or both lack."""
    for field in fields:
        if (getattr(sample, field) is None) != (getattr(first, field) is None):
            yield f"{field}: {name} has {'none' if getattr(first, field) is None else 'one'}, this one the opposite"
    kinds = [f"{one.image.dtype} with {one.image.shape[2]} channels" for one in (sample, first)]
    if kinds[0] != kinds[1]:
        yield f"image: {name} is {kinds[1]}, this one {kinds[0]}"


def _changed(sample: Sample, again: Sample) -> Iterable[str]:
    """Fields that came out differently when read again."""
    for field in ("id", "image", *_FIELDS):
        if not _same(getattr(sample, field), getattr(again, field)):
            yield f"{field}: reading the sample again gives another one"


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal; those of a target may lie in dictionaries."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other))
