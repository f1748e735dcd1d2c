"""What a predictor can be asked about, as pixels: files, PIL images, arrays, tensors, frames of videos."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels
from effbackbones.images.opening import Encoded
from effbackbones.images.pixels import require_unit
from effbackbones.images.reading import read_image
from effbackbones.images.recordings import ZERO, as_pixels, read_recording
from effbackbones.images.spec import ImageSpec, ReadingSpec
from effbackbones.images.video import Frame, Moment

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_KINDS = "a path, a PIL image, a numpy array [H, W, C] or a tensor [C, H, W]"


@dataclass(frozen=True)
class ImageSource:
    """An image to predict, or a recording, which is one of one row: its ``name``, its ``pixels`` where they were given, else the file is
    read by ``read``; ``moment`` of a frame of a video."""

    name: str
    pixels: Pixels | None
    read: Callable[[str], Pixels] | None = None
    moment: Moment | None = None

    def __call__(self) -> Pixels:
        """The image [H, W, C], upright."""
        if self.pixels is not None:
            return self.pixels
        assert self.read is not None
        return self.read(self.name)


def is_one(given: Any) -> bool:
    """Whether it is a single image, and no list of them."""
    if isinstance(given, np.ndarray | Tensor):
        return given.ndim < 4
    return isinstance(given, str | os.PathLike | Encoded | Image.Image | Frame)


def source_for(
    given: Any, number: int, spec: ImageSpec, reading: ReadingSpec, *, max_pixels: int, bgr: bool = False
) -> ImageSource:
    """One image for a network that sees images of ``spec``, read as ``reading`` says: of one that hears recordings a recording.

    Raises :class:`UserError` for other kinds, shapes and ranges.
    """
    channels = len(spec.mean)
    if spec.rate is not None:
        return recording_of(given, number, rate=spec.rate, channels=channels, max_samples=max_pixels)
    how = {"depth": reading.depth, "exif": reading.exif, "max_pixels": max_pixels}
    return source_of(given, number, channels=channels, bgr=bgr, **how)  # type: ignore[arg-type]


def recording_of(given: Any, number: int, *, rate: int, channels: int, max_samples: int) -> ImageSource:
    """One recording: a file, by path or in memory, or an array [T] or [T, C] of ``rate`` samples a second, int16 or floating point in
    -1..1. Raises :class:`UserError` for anything else."""
    reading: dict[str, Any] = {"rate": rate, "channels": channels, "max_samples": max_samples}
    if isinstance(given, Encoded):
        return ImageSource(given.name, None, partial(_read_sound, given, **reading))
    if isinstance(given, str | os.PathLike):
        return ImageSource(os.fspath(given), None, partial(read_recording, **reading))
    name = f"recording {number}"
    wave = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    if isinstance(wave, np.ndarray) and wave.dtype == np.uint16 and wave.shape == (1, wave.size, channels):
        return ImageSource(name, np.array(wave))  # as recordings are read
    if not isinstance(wave, np.ndarray) or wave.ndim not in (1, 2) or 0 in wave.shape:
        kind = list(wave.shape) if isinstance(wave, np.ndarray) else type(given).__name__
        remedy = f"give a path, or an array [samples] or [samples, channels] of {rate:,} samples a second"
        raise UserError(name, f"cannot be a recording: {kind}", remedy)
    wave = wave[:, None] if wave.ndim == 1 else wave
    if wave.shape[1] > wave.shape[0]:
        raise UserError(name, f"has {wave.shape[1]:,} channels of {wave.shape[0]:,} samples", "put the channels last")
    if wave.shape[1] != channels and channels != 1:
        raise UserError(name, f"expected {channels} channels, got {wave.shape[1]}", "give as many")
    if wave.dtype == np.int16:
        wave = wave.astype(np.float32) / ZERO
    elif wave.dtype.kind != "f":
        raise UserError(name, f"expected int16 or floating point in -1..1, got {wave.dtype}", "convert it")
    return ImageSource(name, as_pixels(wave.astype(np.float32), rate, rate=rate, channels=channels, name=name))


def source_of(
    given: Any, number: int, *, channels: int, depth: str, exif: str, max_pixels: int, bgr: bool
) -> ImageSource:
    """One image. Pixels are copied, for whoever gave them may use their memory again. ``number`` names what has no path.

    Raises :class:`UserError` for other kinds, shapes and ranges.
    """
    reading: dict[str, Any] = {"channels": channels, "depth": depth, "exif": exif, "max_pixels": max_pixels}
    if isinstance(given, Encoded):
        return ImageSource(given.name, None, partial(_read_encoded, given, **reading))
    if isinstance(given, str | os.PathLike):
        return ImageSource(os.fspath(given), None, partial(read_image, **reading))
    if isinstance(given, Frame):
        moment = given.moment
        return ImageSource(moment.name, _checked(given.pixels, moment.name, channels, bgr=False), moment=moment)
    name = f"image {number}"
    if isinstance(given, Image.Image):
        name = str(getattr(given, "filename", "") or name)
        return ImageSource(name, _of_pil(given, name, channels, exif))
    if isinstance(given, Tensor):
        if given.ndim != 3 or given.shape[0] != channels:
            what = f"expected a tensor [{channels}, H, W], got {list(given.shape)}"
            raise UserError(name, what, "put the channels first")
        require_unit(given.detach().cpu())
        kept = given.detach().cpu()
        array = (kept.float() if kept.is_floating_point() else kept).permute(1, 2, 0).numpy()
        return ImageSource(name, _checked(array, name, channels, bgr=False))
    if isinstance(given, np.ndarray):
        return ImageSource(name, _checked(given[..., None] if given.ndim == 2 else given, name, channels, bgr=bgr))
    raise UserError(name, f"cannot be an image: {type(given).__name__}", f"give {_KINDS}, or a list of them")


def _read_sound(given: Encoded, name: str, **reading: Any) -> Pixels:
    return read_recording(given, **reading)


def _read_encoded(given: Encoded, name: str, **reading: Any) -> Pixels:
    return read_image(given, **reading)


def _of_pil(image: Image.Image, name: str, channels: int, exif: str) -> Pixels:
    if channels not in _MODES:
        raise UserError(name, f"the model wants {channels} channels", "give an array [H, W, C] or a file")
    if image.mode.startswith(("I", "F")):
        raise UserError(name, f"a PIL image of mode {image.mode} has no stated range", "give an array uint8 or uint16")
    try:
        upright = ImageOps.exif_transpose(image) if exif == "apply" else image
        pixels: Pixels = np.array(upright.convert(_MODES[channels]))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(name, f"cannot be decoded ({error})", "repair or replace it") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _checked(array: np.ndarray[Any, Any], name: str, channels: int, *, bgr: bool) -> Pixels:
    if array.ndim != 3 or 0 in array.shape:
        raise UserError(name, f"expected an array [H, W, {channels}], got {list(array.shape)}", "correct its shape")
    if array.shape[2] == 1 and channels == 3:
        array = array.repeat(3, axis=2)
    if array.shape[2] != channels:
        found = f"{array.shape[2]} channels in {list(array.shape)}"
        raise UserError(
            name, f"expected an array [H, W, {channels}], found {found}", "put the channels last, or drop some"
        )
    if bgr and channels >= 3:
        array = np.concatenate([array[..., 2::-1], array[..., 3:]], 2)
    if array.dtype.kind == "f":
        floats = np.array(array, np.float32)
        require_unit(torch.from_numpy(floats))
        if not np.isfinite(floats).all():
            raise UserError(name, "holds values that are not finite", "correct it")
        return floats
    if array.dtype not in (np.uint8, np.uint16):
        raise UserError(name, f"expected uint8, uint16 or floating point in 0..1, got {array.dtype}", "convert it")
    return np.array(array)
