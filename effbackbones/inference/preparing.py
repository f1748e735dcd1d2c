"""From sources to batches: images read and brought to the size of a network, here or in another process."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels, ResizePlan
from effbackbones.inference.inputs import ImageSource
from effbackbones.inference.results import Failed

Fit = Callable[[Pixels], tuple[Pixels, ResizePlan]]
"""Brings an image [H, W, C] to the size that a network gets; the plan leads back. :class:`effbackbones.inference.fitting.Fitting`."""


class Fitted(NamedTuple):
    """An image at the size that the network gets, and the ``plan`` that leads back."""

    source: ImageSource
    pixels: Pixels
    plan: ResizePlan


class Placed(NamedTuple):
    """Where an image of a batch came from, and the ``plan`` that leads back."""

    source: ImageSource
    plan: ResizePlan


class Group(NamedTuple):
    """Images of one shape and dtype: their ``rows`` in the batch, and ``images`` [B, C, H, W] in channels-last memory."""

    rows: tuple[int, ...]
    images: Tensor


@dataclass(frozen=True)
class Prepared:
    """A batch: ``places`` in order, a :class:`Failed` where an image could not be read, and the pixels of the others in ``groups``.
    Loaders take it: it can be shared, pinned, and sent from one process to another."""

    places: list[Placed | Failed]
    groups: list[Group]

    def __len__(self) -> int:
        return len(self.places)

    def pin_memory(self) -> Self:
        """The batch with its pixels in page-locked memory (called by the loader)."""
        return self.mapped(lambda images: images.pin_memory())

    def mapped(self, change: Callable[[Any], Any], kind: type = Tensor) -> Self:
        """The batch with ``change`` made to the pixels of each group, or to what stands for them and is of that ``kind``."""
        groups = [
            Group(rows, change(images)) if isinstance(images, kind) else Group(rows, images)
            for rows, images in self.groups
        ]
        return replace(self, groups=groups)


def fitted(source: ImageSource, fit: Fit) -> Fitted | Failed:
    """An image, read and brought to size; a :class:`Failed` where that cannot be."""
    found = looked_at(source, lambda image: [fit(image)])
    return found if isinstance(found, Failed) else found[0]


def looked_at(
    source: ImageSource, looks: Callable[[Pixels], Sequence[tuple[Pixels, ResizePlan]]]
) -> list[Fitted] | Failed:
    """An image, read and brought to size in each of several ways."""
    try:
        return [Fitted(source, *view) for view in looks(source())]
    except UserError as error:
        if getattr(error.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise  # in want of open files every image is unreadable
        return Failed(source.name, str(error))


def views_together(images: Sequence[list[Fitted] | Failed]) -> Prepared:
    """A batch of all views of images."""
    return together([view for one in images for view in ([one] if isinstance(one, Failed) else one)])


def together(images: Sequence[Fitted | Failed]) -> Prepared:
    """A batch of images of any sizes."""
    shapes: dict[Any, list[int]] = {}
    for row, one in enumerate(images):
        if isinstance(one, Fitted):
            shapes.setdefault((one.pixels.shape, one.pixels.dtype), []).append(row)
    groups = []
    for rows in shapes.values():
        pixels = np.stack([one.pixels for row in rows if isinstance(one := images[row], Fitted)])
        groups.append(Group(tuple(rows), torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    return Prepared([one if isinstance(one, Failed) else Placed(one.source, one.plan) for one in images], groups)
