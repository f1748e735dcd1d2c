"""A data set of one list divided into training, validation and test: at random, by class, by group, and written down."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import write_atomically
from tasks.data.files.jsonfile import parse
from tasks.data.knowledge import Indices, Knowledge

_ABOUT = "division of a data set by effbackbones"
_MOST_OWED = 1.0  # samples that one stratum could not give and the next gives: so the sums come out
_MOST_COPIES = 0.5
"""Share of images with copies above which equal files do not show that images belong together."""
_STREAM = 3  # keeps the draws apart from those of samples and orders


@dataclass(frozen=True)
class Division:
    """Which sample is in which split: ``parts`` has the ids of each, ``told`` says in words how that came about."""

    parts: Mapping[str, tuple[str, ...]]
    told: str

    def indices(self, ids: Sequence[str], split: str) -> Indices:
        """The samples of a split, rising, int64 [N]; ``ids`` are those of the data set. Samples that are in no split, and ids that are
        not in the data set, raise :class:`UserError`."""
        places = {name: place for place, name in enumerate(ids)}
        known = {name for part in self.parts.values() for name in part}
        for names, what in (
            (sorted(known - set(places)), "are in the division and not in the data"),
            (sorted(set(places) - known), "are in the data and in no split of the division"),
        ):
            if names:
                shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                remedy = "restore the data, or draw another division: set data.division to null, and another run.out"
                raise UserError("data.division", f"{len(names):,} samples {what}: {shown}", remedy)
        if split not in self.parts:
            raise UserError(f"data.{split}", f"the division has the splits {', '.join(self.parts)}", "name one of them")
        return np.array(sorted(places[name] for name in self.parts[split]), np.int64)

    def write(self, path: Path) -> None:
        """As JSON."""
        record = {"about": _ABOUT, "how": self.told, **{split: list(part) for split, part in self.parts.items()}}
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "Division":
        """What :meth:`write` wrote, or anybody else: lists of ids by split."""
        try:
            record = parse(path).content
        except UserError as error:
            raise UserError("data.division", str(error)) from None
        listed = {split: record[split] for split in ("train", "val", "test") if split in record}
        if not {"train", "val"} <= set(listed) or not all(map(_is_list_of_ids, listed.values())):
            remedy = "write lists of ids under train, val and perhaps test, as split.json of a run has them"
            raise UserError("data.division", f"{path} lists no ids under train and val", remedy)
        parts: dict[str, tuple[str, ...]] = {split: tuple(ids) for split, ids in listed.items()}
        whole = [name for part in parts.values() for name in part]
        if len(set(whole)) < len(whole):
            twice = next(name for name in whole if whole.count(name) > 1)
            raise UserError("data.division", f"{path} has {twice!r} twice", "leave it in one split")
        return cls(parts, f"as in {path}")


def _is_list_of_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def divided(
    known: Knowledge, shares: Mapping[str, float], *, seed: int, by_class: bool = True, group: str | None = None
) -> Division:
    """A division by ``shares`` of the samples for ``val`` and ``test``, the rest for ``train``; a function of ids, classes and ``seed``.
    ``known``: what is known of the whole data set.

    ``by_class``: each split has its share of each class (of samples of several classes the rarest counts), as far as whole samples
    go; where classes are not known without reading, at random. ``group``: a regular expression on ids; samples for which its first
    group (all of it, if it has none) is the same stay together, as do those of one group that the data set itself names, and those
    whose files are copies of each other. Raises
    :class:`UserError` where a split would be empty.
    """
    ids, rng = known.ids, np.random.default_rng((seed, _STREAM))
    found, groups, same = (known.occurrences if by_class else None), known.groups, known.copies
    many = sum(map(len, same))
    few = many <= _MOST_COPIES * len(ids)
    units = _joined(_units(ids, groups if group is None else _groups(group, ids)), same if few else [])
    strata = _strata(found, len(ids), len(known.base.classes), units)
    names, sizes = sorted(shares), [len(unit) for unit in units]
    where, owed = np.full(len(units), -1), dict.fromkeys(shares, 0.0)
    for stratum in np.unique(strata).tolist():
        left: list[int] = rng.permutation(np.flatnonzero(strata == stratum)).tolist()
        total = sum(sizes[unit] for unit in left)
        for place, name in enumerate(names):
            owed[name] += shares[name] * total
            for unit in list(left):
                if sizes[unit] / 2 <= owed[name] and len(left) > 1:  # training keeps one of each
                    where[unit], owed[name] = place, owed[name] - sizes[unit]
                    left.remove(unit)
            owed[name] = min(owed[name], _MOST_OWED)
    split_of = np.full(len(ids), -1)
    for drawn, members in zip(where.tolist(), units, strict=True):
        split_of[members] = drawn
    parts = {"train": -1, **{name: place for place, name in enumerate(names)}}
    members_of = {
        name: tuple(ids[i] for i in np.flatnonzero(split_of == place).tolist()) for name, place in parts.items()
    }
    for name, part in members_of.items():
        if not part:
            what = f"would have none of the {len(ids):,} {known.noun}s ({len(units):,} groups)"
            raise UserError(f"data.{name}", what, f"choose other shares, or add {known.noun}s")
    counts = ", ".join(f"{len(part):,} {name}" for name, part in members_of.items())
    how = "by class" if found is not None else "at random"
    grouped = group is not None or groups is not None
    together = f", {len(units):,} groups kept together" if grouped and len(units) < len(ids) else ""
    together += f", {many:,} that are there more than once kept together" if many and few else ""
    apart = "" if few else f"; {many:,} {known.noun}s are there more than once, too many to be kept together"
    return Division(members_of, f"{len(ids):,} {known.noun}s divided {how} with seed {seed}{together}: {counts}{apart}")


def _groups(group: str, ids: Sequence[str]) -> list[str]:
    """The group of each id by a regular expression."""
    pattern = pattern_of(group)
    return [_group(pattern, name) for name in ids]


def _units(ids: Sequence[str], names: Sequence[str] | None) -> list[Indices]:
    """What stays together: samples of one group, by the ``names`` of the groups where there are any, or each by itself."""
    if names is None:
        return [np.array([index], np.int64) for index in range(len(ids))]
    _, places = np.unique(np.array(names), return_inverse=True)
    order = np.argsort(places, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(places[order])) + 1)


def _joined(units: list[Indices], same: Sequence[Sequence[int]]) -> list[Indices]:
    """The same with those units made one that have a sample of one group of ``same`` each."""
    if not same:
        return units
    first = {int(index): place for place, unit in enumerate(units) for index in unit}
    parent = list(range(len(units)))

    def top(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    for group in same:
        for index in group[1:]:
            one, other = sorted((top(first[group[0]]), top(first[index])))
            parent[other] = one
    members: dict[int, list[Indices]] = {}
    for place, unit in enumerate(units):
        members.setdefault(top(place), []).append(unit)
    return [np.concatenate(parts) for parts in members.values()]


def pattern_of(group: str) -> "re.Pattern[str]":
    """A regular expression of the config."""
    try:
        return re.compile(group)
    except re.error as error:
        raise UserError("data.split_group", f"is no regular expression: {error}", "correct it") from None


def _group(pattern: "re.Pattern[str]", name: str) -> str:
    found = pattern.search(name)
    if found is None:
        what = f"{pattern.pattern!r} is not found in the id {name!r}"
        raise UserError("data.split_group", what, "write a regular expression that all ids have")
    return found[1] if pattern.groups else found[0]


def _strata(found: tuple[Indices, Indices] | None, count: int, classes: int, units: Sequence[Indices]) -> Indices:
    """The stratum of each unit: the rarest class in it, ``classes`` where there is none."""
    if found is None:
        return np.zeros(len(units), np.int64)
    images, labels = found
    pairs = np.unique(images * classes + labels)  # each class of each image once
    images, labels = np.divmod(pairs, classes)
    often = np.append(np.bincount(labels, minlength=classes), count + 1)
    rarest = np.full(count, classes)
    order = np.argsort(-often[labels], kind="stable")  # of each image the rarest comes last
    rarest[images[order]] = labels[order]
    return np.array([min(rarest[unit].tolist(), key=lambda label: (often[label], label)) for unit in units], np.int64)
