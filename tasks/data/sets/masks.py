"""Data set ``masks``: folders of images and of masks, paired by name."""

from dataclasses import replace

from effbackbones.errors import UserError
from effbackbones.images.geometry import Mask, Size, resize_nearest
from effbackbones.images.reading import image_size
from tasks.data.boxes.annotations import refuse_other_classes
from tasks.data.files.reading import DEFAULT_READER, ImageReader, PackedNames
from tasks.data.fingerprint import Known
from tasks.data.masks.declared import Declared
from tasks.data.masks.file import MaskReader, span
from tasks.data.masks.format import Look, found_format
from tasks.data.masks.pairs import Pairing, Pairs
from tasks.data.sample import Sample

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

    def __getitem__(self, index: int) -> Sample:
        path, mask = f"{self.root}/{self.images[index]}", self.read_mask(f"{self.root}/{self.masks[index]}")
        image = self.read(path)
        if image.shape[:2] != mask.shape:
            exif = self._fitting(index, mask)
            image = image if exif == self.read.exif else replace(self.read, exif=exif)(path)
            mask = resize_nearest(mask, (image.shape[0], image.shape[1]))
        return Sample(image, self.ids[index], path, mask=mask)

    def known(self, index: int) -> Known:
        """What is known of a sample without decoding it."""
        image, mask = f"{self.root}/{self.images[index]}", f"{self.root}/{self.masks[index]}"
        return Known(self.ids[index], self._meaning, image, mask)

    def mask(self, index: int) -> Mask:
        """The mask of one image, of which nothing but the header is read."""
        mask = self.read_mask(f"{self.root}/{self.masks[index]}")
        self._fitting(index, mask)
        return mask

    def _fitting(self, index: int, mask: Mask) -> str:
        """How the image is to be read, ``apply`` or ``ignore``, so that it has the size of its mask."""
        path = f"{self.root}/{self.images[index]}"
        sizes: list[Size] = []
        for exif in (self.read.exif, "ignore" if self.read.exif == "apply" else "apply"):
            sizes.append(image_size(path, exif=exif))
            if sizes[-1] == mask.shape:
                return exif
        what = f"has {mask.shape[1]} x {mask.shape[0]} pixels (width x height), its image {sizes[0][1]} x {sizes[0][0]}"
        raise UserError(f"{self.root}/{self.masks[index]}", what, "both must have one size: replace one of the two")


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
    form, notes = (
        (declared.format, [])
        if declared.format != "auto"
        else _found(pairing, pairs, split, declared, names, max_pixels=read.max_pixels, on_error=on_error)
    )
    names = names or (BINARY if form == "binary" else None)
    if names is None:
        what = f"{form} masks do not name their classes, and there is no classes.txt in {root}"
        raise UserError("data.options.classes", what, "name them, in the order of their values")
    if len(names) > MOST or (form == "binary" and len(names) != 2):
        expected = "2 classes, background first, in binary masks" if form == "binary" else f"at most {MOST} classes"
        raise UserError(
            "data.options.classes", f"expected {expected}, got {len(names)}", "correct data.options.classes or format"
        )
    if training is not None:
        refuse_other_classes("data.options.classes", names, training)
    if form == "binary" and any(name.lower().endswith((".jpg", ".jpeg")) for name in pairs.masks):
        notes.append("JPEG masks do not keep values exactly: what is over half is the second class")
    if declared.others_ignored:
        notes.append("values that are no class are ignored (data.options.other)")
    return MaskDataset(pairs, names, declared.reader(form, len(names), read), read, tuple(notes))


def _found(
    pairing: Pairing,
    pairs: Pairs,
    split: str,
    declared: Declared,
    names: tuple[str, ...] | None,
    *,
    max_pixels: int,
    on_error: str,
) -> tuple[str, list[str]]:
    """The format that a look at the masks shows, and the note that says so. A split that looks otherwise than that of training
    raises :class:`UserError`: one and the same value would mean two things."""
    root = pairing.root

    def looked(found: Pairs) -> tuple[str, Look]:
        look = Look.at([f"{root}/{name}" for name in found.masks], max_pixels=max_pixels, on_error=on_error)
        numbers = declared.values is not None  # then 0 and 255 are values like others
        return found_format(
            look, None if names is None else len(names), str(root / found.mask_folder), numbers=numbers
        ), look

    form, look = looked(pairs)
    if split != "train":
        try:
            training = pairing.pairs("train")
        except UserError:  # only this split is here
            training = pairs
        first = form if training.masks == pairs.masks else looked(training)[0]
        if first != form:
            what = f"its masks look {form}, those of training {first}"
            raise UserError(str(root / pairs.mask_folder), what, "set data.options.format")
    how = {
        "binary": "0 is the first class, 255 the second",
        "index": "the number is the class",
        "palette": "the index is the class",
    }
    values, kind = span(look.values.nonzero()[0].tolist()), next(iter(look.kinds))
    note = f"masks are {form} ({kind} files, {how[form]}): {look.looked_at} of {len(pairs.masks):,} looked at hold the values {values}"
    return form, [note]
