"""What a data set holds, in a few figures: to notice that it is another one when a run continues or is evaluated.

No image is decoded. Of every sample its id and its labels count, in their order; of the files of images and masks their sizes in
bytes and their last block, where the checksum of all pixels of a PNG lies and the end of what others compress. Times of change and
folders do not count, so that a copy in another place is the same. What this cannot see: a file that is replaced by one of exactly
as many bytes and the same end, or is none of those looked at.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from effbackbones.errors import UserError

if TYPE_CHECKING:
    from tasks.data.dataset import Dataset
    from tasks.data.sample import Sample

LOOKED_AT = 10_000
"""Samples of a split whose files are looked at, evenly spread; on a network a look takes some milliseconds."""
READ = 16
"""Samples of a data set of the user's that are read where it does not tell of them otherwise."""
_TAIL = 4096


class Known(NamedTuple):
    """What is known of a sample without decoding it: ``label``, any bytes that differ when its labels do; ``files``, the paths of
    its image and masks; ``content``, what it is made of where it has no file of its own, alike for copies of it."""

    id: str
    label: bytes = b""
    files: tuple[str, ...] = ()
    content: bytes = b""


def fingerprint(dataset: "Dataset") -> dict[str, Any]:
    """Number of samples, and sha256 of their ids, their labels and their files; JSON-like.

    A data set that has a method ``known``, index -> :class:`Known`, is asked for all its samples; of others some are read.
    """
    count, tell = len(dataset), getattr(dataset, "known", None)
    ids, labels, files = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    looked_at = set(_spread(count, LOOKED_AT))
    for index in range(count) if tell else _spread(count, READ):
        known: Known = tell(index) if tell else _read(dataset, index)
        ids.update(f"{known.id}\0".encode("utf-8", "surrogateescape"))
        labels.update(len(known.label).to_bytes(8, "little") + known.label)
        if index in looked_at:
            files.update(b"".join(map(_file, known.files)) + known.content)
    return {"samples": count, "ids": ids.hexdigest(), "labels": labels.hexdigest(), "files": files.hexdigest()}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In what two fingerprints differ, in words; None: in nothing."""
    if before.get("samples") != now["samples"]:
        return f"samples were {before.get('samples')} and are now {now['samples']}"
    what = {
        "ids": "samples are others, or in another order",
        "labels": "labels were changed",
        "files": "files were replaced, or what is made of them looks otherwise",
    }
    return next((text for name, text in what.items() if before.get(name) != now[name]), None)


def _spread(count: int, most: int) -> Sequence[int]:
    return range(count) if count <= most else [int(index) for index in np.arange(most) * count // most]


def _file(path: str) -> bytes:
    """Size of a file and its last bytes; a file that cannot be read is one of no size, which the loader will tell."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return f"{size};".encode() + file.read(_TAIL)
    except OSError:
        return b"-;"


def _read(dataset: "Dataset", index: int) -> Known:
    try:
        sample: Sample = dataset[index]
    except UserError:  # unreadable, which the run will tell or count
        return Known(str(index))
    fields = (sample.label, sample.labels, sample.boxes, sample.box_labels, sample.crowd, sample.mask)
    label = b"".join(b"-" if field is None else np.asarray(field).tobytes() + b";" for field in fields)
    return Known(sample.id, label, (sample.path,) if sample.path else ())
