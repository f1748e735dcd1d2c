"""Files of text in UTF-8, and nothing else taken for it."""

from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.pointers import LONGEST, refuse_pointer

_SHOWN = 12  # bytes before a wrong one that a message shows


def decoded(path: Path, missing: str = "correct its name, or its permissions", *, most: int | None = None) -> str:
    """The text of a UTF-8 file, with or without a mark at its beginning, each end of a line ``\\n``. Raises :class:`UserError` for a file
    that cannot be read, with the remedy ``missing``, for one of more than ``most`` bytes, for a pointer of Git LFS, and with the line for
    another encoding."""
    try:
        with path.open("rb") as file:
            data = file.read(-1 if most is None else most + 1)
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}", missing) from error
    refuse_pointer(path, data[:LONGEST])
    if most is not None and len(data) > most:
        raise UserError(str(path), f"is larger than {most:,} bytes", "name a text file of short lines")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}, line 1", "expected UTF-8, got UTF-16 by its first bytes", "save the file as UTF-8")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        around = data[max(0, error.start - _SHOWN) : error.start + 4]
        what = f"expected UTF-8, got the byte 0x{data[error.start]:02X} in {around!r}"
        raise UserError(f"{path}, line {number}", what, "save the file as UTF-8") from error


def lines_of(path: Path, missing: str, *, most: int | None = None) -> list[tuple[int, str]]:
    """The lines of such a file that are not blank, without space around them, with their numbers from 1."""
    lines = enumerate(decoded(path, missing, most=most).split("\n"), 1)
    return [(number, text) for number, line in lines if (text := line.strip())]
