"""What became of each image of an evaluation, in a file of a few bytes an image: what scores of any choice of these images need.

A bootstrap draws images with replacement; a drawn set is a weight for each image, how often it was drawn. So every kind of outcome
gives the scores of the set under any weights: all ones give the scores that were published.
"""

import io
import json
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import read_bytes, write_atomically

Floats = NDArray[np.float64]
Tables = Mapping[str, NDArray[Any]]
_FORMAT = 1
_KINDS: dict[str, type["Outcomes"]] = {}


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

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls

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


@dataclass(frozen=True)
class Recorded:
    """Outcomes that were read from ``path``, and what the file says ``about`` them: ``split``, ``task``."""

    path: Path
    outcomes: Outcomes
    about: Mapping[str, Any]


def outcomes_file(split: str, task: str = "") -> str:
    """Name of the file in a run folder; ``task``: of one of several."""
    return f"per-image-{split}{f'-{task}' if task else ''}.npz"


def checksum(*parts: NDArray[Any] | float) -> int:
    """Of a truth: uint32."""
    found = 0
    for part in parts:
        found = zlib.crc32(np.ascontiguousarray(part).tobytes(), found)
    return found


def write_outcomes(path: Path, outcomes: Outcomes, about: Mapping[str, Any]) -> None:
    """Write outcomes into a compressed ``.npz``; ``about``, JSON-like, is kept beside them."""
    head = {"format": _FORMAT, "kind": outcomes.kind, "classes": outcomes.classes, "about": dict(about)}
    text = "\0".join(outcomes.ids).encode("utf-8", "surrogateescape")
    buffer = io.BytesIO()
    named: dict[str, Any] = {"head": _bytes(json.dumps(head).encode()), "ids": _bytes(text), "truth": outcomes.truth}
    np.savez_compressed(buffer, allow_pickle=False, **named, **outcomes.tables())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def read_outcomes(path: Path) -> Recorded:
    """What :func:`write_outcomes` wrote; :class:`UserError` for anything else."""
    remedy = "write it again: evaluate --checkpoint RUN"
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as file:
            tables = {name: file[name] for name in file.files}
        head = json.loads(tables.pop("head").tobytes())
        if head["format"] != _FORMAT or head["kind"] not in _KINDS:
            what = (
                f"holds outcomes of format {head['format']} and kind {head['kind']!r}, which this version does not know"
            )
            raise UserError(str(path), what, remedy)
        truth = tables.pop("truth")
        text = tables.pop("ids").tobytes().decode("utf-8", "surrogateescape")
        ids = tuple(text.split("\0")) if len(truth) else ()
        if len(ids) != len(truth):
            raise ValueError(f"{len(ids)} ids, {len(truth)} images")
        outcomes = _KINDS[head["kind"]].of_tables(ids, tuple(head["classes"]), truth, tables)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(str(path), f"is no file of outcomes ({' '.join(str(error).split())[:120]})", remedy) from None
    return Recorded(path, outcomes, head["about"])


def _bytes(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text, np.uint8)


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
