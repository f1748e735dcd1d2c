"""Splits of a single list of samples by what their names, or columns of their table, say: ``speaker=theo|lucas,index=0-4``."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError, nearest

SAYS = "write NAME=VALUE, such as speaker=theo|lucas, or index=0-4,speaker=theo, where both must hold"
_RANGE = re.compile(r"(\d+)-(\d+)")


class Condition(NamedTuple):
    """What a sample must be: one of ``values`` by the ``name``."""

    name: str
    values: tuple[str, ...]


class Selection(NamedTuple):
    """Samples of which all ``conditions`` hold; ``where`` that is said."""

    where: str
    conditions: tuple[Condition, ...]

    @classmethod
    def of(cls, text: str, where: str) -> Self:
        """As it is written: conditions with ``,`` between, values with ``|``; a value ``A-B`` of whole numbers is each from A to B."""
        found = []
        for part in text.split(","):
            name, equals, values = (word.strip() for word in part.partition("="))
            listed = tuple(value.strip() for value in values.split("|"))
            if not (name and equals and all(listed)):
                raise UserError(where, f"{part.strip()!r} is no condition", SAYS)
            found.append(Condition(name, listed))
        return cls(where, tuple(found))

    def chosen(self, values: Mapping[str, Sequence[str]], count: int) -> NDArray[np.bool_]:
        """Of which of ``count`` samples they hold, bool [N], by the ``values`` of each name. A name or a value that there is none of raises
        :class:`UserError`."""
        mask = np.ones(count, np.bool_)
        for name, wanted in self.conditions:
            if name not in values:
                remedy = nearest(name, list(values)) if values else "give data.options.pattern or data.options.table"
                raise UserError(self.where, f"nothing says {name!r} of the samples", remedy)
            cells = np.array(list(values[name]), object)
            there = set(cells.tolist())
            hits = np.zeros(count, np.bool_)
            for value in wanted:
                hit = np.array([cell == value for cell in cells]) if value in there else _in_range(value, cells)
                if not hit.any():
                    what = f"no sample has {name}={value}"
                    raise UserError(self.where, what, nearest(value, sorted(there))[:200])
                hits |= hit
            mask &= hits
        return mask


def _in_range(value: str, cells: NDArray[np.object_]) -> NDArray[np.bool_]:
    match = _RANGE.fullmatch(value)
    if match is None:
        return np.zeros(len(cells), np.bool_)
    low, high = int(match[1]), int(match[2])
    return np.array([cell.isdecimal() and low <= int(cell) <= high for cell in cells])


def of_split(
    split: str, selections: Mapping[str, Selection], values: Mapping[str, Sequence[str]], count: int
) -> NDArray[np.int64]:
    """Which of ``count`` samples are those of ``split``, int64 rising: those that its own selection chooses, or all, without what a later
    split (``test`` after ``val`` after ``train``) chooses."""
    order = ("train", "val", "test")
    own = selections.get(split)
    mask = np.ones(count, np.bool_) if own is None else own.chosen(values, count)
    for later in order[order.index(split) + 1 :]:
        if later in selections:
            mask &= ~selections[later].chosen(values, count)
    return np.flatnonzero(mask)
