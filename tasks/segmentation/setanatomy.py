"""Where errors lie where classes overlap: each class by itself, along its own true borders or inside; what is found in its place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from effbackbones.images.classsets import UNKNOWN
from tasks.segmentation.anatomy import most
from tasks.segmentation.metrics import border_of, largest_around

RIGHT, EXTRA, MISSED, NEITHER = range(4)
"""What a class is in a pixel: rightly there, wrongly there, wrongly not there, rightly not there."""


def bands_of(truth: Tensor, label: int) -> Tensor:
    """Which pixels of a true mask int32 [H, W] of sets lie within 2 % of the diagonal of a border of the class, of a pixel that nobody
    knows, or of the image's edge: bool [H, W]."""
    reach = border_of(*truth.shape)
    plane = torch.where(truth == UNKNOWN, 2, truth >> label & 1).short()
    maps = F.pad(torch.stack([plane, -plane]), (reach,) * 4, value=3)
    found: Tensor = largest_around(maps, reach).sum(0) != 0
    return found


def counted(found: Tensor, truth: Tensor, finite: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels of an image by class, band and kind, int64 [K, 2, 4]; and of how many a class is missed while another is wrongly there,
    int64 [K, K]. ``found`` and ``truth`` int32 [H, W] are sets; where ``finite`` is False every class is wrong."""
    valid = truth != UNKNOWN
    kinds, missed, extra = [], [], []
    for label in range(classes):
        there, said = truth >> label & 1 > 0, found >> label & 1 > 0
        said = torch.where(finite, said, ~there)
        kind = torch.where(there, torch.where(said, RIGHT, MISSED), torch.where(said, EXTRA, NEITHER))
        cells = bands_of(truth, label).long() * 4 + kind
        kinds.append(torch.bincount(cells[valid], minlength=8).reshape(2, 4))
        missed.append((kind == MISSED)[valid])
        extra.append((kind == EXTRA)[valid])
    # Exact in float32 up to 16 million pixels of an image, in float64 beyond any.
    swaps = torch.stack(missed).double() @ torch.stack(extra).double().T
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
