"""Data set ``lines``, lines of text as pictures: ``root/CLASS.txt``, one sentence on each line, drawn when it is read."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from tasks.data.files.listing import is_hidden, shown
from tasks.data.files.names import normalised
from tasks.data.files.reading import PackedNames
from tasks.data.fingerprint import Known
from tasks.data.lettering.line import Line, can_shape, needs_shaping
from tasks.data.lettering.style import Style
from tasks.data.lettering.textfile import TextFile, TextLine, read_lines
from tasks.data.lettering.typefaces import has_letters
from tasks.data.sample import Sample

MOST_LOST = 0.05
"""Share of a class's lines that may be left out because no font has their letters."""
ENDING = ".txt"


class LineDataset:
    """The lines of the files of ``folder``, sorted by file and number. ``id`` is ``CLASS.txt:NUMBER``; blank lines are none.

    ``classes`` None: the sorted names of the files, without their ending; otherwise those of the training split, and a file of
    another name raises :class:`UserError`. A sample's picture is a function of ``seed``, its index and the ``style``; its ``source`` is
    the :class:`Line`, of which a transform draws others. Lines with letters that no font has are left out and told; they raise where
    they are more than ``MOST_LOST`` of a class, as do fewer than ``least`` classes. ``notes``: what was left out or mended, lines that
    are there more than once, what is no sentence of theirs, fonts that tell a class.
    """

    def __init__(
        self,
        folder: str | Path,
        style: Style,
        classes: tuple[str, ...] | None = None,
        *,
        seed: int = 0,
        least: int = 1,
    ) -> None:
        self.folder, self.style, self.seed = Path(folder), style, seed
        names, others = _text_files(self.folder)
        found = tuple(map(_class_of, names))
        twice = [name for name, same in zip(names, found, strict=True) if found.count(same) > 1]
        if twice:
            raise UserError(str(folder), f"{' and '.join(twice)} are of one class", "make them one file")
        self.classes = found if classes is None else classes
        if len(self.classes) < least:
            what = f"holds {names[0]} alone, and one class is nothing to tell apart"
            raise UserError(str(folder), what, f"add the others, each in a file CLASS{ENDING} of its own")
        for file, name in zip(names, found, strict=True):
            if name not in self.classes:
                what = f"class {name!r} is not in the training data"
                raise UserError(str(self.folder / file), what, "add it there, or remove the file")
        notes = [f"passed over, for they are no {ENDING}: {shown(others)}"] if others else []
        files = {name: read_lines(self.folder / name) for name in names}
        notes += [*_told_of_mending(files), *_told_of_columns(files)]
        self._check_shaping(files)
        kept = {name: self._with_letters(name, file, notes) for name, file in files.items()}
        rows = [(f"{name}:{line.number}", line.text) for name in names for line in kept[name]]
        self.ids, self.texts = PackedNames(row[0] for row in rows), PackedNames(row[1] for row in rows)
        counts = [len(kept[name]) for name in names]
        positions = np.array([self.classes.index(name) for name in found], np.int64)
        self.labels: NDArray[np.int64] = np.repeat(positions, counts)
        notes += [*_told_of_copies(rows, self.labels), *_told_of_fonts(style.fonts, kept)]
        self.notes = tuple(notes)

    def __len__(self) -> int:
        return len(self.ids)

    def line(self, index: int) -> Line:
        """The text of a sample, and how it may look."""
        return Line(self.texts[index], self.style)

    def generator(self, index: int) -> np.random.Generator:
        """That which the picture of a sample is drawn from."""
        return np.random.default_rng((self.seed, range(len(self))[index]))

    def __getitem__(self, index: int) -> Sample:
        line = self.line(index)
        image = line.drawn(self.generator(index)).image
        return Sample(image, self.ids[index], label=int(self.labels[index]), source=line)

    def occurrences(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample and class of every label, int64 [P] each."""
        return np.arange(len(self)), self.labels

    def known(self, index: int) -> Known:
        """What is known of a sample without drawing it."""
        look = repr((self.seed, self.style)).encode()
        return Known(self.ids[index], self.labels[index].tobytes(), (), self.texts[index].encode() + b"\0" + look)

    def _check_shaping(self, files: dict[str, TextFile]) -> None:
        """Refuse lines that would be drawn wrong without a library that is not here."""
        if can_shape():
            return
        for name, file in files.items():
            for line in file.lines:
                if needs_shaping(line.text, self.style.direction):
                    what = "its letters need complex layout, for which Pillow finds no libraqm with FriBiDi here"
                    remedy = "install FriBiDi (on Debian and Ubuntu: libfribidi0), or remove the file"
                    raise UserError(f"{self.folder / name}, line {line.number}", what, remedy)

    def _with_letters(self, name: str, file: TextFile, notes: list[str]) -> list[TextLine]:
        """The lines that a font can write; told in ``notes`` what was left out."""
        fonts = self.style.fonts
        alphabet = "".join(sorted(set("".join(line.text for line in file.lines))))
        if all(has_letters(font, alphabet) for font in fonts):
            return file.lines
        lost = [line for line in file.lines if not any(has_letters(font, line.text) for font in fonts)]
        if not lost:
            return file.lines
        first = lost[0]
        letters = [letter for letter in first.text if not any(has_letters(font, letter) for font in fonts)]
        letters = letters or [letter for letter in first.text if not has_letters(fonts[0], letter)]  # no font has all
        what = f"no font has its letters, such as {letters[0]!r} (U+{ord(letters[0]):04X})"
        if len(lost) > MOST_LOST * len(file.lines):
            what = f"{what}; so it is with {len(lost):,} of {len(file.lines):,} lines"
            remedy = "name fonts that have them: data.options.fonts"
            raise UserError(f"{self.folder / name}, line {first.number}", what, remedy)
        notes.append(f"{len(lost):,} lines of {name} left out; the first, line {first.number}: {what}")
        gone = {line.number for line in lost}
        return [line for line in file.lines if line.number not in gone]


def _text_files(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the text files in a folder, and of its other files."""
    if not folder.is_dir():
        beside = folder.parent.is_dir() and any(name.lower().endswith(ENDING) for name in os.listdir(folder.parent))
        remedy = (
            f"set data.val: 0.1, if the files in {folder.parent} are the classes" if beside else "correct data.root"
        )
        raise UserError(str(folder), f"there is no such folder: expected {folder}/CLASS{ENDING}", remedy)
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file() and not is_hidden(entry.name))
    texts = [name for name in names if name.lower().endswith(ENDING)]
    if not texts:
        there = f"it holds {shown(names)}" if names else "it holds no files"
        remedy = f"write the sentences of each class into a file CLASS{ENDING}, one on each line"
        if any(child.is_dir() for child in folder.iterdir()):
            remedy += "; pictures of lines in class folders are the data set folder (data.name: folder)"
        raise UserError(str(folder), f"holds no file CLASS{ENDING}: {there}", remedy)
    return texts, [name for name in names if name not in texts]


def _class_of(name: str) -> str:
    """That of a file, whatever the case of its ending and however its accents are written."""
    return normalised(name[: -len(ENDING)])


def _told_of_mending(files: dict[str, TextFile]) -> Iterator[str]:
    """What was no text as it stood there, in a line for each kind."""
    kinds = (
        ("blank", "blank lines are no samples"),
        ("restored", "lines had characters of Windows-1252 as control characters; they are drawn as what was meant"),
        ("dropped", "lines had characters without a picture (control, format), which are left out"),
    )
    for kind, text in kinds:
        found = [(name, number) for name, file in files.items() for number in getattr(file, kind)]
        if found:
            yield f"{len(found):,} {text}: {_places(found)}"


def _told_of_columns(files: dict[str, TextFile]) -> Iterator[str]:
    """Files whose lines hold more than sentences: columns of a table, or the name of the class, which the picture then gives away."""
    for name, file in files.items():
        count = len(file.lines)
        if 2 * len(file.columns) > count:
            what = f"{len(file.columns):,} of {count:,} lines of {name} have tabs, as columns do, and all of a line is drawn"
            yield f"warning: {what} ({name}:{file.columns[0]}): leave the sentences alone"
        own = re.escape(_class_of(name))
        named = re.compile(rf"\W*(__label__)?{own}\W|.*\W{own}\W*$", re.IGNORECASE)
        found = [line.number for line in file.lines if named.match(line.text)]
        if count > 1 and 2 * len(found) > count:
            what = f"{len(found):,} of {count:,} lines of {name} begin or end with the name of their class, which is drawn with them"
            yield f"warning: {what} ({name}:{found[0]}): remove it, or the picture gives the answer away"


def _told_of_copies(rows: Sequence[tuple[str, str]], labels: NDArray[np.int64]) -> Iterator[str]:
    """Lines that are there more than once, first those in several classes, of which one label at least is wrong or means nothing."""
    places: dict[str, list[int]] = {}
    for place, (_, text) in enumerate(rows):
        places.setdefault(text, []).append(place)
    several = [same for same in places.values() if len(same) > 1]
    across = [same for same in several if len(set(labels[same].tolist())) > 1]
    if across:
        names = " and ".join(rows[place][0] for place in across[0][:3])
        yield f"warning: {len(across):,} sentences are in more than one class, such as {rows[across[0][0]][1][:40]!r} ({names})"
    if within := [same for same in several if len(set(labels[same].tolist())) == 1]:
        names = ", ".join(rows[place][0] for place in within[0][:3])
        yield f"{len(within):,} sentences are there more than once in their class, such as {names}"


def _told_of_fonts(fonts: Sequence[str], kept: dict[str, list[TextLine]]) -> Iterator[str]:
    """Fonts that write some classes and others not, so that their looks tell the class."""
    alphabets = {name: "".join(set("".join(line.text for line in lines))) for name, lines in kept.items()}
    mute: dict[str, list[str]] = {}
    for font in fonts:
        for name, alphabet in alphabets.items():
            if not has_letters(font, alphabet) and not any(has_letters(font, line.text) for line in kept[name]):
                mute.setdefault(name, []).append(Path(font).name)
    by_fonts: dict[tuple[str, ...], list[str]] = {}
    for name, silent in mute.items():
        by_fonts.setdefault(tuple(silent), []).append(_class_of(name))
    for fonts_of, names in by_fonts.items():
        which = (
            f"{len(fonts_of)} of {len(fonts)} fonts write no line of {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
        )
        yield f"warning: {which} ({shown(fonts_of)}): their looks tell classes apart, which text should; data.options.fonts names others"


def _places(found: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name}:{number}" for name, number in found[:3]) + (", ..." if len(found) > 3 else "")
