"""What the pixels of a data set are: the range that its files use, mean and deviation."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels
from tasks.data.dataset import Dataset
from tasks.data.files.reading import ImageReader
from tasks.data.knowledge import Knowledge

LOOKED_AT = 32
"""So many images are looked at for the range in use."""
MEASURED = 500
"""So many images are read for mean and deviation."""
_FEW_LEVELS = 64
"""Grey levels of 8 bits below which an image of more bits has lost what it shows."""
_FAINT = 1 / 16
"""Share of their range below which images use nearly nothing of it."""
_SMALLEST_STD = 1e-5


class Range(NamedTuple):
    """Of files with more than 8 bits the ``highest`` value in ``looked_at`` of them, and the largest that they could have."""

    highest: int
    most: int
    looked_at: int

    @property
    def bits(self) -> int:
        """Bits that the highest value needs."""
        return self.highest.bit_length()

    @property
    def levels(self) -> int:
        """Levels that are left when the lower byte is dropped."""
        return (self.highest >> 8) + 1


def deep_range(dataset: Dataset) -> Range | None:
    """The range in use of the 16-bit files among :data:`LOOKED_AT` images of a data set; None where there are none."""
    known = Knowledge.of(dataset)
    return None if known.reader is None else _looked(known.some_paths(LOOKED_AT), known.reader)[0]


def _looked(paths: Sequence[str], read: ImageReader) -> tuple[Range | None, float]:
    """The range in use of the 16-bit ones of some files, and the highest value of the others as a share of the largest that they could
    have."""
    native, highest, found, share, others = replace(read, depth="native", at_least=None), 0, 0, 0.0, 0
    for path in paths:
        try:
            pixels = native(path)
        except UserError:  # the run will say so, or cannot read more than 8 bits of it
            continue
        opaque = pixels.shape[2] in (2, 4) and (pixels[..., -1] == _white(pixels)).all()
        most = (pixels[..., :-1] if opaque else pixels).max()
        if pixels.dtype == np.uint16:
            highest, found = max(highest, int(most)), found + 1
        else:
            share, others = max(share, float(most) / _white(pixels)), others + 1
    return Range(highest, 65535, found) if found else None, share if others else 1.0


def told_of_range(dataset: Dataset, measured: bool, *, trained: bool = False) -> str | None:
    """As :func:`told_of_files`, of some images of a data set."""
    known = Knowledge.of(dataset)
    return (
        None
        if known.reader is None
        else told_of_files(known.some_paths(LOOKED_AT), known.reader, measured, trained=trained)
    )


def told_of_files(paths: Sequence[str], read: ImageReader, measured: bool, *, trained: bool = False) -> str | None:
    """A line where files use a small part of their range and are read so that it is lost, or seen as nearly one grey.
    ``measured``: whether images are normalised by their own mean and deviation; ``trained``: by a model that is trained already."""
    found, share = _looked(paths, read)
    same = "bring them to the range of those that the model was trained on"
    if share < _FAINT and not measured and found is None:
        text = f"images use values up to {share * 255:.3g} of 255, and are nearly black: written without their scale?"
        return f"warning: {text} {same.capitalize() if trained else 'Multiply them, or set model.normalization: data'}"
    if found is None or found.levels >= _FEW_LEVELS:
        return None
    text = f"16-bit images use values up to {found.highest:,} ({found.bits} bits) of {found.most:,}"
    if read.depth == "8":
        remedy = same if trained else "set data.options.depth: native and model.normalization: data"
        return f"warning: {text}: in 8 bits {found.levels} levels are left of them; {remedy}"
    if measured:
        return None
    remedy = same if trained else "set model.normalization: data"
    return f"warning: {text}, a small part of what the weights' mean and std expect; {remedy}"


def mean_and_std(
    dataset: Dataset, tell: Callable[[str], None] = lambda _: None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, over :data:`MEASURED` images evenly spread; each image counts
    alike. Unreadable ones are passed over and told; :class:`UserError` where none can be read, or they differ in their channels."""
    sums: list[NDArray[np.float64]] = []
    passed: list[str] = []
    count = min(MEASURED, len(dataset))
    for index in (np.arange(count) * len(dataset) // max(1, count)).tolist():
        try:
            image = dataset[index].image
        except UserError as error:
            passed.append(str(error))
            continue
        pixels = image.astype(np.float32) / _white(image)
        sums.append(np.stack([pixels.mean((0, 1), np.float64), (pixels**2).mean((0, 1), np.float64)]))
        if sums[-1].shape != sums[0].shape:
            what = f"images have {sums[0].shape[1]} and {sums[-1].shape[1]} channels"
            raise UserError("model.normalization", what, "bring all to one number")
    if not sums:
        what = "no image can be read to measure mean and std"
        raise UserError("model.normalization", f"{what}; the first: {passed[0]}" if passed else what, "repair the data")
    if passed:
        tell(
            f"warning: model.normalization: {len(passed)} of {count} images cannot be read and do not count in mean and std; "
            f"the first: {passed[0]}"
        )
    mean, square = np.mean(sums, 0)
    std = np.sqrt((square - mean**2).clip(_SMALLEST_STD**2))
    return tuple(mean.round(6).tolist()), tuple(std.round(6).clip(_SMALLEST_STD).tolist())


def _white(image: Pixels) -> float:
    return {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}.get(image.dtype, 1.0)
