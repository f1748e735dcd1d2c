"""The values that the user's own mask files have for the classes, and masks written in them."""

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from effbackbones.errors import UserError
from effbackbones.images.geometry import Mask
from tasks.data.dataset import Dataset
from tasks.data.knowledge import Knowledge
from tasks.data.masks.file import packed, read_stored
from tasks.data.masks.format import LOOKED_AT
from tasks.data.sets.masks import ClassMaskDataset, MaskDataset


def stored_values(dataset: Dataset) -> dict[str, Any] | None:
    """What the mask files of a data set have for each class, JSON-like: ``format`` (``index`` or ``rgb``) and ``values``, one for
    each class (a colour as red * 65536 + green * 256 + blue), the first of several; ``undefined``, what they have for pixels that are
    ignored, else what is free; ``palette``, the colours of palette files. None where these are the numbers of the classes and no
    palette, or masks are no such files."""
    base = Knowledge.of(dataset).base
    if not isinstance(base, MaskDataset) or isinstance(base, ClassMaskDataset):
        return None
    reader, first = base.read_mask, dict[int, int]()
    for value, label in reader.codes:
        first.setdefault(label, value)
    if sorted(first) != list(range(len(base.classes))):
        return None
    form, values, taken = (
        "rgb" if reader.format == "rgb" else "index",
        [first[label] for label in range(len(first))],
        dict(reader.codes),
    )
    ignored = reader.ignored
    colours = _palette(base, set(values) if form == "rgb" else set())
    if colours and form == "rgb":  # the colours decide, at whatever index
        form, values = "index", [colours.index(value) for value in values]
        ignored = tuple(colours.index(value) for value in ignored if value in colours)
        taken = {index: 0 for index, colour in enumerate(colours) if colour in taken}
    if form == "index" and values == list(range(len(values))) and not colours:
        return None
    undefined = ignored[0] if ignored else _free(taken, form == "rgb")
    return {"format": form, "values": values, "undefined": undefined} | ({"palette": colours} if colours else {})


def _free(taken: Collection[int], colours: bool) -> int:
    """The largest value that is not ``taken``."""
    most = 0xFFFFFF if colours else 255 if max(taken) <= 255 else 65535
    return next(value for value in range(most, -1, -1) if value not in taken)


def _palette(data: MaskDataset, needed: set[int]) -> list[int]:
    """The colours, packed, of the first mask file that can be read, and of those whose colours decide of the first that has all of the
    ``needed``; none where masks are no palette files."""
    paths = (data.mask_file(index) for index in range(len(data)))
    for path in islice((path for path in paths if path), LOOKED_AT):
        try:
            stored = read_stored(path, max_pixels=data.read_mask.max_pixels)
        except UserError:  # whoever reads all of them says so
            continue
        if stored.palette is None:
            return []
        colours: list[int] = np.trim_zeros(packed(stored.palette), "b").tolist()  # a file may have fewer than 256
        if needed <= {*colours, 0}:
            return colours + [0] * (1 - len(colours))
    return []


class OwnValues:
    """Writes classes as the values that the user's masks have. ``undefined``: what stands for pixels without a class."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.colours, self.values = record["format"] == "rgb", [int(value) for value in record["values"]]
        self.undefined = int(record.get("undefined", _free(self.values, self.colours)))  # older files do not say it
        self._table: NDArray[np.uint32] = np.full(256, self.undefined, np.uint32)
        self._table[: len(self.values)] = self.values
        self._palette = np.array(record.get("palette", []), np.uint32)

    @classmethod
    def of(cls, record: Any, classes: Sequence[str]) -> "OwnValues | None":
        """From what a model remembers; None where that is nothing, or of other classes."""
        return cls(record) if record and len(record["values"]) == len(classes) else None

    def picture(self, labels: Mask) -> Image.Image:
        """Classes uint8 [H, W], 255 undefined, as a grey image, a colour image, or one with the palette of the masks."""
        numbers = self._table[labels]
        if self.colours:
            return Image.fromarray(_channels(numbers))
        image = Image.fromarray(numbers.astype(np.uint8 if max(self.undefined, *self.values) <= 255 else np.uint16))
        if len(self._palette):
            # PNG packs indices into as few bits as the colours need: all that occur must have one.
            colours = np.pad(self._palette, (0, max(0, 1 + max(self.undefined, *self.values) - len(self._palette))))
            image.putpalette(_channels(colours).tobytes())
        return image

    def word(self, value: int) -> int | str:
        """A value as a file of JSON says it."""
        return ",".join(str(value >> shift & 255) for shift in (16, 8, 0)) if self.colours else value


def _channels(packed_colours: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Packed colours as red, green and blue, uint8 [..., 3]."""
    return np.stack([packed_colours >> shift & 255 for shift in (16, 8, 0)], -1).astype(np.uint8)
