"""Outcomes in files, of a few bytes an image."""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import read_bytes, write_atomically
from tasks.scoring.boxes import BoxOutcomes
from tasks.scoring.labelled import ClassOutcomes, LabelSetOutcomes
from tasks.scoring.outcomes import Outcomes
from tasks.scoring.pixels import PixelOutcomes

_FORMAT = 1
KINDS: Mapping[str, type[Outcomes]] = {
    kind.kind: kind for kind in (ClassOutcomes, LabelSetOutcomes, PixelOutcomes, BoxOutcomes)
}


@dataclass(frozen=True)
class Recorded:
    """Outcomes that were read from ``path``, and what the file says ``about`` them: ``split``, ``task``, and the
    ``noun`` of a sample."""

    path: Path
    outcomes: Outcomes
    about: Mapping[str, Any]


def outcomes_file(split: str, task: str = "") -> str:
    """Name of the file in a run folder; ``task``: of one of several."""
    return f"per-image-{split}{f'-{task}' if task else ''}.npz"


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
        if head["format"] != _FORMAT or head["kind"] not in KINDS:
            what = (
                f"holds outcomes of format {head['format']} and kind {head['kind']!r}, which this version does not know"
            )
            raise UserError(str(path), what, remedy)
        truth = tables.pop("truth")
        text = tables.pop("ids").tobytes().decode("utf-8", "surrogateescape")
        ids = tuple(text.split("\0")) if len(truth) else ()
        if len(ids) != len(truth):
            raise ValueError(f"{len(ids)} ids, {len(truth)} images")
        outcomes = KINDS[head["kind"]].of_tables(ids, tuple(head["classes"]), truth, tables)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(str(path), f"is no file of outcomes ({' '.join(str(error).split())[:120]})", remedy) from None
    return Recorded(path, outcomes, head["about"])


def _bytes(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text, np.uint8)
