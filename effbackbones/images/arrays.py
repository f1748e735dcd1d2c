"""Arrays stored as ``.npy`` files: pixels of any number of channels."""

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels, Size
from effbackbones.images.opening import DAMAGE, ImagePath, check_pixels, opened_file, unreadable

_MANY = 4
"""An array whose first side is so many times smaller than the others is rather one of channels first than an image."""
_TYPES = (np.uint8, np.uint16, np.bool_, np.float16, np.float32, np.float64)


def array_size(path: ImagePath) -> Size:
    """(H, W) of a ``.npy`` file, from its header."""
    height, width, _ = _header(path)[0]
    return height, width


def read_array(path: ImagePath, channels: int, max_pixels: int, depth: str) -> Pixels:
    """The array of a ``.npy`` file as [H, W, C]; arguments as of :func:`effbackbones.images.reading.read_image`."""
    shape, _ = _header(path)
    check_pixels(path, (shape[1], shape[0]), max_pixels)
    if shape[2] != channels:
        raise _refused(path, shape, channels)
    try:
        with opened_file(path) as file:
            array: NDArray[np.generic] = np.load(file, allow_pickle=False).reshape(shape)
    except DAMAGE as error:
        raise unreadable(path, error) from error
    return as_pixels(path, _in_our_types(array), depth)


def _in_our_types(array: NDArray[np.generic]) -> Pixels:
    """Black and white for truth values, single precision for other floating point, the bytes of numbers in this machine's order."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    ours = np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    pixels: Pixels = array.astype(ours, copy=False)
    return pixels


def read_numbers(path: ImagePath, max_pixels: int) -> NDArray[np.integer | np.bool_]:
    """The whole numbers or truth values [H, W] of a ``.npy`` file, one for each pixel; sides of 1 before or behind are dropped."""
    shape, dtype = _stored(path)
    plain = tuple(
        side for place, side in enumerate(shape) if side != 1 or place not in (0, len(shape) - 1) or len(shape) < 3
    )
    if len(plain) != 2 or min(plain) < 1:
        remedy = "store the number of its class for each pixel (of one layer for each class: the place of the largest)"
        raise UserError(str(path), f"expected [H, W], got {list(shape)}", remedy)
    if dtype.kind not in "bui":
        raise UserError(str(path), f"expected whole numbers, got {dtype}", "convert it, to uint8 or uint16")
    check_pixels(path, (plain[1], plain[0]), max_pixels)
    try:
        with opened_file(path) as file:
            array: NDArray[np.integer | np.bool_] = np.load(file, allow_pickle=False).reshape(plain)
    except DAMAGE as error:
        raise unreadable(path, error) from error
    return array


def as_pixels(path: ImagePath, array: Pixels, depth: str) -> Pixels:
    """Numbers of uint8, uint16 or float32 as pixels; ``depth`` 8 keeps the upper byte of 16 bits. Floating point outside of
    0..1 raises :class:`UserError`."""
    if array.dtype == np.float32 and not (array.min() >= 0 and array.max() <= 1):  # NaN fails too
        raise UserError(str(path), "float pixels must lie in 0..1", "divide them by their largest possible value")
    return (array // 256).astype(np.uint8) if array.dtype == np.uint16 and depth == "8" else array


def _refused(path: ImagePath, shape: tuple[int, ...], channels: int) -> UserError:
    """What to say of an array [H, W, C] of other channels than those asked for; of one that has them in front, as torch does, that."""
    if shape[0] == channels or _MANY * shape[0] <= min(shape[1:]):
        what = (
            f"expected [H, W, C], got {list(shape)}: are these {shape[0]} channels of {shape[1]} x {shape[2]} pixels?"
        )
        return UserError(str(path), what, "store the channels last: numpy.save(file, numpy.moveaxis(array, 0, -1))")
    what = f"the array has {shape[2]} channels, asked for are {channels}"
    return UserError(str(path), what, f"set data.options.channels: {shape[2]}, as many as the data has")


def _header(path: ImagePath) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape [H, W, C] and dtype of pixels."""
    stored, dtype = _stored(path)
    shape = (*stored, 1) if len(stored) == 2 else stored
    if len(shape) != 3 or min(shape) < 1 or dtype.newbyteorder("=") not in _TYPES:
        what = f"expected [H, W] or [H, W, C] of uint8, uint16, bool or floating point; got {list(stored)} of {dtype}"
        raise UserError(str(path), what, "convert it")
    return shape, dtype


def _stored(path: ImagePath) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and dtype as the file has them."""
    with opened_file(path) as file:
        try:
            major, _ = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file, max_header_size=10_000)
        except DAMAGE as error:
            raise unreadable(path, error) from error
    return shape, dtype
