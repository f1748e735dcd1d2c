"""Which mask belongs to which image: folders, lists, and the names that the two share."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.images.reading import is_image_name
from tasks.data.files.absent import remedy_for_split, told_of_missing
from tasks.data.files.decoding import lines_of
from tasks.data.files.images import check_files, images_below
from tasks.data.files.names import normalised

LAYOUTS = (("{split}/images", "{split}/masks"), ("images/{split}", "masks/{split}"))
SPLIT = "{split}"


@dataclass(frozen=True)
class Pairs:
    """Images and their masks, paths below ``root`` (an empty one: there is no mask); ``ids``, the name that two share. ``mask_folder``:
    for messages; ``notes``: what to tell of images without masks."""

    root: Path
    ids: tuple[str, ...]
    images: tuple[str, ...]
    masks: tuple[str, ...]
    mask_folder: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pairing:
    """Where the images and masks of a data set lie below ``root``, and how they are paired.

    In ``images``, ``masks`` and ``listing``, ``{split}`` stands for what ``names`` says for a split:

    * ``images`` and ``masks``: folders, both looked through at any depth; default: the first there is of ``{split}/images``
      with ``{split}/masks`` and ``images/{split}`` with ``masks/{split}``;
    * ``listing``: a text file with one name on each line, ending or not; default: all images;
    * ``image_suffix`` and ``mask_suffix``: what names have before the ending beyond what the two share; files without are
      passed over.

    ``single``: there is one split, divided later; so ``{split}`` need not stand anywhere, and ``images`` with ``masks`` will do.
    ``links``: where links may lead, as :func:`tasks.data.files.listing.files_below` has it. ``missing``: what becomes of images without
    mask, one of :data:`tasks.data.files.absent.MISSING`.
    """

    root: Path
    names: Mapping[str, str]
    images: str | None = None
    masks: str | None = None
    listing: str | None = None
    image_suffix: str | None = None
    mask_suffix: str | None = None
    single: bool = False
    links: str = "inside"
    missing: str = "stop"

    def pairs(self, split: str) -> Pairs:
        """Those of a split. A partner that is missing, two files for one name, and whatever leads out of ``root`` raise
        :class:`UserError`."""
        root, name = self.root, self.names[split]
        images, masks, images_in, masks_in, before = self._sides(split)
        if self.listing:
            listing = _inside("data.options.list", self.listing.replace(SPLIT, name))
            ids = _listed(root, listing, images, masks, before, split, self.missing)
        else:
            ids = _complete(root, images, masks, images_in, masks_in, self.missing)
        alone = [images[id_] for id_ in ids if id_ not in masks]
        notes = told_of_missing(str(root / masks_in), "mask", alone, len(ids), self.missing)
        ids = tuple(id_ for id_ in ids if self.missing != "skip" or id_ in masks)
        taken = tuple(images[id_] for id_ in ids), tuple(masks.get(id_, "") for id_ in ids)
        pairs = Pairs(root, ids, *taken, masks_in, notes)
        self._check(pairs.images)
        self._check([mask for mask in pairs.masks if mask])
        return pairs

    def _check(self, files: Sequence[str]) -> None:
        check_files(self.root, files, lambda index: str(self.root / files[index]), "replace it", links=self.links)

    def sides(self, split: str) -> tuple[dict[str, str], dict[str, str], str]:
        """All images and all masks of a split by their names, not paired, and the folder of the masks. A list is not looked at."""
        images, masks, _, masks_in, _ = self._sides(split)
        self._check(tuple(images.values()))
        self._check(tuple(masks.values()))
        return images, masks, masks_in

    def _sides(self, split: str) -> tuple[dict[str, str], dict[str, str], str, str, str]:
        root, name = self.root, self.names[split]
        _inside(f"data.{split}", name)
        images_in, masks_in = _folders(root, (self.images, self.masks), name, split, single=self.single)
        if (
            not self.single
            and not any(SPLIT in (text or SPLIT) for text in (self.images, self.masks))
            and SPLIT not in (self.listing or "")
        ):
            raise UserError(
                "data.options", "images, masks and list are the same for all splits", f"write {SPLIT} into one of them"
            )
        before, behind = self.image_suffix or "", self.mask_suffix or ""
        images = _by_stem(root, images_in, self.links, before, behind if images_in == masks_in else "")
        return images, _by_stem(root, masks_in, self.links, behind), images_in, masks_in, before


def _inside(key: str, path: str) -> str:
    """A path (said by a key of the config) that may not lead out of the root by its words; links are looked at with the files."""
    if os.path.isabs(path) or re.match(r"[A-Za-z]:|[/\\]", path) or ".." in re.split(r"[/\\]", path):
        raise UserError(key, f"{path[:100]!r} is not a path inside of data.root", "write it relative to data.root")
    return path.strip("/")


def _folders(
    root: Path, said: tuple[str | None, str | None], name: str, split: str, *, single: bool
) -> tuple[str, str]:
    """Folders of images and of masks, which exist, below ``root``."""
    if (said[0] is None) != (said[1] is None):
        option = "masks" if said[1] is None else "images"
        raise UserError(f"data.options.{option}", "is not given, and its counterpart is", "give both, or none")
    layouts = LAYOUTS + ((("images", "masks"),) if single else ())
    layouts = layouts if said[0] is None or said[1] is None else ((said[0], said[1]),)
    filled = [[text.replace(SPLIT, name) for text in layout] for layout in layouts]
    pairs = [(_inside("data.options.images", ones), _inside("data.options.masks", others)) for ones, others in filled]
    for images_in, masks_in in pairs:
        if (root / images_in).is_dir() and (root / masks_in).is_dir():
            return images_in, masks_in
    for images_in, masks_in in pairs:
        if (root / images_in).is_dir():
            what = f"there is no such folder of masks for {images_in}"
            raise UserError(str(root / masks_in), what, f"add it, or correct data.options.masks or data.{split}")
    there = ", ".join(sorted(entry.name for entry in os.scandir(root) if entry.is_dir())[:8]) or "no folder"
    wanted = " or ".join(f"{images_in} with {masks_in}" for images_in, masks_in in pairs)
    raise UserError(
        str(root),
        f"expected {wanted}; it holds {there}",
        f"set data.options.images and masks; or {remedy_for_split(split)}",
    )


def _by_stem(root: Path, folder: str, links: str, suffix: str, other_suffix: str = "") -> dict[str, str]:
    """Paths below ``root`` of the images in ``folder`` that end in ``suffix`` and not in ``other_suffix``, by their name in the
    folder without suffix and ending."""
    found: dict[str, str] = {}
    for name in images_below(root / folder, root=root, links=links):
        stem = normalised(name.rpartition(".")[0])
        if not stem.endswith(suffix) or (other_suffix and stem.endswith(other_suffix)):
            continue
        path = f"{folder}/{name}"
        if found.setdefault(stem.removesuffix(suffix), path) != path:
            what = f"{found[stem.removesuffix(suffix)]} and {path} differ in their ending alone, or in how accents are written"
            raise UserError(str(root), what, "rename or remove one of the two")
    if not found:
        ending = f" that ends in {suffix}" if suffix else ""
        raise UserError(str(root / folder), f"holds no image{ending}", "fill it, or correct data.options")
    return found


def _complete(
    root: Path, images: Mapping[str, str], masks: Mapping[str, str], images_in: str, masks_in: str, missing: str
) -> tuple[str, ...]:
    """The names of all images, each of which has a mask unless it may be ``missing``, and each mask an image."""
    for ones, others, kind, folder in ((images, masks, "mask", masks_in), (masks, images, "image", images_in)):
        alone = sorted(set(ones) - set(others))
        if alone and not (kind == "mask" and missing != "stop"):
            more = f", and {len(alone) - 1:,} more have none" if len(alone) > 1 else ""
            what = f"has no {kind} of that name in {folder}{more}"
            or_missing = ", or data.options.missing: skip or empty" if kind == "mask" else ""
            remedy = f"add the {kind}, or set data.options.{kind}_suffix or list{or_missing}"
            raise UserError(str(root / ones[alone[0]]), what, remedy)
    return tuple(sorted(images))


def _listed(
    root: Path, name: str, images: Mapping[str, str], masks: Mapping[str, str], suffix: str, split: str, missing: str
) -> tuple[str, ...]:
    """The names on the lines of a list, each with its image and, unless it may be ``missing``, its mask."""
    path = root / name
    found: dict[str, int] = {}
    for number, line in lines_of(path, f"correct data.options.list or data.{split}"):
        stem = normalised(line.replace("\\", "/"))
        if stem not in images:
            stem = (stem.rpartition(".")[0] if is_image_name(stem) else stem).removesuffix(suffix)
        if stem not in images:
            raise UserError(f"{path}:{number}", f"there is no image {stem[:80]!r}", "add it, or remove the line")
        if found.setdefault(stem, number) != number:
            raise UserError(
                f"{path}:{number}", f"{stem[:80]!r} stands in line {found[stem]} already", "remove one of the two"
            )
    if not found:
        raise UserError(str(path), "lists no image", "write one name on each line")
    alone = [stem for stem in found if stem not in masks]
    if alone and missing == "stop":
        more = f", and {len(alone) - 1:,} more images have none" if len(alone) > 1 else ""
        remedy = "add it, or remove the line, or set data.options.missing: skip or empty"
        raise UserError(f"{path}:{found[alone[0]]}", f"there is no mask {alone[0][:80]!r}{more}", remedy)
    return tuple(found)
