"""How often each class occurs among images with labels, and the weights that make up for it."""

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from tasks.data.boxes.table import BoxTable
from tasks.data.dataset import Dataset
from tasks.data.knowledge import Knowledge

Indices = NDArray[np.int64]


def label_pairs(dataset: Dataset, *, multilabel: bool = False) -> tuple[Indices, Indices]:
    """Sample and class of every label, int64 [P] each, samples rising. Class folders, tables and boxes tell without an image being
    decoded; other data sets are read through once."""
    known = Knowledge.of(dataset)
    if (table := known.table) is not None:
        found = [_of_boxes(table, index, multilabel) for index in known.indices.tolist()]
    elif (pairs := known.occurrences) is not None:
        return pairs
    else:
        found = [_read(dataset, index) for index in range(len(dataset))]
    counts = [len(labels) for labels in found]
    return np.repeat(np.arange(len(found)), counts), np.array([label for labels in found for label in labels], np.int64)


def _of_boxes(table: BoxTable, index: int, multilabel: bool) -> list[int]:
    """The classes that occur, or that of the largest object, as :class:`tasks.data.boxes.table.BoxDataset` has it."""
    rows = table.rows(index)
    labels, area = table.labels[rows], np.where(table.crowd[rows], -np.inf, table.area[rows])
    if not len(labels):
        return []
    return sorted(set(labels.tolist())) if multilabel else [int(labels[area.argmax()])]


def _read(dataset: Dataset, index: int) -> list[int]:
    try:
        sample = dataset[index]
    except UserError:  # the run decides whether that is allowed
        return []
    if sample.labels is not None:
        return [int(label) for label in np.flatnonzero(sample.labels)]
    return [] if sample.label is None else [sample.label]


def class_weights(dataset: Dataset, kind: str, *, multilabel: bool = False) -> list[float]:
    """A weight for each class, 1 on average over the images; a class without an image has 1.

    ``balanced``: images over (classes times images of the class); ``median_frequency``: the median of all frequencies over its own
    (Eigen & Fergus 2015, arXiv:1411.4734), scaled to that average.
    """
    counts = np.bincount(label_pairs(dataset, multilabel=multilabel)[1], minlength=len(dataset.classes)).astype(float)
    seen = counts > 0
    if not seen.any():
        raise UserError("optim.class_weights", "no training image has a label", "label them, or set it to null")
    raw = np.median(counts[seen]) / counts[seen] if kind == "median_frequency" else 1 / counts[seen]
    weights = np.ones(len(counts))
    weights[seen] = raw * counts[seen].sum() / (raw * counts[seen]).sum()
    found: list[float] = weights.tolist()
    return found


def positive_weights(dataset: Dataset) -> list[float]:
    """Images without a class for each that has it, as ``pos_weight`` of the multi-label loss; 1 for a class that no image has."""
    _, labels = label_pairs(dataset, multilabel=True)
    counts = np.bincount(labels, minlength=len(dataset.classes)).astype(float)
    weights = np.where(counts > 0, (len(dataset) - counts) / counts.clip(min=1), 1.0)
    # All images have it: nothing is left to make up for, and a weight of 0 would teach nothing.
    found: list[float] = np.where(weights > 0, weights, 1.0).tolist()
    return found
