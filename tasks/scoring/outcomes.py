"""What became of each image of an evaluation: what scores of any choice of these images need.

A bootstrap draws images with replacement; a drawn set is a weight for each image, how often it was drawn. So every kind of outcome
gives the scores of the set under any weights: all ones give the scores that were published.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Tables = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Outcomes(ABC):
    """``ids`` of the n images that were scored, in order; names of the ``classes``; ``truth`` uint32 [n], a checksum of what each was
    scored against, by which two evaluations know whether they had the same."""

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    truth: NDArray[np.uint32]
    kind: ClassVar[str]
    """Word for the kind in files."""
    lead: ClassVar[tuple[str, ...]]
    """Names of :meth:`scores` that tell most, first the one by which a model is judged, then that of classes."""

    @abstractmethod
    def scores(self, weights: NDArray[np.integer[Any]]) -> dict[str, Floats]:
        """Scores under ``weights`` [n, B], how often each image counts in each of B sets: name -> float64 [B], ``per_class/NAME`` ->
        float64 [K, B]; NaN where undefined."""

    def take(self, rows: NDArray[np.int64]) -> Self:
        """The outcomes of these images alone, each at most once, in this order."""
        ids = tuple(self.ids[row] for row in rows.tolist())
        tables = {name: column[rows] for name, column in self.tables().items()}
        return self.of_tables(ids, self.classes, self.truth[rows], tables)

    @abstractmethod
    def tables(self) -> dict[str, NDArray[Any]]:
        """What the file holds beside ids, classes and truth."""

    @classmethod
    @abstractmethod
    def of_tables(
        cls, ids: tuple[str, ...], classes: tuple[str, ...], truth: NDArray[np.uint32], tables: Tables
    ) -> Self:
        """From :meth:`tables`; ``KeyError``, ``ValueError`` or ``IndexError`` where they do not fit."""

    def cost(self) -> float:
        """About so many seconds for a thousand sets."""
        return 0.0

    def point(self) -> dict[str, Floats]:
        """The scores of all images, each once: float64 without axes, of classes [K]."""
        return {name: value[..., 0] for name, value in self.scores(np.ones((len(self.ids), 1), np.int32)).items()}


def checksum(*parts: NDArray[Any] | float) -> int:
    """Of a truth: uint32."""
    found = 0
    for part in parts:
        found = zlib.crc32(np.ascontiguousarray(part).tobytes(), found)
    return found


def places(ids: Sequence[str]) -> dict[tuple[str, int], int]:
    """Row of each image by its id and the how-many-th of that id it is."""
    seen: dict[str, int] = {}
    found = {}
    for row, id_ in enumerate(ids):
        seen[id_] = seen.get(id_, 0) + 1
        found[id_, seen[id_]] = row
    return found


def quotient(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """A share; NaN of nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def mean_of_known(values: Floats) -> Floats:
    """The mean over the first axis of what is defined; NaN where nothing is."""
    known = ~np.isnan(values)
    return quotient(np.where(known, values, 0).sum(0), known.sum(0))
