"""How often each class occurs in the masks of a data set, and the weights that make up for it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.classsets import UNKNOWN, are_sets
from tasks.data.sample import IGNORE

if TYPE_CHECKING:
    from effbackbones.images.geometry import Mask
    from tasks.data.dataset import Dataset


class Overlap(NamedTuple):
    """Pixels of masks of sets of classes: ``labelled`` ones, and of these those of no class (``bare``) and of ``several``."""

    labelled: int
    bare: int
    several: int


@dataclass(frozen=True)
class MaskStatistics:
    """K ``classes`` in ``looked_at`` masks of a set of ``total`` images, int64 [K] each: ``pixels`` of the class, ``images`` that
    have it, ``present``, all labelled pixels of those images. ``ignored``: pixels that are ignored. ``overlap``: of masks of sets,
    how the classes share pixels."""

    classes: tuple[str, ...]
    pixels: NDArray[np.int64]
    images: NDArray[np.int64]
    present: NDArray[np.int64]
    ignored: int
    looked_at: int
    total: int
    overlap: Overlap | None = None

    @property
    def labelled(self) -> int:
        """Pixels that are not ignored."""
        return int(self.pixels.sum()) if self.overlap is None else self.overlap.labelled

    @property
    def missing(self) -> tuple[str, ...]:
        """Classes that are in none of the masks looked at."""
        return tuple(name for name, pixels in zip(self.classes, self.pixels.tolist(), strict=True) if not pixels)


def count_masks(
    dataset: "Dataset",
    limit: int | None = None,
    on_error: str = "stop",
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> MaskStatistics:
    """Count the classes in the masks of a data set, or in ``limit`` of them, spread evenly.

    A method ``mask(index)`` of the data set is used where there is one, so that no image is decoded. Images without a mask are
    passed over, with ``on_error`` ``skip`` unreadable ones too. ``watch``: goes round the indices, for a progress bar. A value
    that is no class raises :class:`UserError`.
    """
    classes = tuple(getattr(dataset, "mask_classes", dataset.classes))
    total, looked_at = len(dataset), 0
    count = total if limit is None else min(limit, total)
    sums, more = np.zeros((3, len(classes)), np.int64), np.zeros(4, np.int64)
    sets = False
    for index in watch((np.arange(count) * total // max(count, 1)).tolist()):
        try:
            mask = _mask(dataset, index)
        except UserError:
            if on_error == "stop":
                raise
            continue
        if mask is None:
            continue
        sets = are_sets(mask)
        pixels, others = (_count_sets if sets else _count_numbers)(mask, len(classes), f"mask {index}")
        sums += np.stack([pixels, pixels > 0, (pixels > 0) * others[0]])
        more += others
        looked_at += 1
    labelled, ignored, bare, several = more.tolist()
    overlap = Overlap(labelled, bare, several) if sets else None
    return MaskStatistics(classes, sums[0], sums[1], sums[2], ignored, looked_at, total, overlap)


Counts = tuple[NDArray[np.int64], list[int]]
"""Pixels of each class, int64 [K], and those that are labelled, ignored, of no class, of several."""


def _count_numbers(mask: "Mask", count: int, name: str) -> Counts:
    found = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    pixels, ignored = found[:count], int(found[IGNORE])
    labelled = int(pixels.sum())
    if labelled + ignored < mask.size:
        value = count + int(found[count:IGNORE].nonzero()[0][0])
        what = f"value {value} is no class: there are {count}, and 255 is ignored"
        raise UserError(name, what, "correct the mask")
    return pixels, [labelled, ignored, 0, 0]


def _count_sets(mask: "Mask", count: int, name: str) -> Counts:
    values, times = np.unique(mask, return_counts=True)
    ignored = int(times[values == UNKNOWN].sum())
    known = values != UNKNOWN
    values, times = values[known], times[known]
    if (odd := values[values >> count != 0]).any():
        what = f"value {odd[0]} is no set of {count} classes, and {UNKNOWN} is ignored"
        raise UserError(name, what, "correct the mask")
    there = values[:, None] >> np.arange(count) & 1
    each = there.sum(1)
    return times @ there, [int(times.sum()), ignored, int(times[each == 0].sum()), int(times[each > 1].sum())]


def _mask(dataset: Any, index: int) -> "Mask | None":
    mask: Mask | None = dataset.mask(index) if hasattr(dataset, "mask") else dataset[index].mask
    return mask


def median_frequency(statistics: MaskStatistics) -> list[float]:
    """A weight for each class: the median of all frequencies over its own, the frequency of a class being its share of the
    labelled pixels of the images that have it (Eigen & Fergus 2015, arXiv:1411.4734).

    A class in no mask (``statistics.missing``) has no frequency and is left out of the median. Its weight is 0 if all masks were
    counted, for there is nothing to weigh; else that of the rarest class, for the other masks may have it. Without a labelled
    pixel at all: :class:`UserError`.
    """
    seen = statistics.pixels > 0
    if not seen.any():
        raise UserError(
            "optim.class_weights", f"none of {statistics.looked_at:,} masks has a labelled pixel", "check the masks"
        )
    frequency = statistics.pixels[seen] / statistics.present[seen]
    weights = np.zeros(len(seen))
    weights[seen] = np.median(frequency) / frequency
    if statistics.looked_at < statistics.total:
        weights[~seen] = weights.max()
    found: list[float] = weights.tolist()
    return found


def inverse_frequency(statistics: MaskStatistics) -> list[float]:
    """A weight for each class: all labelled pixels over (classes times its own). A class in no mask: as in :func:`median_frequency`."""
    seen = statistics.pixels > 0
    if not seen.any():
        return median_frequency(statistics)  # which says what is wrong
    weights = np.zeros(len(seen))
    weights[seen] = statistics.pixels.sum() / (seen.sum() * statistics.pixels[seen])
    if statistics.looked_at < statistics.total:
        weights[~seen] = weights.max()
    found: list[float] = weights.tolist()
    return found
