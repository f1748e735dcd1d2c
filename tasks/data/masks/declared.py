"""What is declared of the masks of a data set: classes, format, values, colours."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from effbackbones.errors import UserError, nearest
from tasks.data.files.reading import ImageReader
from tasks.data.masks.file import MaskReader, packed
from tasks.data.sample import IGNORE


@dataclass(frozen=True)
class Declared:
    """What is said of the masks. ``format``: one of :data:`tasks.data.masks.file.FORMATS`, or ``auto``; ``names``: the classes,
    None if nobody names them; ``values``, ``ignored`` and ``others``: as :class:`MaskReader` has them, ``values`` None if not given;
    ``merged``: the class that each of ``names`` becomes, where several become one (:meth:`renamed`),
    and ``new_names`` what they are called then.
    What contradicts itself raises :class:`UserError`."""

    format: str = "auto"
    names: tuple[str, ...] | None = None
    values: tuple[tuple[int, int], ...] | None = None
    ignored: tuple[int, ...] = ()
    others: str = "stop"
    merged: tuple[int, ...] | None = None
    new_names: tuple[str, ...] | None = None

    @classmethod
    def numbers(
        cls,
        format: str,
        names: tuple[str, ...] | None,
        values: tuple[int, ...] | None,
        ignored: tuple[int, ...] = (),
        others: str = "stop",
    ) -> "Declared":
        """Masks of numbers, of which ``values`` are those of the classes in their order."""
        if values is not None and (names is None or len(values) != len(names)):
            what = f"expected one value for each class, got {len(values)} for {len(names or ())} classes"
            raise UserError("data.options.values", what, "give them in the order of data.options.classes")
        codes = None if values is None else tuple((value, label) for label, value in enumerate(values))
        return cls(format, names, codes, ignored, others)

    @classmethod
    def colors(cls, table: Sequence[object], ignored: Sequence[object] = (), others: str = "stop") -> "Declared":
        """Masks of colours: ``name=red,green,blue`` of each class in their order (a name may come again), and colours
        ``red,green,blue`` that are ignored."""
        named = _color_table(table)
        return cls("rgb", *named, tuple(_color("ignore", text) for text in ignored), others)

    def codes(self, form: str, count: int) -> tuple[tuple[int, int], ...]:
        """The values of ``count`` classes in masks of format ``form``."""
        count = count if self.merged is None else len(self.merged)
        codes = self.values or (
            ((0, 0), (255, 1)) if form == "binary" else tuple((value, value) for value in range(count))
        )
        return codes if self.merged is None else tuple((value, self.merged[label]) for value, label in codes)

    def renamed(self, rename: Mapping[str, str]) -> "Declared":
        """The same with other names for some classes, of which several may become one: its place is that of the first."""
        if not rename:
            return self
        for old in rename:
            if old not in (self.names or ()):
                what = f"there is no class {old!r}" if self.names else "nobody names the classes"
                remedy = nearest(old, self.names)[:200] if self.names else "set data.options.classes"
                raise UserError("data.options.rename", what, remedy)
        new = [rename.get(name, name) for name in self.names or ()]
        places = {name: place for place, name in enumerate(dict.fromkeys(new))}
        return replace(self, merged=tuple(places[name] for name in new), new_names=tuple(places))

    def reader(
        self, form: str, count: int, read: ImageReader, *, palette: Mapping[int, int] | None = None, remedy: str = ""
    ) -> MaskReader:
        """What reads masks of ``count`` classes in format ``form``, with the limits by which images are read; ``palette`` and
        ``remedy`` as :class:`MaskReader` has them."""
        codes = self.codes(form, count)
        always = () if form in ("rgb", "binary") or IGNORE in dict(codes) else (IGNORE,)
        ignored = tuple(dict.fromkeys((*self.ignored, *always)))
        both = sorted(set(dict(codes)) & set(ignored))
        if both:
            said = ",".join(str(both[0] >> shift & 255) for shift in (16, 8, 0)) if form == "rgb" else str(both[0])
            what = f"{said} is ignored, and the value of class {dict(codes)[both[0]]}"
            remedy = "say in data.options.values which value each class has; for masks of 0 and 255 set format: binary"
            raise UserError("data.options.ignore", what, "remove it from one of the two" if form == "rgb" else remedy)
        known = tuple(sorted((palette or {}).items()))
        return MaskReader(form, codes, ignored, self.others, read.max_pixels, read.exif, known, remedy)

    def by_colour(self, indices: Mapping[int, int], names: tuple[str, ...]) -> "Declared":
        """The same of masks whose colours decide; ``indices`` is the value of each, packed. A colour whose value is no class raises
        :class:`UserError`."""
        classes, ignored = dict(self.codes("palette", len(names))), {*self.ignored, IGNORE}
        codes = {colour: classes[index] for colour, index in indices.items() if index in classes}
        passed = tuple(colour for colour, index in indices.items() if index not in classes and index in ignored)
        odd = [index for index in indices.values() if index not in classes and index not in ignored]
        if odd and self.others == "stop":
            what = f"names {len(names)} classes, and the palettes have a colour at index {odd[0]}"
            raise UserError("data.options.classes", what, "correct it, or set data.options.ignore or other")
        return Declared("rgb", names, tuple(codes.items()), passed, self.others, None, self.new_names)


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
