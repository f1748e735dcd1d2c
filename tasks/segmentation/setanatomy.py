"""Where errors lie where classes overlap: each class by itself, along its own true borders or inside; what is found in its place."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from effbackbones.images.classsets import UNKNOWN
from tasks.segmentation.anatomy import most
from tasks.segmentation.metrics import border_of

RIGHT, EXTRA, MISSED, NEITHER = range(4)
"""What a class is in a pixel: rightly there, wrongly there, wrongly not there, rightly not there."""


def bands_of(truth: Tensor) -> Tensor:
    """Of which classes a border, or a pixel that nobody knows, or the image's edge lies within 2 % of the diagonal of each pixel of a true
    mask int32 [H, W] of sets: sets, int32 [H, W]."""
    reach = border_of(*truth.shape)
    outside = F.pad(truth, (reach,) * 4, value=UNKNOWN)
    some, every = (
        _around(_around(outside, reach, 0, join), reach, 1, join) for join in (torch.bitwise_or, torch.bitwise_and)
    )
    return torch.where(some < 0, UNKNOWN, some ^ every)  # all bits, also the sign, are those of UNKNOWN alone


def _around(sets: Tensor, reach: int, axis: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Every ``2 * reach + 1`` neighbours along ``axis`` joined, which gets shorter by ``2 * reach``."""
    count, width = 2 * reach + 1, 1
    while 2 * width <= count:  # windows of twice the width from two that touch
        rest = sets.shape[axis] - width
        sets, width = join(sets.narrow(axis, 0, rest), sets.narrow(axis, width, rest)), 2 * width
    rest = sets.shape[axis] - (count - width)
    return join(sets.narrow(axis, 0, rest), sets.narrow(axis, count - width, rest))


def counted(found: Tensor, truth: Tensor, finite: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels of an image by class, band and kind, int64 [K, 2, 4]; and of how many a class is missed while another is wrongly there,
    int64 [K, K]. ``found`` and ``truth`` int32 [H, W] are sets; where ``finite`` is False every class is wrong."""
    valid = truth != UNKNOWN
    band = bands_of(truth)[valid]
    said, there = torch.where(finite, found, ~truth)[valid], truth[valid]
    kinds = []
    for label in range(classes):  # the number of a kind is two bits: not there, not said
        kind = (~there >> label & 1) | (~said >> label & 1) << 1 | (band >> label & 1) << 2
        kinds.append(torch.bincount(kind, minlength=8).reshape(2, 4))
    missed, extra = there & ~said, said & ~there
    swapped = (missed != 0) & (extra != 0)
    bits = torch.arange(classes, dtype=torch.int32, device=truth.device)[:, None]
    # Exact in float64, which integers have no product in on a GPU.
    swaps = (missed[swapped] >> bits & 1).double() @ (extra[swapped] >> bits & 1).double().T
    return torch.stack(kinds), swaps.long()


def anatomy_of_sets(kinds: NDArray[np.int64], swaps: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """As :func:`tasks.segmentation.anatomy.anatomy`, from the sums of :func:`counted`. A pixel counts once for each class; ``missed_as``
    are the classes that are wrongly there where it is missed, ``extra_of`` those that are missed where it is wrongly there."""
    by_class = {}
    for label, name in enumerate(classes):
        missed, extra = kinds[label, :, MISSED], kinds[label, :, EXTRA]
        by_class[name] = {
            "missed": int(missed.sum()),
            "missed_boundary": int(missed[1]),
            "missed_as": most(swaps[label], classes),
            "extra": int(extra.sum()),
            "extra_boundary": int(extra[1]),
            "extra_of": most(swaps[:, label], classes),
        }
    places = {
        name: {"pixels": int(kinds[:, band].sum()), "wrong": int(kinds[:, band, [EXTRA, MISSED]].sum())}
        for name, band in (("boundary", 1), ("interior", 0))
    }
    return {**places, "by_class": by_class, "overlap": True}
