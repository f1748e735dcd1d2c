"""Data set ``table``, a CSV file of images and their labels: columns ``file`` and ``labels``, several labels separated by ``;``."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError, nearest
from effbackbones.images.recordings import Header, bounds
from tasks.data.files.csvfile import Row, TableFormat, read_table
from tasks.data.files.listing import Spelling
from tasks.data.files.names import elsewhere, plain
from tasks.data.files.reading import DEFAULT_READER, Confinement, ImageReader, PackedNames, SoundReader
from tasks.data.fingerprint import Known
from tasks.data.sample import Sample

Span = tuple[float, float]
_WHOLE: Span = (np.nan, np.nan)
_NUMBER = re.compile(r"(\d+\.?|\d*\.\d+)(e[-+]?\d{1,2})?", re.ASCII | re.IGNORECASE)


class TableDataset:
    """Images of the rows of a CSV file, in its order; ``id`` is the file's name as written there.

    With ``multilabel`` a row has any number of labels, an empty cell none, and samples have ``labels`` float32 [K];
    without it exactly one, and samples have ``label``. ``classes`` None: the sorted labels that occur; otherwise these,
    and any other raises :class:`UserError`. ``rename``: other names for labels, two of which may become one. File names are
    relative to ``root`` (the CSV's folder when None), get the ending ``suffix`` where they have none, and may not leave it, nor
    may links unless ``links`` is ``anywhere``; every file must exist, and stand in the table once. ``groups``: what the group
    column says of each row, if ``form`` names one.
    ``parts``: the columns, of those that ``form`` keeps, with the start and the end in seconds of the part of a recording that a row
    speaks of, an empty cell being the beginning or the end of all of it; ids have them too, a file may stand in several rows, and is
    their group where no column is. ``kept``: the cells of each column that ``form`` keeps.
    ``notes``: the columns that were passed over, and how cells are read. Errors name the line.
    """

    only_reads = True  # see tasks.data.batch

    def __init__(
        self,
        table: str | Path,
        classes: tuple[str, ...] | None = None,
        *,
        multilabel: bool = False,
        root: str | Path | None = None,
        read: ImageReader = DEFAULT_READER,
        form: TableFormat = TableFormat(),  # noqa: B008  # frozen
        suffix: str = "",
        rename: Mapping[str, str] | None = None,
        links: str = "inside",
        parts: tuple[str, ...] = (),
    ) -> None:
        self.file, self.root = Path(table), Path(root or Path(table).parent)
        self.multilabel, self.read = multilabel, read
        found, unused, told = read_table(self.file, form, self.root)
        places = tuple(form.kept.index(name) for name in parts)
        named = _renamed(found, rename or {}, self.file, classes)
        spans = [_seconds(row, places) if parts else _WHOLE for row in named]
        rows = _checked(named, spans, self.root, multilabel, suffix, links, read=read)
        if not rows:
            raise UserError(str(table), "has no rows", f"list at least one {read.noun}")
        occurring = {label for row in rows for label in row.labels}
        said = dict.fromkeys((rename or {}).get(name, name) for name in form.classes)
        self.classes = classes or tuple(said) or tuple(sorted(occurring))
        if not (classes or occurring):
            raise UserError(str(table), "no row has a label", f"label at least one {read.noun}")
        self.ids = PackedNames(row.file + _part_of(row, places) for row in found)
        self.names = PackedNames(row.file for row in rows)
        self.kept = {name: PackedNames(row.kept[place] for row in rows) for place, name in enumerate(form.kept)}
        self._parts = np.array(spans) if parts else None
        self._lines = np.array([int(row.where.rpartition(":")[2]) for row in rows] if parts else [], np.int64)
        self.groups = tuple(row.group if form.group else row.file for row in rows) if form.group or parts else None
        self.notes = (*told, *([f"columns passed over: {', '.join(unused)}"] if unused else []))
        positions = {name: position for position, name in enumerate(self.classes)}
        for row in rows:
            for label in row.labels:
                if label not in positions:
                    raise UserError(row.where, f"unknown class {label!r}", nearest(label, self.classes)[:200])
        self._ends: NDArray[np.int64] = np.cumsum([len(row.labels) for row in rows])
        self._labels = np.array([positions[label] for row in rows for label in row.labels], np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """The file of an image."""
        return f"{self.root}/{self.names[index]}"

    def occurrences(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Image and class of every label, int64 [P] each."""
        counts = np.diff(self._ends, prepend=0)
        return np.repeat(np.arange(len(self)), counts), self._labels

    def __getitem__(self, index: int) -> Sample:
        path, present = self.path(index), self._present(index)
        image = self._reader(index)(path)
        if not self.multilabel:
            return Sample(image, self.ids[index], path, label=int(present[0]))
        labels = np.zeros(len(self.classes), np.float32)
        labels[present] = 1
        return Sample(image, self.ids[index], path, labels=labels)

    def _reader(self, index: int) -> ImageReader:
        if self._parts is None or not isinstance(self.read, SoundReader):
            return self.read
        return replace(self.read, part=self._part(self._parts[index]))

    @staticmethod
    def _part(span: NDArray[np.float64]) -> tuple[float | None, float | None]:
        start, end = (None if np.isnan(second) else float(second) for second in span)
        return start, end

    def check_part(self, index: int, header: Header) -> None:
        """Hold the part that a row speaks of against the header of its recording; raises :class:`UserError` naming the line."""
        if self._parts is not None:
            where = f"{self.file}:{self._lines[index]}: {self.names[index]}"
            bounds(where, header, self._part(self._parts[index]))

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        return Known(self.ids[index], self._present(index).tobytes(), (self.path(index),))

    def _present(self, index: int) -> NDArray[np.int64]:
        """The labels of a row."""
        return self._labels[self._ends[index - 1] if index % len(self) else 0 : self._ends[index]]


def _renamed(rows: list[Row], rename: Mapping[str, str], table: Path, classes: tuple[str, ...] | None) -> list[Row]:
    """The rows with other names for some labels; a row with two that become one has it once."""
    known = {label for row in rows for label in row.labels}
    unknown = sorted(set(rename) - known)
    if unknown and classes is None:  # of another split some may be missing
        what = f"there is no label {unknown[0]!r} in {table}"
        raise UserError("data.options.rename", what, nearest(unknown[0], known)[:200])
    if not rename:
        return rows
    return [_with_names(row, rename) for row in rows]


def _with_names(row: Row, rename: Mapping[str, str]) -> Row:
    new = tuple(rename.get(label, label) for label in row.labels)
    # A label that the file has twice is a mistake all the same.
    return row._replace(labels=tuple(dict.fromkeys(new)) if len(set(row.labels)) == len(row.labels) else new)


def _part_of(row: Row, places: tuple[int, ...]) -> str:
    """The part of a recording that a row speaks of, as its id says it."""
    return f"@{'-'.join(row.kept[place] for place in places)}" if any(row.kept[place] for place in places) else ""


def _seconds(row: Row, places: tuple[int, ...]) -> Span:
    """Start and end of that part, NaN where nothing is said."""
    start, end = (row.kept[place] for place in places)
    for cell in (start, end):
        if cell and not _NUMBER.fullmatch(cell):
            raise UserError(row.where, f"expected seconds, got {cell[:40]!r}", "write numbers such as 2.5, or nothing")
    if end and float(start or 0) >= float(end):
        raise UserError(row.where, f"a part from {start or 0} to {end} s is none", "correct it")
    return float(start or "nan"), float(end or "nan")


def _checked(
    rows: list[Row], spans: list[Span], root: Path, multilabel: bool, suffix: str, links: str, *, read: ImageReader
) -> list[Row]:
    """The rows, each sound by itself and against the ones before; files are named as they lie in ``root``. ``spans``: the parts that they
    speak of, which are the same however their numbers are written."""
    inside, spelling = Confinement(root, links), Spelling(root)
    seen: dict[tuple[str, str], str] = {}
    found = []
    for row, span in zip(rows, spans, strict=True):
        row = row._replace(file=_there(spelling, row.file, suffix, read))
        if not row.file or not os.path.lexists(root / row.file):
            _refuse_missing(row, root)
        inside.check(row.file, row.where)
        key = row.file, str(span)
        if key in seen:
            part = "" if span is _WHOLE else ", the same part,"
            what = f"{row.file!r}{part} stands in line {seen[key].rpartition(':')[2]} already"
            raise UserError(row.where, what, "merge the two lines")
        seen[key] = row.where
        if "" in row.labels:
            raise UserError(row.where, "a label is empty", "remove the spare semicolon")
        if len(set(row.labels)) < len(row.labels):
            raise UserError(row.where, "a label stands there twice", "remove one")
        if not multilabel and len(row.labels) != 1:
            raise UserError(
                row.where, f"expected one label, got {len(row.labels)}", "correct it, or set data.multilabel: true"
            )
        found.append(row)
    return found


def _there(spelling: Spelling, name: str, suffix: str, read: ImageReader) -> str:
    """A file of the table as its folder has it: with ``suffix`` where it has no ending of those that are read, and as
    :meth:`Spelling.find` finds it. As it is, where there is none."""
    name = name if read.reads(name) else name + suffix
    found = (name and spelling.find(name)) or name.replace("\\", "/")
    return plain(found)


def _refuse_missing(row: Row, root: Path) -> None:
    """Raise :class:`UserError` for a file that is not where the table says, but elsewhere below ``root``, with the options that
    find it."""
    place = elsewhere(root, row.file) if row.file and not os.path.isabs(row.file) else None
    if place is None:
        return
    options = [f"data.options.image_root: {root / place[0]}"] if place[0] != "." else []
    options += [f"data.options.suffix: {place[1]}"] if place[1] else []
    raise UserError(row.where, f"there is no file {root / row.file}", f"set {' and '.join(options)}")
