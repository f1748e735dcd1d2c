"""What a data set knows of its images without reading them: their ids, files, classes and groups, and how files are read."""

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from tasks.data.boxes.table import BoxTable
from tasks.data.dataset import Dataset
from tasks.data.files.cache import ImageCache
from tasks.data.files.reading import ImageReader

Indices = NDArray[np.int64]


def unwrapped(dataset: Dataset) -> tuple[Any, Indices]:
    """The data set that views (:class:`tasks.data.sampling.Repeated`) show samples of, and which, int64 [N]."""
    base: Any = dataset
    indices = np.arange(len(dataset), dtype=np.int64)
    while hasattr(base, "indices") and hasattr(base, "dataset"):
        base, indices = base.dataset, base.indices[indices]
    return base, indices


def ids_of(dataset: Dataset) -> list[str]:
    """The id of each sample; its number where the data set has no method ``known``."""
    base, indices = unwrapped(dataset)
    if isinstance(table := getattr(base, "table", None), BoxTable):
        return [table.ids[index] for index in indices.tolist()]
    tell = getattr(base, "known", None)
    return [tell(index).id if tell else str(index) for index in indices.tolist()]


def paths_of(dataset: Dataset) -> list[str]:
    """The image file of each sample; empty where the data set has no method ``known``, or no files."""
    base, indices = unwrapped(dataset)
    if isinstance(table := getattr(base, "table", None), BoxTable):
        return [table.path(index) for index in indices.tolist()]
    tell = getattr(base, "known", None)
    return [(*tell(index).files, "")[0] if tell else "" for index in indices.tolist()]


def groups_of(dataset: Dataset) -> list[str] | None:
    """The group of each sample, where the data set has such a column."""
    base, indices = unwrapped(dataset)
    groups = getattr(base, "groups", None)
    return None if groups is None else [groups[index] for index in indices.tolist()]


def occurrences(dataset: Dataset) -> tuple[Indices, Indices] | None:
    """Sample and class of every label or object, int64 [P] each, samples rising; crowds are none. None where samples would have to
    be read for it."""
    base, indices = unwrapped(dataset)
    table = getattr(base, "table", None)
    if isinstance(table, BoxTable):
        images, labels = np.repeat(np.arange(len(table)), np.diff(table.first)), table.labels
        images, labels = images[~table.crowd], labels[~table.crowd]
    elif hasattr(base, "occurrences"):
        images, labels = base.occurrences()
    else:
        return None
    first = np.searchsorted(images, np.arange(len(base) + 1))
    counts = np.diff(first)[indices]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    places = np.repeat(first[:-1][indices] - starts[:-1], counts) + np.arange(starts[-1])
    return np.repeat(np.arange(len(indices)), counts), labels[places].astype(np.int64)


def reader_of(dataset: Dataset) -> ImageReader | None:
    """How its files are read."""
    base, _ = unwrapped(dataset)
    found = getattr(base, "read", None) or getattr(base, "reader", None)
    return found if isinstance(found, ImageReader) else None


def with_cache(dataset: Dataset, cache: ImageCache) -> Dataset:
    """The same samples with images from ``cache``; the data set itself stays as it is, for other splits may be views of it. Raises
    :class:`UserError` where images are not read by our reader."""
    found: Any = copy(dataset)
    view: Dataset = found
    if hasattr(found, "indices") and hasattr(found, "dataset"):
        found.dataset = with_cache(found.dataset, cache)
        return view
    for name in ("read", "reader"):
        if isinstance(reader := getattr(found, name, None), ImageReader):
            setattr(found, name, replace(reader, cache=cache))
            return view
    what = f"keeps images that files are decoded to, and {type(dataset).__name__} makes its own"
    raise UserError("data.cache", what, "set it to null")
