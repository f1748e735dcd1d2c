"""Predictions as a table: a row for each box, or for each image where there are none; CSV for everybody, Parquet for large ones."""

import os
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError
from effbackbones.inference.results import Boxes, Classes, Mask, Masks, Result
from effbackbones.weights.tensorfile import write_parts
from tasks.report.outputs import make_folder, place_of
from tasks.report.spool import Spool, csv_lines

TABLES = ("csv", "parquet")
_BLOCK = 50_000
"""Rows of a Parquet file that are held at a time."""
_IMAGE = {"image": str, "video": str, "frame": int, "time": float, "width": int, "height": int}
_BOX = {"class": str, "label": int, "score": float, "x1": float, "y1": float, "x2": float, "y2": float}


class TableFiles:
    """Writes ``OUT/table.csv`` and ``OUT/table.parquet``, as ``kinds`` says, when it is closed. Columns: the image's path, of frames of
    videos which and when (seconds), its size in pixels; then of boxes class, label, score and corners in pixels, with one row of
    empty fields where there are none; of classes the names and probabilities of the ``top`` first; of masks the share of each class."""

    draws = False

    def __init__(self, out: Path, kinds: Collection[str], columns: dict[str, type]) -> None:
        self.out, self.kinds, self.columns = out, kinds, _IMAGE | columns
        self._rows = Spool(out / ".table.jsonl.part")
        if "parquet" in kinds:
            _pyarrow(out / "table.parquet")  # before the work, not after it

    @classmethod
    def of_boxes(cls, out: Path, kinds: Collection[str]) -> "TableFiles":
        """For a detector."""
        return cls(out, kinds, _BOX)

    @classmethod
    def of_classes(cls, out: Path, kinds: Collection[str], top: int) -> "TableFiles":
        """For a classifier: its ``top`` first classes, or as many as results are limited to."""
        return cls(out, kinds, _class_columns(top))

    @classmethod
    def of_masks(cls, out: Path, kinds: Collection[str], classes: Sequence[str]) -> "TableFiles":
        """For a segmentation."""
        return cls(out, kinds, dict.fromkeys((f"share_{name}" for name in classes), float))

    def update(self, results: Sequence[Result]) -> None:
        """Note images."""
        for result in results:
            if isinstance(result, Classes) and result.top_k is not None and not len(self._rows):
                self.columns = _IMAGE | _class_columns(min(result.top_k, len(result.classes)))
            height, width = result.size
            moment = result.moment
            which = [moment.video, moment.index, round(moment.time, 6)] if moment else [None] * 3
            name = moment.name if moment is not None and moment.live else place_of(result)
            for values in self._values(result):
                self._rows.add([name, *which, width, height, *values])

    def close(self) -> None:
        make_folder(self.out)
        if "csv" in self.kinds:
            write_parts(self.out / "table.csv", csv_lines(chain([self.columns], self._rows)))
        if "parquet" in self.kinds:
            self._write_parquet(self.out / "table.parquet")
        self._rows.close()

    def _values(self, result: Result) -> list[list[Any]]:
        """What follows the image's own columns, of each row."""
        if isinstance(result, Boxes):
            parts = zip(
                result.names, result.labels.tolist(), result.scores.tolist(), result.boxes.tolist(), strict=True
            )
            return [[name, label, score, *box] for name, label, score, box in parts] or [[None] * len(_BOX)]
        if isinstance(result, Classes):
            top = (len(self.columns) - len(_IMAGE)) // 2
            order = result.order[:top].tolist()
            row: list[Any] = []
            for label in order:
                row += [result.classes[label], float(result.probabilities[label])]
            return [row + [None] * (2 * (top - len(order)))]
        assert isinstance(result, Mask | Masks)
        shares = result.shares
        return [[shares.get(name, 0.0) for name in result.classes]]

    def _write_parquet(self, path: Path) -> None:
        arrow, parquet = _pyarrow(path)
        types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
        schema = arrow.schema([(name, types[kind]) for name, kind in self.columns.items()])
        part = path.with_name(f".{path.name}.part")
        rows: Iterator[Any] = iter(self._rows)
        with parquet.ParquetWriter(part, schema) as file:
            while block := list(islice(rows, _BLOCK)):
                columns = [[_text(value) for value in column] for column in zip(*block, strict=True)]
                file.write_table(arrow.table(dict(zip(self.columns, columns, strict=True)), schema=schema))
        os.replace(part, path)


def _class_columns(top: int) -> dict[str, type]:
    found: dict[str, type] = {}
    for place in range(1, top + 1):
        found |= {f"class_{place}": str, f"probability_{place}": float}
    return found


def _text(value: Any) -> Any:
    """Names of files may hold bytes that are no text, which Parquet has no place for."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _pyarrow(out: Path) -> tuple[Any, Any]:
    try:
        import pyarrow  # an extra
        import pyarrow.parquet
    except ImportError:
        raise UserError(str(out), "Parquet needs pyarrow", 'install "effbackbones[parquet]", or ask for csv') from None
    return pyarrow, pyarrow.parquet
