"""Files of text in UTF-8, and nothing else taken for it."""

from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.pointers import LONGEST, refuse_pointer

_SHOWN = 12  # bytes before a wrong one that a message shows


def decoded(path: Path, missing: str = "correct its name, or its permissions") -> str:
    """The text of a UTF-8 file, with or without a mark at its beginning, each end of a line ``\\n``. Raises :class:`UserError` for a file
    that cannot be read, with the remedy ``missing``, and with the line for another encoding."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}", missing) from error
    refuse_pointer(path, data[:LONGEST])
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}, line 1", "expected UTF-8, got UTF-16 by its first bytes", "save the file as UTF-8")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        around = data[max(0, error.start - _SHOWN) : error.start + 4]
        what = f"expected UTF-8, got the byte 0x{data[error.start]:02X} in {around!r}"
        raise UserError(f"{path}, line {number}", what, "save the file as UTF-8") from error
