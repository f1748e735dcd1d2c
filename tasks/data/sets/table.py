"""Data set ``table``, a CSV file of images and their labels: columns ``file`` and ``labels``, several labels separated by ``;``."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError, nearest
from tasks.data.files.reading import DEFAULT_READER, Confinement, ImageReader, PackedNames
from tasks.data.fingerprint import Known
from tasks.data.sample import Sample

COLUMNS = ("file", "labels")


class Row(NamedTuple):
    """One line of a table: where it stands, the file's name, its labels."""

    where: str
    file: str
    labels: tuple[str, ...]


class TableDataset:
    """Images of the rows of a CSV file, in its order; ``id`` is the file's name as written there.

    With ``multilabel`` a row has any number of labels, an empty cell none, and samples have ``labels`` float32 [K];
    without it exactly one, and samples have ``label``. ``classes`` None: the sorted labels that occur; otherwise these,
    and any other raises :class:`UserError`. File names are relative to ``root`` (the CSV's folder when None) and may not
    leave it; every file must exist, and stand in the table once. Errors name the line.
    """

    def __init__(
        self,
        table: str | Path,
        classes: tuple[str, ...] | None = None,
        *,
        multilabel: bool = False,
        root: str | Path | None = None,
        read: ImageReader = DEFAULT_READER,
    ) -> None:
        self.table, self.root, self.multilabel, self.read = (
            Path(table),
            Path(root or Path(table).parent),
            multilabel,
            read,
        )
        rows = _checked(list(_rows(self.table)), self.root, multilabel)
        if not rows:
            raise UserError(str(table), "has no rows", "list at least one image")
        self.classes = classes or tuple(sorted({label for row in rows for label in row.labels}))
        if not self.classes:
            raise UserError(str(table), "no row has a label", "label at least one image")
        self.names = PackedNames(row.file for row in rows)
        positions = {name: position for position, name in enumerate(self.classes)}
        for row in rows:
            for label in row.labels:
                if label not in positions:
                    raise UserError(row.where, f"unknown class {label!r}", nearest(label, self.classes)[:200])
        self._ends: NDArray[np.int64] = np.cumsum([len(row.labels) for row in rows])
        self._labels = np.array([positions[label] for row in rows for label in row.labels], np.int32)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        path, present = f"{self.root}/{name}", self._present(index)
        if not self.multilabel:
            return Sample(self.read(path), name, path, label=int(present[0]))
        labels = np.zeros(len(self.classes), np.float32)
        labels[present] = 1
        return Sample(self.read(path), name, path, labels=labels)

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        return Known(name := self.names[index], self._present(index).tobytes(), f"{self.root}/{name}")

    def _present(self, index: int) -> NDArray[np.int32]:
        """The labels of a row."""
        return self._labels[self._ends[index - 1] if index % len(self) else 0 : self._ends[index]]


def _rows(table: Path) -> Iterator[Row]:
    """The lines of a CSV file below its header."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            if sorted(header) != sorted(COLUMNS):
                got = ",".join(header)[:100]
                raise UserError(
                    f"{table}:1", f"expected the columns file,labels, got {got!r}", "write that as the first line"
                )
            at_file, at_labels = (header.index(column) for column in COLUMNS)
            for cells in reader:
                where = f"{table}:{reader.line_num}"
                if len(cells) == len(COLUMNS):
                    labels = cells[at_labels].strip()
                    yield Row(
                        where,
                        cells[at_file].strip(),
                        tuple(label.strip() for label in labels.split(";")) if labels else (),
                    )
                elif cells:  # not a blank line
                    raise UserError(
                        where, f"expected {len(COLUMNS)} cells, got {len(cells)}", "quote names that hold a comma"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        remedy = "name a UTF-8 text file with the columns file,labels"
        raise UserError(str(table), f"cannot be read as a CSV file: {error}", remedy) from error


def _checked(rows: list[Row], root: Path, multilabel: bool) -> list[Row]:
    """The rows, each sound by itself and against the ones before."""
    inside = Confinement(root)
    seen: dict[str, str] = {}
    for row in rows:
        inside.check(row.file, row.where)
        if row.file in seen:
            raise UserError(
                row.where,
                f"{row.file!r} stands in line {seen[row.file].rpartition(':')[2]} already",
                "merge the two lines",
            )
        seen[row.file] = row.where
        if "" in row.labels:
            raise UserError(row.where, "a label is empty", "remove the spare semicolon")
        if len(set(row.labels)) < len(row.labels):
            raise UserError(row.where, "a label stands there twice", "remove one")
        if not multilabel and len(row.labels) != 1:
            raise UserError(
                row.where, f"expected one label, got {len(row.labels)}", "correct it, or set data.multilabel: true"
            )
    return rows
