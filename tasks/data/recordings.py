"""What a look at recordings shows: how long and of what rates they are, how they are mixed and resampled, clipped and silent ones."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images.recordings import ZERO, Header, read_header
from tasks.data.dataset import Dataset
from tasks.data.knowledge import Knowledge

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec

HEADERS = 2000
"""So many files of a split are asked for their length and rate."""
HEARD = 64
"""So many recordings of a split are looked through for clipping and silence."""
_CLIPPED = 1e-4  # share of samples at full scale from which a recording is told
_ROOM = 4  # windows so many times as long as half of the recordings are told
_SILENT = 33  # pixels from that of silence: 60 decibels below full scale
_SHOWN = 3


def told_of_sound(dataset: Dataset, spec: "ImageSpec", on_error: str = "stop") -> Iterator[str]:
    """Lines on the recordings of a split for a model that hears them as ``spec`` says: from the headers of :data:`HEADERS` files, and from
    :data:`HEARD` recordings, evenly spread. What cannot be opened, and a part that its recording does not have, raises
    :class:`UserError`, or is counted where ``on_error`` is ``skip``."""
    assert spec.rate is not None
    known = Knowledge.of(dataset)
    headers, wrong = _headers(known)
    if wrong and on_error == "stop":
        raise wrong[0]
    if wrong:
        yield f"warning: {len(wrong):,} of those looked at cannot be opened, or lack a part that is named; the first: {wrong[0]}"
    if headers:
        parts = hasattr(known.base, "check_part")
        yield from _lengths(headers, spec.rate, spec.size[1], parts=parts)
        yield from _changes(headers, spec.rate, len(spec.mean))
    yield from _heard(dataset)


def _headers(known: Knowledge) -> tuple[list[Header], list[UserError]]:
    """Those of some files, and what is wrong with others and with parts that samples are of them."""
    paths = list(dict.fromkeys(known.some_paths(HEADERS)))
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(paths, pool.map(_header, paths), strict=True))
    wrong = [one for one in found.values() if isinstance(one, UserError)]
    headers = {path: one for path, one in found.items() if isinstance(one, Header)}
    if check := getattr(known.base, "check_part", None):
        for index, path in zip(known.indices.tolist(), known.paths, strict=True):
            try:
                if path in headers:
                    check(index, headers[path])
            except UserError as error:
                wrong.append(error)
    return list(headers.values()), wrong


def _header(path: str) -> Header | UserError:
    try:
        return read_header(path)
    except UserError as error:
        return error


def _lengths(headers: Sequence[Header], rate: int, window: int, *, parts: bool) -> Iterator[str]:
    seconds = np.array([one.seconds for one in headers])
    middle, span = np.median(seconds), window / rate
    text = f"{len(headers):,} recordings looked at last {seconds.min():.2f} to {seconds.max():.2f} s, half of them {middle:.2f} s or less"
    longer = int((seconds > span).sum())
    yield f"{text}; {longer:,} are longer than a window of {span:g} s"
    if middle < span / _ROOM and not parts:
        fitting = float(f"{2 * middle:.1g}")
        yield f"warning: windows of {span:g} s are mostly silence around half of them (model.backbone_options.seconds: {fitting:g})"


def _changes(headers: Sequence[Header], rate: int, channels: int) -> Iterator[str]:
    """How files become what the model hears, where they are otherwise."""
    mixed = [one for one in headers if one.channels != channels]
    if mixed and channels == 1:
        yield f"{len(mixed):,} of {len(headers):,} have several channels, of which the mean is taken"
    others = Counter(one.rate for one in headers if one.rate != rate)
    if others:
        which = ", ".join(f"{count:,} of {given:,}" for given, count in others.most_common(4))
        yield f"{sum(others.values()):,} of {len(headers):,} are resampled to {rate:,} samples a second: {which}"
    low = sum(count for given, count in others.items() if given < rate / 2)
    if low:
        what = f"{low:,} of {len(headers):,} have less than half of the samples a second that the model hears"
        remedy = (
            f"model.backbone_options.rate and data.options.rate: {max(given for given in others if given < rate / 2)}"
        )
        yield f"warning: {what}: above that there is nothing in them ({remedy})"


def _heard(dataset: Dataset) -> Iterator[str]:
    """Recordings that are clipped, and such in which nothing is heard."""
    clipped: list[str] = []
    silent: list[str] = []
    count = min(HEARD, len(dataset))
    for index in (np.arange(count) * len(dataset) // max(1, count)).tolist():
        try:
            sample = dataset[index]
        except UserError:
            continue
        away = np.abs(sample.image.astype(np.int32) - ZERO)
        name = os.path.basename(sample.id)
        clipped += [name] * bool((away >= ZERO - 1).mean() > _CLIPPED)
        silent += [name] * bool(away.max() < _SILENT)
    if clipped:
        yield f"warning: {_counted(clipped, count)} are clipped: {_CLIPPED:.2%} or more of their samples are at full scale"
    if silent:
        yield f"warning: {_counted(silent, count)} are silent, 60 dB below full scale or fainter"


def _counted(found: Sequence[str], looked_at: int) -> str:
    names = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    return f"{len(found)} of {looked_at} recordings looked through ({names})"
