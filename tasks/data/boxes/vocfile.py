"""Annotation files of Pascal VOC: an XML file for each image, read without ever expanding an entity."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from effbackbones.errors import UserError
from effbackbones.images.geometry import Size
from effbackbones.numbers import plain_number
from effbackbones.pointers import LONGEST, refuse_pointer
from tasks.data.boxes.fields import IGNORE_MARKS, TURNS, marks, says, turn

MAX_BYTES = 10_000_000
"""Larger files are refused."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_READ = frozenset(["name", "bndbox", "part", "attributes", "pose", "truncated", "occluded", "difficult", *TURNS])
"""Fields of an object that are read, or that VOC has and nobody needs."""


class VocObject(NamedTuple):
    """The name of its class; ``corners`` xmin, ymin, xmax, ymax as in the file; whether it is marked as difficult; degrees by which
    the box is turned, and whether it is marked to be ignored, where tools say so; how many ``parts`` it has; the names of fields that
    say something else."""

    name: str
    corners: tuple[float, ...]
    difficult: bool
    rotation: float = 0.0
    ignored: bool = False
    parts: int = 0
    unused: tuple[str, ...] = ()


class VocImage(NamedTuple):
    """``size`` (H, W), -1 where the file does not say it, the objects in their order, and the name of the image (empty: not said)."""

    size: Size
    objects: tuple[VocObject, ...]
    file: str = ""


def read_voc(path: Path) -> VocImage:
    """The content of a file; anything that cannot be read without guessing raises :class:`UserError` naming file and object."""
    root = _tree(path)
    if root.tag != "annotation":
        raise UserError(str(path), f"expected <annotation>, got <{root.tag[:40]}>", "write VOC's format")
    _refuse_lost(root, path)
    for parts in (root, *root.findall("size")):
        _refuse_twice(parts, ("size", "width", "height"), str(path))
    objects = tuple(_object(item, f"{path}: object {number}") for number, item in enumerate(root.findall("object"), 1))
    height, width = (_side(root, key, path) for key in ("height", "width"))
    return VocImage((height, width), objects, (root.findtext("filename") or "").strip())


def _refuse_lost(root: Element, path: Path) -> None:
    """Raise :class:`UserError` for objects that do not stand where they are looked for, or under another spelling."""
    found = set(root.findall("object"))
    for item in root.iter():
        if item.tag.rpartition("}")[2].lower() == "object" and item not in found:
            what = f"has <{item.tag[:40]}> where no object is looked for"
            raise UserError(str(path), what, "write each as <object>, directly in <annotation>")


def _refuse_twice(item: Element, keys: Sequence[str], where: str) -> None:
    """Raise :class:`UserError` where a field stands there more than once: which of them is meant?"""
    for key in keys:
        if len(item.findall(key)) > 1:
            raise UserError(where, f"has {len(item.findall(key))} fields {key}", "leave one")


def _tree(path: Path) -> Element:
    """The elements of an XML file. A document type, which could declare entities, is refused in any encoding."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise UserError(
            f"{path}:{parser.CurrentLineNumber}", "declares a document type, which is refused", "remove <!DOCTYPE ...>"
        )

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = (
        builder.start,
        builder.end,
        builder.data,
    )
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        refuse_pointer(path, content[:LONGEST])
        if len(content) > MAX_BYTES:
            raise UserError(str(path), f"is larger than {MAX_BYTES:,} bytes", "an annotation is a short text file")
        parser.Parse(content, True)
    except OSError as error:
        raise UserError(
            str(path), f"cannot be read: {error.strerror}", "write an annotation, without objects if there are none"
        ) from None
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: encodings that are not known
        line = getattr(error, "lineno", parser.CurrentLineNumber)
        remedy = "save it as UTF-8" if "encoding" in str(error) else "write or copy it again"
        raise UserError(f"{path}:{line}", f"is not XML: {' '.join(str(error).split())[:100]}", remedy) from None
    return builder.close()


def _object(item: Element, where: str) -> VocObject:
    _refuse_twice(item, ("name", "difficult"), where)
    name = (item.findtext("name") or "").strip()
    if not name:
        raise UserError(where, "has no name", "name its class")
    where += f" ({name[:40]})"
    boxes = item.findall("bndbox")
    if len(boxes) != 1:
        kinds = [kind for kind in ("robndbox", "polygon") if item.find(kind) is not None]
        what = f"has {len(boxes)} bndbox" if boxes else f"has no bndbox{f', but a {kinds[0]}' if kinds else ''}"
        raise UserError(where, what, "write one with xmin, ymin, xmax, ymax")
    box, more = boxes[0], dict(_attributes(item))
    _refuse_twice(box, _CORNERS, where)
    difficult = (item.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise UserError(where, f"difficult: expected 0 or 1, got {difficult[:40]!r}", "correct it")
    corners = tuple(_number(box, key, where) for key in _CORNERS)
    ignored, parts = any(marks(more, "difficult")), len(item.findall("part"))
    others = [field.tag for field in item if len(field)] + [key for key, value in more.items() if says(value)]
    unused = tuple(dict.fromkeys(key for key in others if key.lower() not in _READ | IGNORE_MARKS))
    return VocObject(name, corners, difficult == "1", turn(more), ignored, parts, unused)


def _attributes(item: Element) -> Iterator[tuple[str, Any]]:
    """Further fields of an object, beside it and in its list of attributes, numbers as such."""
    pairs: list[tuple[str | None, str | None]] = [(field.tag, field.text) for field in item if not len(field)]
    pairs += [(field.findtext("name"), field.findtext("value")) for field in item.iterfind("attributes/attribute")]
    for name, text in pairs:
        word = (text or "").strip()
        try:
            yield (name or "").strip(), float(word)
        except ValueError:
            yield (name or "").strip(), word


def _number(box: Element, key: str, where: str) -> float:
    said = box.findtext(key)
    if said is None:
        raise UserError(where, f"its bndbox has no {key}", "write xmin, ymin, xmax, ymax")
    text = said.strip()
    try:
        value = plain_number(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(where, f"{key}: expected a finite number, got {text[:40]!r}", "correct it")
    return value


def _side(root: Element, key: str, path: Path) -> int:
    """A side of the image in pixels; -1 where it is absent, or 0 as some labelling tools write."""
    text = (root.findtext(f"size/{key}") or "0").strip()
    if not text.isascii() or not text.isdigit() or int(text[:20]) >= 2**31:
        raise UserError(str(path), f"{key}: expected a whole number of pixels, got {text[:40]!r}", "correct it")
    return int(text) or -1
