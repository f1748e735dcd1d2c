"""One door from images to answers: files, PIL images, arrays and tensors in, results in original pixels out."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from effbackbones.checkpoint import load_model
from effbackbones.errors import UserError
from effbackbones.images.reading import MAX_PIXELS
from effbackbones.images.spec import ReadingSpec
from effbackbones.inference.answering import Fitted, Wishes, answers, autocast
from effbackbones.inference.fitting import Fitting
from effbackbones.inference.inputs import ImageSource, is_one, source_of
from effbackbones.inference.results import Failed
from effbackbones.model import Model

BEST = "best.safetensors"
"""The model file of a run folder."""
_READERS = 4
"""Threads that read files while the network works."""
OneImage = str | PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor


class Predictor:
    """Images to results, as the commands make them: read (orientation, depth, channels), brought to size (letterbox, crop or tiles),
    predicted in batches, and brought back to the pixels of each image.

    ``model`` is put on the device and into eval mode. It may be called from several threads, and be pickled into another process.
    Made by :func:`load_predictor`, which explains the arguments.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str | torch.device = "auto",
        threshold: float | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        probabilities: bool = False,
        on_error: Literal["raise", "return"] = "raise",
        precision: str = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if on_error not in ("raise", "return"):
            raise UserError("on_error", f"unknown value {on_error!r}", "raise or return")
        if batch_size is not None and batch_size < 1:
            raise UserError("batch_size", f"expected at least 1 image at once, got {batch_size}", "correct it")
        self.wishes = Wishes(threshold, top_k, probabilities)
        self.task: str = model.head.task
        _refuse_idle(self.task, self.wishes)
        self.reading = model.reading or ReadingSpec()
        self.batch_size, self.on_error, self.precision, self.max_pixels = (
            batch_size or 8,
            on_error,
            precision,
            max_pixels,
        )
        self.asked_device = device
        self.device = _device(device)
        self.model = model.to(self.device).eval()
        self.classes: Any = model.classes or _numbered(model.head)
        self._fit = _fitting(model, self.reading)
        with autocast(self.device, precision):
            pass  # a wrong word is told here

    @overload
    def __call__(self, images: OneImage, *, bgr: bool = False) -> Any: ...
    @overload
    def __call__(self, images: Iterable[OneImage], *, bgr: bool = False) -> Any: ...
    def __call__(self, images: Any, *, bgr: bool = False) -> Any:
        """The result of one image (path, PIL image, array [H, W, C] or [H, W], tensor [C, H, W]); a list of results for a list or
        tuple of them, or an array or tensor with a first axis more; an iterator for an iterator, which holds a few images at a time.

        Arrays and tensors: uint8, uint16, or floating point in 0..1, RGB, or with ``bgr`` (arrays alone) as OpenCV has them. Raises
        :class:`UserError` for what cannot be read or predicted, naming it; with ``on_error="return"`` a :class:`Failed` stands in
        its place.
        """
        if is_one(images):
            return next(self._stream([images], bgr))
        if isinstance(images, Mapping | bytes) or not isinstance(images, Iterable):
            what = f"cannot be images: {type(images).__name__}"
            raise UserError("images", what, "give a path, an image, an array, a tensor, or a list of them")
        if isinstance(images, Iterator):
            return self._stream(images, bgr)
        return list(self._stream(images, bgr))

    def __getstate__(self) -> dict[str, Any]:
        # On the CPU, so that it can go to a machine that has another device.
        model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        return {**self.__dict__, "model": model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.device = _device(self.asked_device)
        self.model.to(self.device)

    def __repr__(self) -> str:
        config = self.model.config
        return f"Predictor({self.task}: {config.get('backbone')} + {config.get('head')}, {self.device})"

    def _stream(self, images: Iterable[Any], bgr: bool) -> Iterator[Any]:
        """Results in order. While the network works on one batch the next is read."""
        numbered = enumerate(images)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="predictor") as readers:
            coming = self._begun(readers, numbered, bgr)
            while coming:
                following = self._begun(readers, numbered, bgr)
                yield from self._answered([one.result() for one in coming])
                coming = following

    def _begun(
        self, readers: ThreadPoolExecutor, numbered: Iterator[tuple[int, Any]], bgr: bool
    ) -> list["Future[Fitted | Failed]"]:
        """The next images, being read and brought to size; so many as a batch takes."""
        count = 1 if self.reading.tile is not None and self.task == "seg" else self.batch_size
        # Each is looked at before the next is asked for: an iterator may use its memory again.
        return [
            readers.submit(self._fitted, *self._source(given, number, bgr)) for number, given in islice(numbered, count)
        ]

    def _source(self, given: Any, number: int, bgr: bool) -> tuple[ImageSource | None, UserError | None, str]:
        spec, reading = self.model.image_spec, self.reading
        try:
            found = source_of(
                given,
                number,
                channels=len(spec.mean),
                depth=reading.depth,
                exif=reading.exif,
                max_pixels=self.max_pixels,
                bgr=bgr,
            )
        except UserError as error:
            return None, error, f"image {number}"
        return found, None, found.name

    def _fitted(self, source: ImageSource | None, error: UserError | None, name: str) -> "Fitted | Failed":
        try:
            if source is None:
                assert error is not None
                raise error
            pixels, plan = self._fit(source())
            return Fitted(source, pixels, plan)
        except UserError as wrong:
            return self._failed(name, wrong)

    def _failed(self, name: str, error: UserError) -> Failed:
        if self.on_error == "raise":
            raise error
        return Failed(name, str(error))

    def _answered(self, batch: list["Fitted | Failed"]) -> Iterator[Any]:
        """One result for each, by the network asked once for all images of a shape."""
        found: dict[int, Any] = {}
        groups: dict[Any, list[int]] = {}
        for row, one in enumerate(batch):
            if isinstance(one, Failed):
                found[row] = one
            else:
                groups.setdefault((one.pixels.shape, one.pixels.dtype), []).append(row)
        for rows in groups.values():
            some = [one for row in rows if isinstance(one := batch[row], Fitted)]
            with autocast(self.device, self.precision):
                results = answers(
                    self.model,
                    some,
                    self.classes,
                    self.wishes,
                    reading=self.reading,
                    batch_size=self.batch_size,
                )
            for row, one, result in zip(rows, some, results, strict=True):
                found[row] = self._failed(one.source.name, result) if isinstance(result, UserError) else result
        yield from (found[row] for row in range(len(batch)))


def load_predictor(
    source: str | PathLike[str] | Model,
    *,
    device: str | torch.device = "auto",
    threshold: float | None = None,
    top_k: int | None = None,
    batch_size: int | None = None,
    probabilities: bool = False,
    on_error: Literal["raise", "return"] = "raise",
    precision: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> Predictor:
    """A :class:`Predictor` of a model file, of a run folder (its best weights), or of a :class:`Model`.

    ``device``: ``auto`` takes a GPU where there is one. ``threshold``: boxes below it are left out; of several labels those that are
    told; in masks of one channel where foreground begins, of several below which a pixel has no class, of classes that overlap over
    which each is there. ``top_k``: so many classes or
    boxes of an image at most. ``batch_size``: images that the network gets at once (8). ``probabilities``: masks come with those
    of all classes. ``on_error``: ``return`` gives a :class:`Failed` for an image that cannot be read or predicted. ``precision``:
    ``auto`` is that of the commands, bf16 on a GPU. ``max_pixels``: larger files are refused.

    Raises :class:`UserError` for what is no model, and for arguments that the task has no use for.
    """
    if isinstance(source, Model):
        model = source
    elif isinstance(source, str | PathLike):
        path = Path(source)
        model = load_model(path / BEST if path.is_dir() else path)
    else:
        what = f"expected a model file, a run folder or a Model, got {type(source).__name__}"
        raise UserError("load_predictor", what, "give one of them")
    return Predictor(
        model,
        device=device,
        threshold=threshold,
        top_k=top_k,
        batch_size=batch_size,
        probabilities=probabilities,
        on_error=on_error,
        precision=precision,
        max_pixels=max_pixels,
    )


def _refuse_idle(task: str, wishes: Wishes) -> None:
    """Refuse what a single task has no use for."""
    if wishes.top_k is not None and task == "seg":
        raise UserError("top_k", "a mask has one class in each pixel", "leave it out, or ask for probabilities")
    if wishes.probabilities and task in ("cls", "det"):
        raise UserError("probabilities", "are those of every pixel, and go with segmentation", "leave it out")


def _device(asked: str | torch.device) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            "device", f"{asked} cannot be used ({str(error).splitlines()[0][:120]})", "auto, or cpu"
        ) from None
    return device


def _fitting(model: Model, reading: ReadingSpec) -> Fitting:
    if model.head.task == "cls":
        return Fitting.of_classes(model.image_spec)
    own_size = reading.tile is not None and model.head.task == "seg"
    return Fitting.of_places(
        model.image_spec, aspect=reading.batch_shape == "aspect", divisor=model.head.size_divisor, own_size=own_size
    )


def _numbered(head: Any) -> Any:
    """Names of classes that have none: numbers."""
    heads = getattr(head, "heads", None)
    if heads is not None:
        return {word: _numbered(one) for word, one in heads.items()}
    return tuple(str(label) for label in range(head.num_classes))
