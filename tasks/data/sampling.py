"""Which samples an epoch shows: some of them, or rare classes more often. (In which order: :mod:`tasks.engine.order`.)"""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from tasks.data.batch import only_reads
from tasks.data.boxes.table import BoxTable
from tasks.data.fingerprint import Known
from tasks.data.knowledge import Knowledge

if TYPE_CHECKING:
    from effbackbones.images.geometry import Mask
    from tasks.data.dataset import Dataset
    from tasks.data.division import Division
    from tasks.data.sample import Sample

Indices = NDArray[np.int64]


class Repeated:
    """The samples ``indices`` (int64 [N], each any number of times) of a data set, as a data set.

    What the other knows of its classes is passed on; what it knows of each image (``aspects``, ``table``) is chosen alike.
    """

    def __init__(self, dataset: "Dataset", indices: Indices) -> None:
        self.dataset, self.indices = dataset, np.asarray(indices, np.int64)
        self.classes = dataset.classes
        for name in ("category_ids", "mask_classes", "notes", "division"):
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> "Sample":
        return self.dataset[int(self.indices[index])]

    @property
    def only_reads(self) -> bool:
        """Whether images come as they are read."""
        return only_reads(self.dataset)

    @property
    def known(self) -> Callable[[int], Known]:
        """Tells of a sample without decoding it; missing where the data set cannot."""
        inner: Any = self.dataset
        tell: Callable[[int], Known] = inner.known
        return lambda index: tell(int(self.indices[index]))

    @property
    def aspects(self) -> NDArray[np.float64]:
        """Width / height of each sample, float64 [N]; missing where the data set does not know them."""
        known: Any = self.dataset
        return np.asarray(known.aspects, np.float64)[self.indices]

    @property
    def mask(self) -> "Callable[[int], Mask]":
        """Reads the mask of a sample alone; missing where the data set cannot."""
        known: Any = self.dataset
        read: Callable[[int], Mask] = known.mask
        return lambda index: read(int(self.indices[index]))

    @cached_property
    def table(self) -> BoxTable:
        """The boxes of the samples; missing where the data set has no such table."""
        known: Any = self.dataset
        table: BoxTable = known.table.take(self.indices)
        return table


class Part(Repeated):
    """The samples ``indices`` of a data set that are one split of its ``division``."""

    only_reads = Repeated.only_reads

    def __init__(self, dataset: "Dataset", indices: Indices, division: "Division") -> None:
        super().__init__(dataset, indices)
        self.division = division
        self.notes = (*getattr(dataset, "notes", ()), division.told)


def repeat_factors(dataset: "Dataset", threshold: float, seed: int = 0) -> Indices:
    """Indices int64 [N] of the samples in rising order, those with rare classes several times.

    The factor of a class that a share f of the images has is max(1, sqrt(threshold / f)); that of an image the largest of its
    classes', rounded up or down at random by its fraction, from ``seed`` (Gupta et al., "LVIS", 2019, appendix B.2). Crowds do
    not count. A data set that does not know its classes is read through once; without boxes it raises :class:`UserError`.
    """
    images, labels = _objects(dataset)
    present = np.unique(images * len(dataset.classes) + labels)  # each class of each image once
    images, labels = np.divmod(present, len(dataset.classes))
    shares = np.bincount(labels, minlength=len(dataset.classes)).clip(min=1) / len(dataset)
    factors = np.ones(len(dataset))
    np.maximum.at(factors, images, np.sqrt(threshold / shares)[labels])
    return _repeated(factors, seed)


def balanced(images: Indices, labels: Indices, count: int, power: float, seed: int = 0) -> Indices:
    """Indices int64 [N] of ``count`` samples in rising order, those with rare classes several times: by (n_max / n) ** ``power``, n
    being how many have the class, rounded up or down at random by its fraction, from ``seed``. A sample of several classes goes by
    the rarest. ``images`` and ``labels`` int64 [P]: the sample and the class of every label."""
    counts = np.bincount(labels)
    factors = np.ones(count)
    np.maximum.at(factors, images, (counts.max(initial=1) / counts[labels]) ** power)
    return _repeated(factors, seed)


def _repeated(factors: NDArray[np.float64], seed: int) -> Indices:
    """Each sample by its factor, of which the fraction is the chance of one more."""
    whole = np.floor(factors).astype(np.int64)
    more = np.random.default_rng(seed).random(len(factors)) < factors - whole
    return np.repeat(np.arange(len(factors)), whole + more)


def _objects(dataset: "Dataset") -> tuple[Indices, Indices]:
    """Image and label of every box that is no crowd, int64 [P] each."""
    known = Knowledge.of(dataset).occurrences
    if known is not None:
        return known
    found: list[Indices] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if sample.box_labels is None:
            raise UserError("data.repeat_threshold", f"{sample.path or sample.id} has no boxes", "set it to null")
        found.append(sample.box_labels if sample.crowd is None else sample.box_labels[~sample.crowd])
    return np.repeat(np.arange(len(found)), [len(labels) for labels in found]), np.concatenate(found)


def spread(count: int, limit: int) -> np.ndarray:
    """At most ``limit`` of ``range(count)``, spread evenly over it, int64."""
    return np.arange(min(count, limit)) * count // max(min(count, limit), 1)
