"""What a data set knows of its images without reading them: their ids, files, classes and groups, and how files are read."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tasks.data.boxes.table import BoxTable
from tasks.data.dataset import Dataset
from tasks.data.files.copies import alike, copies
from tasks.data.files.reading import ImageReader

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Knowledge:
    """What is known of the samples of a data set, each in its order; found out when it is first asked for, and then kept."""

    base: Any
    """The data set that views (:class:`tasks.data.sampling.Repeated`) show samples of,"""
    indices: Indices
    """and which of them, int64 [N]."""

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """That of a data set, or of a view of one."""
        base: Any = dataset
        indices = np.arange(len(dataset), dtype=np.int64)
        while hasattr(base, "indices") and hasattr(base, "dataset"):
            base, indices = base.dataset, base.indices[indices]
        return cls(base, indices)

    @cached_property
    def table(self) -> BoxTable | None:
        """The boxes of the whole data set, where it keeps such a table."""
        table = getattr(self.base, "table", None)
        return table if isinstance(table, BoxTable) else None

    @cached_property
    def ids(self) -> list[str]:
        """The id of each sample; its number where the data set has no method ``known``."""
        if self.table is not None:
            return [self.table.ids[index] for index in self.indices.tolist()]
        tell = getattr(self.base, "known", None)
        return [tell(index).id if tell else str(index) for index in self.indices.tolist()]

    @cached_property
    def paths(self) -> list[str]:
        """The image file of each sample; empty where the data set has no method ``known``, or no files."""
        if self.table is not None:
            return [self.table.path(index) for index in self.indices.tolist()]
        tell = getattr(self.base, "known", None)
        return [(*tell(index).files, "")[0] if tell else "" for index in self.indices.tolist()]

    @cached_property
    def contents(self) -> list[bytes]:
        """What each sample is made of that has no file of its own; empty for others."""
        tell = getattr(self.base, "known", None) if self.table is None else None
        return [tell(index).content if tell else b"" for index in self.indices.tolist()]

    @cached_property
    def copies(self) -> list[list[int]]:
        """Groups of samples whose files (:func:`tasks.data.files.copies.copies`) or contents are the same. Where samples are parts of
        files, these are their groups, and each file is looked at once."""
        paths = self.paths
        if hasattr(self.base, "check_part"):
            first = {path: place for place, path in reversed(list(enumerate(paths)))}
            paths = [path if first[path] == place else "" for place, path in enumerate(paths)]
        return copies(paths) + alike(
            (place for place, one in enumerate(self.contents) if one), self.contents.__getitem__
        )

    @cached_property
    def groups(self) -> list[str] | None:
        """The group of each sample, where the data set has such a column."""
        groups = getattr(self.base, "groups", None)
        return None if groups is None else [groups[index] for index in self.indices.tolist()]

    @cached_property
    def occurrences(self) -> tuple[Indices, Indices] | None:
        """Sample and class of every label or object, int64 [P] each, samples rising; crowds are none. None where samples would have
        to be read for it."""
        if (table := self.table) is not None:
            images, labels = np.repeat(np.arange(len(table)), np.diff(table.first)), table.labels
            images, labels = images[~table.crowd], labels[~table.crowd]
        elif hasattr(self.base, "occurrences"):
            images, labels = self.base.occurrences()
        else:
            return None
        first = np.searchsorted(images, np.arange(len(self.base) + 1))
        counts = np.diff(first)[self.indices]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        places = np.repeat(first[:-1][self.indices] - starts[:-1], counts) + np.arange(starts[-1])
        return np.repeat(np.arange(len(self.indices)), counts), labels[places].astype(np.int64)

    @cached_property
    def reader(self) -> ImageReader | None:
        """How its files are read."""
        found = getattr(self.base, "read", None) or getattr(self.base, "reader", None)
        return found if isinstance(found, ImageReader) else None

    @property
    def noun(self) -> str:
        """What a sample is called."""
        return getattr(self.reader, "noun", "image")

    def some_paths(self, limit: int) -> list[str]:
        """The files of at most so many images, evenly spread."""
        count = min(limit, len(self.paths))
        places = (np.arange(count) * len(self.paths) // max(1, count)).tolist()
        return [self.paths[place] for place in places if self.paths[place]]
