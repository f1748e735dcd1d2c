"""A CSV file of images and their labels, as rows: which character parts its cells and its labels, which columns it has."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from effbackbones.errors import UserError, nearest
from tasks.data.files.decoding import decoded
from tasks.data.files.names import elsewhere

COLUMNS = ("file", "labels")
DELIMITERS = (",", ";", "\t", "|")
SEPARATOR = ";"
_JOINING, _WITHIN = ("|", ",", "/", "+", "&", " ", ":", "-", "_"), (" ", ":", "-", "_")
"""What joins labels in files of others, and which of these stand within names too."""
_LOOKED_AT = 50
_NUMBERS = {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False}
"""What the columns of classes hold, in lower case."""
_SIGNS = {"1": True, "-1": False, "1.0": True, "-1.0": False}
"""What they hold where -1 means that a class is not there; beside 0 it may mean that nobody knows."""
_CORNERS = frozenset(["xmin", "ymin", "xmax", "ymax", "x0", "y0", "x1", "y1", "x2", "y2", "bboxx", "bboxy", "cx", "cy"])
"""How columns of boxes are called."""


class Row(NamedTuple):
    """One line of a table: where it stands, the file's name, its labels, the group that it belongs to, the cells that are kept."""

    where: str
    file: str
    labels: tuple[str, ...]
    group: str = ""
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableFormat:
    """How a table is written. ``columns``: the names of those with files and with labels, or with files and of more than one class, which
    hold 1 or 0; ``group``: that of a third one, which says what belongs together; ``kept``: those of others whose cells are kept as they
    are; ``delimiter`` between cells, None: found from the header; ``separator`` between labels, None: ``;``, and labels that look joined
    by something else are refused."""

    columns: tuple[str, ...] = COLUMNS
    group: str | None = None
    delimiter: str | None = None
    separator: str | None = None
    kept: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The columns of classes; none where labels have one column."""
        return self.columns[1:] if len(self.columns) > 2 else ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (*self.columns, *(() if self.group is None else (self.group,)), *self.kept)


class Table(NamedTuple):
    """The rows of a file, the columns that nobody asked for, and what to tell of how cells are read."""

    rows: list[Row]
    unused: tuple[str, ...]
    told: tuple[str, ...] = ()


def read_table(path: Path, form: TableFormat, root: Path) -> Table:
    """The lines of a file below its header; its images lie in ``root``. Raises :class:`UserError` naming the line for what is no
    such table."""
    text = decoded(path, f"name a UTF-8 text file with the columns {','.join(COLUMNS)}")
    delimiter = form.delimiter or _delimiter(text, form.wanted)
    header = _header(text, delimiter)
    if not set(form.wanted) <= set(header) or len(set(header)) < len(header):
        raise _refused(path, header, form, text, delimiter, root)
    places = [header.index(name) for name in form.wanted]
    signs = _are_signs(text, delimiter, places[1 : len(form.columns)]) if form.classes else False
    meaning = _SIGNS if signs else _NUMBERS
    try:
        rows = list(_rows(path, text, delimiter, places, len(header), form, meaning))
    except csv.Error as error:
        raise UserError(str(path), f"cannot be read as a CSV file: {error}", "mend its quotes") from error
    if form.separator is None and not form.classes:
        _refuse_joined(path, rows)
    told = ("columns of classes hold 1 and -1 alone: -1 is read as not there",) if signs else ()
    return Table(rows, tuple(name or "one without a name" for name in header if name not in form.wanted), told)


def _are_signs(text: str, delimiter: str, places: Sequence[int]) -> bool:
    """Whether the cells of those columns are 1 and -1, and nothing else."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    next(reader, None)
    found = {cells[place].strip() for cells in reader for place in places if place < len(cells)}
    return found <= set(_SIGNS) and any(cell.startswith("-") for cell in found)


def _delimiter(text: str, wanted: Sequence[str]) -> str:
    """What parts the header into the wanted columns, else into the most cells; the comma where nothing does."""
    headers = {delimiter: _header(text, delimiter) for delimiter in DELIMITERS}
    return max(DELIMITERS, key=lambda one: (set(wanted) <= set(headers[one]), len(headers[one])))


def _header(text: str, delimiter: str) -> list[str]:
    first = text.partition("\n")[0]
    try:
        return [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    except csv.Error:
        return [first]


def _refused(path: Path, header: list[str], form: TableFormat, text: str, delimiter: str, root: Path) -> UserError:
    wanted, got = ",".join(form.wanted), delimiter.join(header)[:100]
    missing = [name for name in form.wanted if name not in header]
    if form.columns != COLUMNS or form.group or form.kept:
        if not missing:
            return UserError(f"{path}:1", f"a column stands there twice in {got!r}", "give each a name of its own")
        return UserError(f"{path}:1", f"there is no column {missing[0]!r}", nearest(missing[0], header)[:200])
    return UserError(
        f"{path}:1", f"expected the columns {wanted}, got {got!r}", _proposed(header, text, delimiter, root)
    )


def _proposed(header: Sequence[str], text: str, delimiter: str, root: Path) -> str:
    """What to write into the config for a table of other columns: the one whose cells are files, and the other one, or that of the
    fewest different cells."""
    plain = "write that as the first line, or set data.options.columns: [FILES, LABELS]"
    if header and header[0].strip('"').lower().startswith("sep="):
        return "remove that line, which is for Excel alone"
    plainly = {name.strip().lower().replace("_", "") for name in header}
    if "bbox" in plainly or len(_CORNERS & plainly) > 2:
        return "its rows are boxes: for detection write them as COCO (data.name: coco); for classes of images, a row for each image"
    lines = [cells for cells in csv.reader(text.splitlines()[1 : _LOOKED_AT + 1], delimiter=delimiter) if cells]
    if any(elsewhere(root, cell) for cell in header):
        return f"the first line names a file already: write {','.join(COLUMNS)} above it"
    if len(header) < 2 or not lines or any(len(cells) != len(header) for cells in lines):
        return plain
    for place, name in enumerate(header):
        found = elsewhere(root, lines[0][place].strip())
        if found is None:
            continue
        different = {other: len({cells[other] for cells in lines}) for other in range(len(header)) if other != place}
        held = [
            n
            for n, cells in enumerate(zip(*lines, strict=True))
            if n != place
            and ({c.strip().lower() for c in cells} <= set(_NUMBERS) or {c.strip() for c in cells} <= set(_SIGNS))
        ]
        if len(held) > 1:  # a column for each class
            labels = ", ".join(header[column] for column in held)
        else:
            labels = header[min(different, key=lambda other: (different[other] == 1, different[other]))]
        options = [f"columns: [{name}, {labels}]"]
        options += [f"image_root: {root / found[0]}"] if found[0] != "." else []
        options += [f"suffix: {found[1]}"] if found[1] else []
        return f"set data.options.{', data.options.'.join(options)}"
    return plain


def _rows(
    path: Path,
    text: str,
    delimiter: str,
    places: Sequence[int],
    count: int,
    form: TableFormat,
    meaning: Mapping[str, bool],
) -> Iterator[Row]:
    """The lines below the header; ``meaning``: of what columns of classes hold."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    next(reader, None)
    for cells in reader:
        where = f"{path}:{reader.line_num}"
        if len(cells) == count:
            found = [cells[place].strip() for place in places]
            others = found[len(form.columns) :]
            group = "" if form.group is None else others.pop(0)
            labels = (
                _held(found[1 : len(form.columns)], form.classes, where, meaning)
                if form.classes
                else _parted(found[1], form.separator)
            )
            yield Row(where, found[0], labels, group, tuple(others))
        elif cells:  # not a blank line
            what = f"expected {count} cells, got {len(cells)}"
            raise UserError(where, what, "quote names that hold the character between cells")


def _parted(cell: str, separator: str | None) -> tuple[str, ...]:
    """The labels in a cell."""
    mark = separator or SEPARATOR
    parts = cell.split() if mark.isspace() else cell.split(mark)
    return tuple(label.strip() for label in parts) if cell else ()


def _held(cells: Sequence[str], classes: Sequence[str], where: str, meaning: Mapping[str, bool]) -> tuple[str, ...]:
    """The classes whose cells hold 1."""
    for cell, name in zip(cells, classes, strict=True):
        if cell.lower() not in meaning:
            remedy = "write 1 or 0 in the columns of classes"
            if cell in _SIGNS:
                remedy += ": where -1 says that nobody knows, leave the row out, or decide"
            raise UserError(where, f"column {name[:40]!r}: expected 1 or 0, got {cell[:40]!r}", remedy)
    return tuple(name for cell, name in zip(cells, classes, strict=True) if meaning[cell.lower()])


def _refuse_joined(path: Path, rows: Sequence[Row]) -> None:
    """Raise :class:`UserError` where no row has several labels, and labels look like several joined by another character: parts of
    them stand alone elsewhere, or in several of them (of what stands within names too: all parts stand alone)."""
    if any(len(row.labels) > 1 for row in rows):
        return
    labels = {label for row in rows for label in row.labels}
    listed = [label for label in labels if label[:1] + label[-1:] in ("[]", "()", "{}")]
    if listed:
        what = f"labels such as {min(listed)[:60]!r} are lists as a program writes them"
        raise UserError(
            str(path), what, f"write their names, joined by {SEPARATOR!r}, or set data.options.separator: {SEPARATOR!r}"
        )
    for character in _JOINING:
        parts = {label: label.split(character) for label in labels if character in label.strip(character)}
        pieces = [piece.strip() for split in parts.values() for piece in split]
        alone = [piece for piece in pieces if piece in labels]
        looks = len(alone) == len(pieces) if character in _WITHIN else bool(alone) or len(set(pieces)) < len(pieces)
        if parts and looks:
            what = f"no row has {SEPARATOR!r}, and labels such as {min(parts)[:60]!r} look like several, joined by {character!r}"
            options = f"data.options.separator: {character!r} and data.multilabel: true"
            remedy = f"set {options}, or separator: {SEPARATOR!r} if each is one class"
            raise UserError(str(path), what, remedy)
