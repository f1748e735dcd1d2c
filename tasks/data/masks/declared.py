"""What is declared of the masks of a data set: classes, format, values, colours."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effbackbones.errors import UserError
from tasks.data.files.reading import ImageReader
from tasks.data.masks.file import MaskReader, packed
from tasks.data.sample import IGNORE


@dataclass(frozen=True)
class Declared:
    """What is said of the masks. ``format``: one of :data:`tasks.data.masks.file.FORMATS`, or ``auto``; ``names``: the classes,
    None if nobody names them; ``values`` and ``ignored``: as :class:`MaskReader` has them, ``values`` None if not given.
    What contradicts itself raises :class:`UserError`."""

    format: str = "auto"
    names: tuple[str, ...] | None = None
    values: tuple[tuple[int, int], ...] | None = None
    ignored: tuple[int, ...] = ()
    others_ignored: bool = False

    @classmethod
    def numbers(
        cls,
        format: str,
        names: tuple[str, ...] | None,
        values: tuple[int, ...] | None,
        ignored: tuple[int, ...] = (),
        others_ignored: bool = False,
    ) -> "Declared":
        """Masks of numbers, of which ``values`` are those of the classes in their order."""
        if values is not None and (names is None or len(values) != len(names)):
            what = f"expected one value for each class, got {len(values)} for {len(names or ())} classes"
            raise UserError("data.options.values", what, "give them in the order of data.options.classes")
        codes = None if values is None else tuple((value, label) for label, value in enumerate(values))
        return cls(format, names, codes, ignored, others_ignored)

    @classmethod
    def colors(
        cls, table: Sequence[object], ignored: Sequence[object] = (), others_ignored: bool = False
    ) -> "Declared":
        """Masks of colours: ``name=red,green,blue`` of each class in their order (a name may come again), and colours
        ``red,green,blue`` that are ignored."""
        named = _color_table(table)
        return cls("rgb", *named, tuple(_color("ignore", text) for text in ignored), others_ignored)

    def reader(self, form: str, count: int, read: ImageReader) -> MaskReader:
        """What reads masks of ``count`` classes in format ``form``, with the limits by which images are read."""
        codes = self.values or (
            ((0, 0), (255, 1)) if form == "binary" else tuple((value, value) for value in range(count))
        )
        always = () if form in ("rgb", "binary") else (IGNORE,)
        ignored = tuple(dict.fromkeys((*self.ignored, *always)))
        both = sorted(set(dict(codes)) & set(ignored))
        if both:
            said = ",".join(str(both[0] >> shift & 255) for shift in (16, 8, 0)) if form == "rgb" else str(both[0])
            what = f"{said} is ignored, and the value of class {dict(codes)[both[0]]}"
            remedy = "say in data.options.values which value each class has; for masks of 0 and 255 set format: binary"
            raise UserError("data.options.ignore", what, "remove it from one of the two" if form == "rgb" else remedy)
        return MaskReader(form, codes, ignored, self.others_ignored, read.max_pixels, read.exif)


def _color(option: str, text: object) -> int:
    """A colour such as ``128,64,0``, as :func:`packed` has it."""
    parts = re.fullmatch(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*", text) if isinstance(text, str) else None
    if parts is None or max(map(int, parts.groups())) > 255:
        raise UserError(
            f"data.options.{option}",
            f"expected red,green,blue in 0..255, got {str(text)[:60]!r}",
            "write such as 128,64,0",
        )
    return int(packed(np.array([int(part) for part in parts.groups()])))


def _color_table(colors: Sequence[object]) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Class names in the order given, and the class of each colour."""
    names: dict[str, int] = {}
    table: dict[int, int] = {}
    for item in colors:
        name, equals, text = str(item).rpartition("=")
        if not (equals and name.strip()):
            raise UserError(
                "data.options.colors",
                f"expected name=red,green,blue, got {str(item)[:60]!r}",
                "write such as road=128,64,128",
            )
        color = _color("colors", text)
        if color in table:
            raise UserError("data.options.colors", f"colour {text.strip()} stands there twice", "remove one of the two")
        table[color] = names.setdefault(name.strip(), len(names))
    if not names:
        raise UserError("data.options.colors", "is empty", "give name=red,green,blue of each class")
    return tuple(names), tuple(table.items())
