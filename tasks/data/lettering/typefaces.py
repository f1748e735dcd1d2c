"""Fonts by file or by family, and which letters they have."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import ImageFont

from effbackbones.drawing.fonts import letters_of, own_font
from effbackbones.errors import UserError, nearest
from effbackbones.pointers import LONGEST, refuse_pointer
from tasks.data.lettering.textfile import JOINERS

SUFFIXES = (".ttf", ".otf", ".ttc", ".pfb")
_STYLES = {
    "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
    "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
}


def own_typefaces() -> tuple[str, ...]:
    """The files of the twelve text fonts that come with matplotlib: DejaVu Sans, Serif and Sans Mono, each in four styles. They have the
    letters of Latin, Greek and Cyrillic."""
    folder = Path(own_font()).parent
    return tuple(str(folder / f"{family}{style}.ttf") for family, styles in _STYLES.items() for style in styles)


def typefaces(named: Sequence[str], root: Path, where: str) -> tuple[str, ...]:
    """The files of fonts: each name is a file (as it is, or in ``root``), or a family of the system, of which all styles count. Raises
    :class:`UserError` with ``where`` for what is neither."""
    found: dict[str, None] = {}
    for name in named:
        paths = [_file(name, root, where)] if name.lower().endswith(SUFFIXES) else _family(name, where)
        for path in paths:
            _check(path, where)
        found.update(dict.fromkeys(paths))
    return tuple(found)


def has_letters(path: str, text: str) -> bool:
    """Whether a font has all letters of a text."""
    return bool(with_letters((path,), text))


def with_letters(paths: Sequence[str], text: str) -> list[str]:
    """Those fonts that have all letters of a text."""
    wanted = {ord(letter) for letter in text if letter not in JOINERS}
    return [path for path in paths if wanted <= letters_of(path)]


def _file(name: str, root: Path, where: str) -> str:
    path = next((path for path in (root / name, Path(name).expanduser()) if path.is_file()), None)
    if path is None:
        raise UserError(where, f"there is no file {name} here, nor in {root}", "correct the name")
    return str(path)


def _family(name: str, where: str) -> list[str]:
    # Looks through the fonts of the system, once for each user: some seconds.
    from matplotlib.font_manager import fontManager

    faces = {entry.fname: entry.name for entry in fontManager.ttflist}
    found = sorted(path for path, family in faces.items() if family.casefold() == name.casefold())
    if not found:
        raise UserError(where, f"no font of this system is called {name!r}", nearest(name, set(faces.values()))[:200])
    return found


def _check(path: str, where: str) -> None:
    """Refuse a file that is no font, or one of pictures in one size."""
    try:
        ImageFont.truetype(path, 17)
    except OSError as error:
        with suppress(OSError), open(path, "rb") as file:  # one that is listed need not be there any more
            refuse_pointer(path, file.read(LONGEST))
        raise UserError(where, f"{path} cannot be drawn with: {error}", "name another font") from error
    if not letters_of(path):
        raise UserError(where, f"{path} does not say which letters it has", "name another font")
