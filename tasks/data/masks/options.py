"""What the options of a data set say of its masks: classes, format, values, colours."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from effbackbones.errors import UserError, nearest
from tasks.data.files.reading import listed_classes
from tasks.data.masks.file import FORMATS, MaskReader, packed
from tasks.data.sample import IGNORE
from tasks.settings.data import DataConfig

MASK_OPTIONS = ("classes", "format", "colors", "values", "ignore", "other")
"""Names in ``data.options`` that :meth:`Declared.of` reads."""


@dataclass(frozen=True)
class Declared:
    """What the options say of the masks. ``names``: the classes, None if nobody names them; ``values`` and ``ignored``: as
    :class:`MaskReader` has them, ``values`` None if not given."""

    format: str
    names: tuple[str, ...] | None
    values: tuple[tuple[int, int], ...] | None
    ignored: tuple[int, ...]
    others_ignored: bool

    @classmethod
    def of(cls, data: DataConfig, root: Path) -> "Declared":
        """By ``data.options``; what contradicts itself raises :class:`UserError`."""
        form, other = (
            _word(data, "format", ("auto", *FORMATS), "auto"),
            _word(data, "other", ("stop", "ignore"), "stop"),
        )
        colors = _list(data, "colors")
        if colors is not None or form == "rgb":
            if colors is None or form not in ("auto", "rgb"):
                raise UserError(
                    "data.options.colors",
                    f"goes with format rgb and with no other, got format {form}",
                    "give both or none",
                )
            for name in ("classes", "values"):
                if name in data.options:
                    raise UserError(
                        f"data.options.{name}",
                        "does not go with colors, which name the classes themselves",
                        "remove it",
                    )
            ignored = tuple(_color("ignore", text) for text in _list(data, "ignore") or ())
            return cls("rgb", *_color_table(colors), ignored, other == "ignore")
        names = listed_classes(_with_default(data, root), root)
        listed = None if _list(data, "values") is None else _numbers(data, "values")
        if listed is not None and (names is None or len(listed) != len(names)):
            what = f"expected one value for each class, got {len(listed)} for {len(names or ())} classes"
            raise UserError("data.options.values", what, "give them in the order of data.options.classes")
        codes = None if listed is None else tuple((value, label) for label, value in enumerate(listed))
        return cls(form, names, codes, _numbers(data, "ignore"), other == "ignore")

    def reader(self, form: str, count: int, data: DataConfig) -> MaskReader:
        """What reads masks of ``count`` classes in format ``form``."""
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
        return MaskReader(form, codes, ignored, self.others_ignored, data.max_pixels, data.exif)


def _word(data: DataConfig, option: str, known: Sequence[str], default: str) -> str:
    """An option that is one of a few words."""
    word = data.options.get(option, default)
    if word not in known:
        raise UserError(f"data.options.{option}", f"unknown value {str(word)[:40]!r}", nearest(str(word), known))
    return str(word)


def _list(data: DataConfig, option: str) -> list[object] | None:
    """An option that is a list."""
    listed = data.options.get(option)
    if listed is not None and not isinstance(listed, list):
        raise UserError(f"data.options.{option}", f"expected a list, got {str(listed)[:60]!r}", "write [one, two, ...]")
    return listed


def _numbers(data: DataConfig, option: str) -> tuple[int, ...]:
    """An option that is a list of different values of 16 bits."""
    listed = _list(data, option) or []
    for value in listed:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
            raise UserError(
                f"data.options.{option}", f"expected whole numbers in 0..65535, got {str(value)[:40]!r}", "correct it"
            )
    if len(set(listed)) < len(listed):
        raise UserError(f"data.options.{option}", "a value stands there twice", "remove one of the two")
    return tuple(value for value in listed if isinstance(value, int))


def _with_default(data: DataConfig, root: Path) -> DataConfig:
    """Options with ``classes.txt`` of the root as ``classes``, if they have none and it is there."""
    if "classes" in data.options or not (root / "classes.txt").is_file():
        return data
    return replace(data, options={**data.options, "classes": "classes.txt"})


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
