"""Where the images and label files of a YOLO data set lie: folders by convention, or what a ``data.yaml`` says."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError
from tasks.data.files.absent import told_of_missing
from tasks.data.files.images import images_below
from tasks.data.files.listing import Lookup, files_below, leaves, refuse_link, shown, stem
from tasks.data.sets.yololists import images_listed
from tasks.strictyaml import read_tree

_NO_LABELS = frozenset(["classes.txt", "predefined_classes.txt", "readme.txt", "notes.txt"])
"""Text files that labelling tools put among the label files."""
_SPLITS = {"val": ("val", "valid", "validation")}


@dataclass(frozen=True)
class Described:
    """What a ``data.yaml`` says: the ``root`` of the data, what it has for each key, and the ``file`` itself (None: there is none)."""

    root: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @classmethod
    def of(cls, given: Path) -> "Described":
        """By a folder, which may hold a ``data.yaml``, or by such a file, whose ``path`` is relative to its folder."""
        file = given if given.is_file() else given / "data.yaml"
        if not file.is_file():
            return cls(given)
        values = read_tree(file, str(file)).values
        path = values.get("path")
        if given != file or path in (None, ""):
            return cls(file.parent, values, file)
        if not isinstance(path, str):
            raise UserError(f"{file}: path", f"expected a folder, got {str(path)[:60]!r}", "correct it")
        root = Path(os.path.normpath(file.parent / Path(path).expanduser()))
        if not root.is_dir():
            raise UserError(f"{file}: path", f"there is no folder {root}", "correct it, relative to that file")
        return cls(root, values, file)

    def entries(self, split: str) -> list[str] | None:
        """The folders and lists of a split; None where nothing is said."""
        for key in _SPLITS.get(split, (split,)):
            said = self.values.get(key)
            if said in (None, "", []):
                continue
            listed = said if isinstance(said, list) else [said]
            if not all(isinstance(one, str) and one for one in listed):
                what = f"expected folders or text files, got {str(said)[:60]!r}"
                raise UserError(f"{self.file}: {key}", what, "correct it")
            return listed
        return None


@dataclass(frozen=True)
class YoloFiles:
    """Of a split: ``files`` of images relative to ``root``, the label file of each (None: it has none), the label files without an image,
    ``source`` for messages, and what was ``told`` of lists."""

    root: Path
    files: list[str]
    ids: list[str]
    texts: list[str | None]
    orphans: list[str]
    source: str
    told: tuple[str, ...] = ()

    def settled(self, missing: str) -> "YoloFiles":
        """The same where images without label file are dealt with as ``missing`` says, one of
        :data:`tasks.data.files.absent.MISSING`."""
        alone = [file for file, text in zip(self.files, self.texts, strict=True) if text is None]
        if missing == "empty" or not alone:
            return self
        told = told_of_missing(self.source, "label file (*.txt)", alone, len(self.files), missing)
        left = [place for place, text in enumerate(self.texts) if text is not None]
        return replace(
            self,
            files=[self.files[place] for place in left],
            ids=[self.ids[place] for place in left],
            texts=[self.texts[place] for place in left],
            told=(*self.told, *told),
        )

    def notes(self) -> tuple[str, ...]:
        """What is to be told of images and label files without each other."""
        alone = [file for file, text in zip(self.files, self.texts, strict=True) if text is None]
        said = [(alone, "images have no label file, so no object")] if len(alone) < len(self.files) else []
        said.append((self.orphans, "label files have no image, and what they label is not used"))
        return (*self.told, *(f"{len(names):,} {what}: {shown(names)}" for names, what in said if names))

    def refusal(self) -> UserError:
        """What to say of a split none of whose images has a label file."""
        wanted = f"{stem(os.path.basename(self.files[0]))}.txt"
        what = f"none of {len(self.files):,} images has a label file there, such as {wanted} of {self.files[0]}"
        if not os.path.isdir(self.source):
            what = f"there is no such folder, in which {wanted} of {self.files[0]} would lie"
        remedy = "name label files as their images, .txt in place of the ending, or list the images in a text file"
        return UserError(self.source, what, remedy)


def find_files(described: Described, split: str, name: str | None, links: str, *, whole: bool = False) -> YoloFiles:
    """The files of a split that the config calls ``name`` (None: as in ``data.yaml``, else as the split itself); with ``whole``, all below
    ``images`` with label files below ``labels`` where nothing is called so."""
    root, entries = described.root, None if name else described.entries(split)
    if entries is None or not any(_resolved(root, entry) for entry in entries):  # a path of another machine, perhaps
        folders = _by_convention(root, name or split)
        if folders is None and whole and not (root / (name or split)).exists() and (root / "images").is_dir():
            folders = root / "images", root / "labels"
        if folders is not None:
            return _in_folders(*folders, root, links)
        entries = entries or [name or split]
        if _resolved(root, entries[0]) is None:
            there = ", ".join(sorted(entry.name for entry in os.scandir(root) if entry.is_dir())[:8]) or "no folder"
            called = name or split
            neither = f"neither {root}/images/{called} nor {root}/{called}/images, nor {root / entries[0]}"
            what = f"there is {neither}; it holds {there}"
            raise UserError(f"data.{split}", what, "correct data.root, the split, or data.yaml")
    return _listed(
        root, entries, f"{described.file}: {split}" if described.file and not name else f"data.{split}", links
    )


def _by_convention(root: Path, name: str) -> tuple[Path, Path] | None:
    """Where images and label files of a split lie by one of the two conventions."""
    for images, labels in (
        (root / "images" / name, root / "labels" / name),
        (root / name / "images", root / name / "labels"),
    ):
        if images.is_dir():
            if not labels.is_dir():
                raise UserError(str(labels), "there is no such folder of label files", "add it, or correct data.root")
            return images, labels
    return None


def _in_folders(images: Path, labels: Path, root: Path, links: str) -> YoloFiles:
    files = images_below(images, root=root, links=links)
    if not files:
        raise UserError(str(images), "holds no image", "fill it, or set the split")
    return _paired(
        images,
        files,
        [str(labels)],
        [f"{labels}/{stem(file)}" for file in files],
        root,
        links,
        [stem(f) for f in files],
    )


def _listed(root: Path, entries: Sequence[str], where: str, links: str) -> YoloFiles:
    """Images of several folders and lists; the label file of ``A/images/B.jpg`` is ``A/labels/B.txt``, beside the image where no folder is
    called ``images``."""
    files: list[str] = []
    told: list[str] = []
    for entry in entries:
        path = _resolved(root, entry)
        if path is None:
            raise UserError(where, f"there is no {root / entry}", "correct it, relative to the folder of the data")
        if links == "inside" and leaves(str(path), os.path.realpath(root)):
            raise refuse_link(str(path), root, where)
        below = os.path.relpath(path, root).replace(os.sep, "/")
        if path.is_dir():
            prefix = "" if below == "." else f"{below}/"
            files += [prefix + name for name in images_below(path, root=root, links=links)]
        else:
            listed, said = images_listed(path, root, links)
            files, told = [*files, *listed], [*told, *said]
    if not files:
        raise UserError(where, f"holds no image: {', '.join(entries)[:80]}", "fill it, or correct it")
    files = list(dict.fromkeys(files))
    labels = [_label_of(f"{root}/{file}") for file in files]
    folders = sorted({f"{root}/{part}" for part in _label_folders(files)})
    found = _paired(root, files, folders, labels, root, links, [stem(file) for file in files])
    return replace(found, told=tuple(told))


def _resolved(root: Path, entry: str) -> Path | None:
    """What an entry names: relative to the root; exporters write ``../train/images`` of what lies in it, and ``train.txt`` for train."""
    tries = [root / entry] + ([root / entry.removeprefix("../")] if entry.startswith("../") else [])
    tries.append(root / f"{entry}.txt")
    return next((Path(os.path.normpath(path)) for path in tries if path.exists()), None)


def _label_of(image: str) -> str:
    """The label file of an image, without its ending."""
    head, found, tail = stem(image).rpartition("/images/")
    return f"{head}/labels/{tail}" if found else stem(image)


def _label_folders(files: Sequence[str]) -> set[str]:
    """The folders named ``labels`` that belong to those named ``images``, and with images outside of such their own folders."""
    found = set()
    for file in files:
        head, images, tail = f"/{file}".rpartition("/images/")
        below = tail.rpartition("/")[0] if images else ""
        found.add(f"{head}/labels/{below}".strip("/") if images else file.rpartition("/")[0])
    return found


def _paired(
    base: Path, files: list[str], folders: Sequence[str], labels: Sequence[str], root: Path, links: str, ids: list[str]
) -> YoloFiles:
    """Images ``files`` below ``base`` with their label files (``labels``: paths without ending), which lie in ``folders``."""
    if len(set(labels)) < len(labels):
        twice = Counter(labels).most_common(1)[0][0]
        raise UserError(f"{twice}.txt", "two images differ in their ending alone", "rename or remove one of the two")
    found: dict[str, None] = {}
    for folder in folders:
        if os.path.isdir(folder):
            names = files_below(Path(folder), lambda name: name.lower().endswith(".txt"), root=root, links=links)
            found |= dict.fromkeys(f"{folder}/{name}" for name in names)
    lookup = Lookup(found, stem)
    texts = [lookup.find(label) for label in labels]
    used = set(texts)
    orphans = [text for text in found if text not in used and Path(text).name.lower() not in _NO_LABELS]
    source = folders[0] if len(folders) == 1 else str(root)
    return YoloFiles(base, files, ids, texts, [os.path.relpath(text, root) for text in orphans], source)
