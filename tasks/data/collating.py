"""From samples to batches: images of one size, and the targets of a head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effbackbones.contracts import BoxTargets, Labelled
from effbackbones.errors import UserError
from effbackbones.images.classsets import IGNORE, UNKNOWN, are_sets
from effbackbones.images.colours import fill_of
from effbackbones.images.geometry import ResizePlan
from tasks.data.batch import Batch, ImageMeta, stack_images
from tasks.data.sample import Sample, crowd_of, labels_of

_FEW = (8, 16, 32, 64, 100)  # 100: the most objects that the published recipe keeps of an image


def collate(
    samples: Sequence[Sample],
    *,
    targets: Callable[[Sequence[Sample]], Any],
    size_divisor: int | None = 1,
    fill: Sequence[float],
    num_classes: int | None = None,
) -> Batch:
    """Images of different sizes are padded at right and bottom, with the colour ``fill`` (0..1, one value per channel) and masks
    with ignored pixels, to the largest sides rounded up to ``size_divisor``; if that is None they raise :class:`UserError`.
    ``targets``: how they are made of such samples."""
    valid = [sample.plan.valid if sample.plan else sample.image.shape[:2] for sample in samples]
    for sample in samples:
        _refuse_bad_labels(sample, num_classes)
    padded = samples if size_divisor is None else _of_one_size(samples, size_divisor, fill)
    images, sizes = stack_images(padded)
    sizes = sizes._replace(valid=torch.tensor(valid, dtype=torch.int64))
    return Batch(images, sizes, targets(padded), [ImageMeta.of(sample) for sample in samples])


def _refuse_bad_labels(sample: Sample, num_classes: int | None) -> None:
    """Raise :class:`UserError` naming sample and field where a loss would fail, or go wrong without a word; here, because a data
    set or transform of the user's may give anything. Unknown labels (negative, NaN) are the loss's to judge; one class may be
    told by 0 and 1."""
    what, boxes = "", sample.boxes
    if num_classes is not None and sample.label is not None and sample.label >= max(num_classes, 2):
        what = f"label: expected less than {num_classes}, got {sample.label}"
    elif num_classes is not None and sample.labels is not None and np.shape(sample.labels) != (num_classes,):
        what = f"labels: expected shape [{num_classes}], got {list(np.shape(sample.labels))}"
    elif boxes is not None:
        if np.ndim(boxes) != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
            what = f"boxes: expected numbers [M, 4], got {getattr(boxes, 'dtype', type(boxes).__name__)} {list(np.shape(boxes))}"
        elif len(labels_of(sample)) and not np.issubdtype(labels_of(sample).dtype, np.integer):
            what = f"box_labels: expected integers, got {labels_of(sample).dtype}"
        elif (bad := ~(np.isfinite(boxes).all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1))).any():
            what = f"boxes: row {int(bad.argmax())} is {boxes[bad.argmax()].tolist()}, expected finite x0 <= x1 and y0 <= y1"
        elif (odd := labels_of(sample)[(labels_of(sample) < 0) | (labels_of(sample) >= (num_classes or np.inf))]).size:
            what = f"box_labels: expected 0 or more{f', less than {num_classes}' if num_classes else ''}, got {odd[0]}"
    if what:
        raise UserError(sample.path or sample.id, what, "correct the data set or the transform that gives it")


def _of_one_size(samples: Sequence[Sample], divisor: int, fill: Sequence[float]) -> list[Sample]:
    sides = {sample.image.shape[:2] for sample in samples}
    if len(sides) == 1:
        return list(samples)
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*sides, strict=True))
    padded = []
    for sample in samples:
        plan = ResizePlan(sample.image.shape[:2], sample.image.shape[:2], (0, 0), (height, width))
        mask = None if sample.mask is None else plan.apply_mask(sample.mask)
        padded.append(
            replace(sample, image=plan.apply_image(sample.image, fill=fill_of(sample.image, fill).tolist()), mask=mask)
        )
    return padded


def class_targets(samples: Sequence[Sample]) -> Tensor | None:
    """int64 [B] from ``label``, float32 [B, K] from ``labels``, None where no sample has either; a mixture of the three raises
    :class:`UserError` naming the odd sample."""
    kinds = [
        ("label" if sample.label is not None else "labels" if sample.labels is not None else "no label")
        for sample in samples
    ]
    for sample, kind in zip(samples, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                sample.path or sample.id, f"has {kind}, the batch began with {kinds[0]}", "give every sample the same"
            )
    if kinds[0] == "label":
        return torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    rows = [sample.labels for sample in samples if sample.labels is not None]
    return torch.from_numpy(np.stack(rows).astype(np.float32, copy=False)) if rows else None


def box_targets(samples: Sequence[Sample]) -> BoxTargets | None:
    """The boxes of a batch, None where no sample has any; samples of which only some have boxes raise :class:`UserError`.

    M is one of 8, 16, 32, 64, 100, 128, 256, 512, ...: few shapes for the kernels to be chosen for.
    """
    if not _all_have(samples, "boxes", "give images without objects boxes of shape [0, 4]"):
        return None
    shape = len(samples), _bucket(max(len(labels_of(sample)) for sample in samples))
    boxes, labels, crowd = torch.zeros(*shape, 4), torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        count = len(labels_of(sample))
        boxes[row, :count] = torch.from_numpy(sample.boxes)
        labels[row, :count] = torch.from_numpy(labels_of(sample))
        crowd[row, :count] = torch.from_numpy(crowd_of(sample))
    return BoxTargets(boxes, labels, crowd)


def mask_targets(samples: Sequence[Sample]) -> Tensor | None:
    """The masks of a batch uint8 [B, H, W], None where no sample has one; samples of which only some do raise :class:`UserError`."""
    return _stacked(samples, sets=False)


def set_targets(samples: Sequence[Sample]) -> Tensor | None:
    """As :func:`mask_targets`, of masks of sets of classes: int32 [B, H, W]."""
    return _stacked(samples, sets=True)


def _stacked(samples: Sequence[Sample], *, sets: bool) -> Tensor | None:
    """The masks of a batch; one of the other kind raises :class:`UserError`."""
    if not _all_have(samples, "mask", f"give images without labels a mask of {UNKNOWN if sets else IGNORE}"):
        return None
    for sample in samples:
        if are_sets(sample.mask) != sets:
            assert sample.mask is not None
            what = f"its mask is {sample.mask.dtype}, and data.multilabel {str(sets).lower()} wants {'int32' if sets else 'uint8'}"
            remedy = "set data.multilabel to what the data set gives, or see Sample in tasks/data/sample.py"
            raise UserError(sample.path or sample.id, what, remedy)
    return torch.from_numpy(np.stack([sample.mask for sample in samples if sample.mask is not None]))


def targets_by_task(
    samples: Sequence[Sample], *, makers: Mapping[str, tuple[Sequence[str], Callable[[Sequence[Sample]], Any]]]
) -> dict[str, Any]:
    """Targets by task. ``makers`` have, by task, the fields of a sample that are its labels and what makes targets of them.

    Where only some samples have such a label: :class:`Labelled`; where none has: None.
    """
    targets: dict[str, Any] = {}
    for task, (fields, make) in makers.items():
        rows = [
            row for row, sample in enumerate(samples) if any(getattr(sample, field) is not None for field in fields)
        ]
        made = make([samples[row] for row in rows]) if rows else None
        targets[task] = made if made is None or len(rows) == len(samples) else Labelled(torch.tensor(rows), made)
    return targets


def _all_have(samples: Sequence[Sample], field: str, remedy: str) -> bool:
    """Whether all samples have a label of one kind; False if none has."""
    without = [sample for sample in samples if getattr(sample, field) is None]
    if without and len(without) < len(samples):
        raise UserError(without[0].path or without[0].id, f"has no {field}, others of its batch have", remedy)
    return not without


def _bucket(count: int) -> int:
    """The number of rows for ``count`` boxes: the next of a short list, beyond it the next power of two."""
    return next((few for few in _FEW if count <= few), 1 << max(7, (count - 1).bit_length()))
