"""Names of the classes of a YOLO or darknet data set: of the config, of a ``data.yaml``, or of a text file among the labels."""

import os
from pathlib import Path

from effbackbones.errors import UserError
from tasks.data.files.decoding import decoded
from tasks.data.files.listing import files_below
from tasks.data.files.names import refuse_other_numbers
from tasks.data.sets.yolofiles import Described, YoloFiles

_FILES = frozenset(["classes.txt", "obj.names", "_darknet.labels"])
_WHERE = "data.options.names"
_REMEDY = "list the names of the classes"


def class_names(listed: object, described: Described, found: YoloFiles) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the classes, in the order of their numbers, and what is to be told of where they come from.

    They are ``listed``, or stand in ``names`` of a ``data.yaml`` (a list, or number: name), or on the lines of a file ``classes.txt``,
    ``*.names`` or ``_darknet.labels`` beside the label files or in a folder above them, up to that of the data, or else elsewhere in
    that. Several such files with different names raise :class:`UserError`, as does no file.
    """
    if listed is not None:
        return _checked(listed, _WHERE), ()
    said = described.values.get("names")
    if said is not None:
        names = _checked(said, f"{described.file}: names")
        _refuse_other_count(described, names, "names")
        return names, ()
    files = _beside(described.root, found) or [
        described.root / name for name in files_below(described.root, _is_such, links="anywhere")
    ]
    if not files:
        others = "no classes.txt, *.names or _darknet.labels"
        if described.file is not None:
            raise UserError(
                f"{described.file}: names", f"expected a list of names, got None; there is {others}", _REMEDY
            )
        raise UserError(_WHERE, f"is not set, and there is no {described.root / 'data.yaml'}, and {others}", _REMEDY)
    contents = {file: _lines(file) for file in files}
    first, *rest = contents
    for other in rest:
        if contents[other] != contents[first]:
            here, there = (", ".join(contents[file])[:80] for file in (first, other))
            raise UserError(_WHERE, f"is not set, and {first} says {here}, {other} says {there}", _REMEDY)
    names = _checked(contents[first], str(first))
    _refuse_other_count(described, names, str(first))
    return names, (f"names of the {len(names)} classes are those in {first}: {', '.join(names)[:80]}",)


def _is_such(name: str) -> bool:
    return name in _FILES or name.endswith(".names")


def _beside(root: Path, found: YoloFiles) -> list[Path]:
    """Files of names in the folders of the label files and above, up to the root."""
    folders = {root: None}
    for folder in {os.path.dirname(text) for text in found.texts if text} | {found.source}:
        place = Path(folder)
        while place != root and root in place.parents:
            folders[place] = None
            place = place.parent
    listed = (entry for folder in sorted(folders) if folder.is_dir() for entry in os.scandir(folder))
    return sorted(Path(entry.path) for entry in listed if _is_such(entry.name) and entry.is_file())


def _lines(file: Path) -> list[str]:
    """The lines of a file but for blank ones at its end."""
    text = decoded(file, "write the name of a class on each line, or set data.options.names").rstrip()
    names = [line.strip() for line in text.split("\n")] if text else []
    refuse_other_numbers(str(file), names)
    return names


def _refuse_other_count(described: Described, names: tuple[str, ...], where: str) -> None:
    """Refuse names that are not as many as the ``data.yaml`` says."""
    count = described.values.get("nc", len(names))
    if isinstance(count, bool) or not isinstance(count, int):
        what = f"expected a whole number, got {count!r}"[:80]
        raise UserError(f"{described.file}: nc", what, "write it without quotes, or leave it out")
    if count != len(names):
        what = f"is {count}, and {where} has {len(names)} classes"
        raise UserError(f"{described.file}: nc", what, "correct one of the two")


def _checked(listed: object, where: str) -> tuple[str, ...]:
    """A list, or number: name, as names."""
    if isinstance(listed, dict):
        if sorted(listed) != sorted(map(str, range(len(listed)))):
            what = f"expected the numbers 0 to {len(listed) - 1}, got {', '.join(listed)[:80]}"
            raise UserError(where, what, "give each class its number")
        listed = [listed[str(number)] for number in range(len(listed))]
    if (
        not isinstance(listed, list)
        or not listed
        or not all(isinstance(name, str | int) and not isinstance(name, bool) and name != "" for name in listed)
    ):
        raise UserError(where, f"expected a list of names, got {str(listed)[:60]}", _REMEDY)
    names = tuple(str(name) for name in listed)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(where, f"{twice!r} stands there twice", "give each its own name")
    return names
