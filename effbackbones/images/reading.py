"""Files to pixels: the one place that opens an image.

PIL decodes everything: OpenCV fills up truncated files in silence and unpacks decompression bombs, and torchvision's PNG
decoder crashes the process on damaged files. (A caller may bring a quicker decoder for JPEG files, to be asked once PIL has read
the header.) Anything that is not a whole, sane image raises a :class:`UserError`
naming the file. (TIFF files of bands that are no colours go through tifffile, :mod:`effbackbones.images.tiff`.)

What comes out, by kind of file: EXIF orientation is applied; CMYK, palette, 1-bit and grey become what ``channels`` asks
for; alpha and palette transparency are dropped, not composited, as the loaders did that published weights were trained
with; an animation gives its first frame or is refused, a TIFF file of several pages is refused or read as bands; 16-bit grey
is scaled to 8 bits (``>> 8``, not clipped) or kept by option.
Embedded colour profiles are not applied.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from effbackbones.errors import UserError
from effbackbones.images.arrays import array_size, read_array
from effbackbones.images.checksums import check_png
from effbackbones.images.geometry import Pixels, Size
from effbackbones.images.opening import (
    DAMAGE,
    FORMATS,
    FORMATS_AT_ONCE,
    MAX_PIXELS as MAX_PIXELS,
    ImagePath,
    check_pixels,
    opened_file,
    unreadable,
)
from effbackbones.images.tiff import Layout, layout_of, read_bands

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jfif",
        ".mpo",
        ".png",
        ".gif",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
        ".npy",
    ]
)
"""Endings, in lower case, of the files that :func:`read_image` reads."""

Decoder: TypeAlias = Callable[[bytes], NDArray[np.uint8] | None]
"""From a whole file to RGB uint8 [H, W, 3] as it is stored, bit for bit what PIL gives; None: PIL is to decode it."""
FRAMES = ("stop", "first")
_ANIMATED = ("GIF", "PNG", "WEBP")
_BANDS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each EXIF orientation upright (TIFF 6.0, tag Orientation)."""
_PHOTOMETRIC = 262
_UNDO = {6: 8, 8: 6}
"""Orientations whose turn is not its own inverse."""


def read_image(
    path: ImagePath,
    *,
    channels: int = 3,
    exif: str = "apply",
    max_pixels: int = MAX_PIXELS,
    depth: str = "8",
    at_least: Size | None = None,
    frames: str = "first",
    jpeg: Decoder | None = None,
) -> Pixels:
    """Pixels [H, W, channels] of an image file, by path or in memory (:class:`effbackbones.images.opening.Encoded`): uint8, or uint16
    where ``depth`` is ``native`` and the file has 16 bits.

    ``channels``: 1 grey (ITU-R 601-2 luma), 2 grey and alpha, 3 RGB, 4 RGB and alpha (255 where the file has none). A
    ``.npy`` file holds [H, W] or [H, W, C] of uint8, uint16, bool (black, white) or floating point in 0..1, any C, which must equal
    ``channels``; so must the bands of a TIFF file that are not colours and alpha alone (:func:`effbackbones.images.tiff.read_bands`).
    ``exif``: ``apply`` turns the image upright, ``ignore`` gives it as stored. ``at_least`` (H, W): a JPEG may be decoded
    at 1/2, 1/4 or 1/8 of its size as long as neither side falls below; twice what is needed leaves a later antialiased
    resize good. ``frames``: an animation gives its ``first`` frame, or is refused (``stop``). ``jpeg`` is asked first for the pixels of
    JPEG files in RGB at full size.
    Raises :class:`UserError` for anything that cannot be read whole, and above ``max_pixels``, which is compared with the
    header before anything is decoded.
    """
    if exif not in ("apply", "ignore") or depth not in ("8", "native") or channels < 1 or frames not in FRAMES:
        raise ValueError(
            f"exif must be apply or ignore, depth 8 or native, channels positive, frames stop or first; got {exif!r}, {depth!r}, "
            f"{channels}, {frames!r}"
        )
    if str(path).lower().endswith(".npy"):
        return read_array(path, channels, max_pixels, depth)
    with opened_file(path) as file:
        layout = layout_of(file)
        if layout and not _by_pil(layout, channels, depth):
            try:
                return read_bands(path, file, layout, channels, exif=exif, max_pixels=max_pixels, depth=depth)
            except DAMAGE as error:
                raise unreadable(path, error) from error
        if channels not in _BANDS:
            raise UserError(
                str(path),
                f"has 1 to 4 channels, asked for are {channels}",
                "set data.options.channels, or store the others too, as TIFF or .npy",
            )
        with _image_in(file, path, layout, max_pixels) as image:
            count = frame_count(image) if frames == "stop" else 1
            if count > 1:
                remedy = "store the one that is wanted by itself, or set data.options.frames: first"
                raise UserError(str(path), f"has {count} frames: which of them is the image?", remedy)
            if at_least is not None and image.format in ("JPEG", "MPO"):
                height, width = at_least
                image.draft(None, (height, width) if orientation_of(image) > 4 and exif == "apply" else (width, height))
            if jpeg is not None and channels == 3 and (pixels := _decoded_by(jpeg, image, exif)) is not None:
                return pixels
            return _decode(path, image, exif, channels, depth)


def _decoded_by(jpeg: Decoder, image: ImageFile.ImageFile, exif: str) -> Pixels | None:
    """The pixels of a JPEG file by ``jpeg``, where they are to come as they are stored and at full size."""
    full = (
        image.format in ("JPEG", "MPO") and image.mode == "RGB" and image.decoderconfig in ((), (1, 0))
    )  # no draft of it
    if not full or (exif == "apply" and orientation_of(image) != 1):
        return None
    assert image.fp is not None
    image.fp.seek(0)
    pixels = jpeg(image.fp.read())
    return pixels if pixels is not None and pixels.shape == (image.height, image.width, 3) else None


def _by_pil(layout: Layout, channels: int, depth: str) -> bool:
    """Whether PIL gives all that a TIFF file has."""
    deep = layout.bits == 16 and layout.samples > 1 and channels == layout.samples
    return layout.plain and not (deep and (depth == "native" or layout.samples == 2))


@contextmanager
def opened_image(path: ImagePath, max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile.ImageFile]:
    """A file as a PIL image, its header read and held against ``max_pixels``, its pixels not yet decoded.

    Whatever is wrong with it, also while it is decoded inside, raises :class:`UserError` naming the file.
    """
    with opened_file(path) as file, _image_in(file, path, layout_of(file), max_pixels) as image:
        yield image


@contextmanager
def _image_in(
    file: IO[bytes], path: ImagePath, layout: Layout | None, max_pixels: int
) -> Iterator[ImageFile.ImageFile]:
    """:func:`opened_image` of a file that is open, and of which it is known whether it is a TIFF file."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # some other code's doing: PIL would then fill up truncated files in silence
        raise UserError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", "is on, which hides damaged images", "switch it off")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on damaged EXIF and the like, without the file's name; and PIL's own limit
        if layout and not layout.plain:
            raise layout.refusal(path)
        if layout and layout.signed and layout.bits == 8:  # PIL drops the sign: -1 is white
            raise layout.stranger(path)
        try:
            image = _identified(file)
            check_pixels(path, image.size, max_pixels)
            if image.format == "PNG":
                check_png(file)
            yield image
        except UnidentifiedImageError as error:
            raise layout.stranger(path) if layout else unreadable(path, error) from error
        except (*DAMAGE, Image.DecompressionBombError) as error:
            raise unreadable(path, error) from error


def image_size(path: ImagePath, *, exif: str = "apply") -> Size:
    """(H, W) that :func:`read_image` will give, from the header alone. Raises as :func:`read_image` does."""
    if str(path).lower().endswith(".npy"):
        return array_size(path)
    with opened_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layout = layout_of(file)
        if layout:
            return layout.size[::-1] if layout.orientation > 4 and exif == "apply" else layout.size
        try:
            return _upright_size(_identified(file), exif)
        except (*DAMAGE, Image.DecompressionBombError) as error:
            raise unreadable(path, error) from error


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image that :func:`read_image` reads."""
    return name[name.rfind(".") :].lower() in SUFFIXES if "." in name else False


_LIMIT = threading.Lock()


def _identified(file: IO[bytes]) -> ImageFile.ImageFile:
    """The image with its header read, its pixels not yet. What PIL itself thinks too large is let through: our caller looks."""
    try:
        return _opened_by_pil(file)
    except Image.DecompressionBombError:
        with _LIMIT:  # it is one number for the whole process
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return _opened_by_pil(file)
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def _opened_by_pil(file: IO[bytes]) -> ImageFile.ImageFile:
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS_AT_ONCE)
    except UnidentifiedImageError:
        Image.init()  # loads the rarer formats: 50 ms, once; builds of PIL differ in which they have
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def frame_count(image: Image.Image) -> int:
    """How many frames an animation has; 1 of other files. (Of a JPEG, what comes after the first is a preview or a map of depth.)"""
    return (
        int(getattr(image, "n_frames", 1)) if image.format in _ANIMATED and getattr(image, "is_animated", False) else 1
    )


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8 from what stands before the pixels; 1 where there is none or a senseless one."""
    # The base class's method: PNG's own decodes the whole image first, to look for EXIF behind it.
    value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return value if value in _TURNS else 1


def _upright_size(image: Image.Image, exif: str) -> Size:
    """(H, W) after EXIF orientation, or as stored where ``exif`` is ``ignore``."""
    width, height = image.size
    # PIL gives TIFF files upright by itself, and no other format.
    swap = orientation_of(image) > 4 and (exif == "apply") != (image.format == "TIFF")
    return (width, height) if swap else (height, width)


def turned(image: Image.Image, orientation: int, exif: str) -> Image.Image:
    """The decoded image upright, or as stored where ``exif`` is ``ignore``; ``orientation`` is its EXIF tag."""
    if image.format == "TIFF":
        orientation = 1 if exif == "apply" else _UNDO.get(orientation, orientation)
    elif exif == "ignore":
        orientation = 1
    turn = _TURNS[orientation]
    return image if turn is None else image.transpose(turn)


def _decode(path: ImagePath, file_image: ImageFile.ImageFile, exif: str, channels: int, depth: str) -> Pixels:
    """Decode the first frame, turn it, bring it to ``channels`` bands of uint8 or uint16."""
    deep, orientation, form = is_deep(file_image), orientation_of(file_image), file_image.format
    file_image.load()
    image = turned(file_image, orientation, exif)
    if image.mode.startswith("I;16") or (image.mode == "I" and form == "PPM"):  # PIL widens 16-bit PGM to 32 bits
        grey = sixteen_bits(image, file_image)
        return _from_grey((grey >> 8).astype(np.uint8) if depth == "8" else grey, channels)
    if image.mode in ("I", "F"):
        raise UserError(
            str(path),
            f"pixels of 32 bits or with a sign ({image.mode}) have no stated range",
            "store 8 or 16 bits without a sign, or a .npy file",
        )
    if depth == "native" and deep:
        raise UserError(
            str(path),
            "16-bit colour cannot be read at full depth",
            "store it as TIFF of as many channels as are asked for, or as .npy",
        )
    pixels: NDArray[np.uint8] = np.array(_converted(image, _BANDS[channels]))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def sixteen_bits(image: Image.Image, file_image: Image.Image) -> NDArray[np.uint16]:
    """The greys [H, W] of a decoded ``image`` of 16 bits, black being 0: PIL turns TIFF files in which white is 0 at 8 bits alone."""
    grey: NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
    white_first = file_image.format == "TIFF" and getattr(file_image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    return 65535 - grey if white_first else grey


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether the file has 16 bits per channel, which PIL reads at full depth for grey alone."""
    arguments = image.tile[0].args if image.tile else ""
    if image.format == "PPM" and isinstance(arguments, tuple):  # (mode, largest value)
        return isinstance(arguments[-1], int) and arguments[-1] > 255
    return ";16" in str(arguments)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """``image`` of any 8-bit mode as L, LA, RGB or RGBA."""
    if image.mode == mode:
        return image
    if mode in ("L", "RGB"):
        image.info.pop("transparency", None)  # dropped like any alpha; PIL would warn on some palettes
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):  # CMYK, YCbCr, premultiplied alpha, ...
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
    if mode == "LA" and image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert(mode)


def _from_grey(grey: NDArray[np.uint8] | NDArray[np.uint16], channels: int) -> Pixels:
    """One band [H, W] as 1 or 3 equal channels, with an opaque alpha behind where ``channels`` is 2 or 4."""
    pixels: Pixels = np.repeat(grey[..., None], channels, axis=2)
    if channels in (2, 4):
        pixels[..., -1] = np.iinfo(grey.dtype).max
    return pixels
