"""A text file, one sentence on each line: read without guessing, and told in numbers where characters had to be mended."""

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from effbackbones.errors import UserError
from tasks.data.files.decoding import decoded

LONGEST = 10_000
"""Characters of a line; more are no sentence."""
_GAPS = dict.fromkeys(map(ord, "\u115f\u1160\u2800\u3164\uffa0"), " ")
"""Letters that are drawn as nothing: fillers of Hangul, and Braille without a dot."""
JOINERS = "\u200c\u200d"
"""Marks without a picture that change how their neighbours are drawn."""


class TextLine(NamedTuple):
    """A line that has text: its number in the file, from 1, and the text."""

    number: int
    text: str


class TextFile(NamedTuple):
    """The lines of a file that have text, and the numbers of those without (``blank``), of those with characters of Windows-1252 that
    stood there as control characters (``restored``), of those from which characters without a picture were taken (``dropped``), and of
    those with a tab between words (``columns``)."""

    lines: list[TextLine]
    blank: list[int]
    restored: list[int]
    dropped: list[int]
    columns: list[int]


def read_lines(path: Path) -> TextFile:
    """The lines of a UTF-8 file in composed form (NFC), each gap one space, of letters that are blank too. Characters U+0080 to U+009F,
    which Windows-1252 read as Latin-1 leaves behind, become those that were meant (the rule of the WHATWG for such references); other
    control and format characters are taken out. Raises :class:`UserError` naming file and line for what is no such file."""
    found = TextFile([], [], [], [], [])
    for number, line in enumerate(decoded(path).removesuffix("\n").split("\n"), 1):
        if len(line) > LONGEST:
            what = f"expected a sentence of at most {LONGEST:,} characters, got {len(line):,}"
            raise UserError(f"{path}, line {number}", what, "write one sentence on each line")
        if "\0" in line:
            what = "holds NUL bytes, as no text does"
            raise UserError(f"{path}, line {number}", what, "save the file as UTF-8, or remove what is no text")
        mended = line.translate(_RESTORED)
        clean = "".join("" if _is_dropped(letter) else letter for letter in mended)
        text = unicodedata.normalize("NFC", " ".join(clean.translate(_GAPS).split()))
        if mended != line:
            found.restored.append(number)
        if len(clean) < len(mended):
            found.dropped.append(number)
        if "\t" in line.strip():
            found.columns.append(number)
        if text.strip(f"{JOINERS} "):
            found.lines.append(TextLine(number, text))
        else:
            found.blank.append(number)
    if not found.lines:
        raise UserError(str(path), "holds no line with text", "write one sentence on each line, or remove the file")
    return found


def _restored() -> dict[int, str]:
    letters = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
    return {code: letter for code, letter in letters.items() if letter}


_RESTORED = _restored()


@lru_cache(maxsize=4096)
def _is_dropped(letter: str) -> bool:
    """Whether it has no picture: control and format characters, but for white space and joiners."""
    return unicodedata.category(letter) in ("Cc", "Cf") and not letter.isspace() and letter not in JOINERS
