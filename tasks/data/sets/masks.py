"""Data set ``masks``: folders of images and of masks, paired by name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from effbackbones.errors import UserError
from effbackbones.images.geometry import Mask, Size, resize_nearest
from effbackbones.images.reading import image_size
from tasks.data.boxes.annotations import refuse_other_classes
from tasks.data.files.reading import DEFAULT_READER, ImageReader, PackedNames
from tasks.data.fingerprint import Known
from tasks.data.masks.declared import Declared
from tasks.data.masks.file import MaskReader, span
from tasks.data.masks.format import Look, found_format, remedy_for_strangers
from tasks.data.masks.pairs import Pairing, Pairs
from tasks.data.masks.palettes import by_colour, common
from tasks.data.masks.perclass import KEEP, ClassFiles, class_files, combined
from tasks.data.sample import IGNORE, Sample

BINARY = ("background", "foreground")
"""Classes of binary masks where nobody names them."""
MOST = 255


class MaskDataset:
    """Samples with ``mask`` uint8 [H, W]: classes, 255 ignored. ``id``: the name that image and mask share.

    A mask must have the size of its image. If only turning the image as its EXIF tag says, or leaving it unturned, gives that
    size, this is done, whatever the reader's ``exif`` says; if neither does, reading raises :class:`UserError` with both sizes.
    Where the reader decodes an image at a reduced size, its mask is reduced with it. ``notes``: what a user should know of how
    the masks are read.
    """

    def __init__(
        self,
        pairs: Pairs,
        classes: tuple[str, ...],
        read_mask: MaskReader,
        read: ImageReader = DEFAULT_READER,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.root, self.notes = pairs.root, notes
        self.classes = self.mask_classes = classes
        self.ids, self.images, self.masks = PackedNames(pairs.ids), PackedNames(pairs.images), PackedNames(pairs.masks)
        self.read, self.read_mask = read, read_mask
        self._meaning = repr(replace(read_mask, max_pixels=0)).encode()

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        """The file of an image."""
        return f"{self.root}/{self.images[index]}"

    def __getitem__(self, index: int) -> Sample:
        path, mask = self.path(index), self._stored(index)
        image = self.read(path)
        if image.shape[:2] != mask.shape:
            exif = self._fitting(index, mask)
            image = image if exif == self.read.exif else replace(self.read, exif=exif)(path)
            mask = resize_nearest(mask, (image.shape[0], image.shape[1]))
        return Sample(image, self.ids[index], path, mask=mask)

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        return Known(self.ids[index], self._meaning, tuple(dict.fromkeys((self.path(index), self._mask_path(index)))))

    def mask(self, index: int) -> Mask:
        """The mask of one image, of which nothing but the header is read."""
        mask = self._stored(index)
        self._fitting(index, mask)
        return mask

    def _stored(self, index: int) -> Mask:
        if self.masks[index]:
            return self.read_mask(self._mask_path(index))
        return self.read_mask.blank(image_size(self.path(index), exif=self.read.exif), self.path(index))

    def mask_file(self, index: int) -> str:
        """The file of a mask; empty where the image has none."""
        return f"{self.root}/{self.masks[index]}" if self.masks[index] else ""

    def _mask_path(self, index: int) -> str:
        """The file of a mask; that of the image where it has none."""
        return self.mask_file(index) or self.path(index)

    def _fitting(self, index: int, mask: Mask) -> str:
        """How the image is to be read, ``apply`` or ``ignore``, so that it has the size of its mask."""
        path = f"{self.root}/{self.images[index]}"
        sizes: list[Size] = []
        for exif in (self.read.exif, "ignore" if self.read.exif == "apply" else "apply"):
            sizes.append(image_size(path, exif=exif))
            if sizes[-1] == mask.shape:
                return exif
        what = f"has {mask.shape[1]} x {mask.shape[0]} pixels (width x height), its image {sizes[0][1]} x {sizes[0][0]}"
        raise UserError(self._mask_path(index), what, "both must have one size: replace one of the two")


class ClassMaskDataset(MaskDataset):
    """The same, with a mask made of one file for each class (:mod:`tasks.data.masks.perclass`)."""

    def __init__(
        self,
        found: ClassFiles,
        classes: tuple[str, ...],
        read_mask: MaskReader,
        read: ImageReader = DEFAULT_READER,
        *,
        overlap: str = "stop",
    ) -> None:
        super().__init__(found.pairs, classes, read_mask, read, found.notes)
        self.labels, self.empty, self.overlap = found.labels, found.empty, overlap
        self.files = PackedNames(found.files)

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        paths = self._paths(range(len(self))[index])
        meaning = self._meaning + repr((sorted(paths), self.empty, self.overlap)).encode()
        return Known(self.ids[index], meaning, (self.path(index), *(paths[label] for label in sorted(paths))))

    def _stored(self, index: int) -> Mask:
        paths = self._paths(range(len(self))[index])
        size = None if paths else image_size(self.path(index), exif=self.read.exif)
        return combined(paths, self.read_mask, size, empty=self.empty, overlap=self.overlap)

    def _paths(self, index: int) -> dict[int, str]:
        """The mask files of an image, by class."""
        count = len(self.labels)
        names = (self.files[index * count + place] for place in range(count))
        return {label: f"{self.root}/{name}" for label, name in zip(self.labels, names, strict=True) if name}

    def _mask_path(self, index: int) -> str:
        paths = self._paths(range(len(self))[index])
        return min(paths.values()) if paths else self.path(index)


def open_class_masks(
    pairing: Pairing,
    split: str,
    declared: Declared,
    pattern: str,
    *,
    overlap: str = "stop",
    without_masks: bool = False,
    training: tuple[str, ...] | None = None,
    read: ImageReader = DEFAULT_READER,
) -> ClassMaskDataset:
    """A split with one mask file for each class, called by ``pattern``: black and white, or 0 and 1 where ``declared`` says format
    ``index``. ``overlap`` as in :func:`tasks.data.masks.perclass.combined`, other arguments as of :func:`open_masks` and
    :func:`tasks.data.masks.perclass.class_files`."""
    names = declared.names or training
    if names is None or declared.merged is not None or pairing.listing:
        wrong = "rename" if declared.merged is not None else "list" if pairing.listing else "classes"
        what = (
            "is needed where each class has masks of its own"
            if names is None
            else "does not go with data.options.mask_names"
        )
        raise UserError(f"data.options.{wrong}", what, "name all classes" if names is None else "remove it")
    if training is not None:
        refuse_other_classes("data.options.classes", names, training)
    form = "index" if declared.format == "index" else "binary"
    found = class_files(pairing, split, pattern, names, without_masks=without_masks, sets=overlap == KEEP)
    return ClassMaskDataset(found, names, declared.reader(form, 2, read), read, overlap=overlap)


def open_masks(
    pairing: Pairing,
    split: str,
    declared: Declared,
    *,
    training: tuple[str, ...] | None = None,
    on_error: str = "stop",
    read: ImageReader = DEFAULT_READER,
) -> MaskDataset:
    """The pairs of a split, with masks as they are ``declared``; a format ``auto`` looks at some of them, takes what alone fits,
    which ``notes`` tell, and refuses all else. ``training``: the classes of the training split, which this one must have.
    ``on_error`` ``skip``: look past masks that cannot be read."""
    root, pairs = pairing.root, pairing.pairs(split)
    names = declared.names or training
    found = _Found(declared, declared.format)
    if declared.format in ("auto", "palette"):
        found = _found(pairing, pairs, split, declared, names, max_pixels=read.max_pixels, on_error=on_error)
    form = found.format
    names = names or (BINARY if form == "binary" else None)
    if names is None:
        what = f"{form} masks do not name their classes, and there is no classes.txt in {root}"
        raise UserError("data.options.classes", what, "name them, in the order of their values")
    if len(names) > MOST or (form == "binary" and len(names) != 2):
        expected = "2 classes, background first, in binary masks" if form == "binary" else f"at most {MOST} classes"
        raise UserError(
            "data.options.classes", f"expected {expected}, got {len(names)}", "correct data.options.classes or format"
        )
    names = declared.new_names or names
    if training is not None:
        refuse_other_classes("data.options.classes", names, training)
    notes = [*pairs.notes, *found.notes]
    if form == "binary" and any(name.lower().endswith((".jpg", ".jpeg")) for name in pairs.masks):
        notes.append("JPEG masks do not keep values exactly: what is over half is the second class")
    reader = found.declared.reader(form, len(names), read, palette=found.palette, remedy=found.remedy)
    if "" in pairs.masks:
        reader.blank((1, 1), str(root / pairs.images[pairs.masks.index("")]))
    if declared.others != "stop":
        notes.append(_told_of_others(reader, found.look))
    return MaskDataset(pairs, names, reader, read, tuple(notes))


class _Found(NamedTuple):
    """What a look at the masks shows: how they are to be read (``declared``, ``format``, ``palette`` and ``remedy`` as the reader has
    them), and what to tell of it."""

    declared: Declared
    format: str
    palette: Mapping[int, int] | None = None
    remedy: str = ""
    notes: tuple[str, ...] = ()
    look: Look | None = None


_HOW = {
    "binary": "0 is the first class, 255 the second",
    "index": "the number is the class",
    "palette": "the index is the class",
}


def _found(
    pairing: Pairing,
    pairs: Pairs,
    split: str,
    declared: Declared,
    names: tuple[str, ...] | None,
    *,
    max_pixels: int,
    on_error: str,
) -> _Found:
    """What a look at the masks shows. A split that looks otherwise than that of training raises :class:`UserError`: one and the
    same value would mean two things."""
    root = pairing.root

    def looked(found: Pairs) -> tuple[str, Look]:
        look = Look.at([f"{root}/{name}" for name in found.masks if name], max_pixels=max_pixels, on_error=on_error)
        if declared.format != "auto":
            return declared.format, look
        numbers = declared.values is not None  # then 0 and 255 are values like others
        count = None if names is None or declared.merged is not None else len(names)
        count = len(declared.merged) if declared.merged is not None else count
        return found_format(look, count, str(root / found.mask_folder), numbers=numbers), look

    form, look = looked(pairs)
    palettes = dict(look.palettes)
    if split != "train":
        try:
            training = pairing.pairs("train")
        except UserError:  # only this split is here
            training = pairs
        first, other = (form, look) if training.masks == pairs.masks else looked(training)
        if first != form:
            what = f"its masks look {form}, those of training {first}"
            raise UserError(str(root / pairs.mask_folder), what, "set data.options.format")
        palettes |= other.palettes
    values, kind = span(look.values), next(iter(look.kinds), "unreadable")
    seen = f"{look.looked_at} of {len(pairs.masks):,} looked at hold the values {values}"
    remedy = remedy_for_strangers(look, form, declared.names or names, declared.ignored)
    palette = common(palettes)
    if palette is None and names is not None and declared.format == "auto":
        indices, whole = by_colour(palettes, str(root / pairs.mask_folder))
        numbered = declared.by_colour(indices, declared.names or names)
        note = f"palettes differ from file to file: the colours decide, numbered as in {Path(whole).name}; {seen}"
        return _Found(numbered, "rgb", None, "", (note,), look)
    if palette is None:
        by_colour(palettes, str(root / pairs.mask_folder))  # refuses what colours cannot decide either
        raise UserError("data.options.format", "is palette, and palettes differ from file to file", "set it to auto")
    if declared.format != "auto":
        return _Found(declared, form, palette, remedy, (), look)
    note = f"masks are of format {form} ({kind} files, {_HOW[form]}): {seen}"
    if remedy and form == "index" and IGNORE in look.values and len(look.values) == len(declared.names or names or ()):
        note += f"; {IGNORE} is no class and ignored: else {remedy}"
    elif (
        split == "train" and form != "binary" and declared.values is None and names and min(look.values, default=0) > 0
    ):
        counted = f"if classes are counted from 1, set data.options.values: [1, ..., {len(names)}]"
        note += f"; none has 0, which would be {names[0]}: {counted}"
    return _Found(declared, form, palette, remedy, (note,), look)


def _told_of_others(reader: MaskReader, look: Look | None) -> str:
    """What becomes of values that are no class, and how many of the pixels looked at that are."""
    done = "ignored" if reader.others == "ignore" else "read as the nearest value that is known"
    text = f"values that are no class are {done} (data.options.other)"
    if look is None or reader.format == "rgb":
        return text
    known = {value for value, _ in reader.codes} | set(reader.ignored)
    odd = [value for value in look.values if value not in known]
    share = look.counts[odd].sum() / max(1, look.counts.sum())
    return (
        f"{text}: {share:.1%} of the pixels looked at, with the values {span(odd)}"
        if odd
        else f"{text}: none in those looked at"
    )
