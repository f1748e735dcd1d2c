"""Letters for pictures: a font that has those of a text, found on the system where ours lacks them; else what stands in their place."""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

_FIRST = re.compile("cjk|noto|unicode|fallback|gothic|hei|song|ming|wqy|pingfang|malgun|yahei|unifont", re.IGNORECASE)
"""In the file names of fonts that have many scripts."""
_LOOKED_INTO = 400
"""So many files of fonts are looked into."""


def drawable(text: str, size: int, number: int | None = None) -> tuple[str, ImageFont.FreeTypeFont]:
    """``text`` on one line, and a font of ``size`` pixels that has all its letters: DejaVu Sans, else one of the system. Where none
    has them, ``#number`` (or ``?``) stands for those that are missing, which would be empty squares."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    missing = {letter for letter in text if not letter.isspace() and ord(letter) not in letters_of(own_font())}
    if not missing:
        return text, font(size)
    found = _fallback(frozenset(text) - {" "})
    if found is not None:
        return text, _loaded(found, size)
    instead = "?" if number is None else f"#{number}"
    missing |= {letter for letter in text if unicodedata.category(letter) == "Cf" or letter == "\ufe0f"}
    kept = "".join(letter if letter not in missing else "\0" for letter in text)
    return re.sub("\0[\0 ]*\0|\0", instead, kept), font(size)


def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows the scripts of Europe."""
    return _loaded(own_font(), size)


@lru_cache(maxsize=64)
def _loaded(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=1)
def own_font() -> str:
    """The file of DejaVu Sans."""
    import matplotlib  # takes long, and a command that draws nothing does not need it

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@lru_cache(maxsize=_LOOKED_INTO)
def letters_of(path: str) -> frozenset[int]:
    """Code points that the font of a file has; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@lru_cache(maxsize=256)
def _fallback(letters: frozenset[str]) -> str | None:
    """A font of the system that has all ``letters`` and can be drawn with; None if there is none."""
    wanted = {ord(letter) for letter in letters}
    for path in _system_fonts():
        if wanted <= letters_of(path):
            try:
                _loaded(path, 16).getmask("".join(sorted(letters)))
            except OSError:  # one of pictures, which come in one size
                continue
            return path
    return None


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    """Files of fonts, those of many scripts first."""
    from matplotlib.font_manager import findSystemFonts

    found = sorted(findSystemFonts(), key=lambda path: (not _FIRST.search(Path(path).name), path))
    return tuple(found[:_LOOKED_INTO])
