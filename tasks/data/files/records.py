"""Lists of objects in a JSON file, read key by key into columns; whatever is wrong is named with file and record."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from tasks.data.files.jsonfile import word

NUMBER, WHOLE, ID, TEXT = frozenset({int, float}), frozenset({int}), frozenset({int, str}), frozenset({str})
LIST, FLAG = frozenset({list}), frozenset({int, bool})
"""Types that a key may have."""
_WORDS = {
    NUMBER: "a number",
    WHOLE: "a whole number",
    ID: "a whole number or a text",
    TEXT: "a text",
    LIST: "a list",
    FLAG: "0 or 1",
}
_CONTROL = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
"""No letters: what would break a line, or cannot be written as UTF-8."""
_LONGEST = 1000
_REMEDY = "correct the record"
_SHOWN = 3
_LARGEST = 2**63 - 1


class Records:
    """The objects in one list of the file, read key by key. Whatever is wrong raises :class:`UserError` with the record's name."""

    def __init__(self, path: Path, content: Mapping[str, Any], key: str, *, empty: bool = False) -> None:
        self.path, self.key = path, key
        if key not in content:
            raise UserError(
                str(path),
                f"has no {key}",
                "name a COCO annotation file: an object with images, annotations, categories",
            )
        rows = content[key]
        if not isinstance(rows, list) or not (rows or empty):
            what = "is empty" if isinstance(rows, list) else f"expected a list, got {word(rows)}"
            raise UserError(f"{path}: {key}", what, f"list the {key}")
        if set(map(type, rows)) - {dict}:
            at = next(index for index, row in enumerate(rows) if not isinstance(row, dict))
            raise UserError(f"{path}: {key}[{at}]", f"expected an object, got {word(rows[at])}", _REMEDY)
        self.rows: list[dict[str, Any]] = rows
        self._numbers: Sequence[int] = range(len(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def some(self, indices: Sequence[int]) -> "Records":
        """Some of the records (the same objects), which keep their names."""
        part = copy(self)
        part.rows, part._numbers = [self.rows[index] for index in indices], [self._numbers[index] for index in indices]
        return part

    def name(self, index: int) -> str:
        """Where a record stands: file, place in its list, id."""
        id_ = self.rows[index].get("id")
        return f"{self.path}: {self.key}[{self._numbers[index]}]" + ("" if id_ is None else f" (id {word(id_)})")

    def refuse(self, index: int, what: str, remedy: str = _REMEDY) -> NoReturn:
        raise UserError(self.name(index), what, remedy)

    def column(self, key: str, kinds: frozenset[type], *, required: bool = True) -> list[Any]:
        """The values of one key, of the types given; None where it is absent (or null), which ``required`` refuses."""
        values = [row.get(key) for row in self.rows]
        allowed = kinds if required else kinds | {type(None)}
        odd = set(map(type, values)) - allowed
        if float in odd and int in kinds:  # as tables of numbers with gaps are written
            values = [_as_whole(value) for value in values]
            odd = set(map(type, values)) - allowed
        if odd:
            index = next(index for index, value in enumerate(values) if type(value) in odd)
            if values[index] is None:
                self.refuse(index, f"has no {key}", "add it")
            self.refuse(index, f"{key}: expected {_WORDS[kinds]}, got {word(values[index])}")
        if str in kinds:
            for index, value in enumerate(values):
                if isinstance(value, str) and (len(value) > _LONGEST or _CONTROL.search(value)):
                    self.refuse(index, f"{key} is too long or holds a character that is no letter: {word(value)}")
        return values

    def whole(self, key: str) -> list[int]:
        """Whole numbers of 64 bits."""
        values: list[int] = self.column(key, WHOLE)
        if values and max(max(values), -min(values)) > _LARGEST:
            index = next(index for index, value in enumerate(values) if abs(value) > _LARGEST)
            self.refuse(index, f"{key} has more than 64 bits")
        return values

    def floats(self, key: str, values: list[Any]) -> NDArray[np.float64]:
        """Numbers as float64, NaN where absent; anything that is not finite is refused."""
        try:
            array = np.array(values, np.float64)  # None becomes NaN
        except OverflowError:  # a whole number of hundreds of digits
            array = np.array([None if value is None else as_float(value) for value in values], np.float64)
        infinite = np.isinf(array)
        if infinite.any():
            self.refuse(int(infinite.argmax()), f"{key} is not finite")
        return array

    def unique(self, key: str, values: list[Any], remedy: str = "give each its own") -> list[Any]:
        """The same values; some that occur twice raise, with their number and the first three."""
        if len(set(map(str, values))) < len(values):
            seen: dict[str, int] = {}
            twice = [(seen[v], index) for index, v in enumerate(map(str, values)) if seen.setdefault(v, index) != index]
            repeated = list(dict.fromkeys(str(values[index]) for _, index in twice))
            what = f"{key} is that of {self.key}[{twice[0][0]}] too; not unique: {_counted(repeated, 'values')}"
            self.refuse(twice[0][1], what, remedy)
        return values

    def references(
        self, key: str, kinds: frozenset[type], known: Mapping[Any, int], what: str, form: Callable[[Any], Any]
    ) -> NDArray[np.int64]:
        """The positions in ``known`` that a column of ids speaks of; unknown ones raise, with their number and the first three."""
        values = self.column(key, kinds)
        found = np.array([known.get(form(value), -1) for value in values], np.int64)
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            first = list(dict.fromkeys(word(values[index]) for index in unknown.tolist()))
            said = f"{key} {first[0]} is not among the {what}; in all {len(unknown):,} records with {_counted(first, 'unknown ids')}"
            self.refuse(int(unknown[0]), said, f"complete the {what}, or remove the records")
        return found


def _as_whole(value: object) -> object:
    """A whole number that is written with a decimal point as such, if it is exact; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def as_float(value: int | float) -> float:
    """A number as float; infinite where it is too large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _counted(items: list[str], word: str) -> str:
    return f"{len(items):,} {word} ({', '.join(item[:40] for item in items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''})"
