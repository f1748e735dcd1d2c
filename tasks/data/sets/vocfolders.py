"""Where the images and annotation files of a VOC data set lie: by lists, in folders of the splits, or all in one."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.images.reading import is_image_name
from tasks.data.files.absent import told_of_missing
from tasks.data.files.decoding import lines_of
from tasks.data.files.images import images_below
from tasks.data.files.listing import Lookup, files_below, shown, stem

LISTS, IMAGES, ANNOTATIONS = "ImageSets/Main", "JPEGImages", "Annotations"
_MARK = re.compile(r"\s+(-1|0|1)$")
"""What VOC's lists for a class have behind an id."""


@dataclass(frozen=True)
class VocFiles:
    """Of a split: ``ids``; ``files``, images relative to ``folder``; ``annotations``, files; ``record``, where image i is named;
    ``source`` for messages; ``others``: annotation files of the same data that are not of this split; ``notes``: what to tell;
    ``absent``: those of ``annotations`` that are not there."""

    folder: Path
    ids: list[str]
    files: list[str]
    annotations: list[Path]
    record: list[str]
    source: str
    others: list[Path]
    notes: tuple[str, ...] = ()
    absent: frozenset[Path] = frozenset()

    def settled(self, missing: str) -> "VocFiles":
        """The same where images without annotation file are dealt with as ``missing`` says, one of
        :data:`tasks.data.files.absent.MISSING`."""
        lacking = [place for place, path in enumerate(self.annotations) if path in self.absent]
        names = [self.files[place] for place in lacking]
        told = told_of_missing(self.source, "annotation file (*.xml)", names, len(self.files), missing)
        left = [place for place in range(len(self.files)) if missing != "skip" or place not in set(lacking)]
        return replace(
            self,
            ids=[self.ids[place] for place in left],
            files=[self.files[place] for place in left],
            annotations=[self.annotations[place] for place in left],
            record=[self.record[place] for place in left],
            notes=(*self.notes, *told),
        )


def find_voc(root: Path, name: str, split: str, *, links: str, whole: bool) -> VocFiles:
    """The files of a split: those of the list ``ImageSets/Main/NAME.txt``; or, where there are no lists, of the folder ``NAME``; or,
    with ``whole``, all below ``root``."""
    if (root / LISTS).is_dir():
        return _by_list(root, root / LISTS / f"{name.removesuffix('.txt')}.txt", split, links)
    for folder in (root / name, *((root,) if whole else ())):
        if folder.is_dir():
            return _in_folder(folder, root, links)
    what = f"there is neither {root / LISTS} with lists nor a folder {root / name}"
    raise UserError(f"data.{split}", what, "add one, or let shares be drawn from all images: data.val: 0.2")


def _by_list(root: Path, listing: Path, split: str, links: str) -> VocFiles:
    images_in, xml_in = root / IMAGES, root / ANNOTATIONS
    if not images_in.is_dir():
        raise UserError(str(images_in), "there is no such folder of images", "correct data.root")
    images = _by_stem(images_below(images_in, root=root, links=links), images_in)
    texts = _annotations(xml_in, root, links) if xml_in.is_dir() else []
    found_images, found_texts = _Finder(images), _Finder({stem(text): text for text in texts})
    ids: dict[str, int] = {}
    files, annotations, absent = list[str](), list[Path](), list[Path]()
    for number, line in _lines(listing, split):
        id_ = next((one for one in _meant(line) if found_images.find(one)), None)
        if id_ is None:
            what = f"there is no image {_MARK.sub('', line)[:80]!r} in {images_in}"
            raise UserError(f"{listing}:{number}", what, "add it, or remove the line")
        if ids.setdefault(id_, number) != number:
            what = f"{id_!r} stands in line {ids[id_]} already"
            raise UserError(f"{listing}:{number}", what, "remove one of the two")
        files.append(found_images.find(id_) or "")
        text = found_texts.find(id_) or found_texts.find(stem(files[-1]))
        annotations.append(xml_in / (text or f"{id_}.xml"))
        absent += [] if text else annotations[-1:]
    if not ids:
        raise UserError(str(listing), "lists no image", "list one id on each line")
    alone = [text for text in texts if found_images.find(stem(text)) is None]
    notes = (f"{len(alone):,} annotation files have no image in {images_in}: {shown(alone)}",) if alone else ()
    record = [f"{listing}:{number}" for number in ids.values()]
    others = [xml_in / text for text in texts]
    return VocFiles(images_in, list(ids), files, annotations, record, str(listing), others, notes, frozenset(absent))


def _in_folder(folder: Path, root: Path, links: str) -> VocFiles:
    """All annotation files below a folder with their images: beside them, or under the same name in a folder of images."""
    texts = _annotations(folder, root, links)
    files = images_below(folder, root=root, links=links)
    if not texts:
        raise UserError(str(folder), "holds no annotation file (*.xml)", "add them, or correct data.root")
    short = {_without(stem(file), IMAGES, "images"): file for file in files}
    if len(short) < len(files):
        short = _by_stem(files, folder)
    finder = _Finder(short)
    pairs = [(text, finder.find(_without(stem(text), ANNOTATIONS, "annotations"))) for text in texts]
    found = {text: file for text, file in pairs if file}
    alone, other = [text for text, file in pairs if file is None], sorted(set(files) - set(found.values()))
    if not found:
        raise UserError(str(folder), f"no annotation file has an image of its name: {shown(alone)}", "add the images")
    places = {os.path.dirname(file) for file in found.values()}
    bare = [file for file in other if os.path.dirname(file) in places]
    elsewhere = [file for file in other if os.path.dirname(file) not in places]
    said = [
        (alone, "annotation files have no image"),
        (elsewhere, "images in folders without annotations are not used"),
    ]
    notes = tuple(f"{len(names):,} {what}: {shown(names)}" for names, what in said if names)
    lacking = {f"{stem(file)}.xml": file for file in bare}
    both = sorted({**found, **lacking}.items())
    paths = [folder / text for text, _ in both]
    ids, names = [stem(text) for text, _ in both], [file for _, file in both]
    absent = frozenset(folder / text for text in lacking)
    return VocFiles(folder, ids, names, paths, list(map(str, paths)), str(folder), [], notes, absent)


def _annotations(folder: Path, root: Path, links: str) -> list[str]:
    return files_below(folder, lambda name: name.lower().endswith(".xml"), root=root, links=links)


def _without(path: str, *folders: str) -> str:
    """A path without the parts of those names."""
    return "/".join(part for part in path.split("/") if part not in folders)


def _by_stem(names: list[str], folder: Path) -> dict[str, str]:
    """Paths by what they are without their ending; two that differ in it alone raise :class:`UserError`."""
    found: dict[str, str] = {}
    for name in names:
        if found.setdefault(stem(name), name) != name:
            what = f"{found[stem(name)]} and {name} differ in their ending alone"
            raise UserError(str(folder), what, "rename or remove one of the two")
    return found


class _Finder:
    """Finds files by their path without ending, or by its last part where that is of one file alone."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._paths = Lookup(names)
        tails: dict[str, str | None] = {}
        for path in names:
            tail = path.rpartition("/")[2]
            tails[tail] = None if tail in tails else path
        self._tails, self._of_tail = Lookup(tails), tails

    def find(self, path: str) -> str | None:
        """The file that is meant; None if there is none, or more than one."""
        found = self._paths.find(path)
        if found is None and "/" not in path:
            tail = self._tails.find(path)
            found = None if tail is None else self._of_tail[tail]
        return None if found is None else self._names[found]


def _meant(line: str) -> list[str]:
    """What a line may name: all of it, or what is behind the folder of images, without the ending of an image, without VOC's mark."""
    line = line.replace("\\", "/")
    line = line if ".." in line.split("/") else line.rpartition(f"{IMAGES}/")[2]
    tries = [line, _MARK.sub("", line)]
    return list(dict.fromkeys([*tries, *(stem(one) for one in tries if is_image_name(one))]))


def _lines(listing: Path, split: str) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    there = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt") if "_" not in path.stem)[:8])
    lists = f"there are lists {there}; " if there else ""
    return lines_of(listing, f"{lists}set data.{split} to a list in ImageSets/Main")
