"""The key ``segmentation`` of COCO annotations to outlines: every record checked before anything is drawn."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.data.files.jsonfile import word
from tasks.data.files.records import NUMBER, WHOLE, Records, as_float
from tasks.data.masks.outlines import Outlines

_POINT = 2
_LEAST = 3 * _POINT  # numbers of a polygon
_LARGEST = 2**31 - 1  # pixels of an image
_DIGITS = 7  # letters of a number: more than any run of pixels needs
_WANTED = "expected polygons (lists of x, y, ...) or an object with size and counts"


class Runs(NamedTuple):
    """Run lengths of some records: ``numbers`` int64, one record after the other, ``lengths`` int64, how many each has."""

    numbers: NDArray[np.int64]
    lengths: NDArray[np.int64]


def read_outlines(records: Records, *, keep: bool = False) -> Outlines:
    """The outlines of all annotations; polygons of fewer than three points are left out and noted.

    Takes ``segmentation`` out of the records, unless they ``keep`` it. Raises :class:`UserError` with file and record for what is
    neither polygons nor runs: other types, an odd number of coordinates, numbers that are not finite, runs that are negative, do
    not fill the image of their ``size``, or are no text as COCO writes it.
    """
    values: list[Any] = [row.get("segmentation") for row in records.rows]
    for row in () if keep else records.rows:
        row.pop("segmentation", None)
    odd = set(map(type, values)) - {list, dict, type(None)}
    if odd:
        index = next(index for index, value in enumerate(values) if type(value) in odd)
        records.refuse(index, f"segmentation: {_WANTED}, got {word(values[index])}")
    parts, ends, coordinates, thin = _polygons(records, [value if type(value) is list else [] for value in values])
    encoded = [index for index, value in enumerate(values) if type(value) is dict]
    runs, counts, sizes = _runs(records, encoded, [values[index] for index in encoded])
    return Outlines(parts, ends, coordinates, runs, counts, sizes, thin)


def _polygons(
    records: Records, values: Sequence[list[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """``parts``, ``ends`` and ``coordinates`` of :class:`Outlines`, and the records some of whose parts are too short."""
    polygons: list[list[Any]] = list(chain.from_iterable(values))
    owner = np.repeat(np.arange(len(values)), [len(value) for value in values])
    if set(map(type, polygons)) - {list}:
        part = next(part for part, polygon in enumerate(polygons) if type(polygon) is not list)
        records.refuse(int(owner[part]), f"segmentation: {_WANTED}, got {word(values[owner[part]])}")
    lengths = np.array(list(map(len, polygons)), np.int64)
    uneven = np.flatnonzero(lengths % _POINT)
    if len(uneven):
        what = f"segmentation: a polygon of {lengths[uneven[0]]} numbers, expected x and y of each point"
        records.refuse(int(owner[uneven[0]]), what, "correct it")
    if set(map(type, chain.from_iterable(polygons))) - NUMBER:
        part = next(part for part, polygon in enumerate(polygons) if set(map(type, polygon)) - NUMBER)
        records.refuse(int(owner[part]), f"segmentation: expected numbers x, y, ..., got {word(polygons[part])}")
    coordinates = _floats(polygons, int(lengths.sum()))
    infinite = ~np.isfinite(coordinates)
    if infinite.any():
        part = int(np.searchsorted(np.cumsum(lengths), infinite.argmax(), side="right"))
        records.refuse(int(owner[part]), f"segmentation is not finite: {word(polygons[part])}")
    short = lengths < _LEAST
    thin = np.zeros(len(values), np.bool_)
    thin[owner[short]] = True
    if short.any():
        coordinates = coordinates[np.repeat(~short, lengths)]
    return _starts(np.bincount(owner[~short], minlength=len(values))), _starts(lengths[~short]), coordinates, thin


def _floats(polygons: Sequence[list[Any]], total: int) -> NDArray[np.float64]:
    try:
        return np.fromiter(chain.from_iterable(polygons), np.float64, total)
    except OverflowError:  # a whole number of hundreds of digits
        return np.fromiter(map(as_float, chain.from_iterable(polygons)), np.float64, total)


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of several pieces begins, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _runs(
    records: Records, rows: Sequence[int], values: Sequence[dict[str, Any]]
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int32]]:
    """``runs``, ``counts`` and ``sizes`` of :class:`Outlines` from the records ``rows``, whose segmentations are ``values``."""
    size_of = np.full((len(records), 2), -1, np.int32)
    size_of[list(rows)] = np.array(
        [_size(records, row, value) for row, value in zip(rows, values, strict=True)], np.int32
    ).reshape(-1, 2)
    kinds = [type(value.get("counts")) for value in values]
    listed = [place for place, kind in enumerate(kinds) if kind is list]
    texts = [place for place, kind in enumerate(kinds) if kind is str]
    if len(listed) + len(texts) < len(rows):
        place = next(place for place, kind in enumerate(kinds) if kind not in (list, str))
        records.refuse(
            rows[place], f"segmentation.counts: expected a list or a text, got {word(values[place].get('counts'))}"
        )
    plain = _plain(records, [rows[place] for place in listed], [values[place]["counts"] for place in listed])
    coded = _decoded(records, [rows[place] for place in texts], [values[place]["counts"] for place in texts])
    order = np.array([rows[place] for place in (*listed, *texts)], np.int64)
    counts, starts = (
        np.concatenate([plain.numbers, coded.numbers]),
        _starts(np.concatenate([plain.lengths, coded.lengths])),
    )
    _refuse_unfilled(records, order, counts, starts, size_of[order].astype(np.int64).prod(1))
    runs = np.zeros((len(records), 2), np.int64)
    runs[order] = np.stack([starts[:-1], starts[1:]], 1)
    return runs, counts.astype(np.uint32), size_of


def _size(records: Records, row: int, value: dict[str, Any]) -> list[int]:
    """Height and width that runs are for."""
    size: Any = value.get("size")
    if (
        type(size) is not list
        or len(size) != 2
        or set(map(type, size)) - WHOLE
        or min(size) < 1
        or size[0] * size[1] > _LARGEST
    ):
        records.refuse(row, f"segmentation.size: expected the height and width of the image, got {word(size)}")
    return [size[0], size[1]]


def _plain(records: Records, rows: Sequence[int], values: Sequence[list[Any]]) -> Runs:
    """Runs written as lists of numbers."""
    numbers = list(chain.from_iterable(values))
    if set(map(type, numbers)) - WHOLE or not 0 <= min(numbers, default=0) <= max(numbers, default=0) <= _LARGEST:
        place = next(
            k for k, value in enumerate(values) if any(type(n) is not int or not 0 <= n <= _LARGEST for n in value)
        )
        records.refuse(rows[place], f"segmentation.counts: expected lengths in pixels, got {word(values[place])}")
    return Runs(np.array(numbers, np.int64), np.array(list(map(len, values)), np.int64))


def _decoded(records: Records, rows: Sequence[int], texts: Sequence[str]) -> Runs:
    """Runs written as texts, in the coding of COCO's own tools (``rleToString`` of its C code).

    Each letter, less 48, has five bits of a number, the lowest first, and a sixth that is set in all but the last of it; the
    fifth bit of the last is the sign. From the fourth number on, what is coded is the difference from the one two before.
    """
    letters = "".join(texts).encode("utf-32-le", "surrogatepass")  # four bytes each, whatever it is
    codes = np.frombuffer(letters, np.uint32).astype(np.int64) - 48
    text_ends = np.cumsum(list(map(len, texts)), dtype=np.int64)
    last = np.flatnonzero(codes & 32 == 0)  # the last letter of each number
    starts = np.concatenate([np.zeros(1, np.int64), last[:-1] + 1])[: len(last)]
    digits = last - starts + 1
    bad = (codes < 0) | (codes > 63)
    bad[last[digits > _DIGITS]] = True
    final = text_ends[text_ends > 0] - 1
    bad[final] |= codes[final] & 32 != 0  # cut off within a number
    if bad.any():
        place = int(np.searchsorted(text_ends, bad.argmax(), side="right"))
        records.refuse(rows[place], f"segmentation.counts is no text as COCO's tools write it: {word(texts[place])}")
    if not len(codes):
        return Runs(codes, np.zeros(len(texts), np.int64))
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, digits))
    numbers = np.add.reduceat((codes & 31) << shifts, starts) - np.where(
        codes[last] & 16 != 0, np.int64(1) << (5 * digits), 0
    )
    text_of = np.searchsorted(text_ends, last, side="right")
    lengths = np.bincount(text_of, minlength=len(texts)).astype(np.int64)
    places = np.arange(len(numbers)) - np.repeat(_starts(lengths)[:-1], lengths)
    for chosen in (places % 2 == 1, (places % 2 == 0) & (places > 0)):
        numbers[chosen] = _running(numbers[chosen], text_of[chosen])
    return Runs(numbers, lengths)


def _running(values: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of all ``values`` up to each within its ``group`` (rising)."""
    sums = np.cumsum(values)
    begin = np.searchsorted(group, group)
    return sums - (sums - values)[begin]


def _refuse_unfilled(
    records: Records,
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
    starts: NDArray[np.int64],
    pixels: NDArray[np.int64],
) -> None:
    """Raise :class:`UserError` where runs are negative, or not as many pixels as their image has."""
    wild = (counts < 0) | (counts > _LARGEST)
    if wild.any():
        place = int(np.searchsorted(starts, wild.argmax(), side="right")) - 1
        records.refuse(int(rows[place]), f"segmentation.counts: a run of {counts[wild.argmax()]} pixels")
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    found = before[starts[1:]] - before[starts[:-1]]
    wrong = np.flatnonzero(found != pixels)
    if len(wrong):
        what = f"segmentation: its counts are {found[wrong[0]]:,} pixels, its size has {pixels[wrong[0]]:,}"
        records.refuse(int(rows[wrong[0]]), what)
