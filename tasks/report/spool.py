"""Results of any number of images in files: what they need at the end waits on disk, and long JSON is written as it comes."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tasks.report.outputs import make_folder


class Spool:
    """Values, JSON-like, that wait in the file ``path`` until they are wanted, in order and as often as one likes. The file begins with
    the first of them, has one a line, and goes when it is closed; a process that is killed leaves it."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self.count

    def add(self, value: Any) -> None:
        """Put a value at the end."""
        if self._file is None:
            make_folder(self.path.parent)
            self._file = open(self.path, "wb+")  # noqa: SIM115  # closed with this
        self._file.write(json.dumps(value).encode() + b"\n")
        self.count += 1

    def __iter__(self) -> Iterator[Any]:
        if self._file is None:
            return
        self._file.seek(0)
        try:
            for line in self._file:
                yield json.loads(line)
        finally:
            self._file.seek(0, 2)

    def close(self) -> None:
        """Forget all of them."""
        if self._file is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)
            self._file, self.count = None, 0


def long_json(
    record: Mapping[str, Any], more: Mapping[str, Iterable[Any]], indent: int, pairs: bool = False
) -> Iterator[bytes]:
    """The text of ``record``, which is not empty, as :func:`json.dumps` lays it out, with the keys of ``more`` at its end: lists, or
    with ``pairs`` objects of (key, value), of any length, of which one value is held at a time."""
    pad = " " * indent
    yield json.dumps(record, indent=indent).removesuffix("\n}").encode()
    for name, values in more.items():
        yield f",\n{pad}{json.dumps(name)}: {'{' if pairs else '['}".encode()
        end = ""
        for value in values:
            text = json.dumps(value[1] if pairs else value, indent=indent)
            text = f"{json.dumps(value[0])}: {text}" if pairs else text
            yield f"{',' if end else ''}\n{2 * pad}{text.replace(chr(10), chr(10) + 2 * pad)}".encode()
            end = f"\n{pad}"
        yield f"{end}{'}' if pairs else ']'}".encode()
    yield b"\n}"


def csv_lines(rows: Iterable[Iterable[Any]]) -> Iterator[bytes]:
    """Rows of a table as the lines of a CSV file."""
    text = io.StringIO()
    table = csv.writer(text)
    for row in rows:
        table.writerow(row)
        yield text.getvalue().encode("utf-8", "surrogateescape")
        text.seek(0)
        text.truncate()
