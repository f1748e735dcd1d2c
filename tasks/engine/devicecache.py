"""Training images of classification that live on the device as bytes, where they are shifted and mirrored too (``data.device_cache``).

The samples are those of the loader, bit for bit: they are read and resized once, by it, and what is left to chance is drawn from the
same generators.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from effbackbones.contracts import ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.colours import fill_of
from tasks.data.batch import Batch, ImageMeta, KeyedDataset, mirrored_in
from tasks.data.transforms.images import ClassificationTransform
from tasks.engine.cost import free_memory
from tasks.engine.order import Key

READ_AT_ONCE = 64
"""Images in a batch while they are read."""
SHARE = 0.8
"""Of the free memory, at most so much is taken: a step needs some."""


class Keys(Iterable[Sequence[Key]], Sized, Protocol):
    """Lists of keys of samples, a list a batch."""


@dataclass(frozen=True)
class Resident:
    """All images of a data set on a device: ``pixels`` uint8 [N, H, W, C]; ``fill`` uint8 [C], which shifts bring in, and ``targets`` on it
    too; ``meta`` of each."""

    pixels: Tensor
    fill: Tensor
    targets: Tensor | None
    meta: list[ImageMeta]
    samples: KeyedDataset

    @classmethod
    def read(
        cls, samples: KeyedDataset, loader: Callable[[KeyedDataset, Any], Iterable[Batch]], device: torch.device
    ) -> "Resident":
        """Read all of ``samples`` once, in batches that ``loader`` makes of a data set and keys. What stands in for an unreadable sample
        (``data.on_error: skip``) is that of the first epoch, and stays. Raises :class:`UserError` where
        images are of more than 8 bits."""
        still, count = copy(samples), len(samples)
        still.transform = transform = _at_rest(samples.transform)
        pixels: Tensor | None = None
        targets: list[Tensor] = []
        meta: list[ImageMeta] = []
        groups = [range(first, min(first + READ_AT_ONCE, count)) for first in range(0, count, READ_AT_ONCE)]
        for batch in loader(still, [[(0, index) for index in group] for group in groups]):
            images = batch.images.permute(0, 2, 3, 1)
            if images.dtype != torch.uint8:
                raise UserError("data.device_cache", f"keeps 8 bits, and images are {images.dtype}", "set it to false")
            if pixels is None:
                pixels = torch.empty((count, *images.shape[1:]), dtype=torch.uint8, device=device)
            pixels[len(meta) : len(meta) + len(images)] = images.to(device)
            targets += [] if batch.targets is None else [batch.targets]
            meta += batch.meta
        assert pixels is not None
        fill = torch.from_numpy(fill_of(np.empty((1, 1, pixels.shape[3]), np.uint8), transform.image_spec.mean))
        return cls(pixels, fill.to(device), torch.cat(targets).to(device) if targets else None, meta, samples)

    def batches(self, keys: Keys) -> Iterator[Batch]:
        """A batch for each list of ``keys``."""
        for group in keys:
            yield self.batch(group)

    def batch(self, keys: Sequence[Key]) -> Batch:
        """The samples of ``keys`` (epoch, index), changed by chance. No host synchronisation: all that is drawn goes over in one copy."""
        transform, device = self.samples.transform, self.pixels.device
        assert isinstance(transform, ClassificationTransform)
        height, width = self.pixels.shape[1:3]
        drawn = np.array([(index, *self._drawn(transform, epoch, index)) for epoch, index in keys])
        index, down, right, turned = torch.from_numpy(drawn).to(device, non_blocking=True).unbind(1)
        rows = torch.arange(height, device=device) - down[:, None]
        columns = torch.arange(width, device=device).expand(len(keys), width)
        columns = torch.where(turned[:, None] > 0, width - 1 - columns, columns) - right[:, None]
        inside = _within(rows, height)[:, :, None] & _within(columns, width)[:, None]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        images = self.pixels[index[:, None, None], rows[:, :, None], columns[:, None]]
        if drawn[:, 1:3].any():
            images = torch.where(inside[..., None], images, self.fill)
        valid = torch.tensor([height, width]).repeat(len(keys), 1)
        targets = None if self.targets is None else self.targets[index]
        sizes = ImageSizes((height, width), valid.to(device, non_blocking=True))
        return Batch(images.permute(0, 3, 1, 2), sizes, targets, [self.meta[index] for _, index in keys])

    def _drawn(self, transform: ClassificationTransform, epoch: int, index: int) -> tuple[int, int, bool]:
        """By how many pixels down and right an image is moved, and whether it is then mirrored: the draws of the transform."""
        seed, rng = self.samples.seed, np.random.default_rng((self.samples.seed, epoch, index))
        down = right = 0
        if transform.crop == "pad":
            down, right = transform.draw_shift(rng)
        drawn = transform.flip > rng.random()
        if self.samples.alternate:
            drawn = transform.flip > 0 and mirrored_in(seed, epoch, index)
        return down, right, drawn


def _within(places: Tensor, side: int) -> Tensor:
    return (places >= 0) & (places < side)


def _at_rest(transform: object) -> ClassificationTransform:
    """The transform without what is left to chance."""
    assert isinstance(transform, ClassificationTransform)
    still = copy(transform)
    still.crop, still.flip = "none" if transform.crop == "pad" else transform.crop, 0.0
    return still


def refuse_unfit(samples: KeyedDataset, channels: int, device: torch.device) -> str:
    """Refuse, by a :class:`UserError`, images that do not fit on the ``device``, and transforms that are not made there; else a line on
    what is kept."""
    transform = samples.transform
    if not isinstance(transform, ClassificationTransform):
        what = f"{type(transform).__name__} does not run on a device"
        raise UserError("data.device_cache", what, "set it to false")
    elsewhere = [type(step).__name__ for step in transform.steps]
    elsewhere += ["data.augment"] * (transform.first is not None) + ["data.crop resized"] * (
        transform.crop == "resized"
    )
    if elsewhere:
        what = f"{', '.join(elsewhere)} cannot run on the device, where there are shifts (data.crop pad), flips, mixup and cutmix"
        raise UserError("data.device_cache", what, "leave that out, or set it to false")
    needed, free = len(samples) * math.prod(transform.size) * channels, free_memory(device)
    if free is not None and needed > SHARE * free * 2**20:
        room = f"{free * 2**20:,.0f} are free on {device}, of which {SHARE:.0%} may be taken"
        what = f"{needed:,} bytes are needed, and {room}"
        raise UserError("data.device_cache", what, "lower data.image_size, use data.cache, or set it to false")
    return f"data.device_cache: {len(samples):,} training images stay on {device}, {needed / 1e6:,.0f} MB"
