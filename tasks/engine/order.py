"""In which order samples are shown, and which of them each step and each process gets: pure functions of the seed and the step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from effbackbones.errors import UserError
from tasks.data.dataset import Dataset
from tasks.data.knowledge import Indices, Knowledge
from tasks.settings.sections import Config

Key = tuple[int, int]
"""(epoch, index) of one training sample: all that its augmentation depends on beside the seed."""
Order = Callable[[int], Indices]
"""Epoch -> a permutation of the samples."""
BLOCK = 50
"""Batches that are sorted by aspect together: few enough to stay random, enough to be alike."""
_ORDER_STREAM = 2  # keeps the draws apart from those of samples, whose keys are (seed, epoch, index)


def training_order(config: Config, dataset: Dataset) -> Callable[[int], np.ndarray]:
    """Epoch -> order of the training samples, a permutation drawn from (seed, epoch)."""
    order = shuffled(len(dataset), config.run.seed)
    if config.data.batch_shape == "fixed":
        return order
    return by_aspect(order, aspects(dataset), config.data.batch_size, config.run.seed)


def epochs(config: Config, count: int) -> float:
    """How many epochs of ``count`` samples a run has."""
    optim = config.optim
    return optim.max_steps / steps_per_epoch(count, config.data.batch_size) if optim.max_steps else optim.epochs


def aspects(dataset: Dataset) -> np.ndarray:
    """Width / height of each image, float [N]; a data set that does not know them raises :class:`UserError`."""
    found: np.ndarray | None = getattr(dataset, "aspects", None)
    if found is None:
        text = f"{type(Knowledge.of(dataset).base).__name__} does not know the aspect ratios of its images"
        raise UserError("data.batch_shape", text, "set it to fixed, or give the data set `aspects`")
    return found


def shuffled(count: int, seed: int) -> Callable[[int], np.ndarray]:
    """The default order: epoch -> a permutation of ``range(count)`` drawn from (seed, epoch)."""

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(count)

    return order


def by_aspect(order: Order, aspects: NDArray[np.floating], batch_size: int, seed: int) -> Order:
    """``order`` changed so that the images of a batch have similar ``aspects`` (width / height, one per sample).

    Within each :data:`BLOCK` batches samples are sorted by aspect; then whole batches are shuffled, by (seed, epoch). An
    incomplete batch stays the last.
    """

    def similar(epoch: int) -> Indices:
        indices = order(epoch)
        size = BLOCK * batch_size
        blocks = [indices[first : first + size] for first in range(0, len(indices), size)]
        ordered = np.concatenate([block[np.argsort(aspects[block], kind="stable")] for block in blocks] or [indices])
        whole = len(indices) // batch_size
        batches = ordered[: whole * batch_size].reshape(whole, batch_size)
        shuffled = np.random.default_rng((seed, epoch, 0, _ORDER_STREAM)).permutation(batches)
        return np.concatenate([shuffled.ravel(), ordered[whole * batch_size :]])

    return similar


@dataclass(frozen=True)
class Share:
    """Which part of each global batch this process computes: ``rank`` of ``world``, in ``accumulate`` pieces."""

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def split(self, batch_size: int) -> int:
        """Images per process and piece; a global batch that cannot be split evenly raises :class:`UserError`."""
        pieces = self.world * self.accumulate
        if batch_size % pieces:
            text = f"{batch_size} images do not divide by {self.world} processes x {self.accumulate} accumulated pieces"
            raise UserError("data.batch_size", text, f"take a multiple of {pieces}")
        return batch_size // pieces


class GlobalBatches(Sampler[list[Key]]):
    """Batch sampler of the steps ``start`` to ``stop``: the same global batches in the same order on any number of processes.

    ``order`` gives the sample order of an epoch, ``count`` samples long. The last batch of an epoch is filled up from the
    epoch's beginning, so that every step has ``batch_size`` samples and every sample is seen in every epoch.
    """

    def __init__(
        self,
        order: Callable[[int], np.ndarray],
        count: int,
        batch_size: int,
        *,
        start: int,
        stop: int,
        share: Share | None = None,
    ) -> None:
        self.order, self.batch_size, self.start, self.stop = order, batch_size, start, stop
        self.share = share or Share()
        self.micro = self.share.split(batch_size)
        self.steps_per_epoch = steps_per_epoch(count, batch_size)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.share.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, ids = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                ids = np.asarray(self.order(epoch))
            first = (step % self.steps_per_epoch) * self.batch_size
            batch = ids[np.arange(first, first + self.batch_size) % len(ids)]
            pieces = batch.reshape(self.share.accumulate, self.share.world, self.micro)
            for piece in pieces[:, self.share.rank]:
                yield [(epoch, int(index)) for index in piece]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimiser steps in an epoch; a training set smaller than one batch raises :class:`UserError`."""
    if count < batch_size:
        raise UserError(
            "data.batch_size",
            f"{batch_size} is more than the {count} training samples",
            f"set it to {max(count, 1)} or less",
        )
    return -(-count // batch_size)


class EvaluationBatches:
    """Batch sampler of an evaluation: every sample once over all processes, without padding."""

    def __init__(self, order: np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.indices = order[rank::world]
        self.size = max(1, batch_size // world)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.indices), self.size):
            yield [(0, int(index)) for index in self.indices[first : first + self.size]]
