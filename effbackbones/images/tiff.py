"""TIFF files of any number of bands: what their headers say, and bands that no colour model names.

PIL gives the first page of a file, its colours, and an alpha that is declared; this room refuses to lose the rest, and reads it
through tifffile, where that is installed.
"""

import warnings
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from effbackbones.errors import UserError
from effbackbones.images.arrays import as_pixels
from effbackbones.images.geometry import Pixels, Size
from effbackbones.images.opening import DAMAGE, ImagePath, check_pixels

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA, _KIND = 256, 257, 258, 262, 274, 277, 338, 254
_PLANES, _FORMAT = 284, 339
_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}
"""Samples of the colour models that have several (TIFF 6.0, PhotometricInterpretation): RGB, CMYK, YCbCr, Lab."""
_ALPHA = (1, 2)
"""Values of ExtraSamples that say what the sample is: alpha, associated or not."""
_NO_PAGE = 1 | 4
"""Bits of NewSubfileType: a smaller copy of another page, a mask of its transparency."""
_MOST_PAGES = 10_000


class Layout(NamedTuple):
    """What a header says: ``size`` (H, W) as stored, ``samples`` of each pixel and ``bits`` of each sample, ``unnamed``, how many of
    the samples are neither colour nor alpha, ``pages``, and the ``orientation`` 1..8. ``planes``: the samples lie apart, in a way
    that PIL takes for another; ``white_first``: 0 is white; ``signed``: numbers have a sign."""

    size: Size
    samples: int
    bits: int
    unnamed: int
    pages: int
    orientation: int
    planes: bool = False
    white_first: bool = False
    signed: bool = False

    @property
    def plain(self) -> bool:
        """Whether the colours of the first page, and their alpha, are all there is, and lie as PIL reads them."""
        return self.pages == 1 and not self.unnamed and not self.planes

    @property
    def bands(self) -> int:
        """Numbers that the file has for each pixel, over all pages."""
        return self.samples * self.pages

    def __str__(self) -> str:
        named = self.samples - self.unnamed
        each = f"{self.samples} {'sample' if self.samples == 1 else 'samples'} in each pixel"
        if self.unnamed and named > 1:
            each += f" ({named} colours and {self.unnamed} unspecified)"
        if self.planes:
            each += f", in planes of {self.bits} bits"
        return each if self.pages == 1 else f"{self.pages} pages of {each}"

    def refusal(self, path: ImagePath, channels: int | None = None) -> UserError:
        """What to say where something of the file would be lost."""
        asked = "" if channels is None else f", asked for are {channels} channels"
        remedy = "store one page of grey, palette or colour"
        if channels is not None:
            remedy = f"set data.options.channels: {self.bands} to read all as bands, or store those that are wanted"
        return UserError(str(path), f"has {self}{asked}", remedy)

    def stranger(self, path: ImagePath) -> UserError:
        """What to say where PIL knows no such kind of TIFF file."""
        what = f"is a TIFF file of {self}, of {self.bits} bits, which cannot be read"
        return UserError(str(path), what, "store 8 or 16 bits without a sign, grey or colour, or a .npy file")


def layout_of(file: IO[bytes]) -> Layout | None:
    """The layout of an open file, which is rewound; None where it is no TIFF file, or damaged."""
    try:
        header = file.read(8)
        if header[:4] not in _MAGIC:
            return None
        if header[2:3] == b"+" or header[3:4] == b"+":  # BigTIFF
            header += file.read(8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damaged tags, without the file's name
            return _layout(file, header)
    except DAMAGE:  # PIL will say what is wrong
        return None
    finally:
        file.seek(0)


def _layout(file: IO[bytes], header: bytes) -> Layout:
    first, pages = _directory(file, header), 1
    following, seen = first.next, {0}
    while following not in seen and pages < _MOST_PAGES:
        seen.add(following)
        other = _directory(file, header, following)
        pages += not int(other.get(_KIND) or 0) & _NO_PAGE
        following = other.next
    samples = int(first.get(_SAMPLES) or 1)
    extra = tuple(first.get(_EXTRA) or ())
    colours = min(samples, _COLOURS.get(int(first.get(_PHOTOMETRIC) or 0), 1))
    declared = 1 if samples - colours == 1 and extra[:1] and extra[0] in _ALPHA else 0
    size = int(first[_HEIGHT]), int(first[_WIDTH])
    bits = int(max(first.get(_BITS) or (1,)))
    return Layout(
        size,
        samples,
        bits,
        samples - colours - declared,
        pages,
        int(first.get(_ORIENTATION) or 1),
        planes=samples > 1 and first.get(_PLANES) == 2 and (bits != 8 or samples < 3),
        white_first=first.get(_PHOTOMETRIC) == 0,
        signed=2 in (first.get(_FORMAT) or ()),
    )


def _directory(file: IO[bytes], header: bytes, offset: int | None = None) -> ImageFileDirectory_v2:
    directory = ImageFileDirectory_v2(header)
    file.seek(directory.next if offset is None else offset)
    directory.load(file)
    return directory


def read_bands(
    path: ImagePath, file: IO[bytes], layout: Layout, channels: int, *, exif: str, max_pixels: int, depth: str
) -> Pixels:
    """All bands of an open file [H, W, channels], page by page; they must be as many as ``channels``. Arguments as of
    :func:`effbackbones.images.reading.read_image`. Raises :class:`UserError` also where tifffile is not installed."""
    height, width = layout.size
    check_pixels(path, (width, height), max_pixels)
    if channels != layout.bands:
        raise layout.refusal(path, channels)
    pages = [_bands(path, page) for page in _decoded(path, file, layout)]
    if len({(page.shape[:2], page.dtype) for page in pages}) > 1 or sum(page.shape[2] for page in pages) != channels:
        raise UserError(str(path), "has pages of several sizes or kinds", "store one image in each file")
    array = as_pixels(path, np.concatenate(pages, axis=2), depth)
    if layout.white_first and layout.samples == 1:  # of several, the tag speaks of colours, and bands are none
        array = {"uint8": 255, "uint16": 65535}.get(array.dtype.name, 1) - array
    return np.ascontiguousarray(_upright(array, layout.orientation) if exif == "apply" else array)


def _decoded(path: ImagePath, file: IO[bytes], layout: Layout) -> list[NDArray[np.generic]]:
    """The pages as tifffile gives them, samples last."""
    try:
        import tifffile  # optional: PIL reads all that most data sets have
    except ImportError:
        what = f"has {layout}, which PIL cannot read whole"
        raise UserError(str(path), what, "pip install 'effbackbones[tiff]', or store it as a .npy file") from None
    try:
        with tifffile.TiffFile(file) as tiff:
            found, every_page = [], cast(Any, tiff.pages)
            for page in (page for page in every_page if not int(page.subfiletype) & _NO_PAGE):
                array = page.asarray()
                separate = array.ndim == 3 and int(page.planarconfig) == 2
                found.append(np.moveaxis(array, 0, 2) if separate else array)
            return found
    except (ValueError, ImportError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise UserError(str(path), "is compressed in a way that needs imagecodecs", "pip install imagecodecs") from None


def _bands(path: ImagePath, page: NDArray[np.generic]) -> Pixels:
    """A page as [H, W, bands] of a kind that pixels may have."""
    page = page[..., None] if page.ndim == 2 else page
    if page.ndim != 3 or page.dtype not in (np.uint8, np.uint16, np.float32):
        what = f"holds {page.dtype} {list(page.shape)}; expected bands of uint8, uint16 or float32"
        raise UserError(str(path), what, "convert it")
    pixels: Pixels = page.astype(page.dtype.newbyteorder("="), copy=False)
    return pixels


def _upright(array: Pixels, orientation: int) -> Pixels:
    """An array [H, W, C] turned as the tag Orientation says (TIFF 6.0)."""
    if orientation > 4:
        array = array.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return array[::rows, ::columns]
