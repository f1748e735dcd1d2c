"""The values that the user's own mask files have for the classes, and masks written in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from effbackbones.images.geometry import Mask
from tasks.data.dataset import Dataset
from tasks.data.knowledge import Knowledge
from tasks.data.sets.masks import ClassMaskDataset, MaskDataset


def stored_values(dataset: Dataset) -> dict[str, Any] | None:
    """What the mask files of a data set have for each class, JSON-like: ``format`` (``index`` or ``rgb``) and ``values``, one for
    each class (a colour as red * 65536 + green * 256 + blue), the first of several. None where these are the numbers of the
    classes, or masks are no such files."""
    base = Knowledge.of(dataset).base
    if not isinstance(base, MaskDataset) or isinstance(base, ClassMaskDataset):
        return None
    reader, first = base.read_mask, dict[int, int]()
    for value, label in reader.codes:
        first.setdefault(label, value)
    if sorted(first) != list(range(len(base.classes))):
        return None
    values = [first[label] for label in range(len(first))]
    if reader.format != "rgb" and values == list(range(len(values))):
        return None
    return {"format": "rgb" if reader.format == "rgb" else "index", "values": values}


class OwnValues:
    """Writes classes as the values that the user's masks have. ``undefined``: what stands for pixels without a class."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.colours, self.values = record["format"] == "rgb", [int(value) for value in record["values"]]
        most = 0xFFFFFF if self.colours else 255 if max(self.values) <= 255 else 65535
        self.undefined = next(value for value in range(most, -1, -1) if value not in self.values)
        self._table: NDArray[np.uint32] = np.full(256, self.undefined, np.uint32)
        self._table[: len(self.values)] = self.values

    @classmethod
    def of(cls, record: Any, classes: Sequence[str]) -> "OwnValues | None":
        """From what a model remembers; None where that is nothing, or of other classes."""
        return cls(record) if record and len(record["values"]) == len(classes) else None

    def picture(self, labels: Mask) -> Image.Image:
        """Classes uint8 [H, W], 255 undefined, as a grey or a colour image."""
        numbers = self._table[labels]
        if self.colours:
            return Image.fromarray(np.stack([numbers >> shift & 255 for shift in (16, 8, 0)], 2).astype(np.uint8))
        return Image.fromarray(numbers.astype(np.uint8 if max(self.undefined, *self.values) <= 255 else np.uint16))

    def word(self, value: int) -> int | str:
        """A value as a file of JSON says it."""
        return ",".join(str(value >> shift & 255) for shift in (16, 8, 0)) if self.colours else value
