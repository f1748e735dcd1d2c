"""One door from images to answers: files, PIL images, arrays and tensors in, results in original pixels out."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
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
from effbackbones.export.record import format_of
from effbackbones.images.opening import Encoded
from effbackbones.images.reading import MAX_PIXELS
from effbackbones.images.spec import ReadingSpec
from effbackbones.images.video import Frame
from effbackbones.inference.answering import LIMITED, Wishes, answers, autocast, results_of, timed
from effbackbones.inference.exported import ExportedModel
from effbackbones.inference.fitting import Fitting
from effbackbones.inference.inputs import ImageSource, is_one, source_for
from effbackbones.inference.merging import Merged, merge_looks
from effbackbones.inference.preparing import Fit, Fitted, Placed, Prepared
from effbackbones.inference.results import Failed
from effbackbones.inference.thresholds import Thresholds, thresholds_of
from effbackbones.inference.views import Preparation, Slices, Views, looks_of
from effbackbones.model import Model

BEST = "best.safetensors"
"""The model file of a run folder."""
READERS = 4
"""Threads that read files and bring images to size while the network works."""
OneImage = str | PathLike[str] | Encoded | Image.Image | np.ndarray[Any, Any] | Tensor | Frame


class Predictor:
    """Images to results, as the commands make them: read (orientation, depth, channels), brought to size (letterbox, crop or tiles),
    predicted in batches, and brought back to the pixels of each image. It may be called from several threads, and be pickled into
    another process.

    ``source``: a model file, a run folder (its best weights are taken), or a :class:`Model`, which is put on the device and into
    eval mode. ``device``: ``auto`` takes a GPU where there is one. ``threshold``: in the place of the model's own (:attr:`thresholds`):
    boxes below it are left out; of several labels those that are there;
    in masks of one channel where foreground begins, of several below which a pixel has no class, of classes that
    overlap over which each is there. ``top_k``: so many classes or boxes of an image at most. ``batch_size``: images that the network
    gets at once (8). ``probabilities``: masks come with those of all classes. ``on_error``: ``return`` gives a :class:`Failed` for an
    image that cannot be read or predicted. ``precision``: ``auto`` is that of the commands, bf16 on a GPU. ``max_pixels``: larger
    files are refused. ``fit``: brings images to size in another way than the model says.

    ``tta``: other looks at each image, whose answers are averaged: ``flip``, factors of the size, or both, ``flip,0.8,1.25``
    (:class:`effbackbones.inference.views.Views`). ``slices``, of detectors: large images piece by piece, ``640`` pixels of it in square,
    ``640,128`` with an overlap, ``640,128,whole`` with a look at all of it for what fits in no slice
    (:class:`effbackbones.inference.views.Slices`; :mod:`effbackbones.inference.slicing` says what is promised).

    ``backend`` and ``dtype``: the answers are those of a copy for inference (:meth:`effbackbones.Model.for_inference`, ``auto`` where
    ``dtype`` alone is given); None: of the model as it is.

    Raises :class:`UserError` for what is no model, and for arguments that the task has no use for.
    """

    def __init__(
        self,
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
        fit: Fit | None = None,
        tta: str | bool | Views | None = None,
        slices: str | int | Slices | None = None,
        backend: str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        model = _model(source)
        if on_error not in ("raise", "return"):
            raise UserError("on_error", f"unknown value {on_error!r}", "raise or return")
        if batch_size is not None and batch_size < 1:
            raise UserError("batch_size", f"expected at least 1 image at once, got {batch_size}", "correct it")
        self.wishes = Wishes(threshold, top_k, probabilities)
        self.task: str = model.head.task
        _refuse_idle(tuple(getattr(model.head, "heads", (self.task,))), self.wishes)
        self.reading = model.reading or ReadingSpec()
        self.batch_size, self.on_error, self.precision, self.max_pixels = (
            batch_size or 8,
            on_error,
            precision,
            max_pixels,
        )
        self.asked_device = device
        self.device = device_of(device)
        self.model = model.to(self.device).eval()
        if backend is not None or dtype is not None:
            self.model = model = faster(self.model, backend, dtype, precision)
            self.precision = precision if dtype is None else "fp32"
        self.classes: Any = _named(model)
        self.fit = fit or fitting_of(model, self.reading)
        self.looks = looks_of(self.fit, tta, slices, model)
        self.prepare = Preparation(self.fit, self.looks)
        with autocast(self.device, precision):
            pass  # a wrong word is told here

    @overload
    def __call__(self, images: OneImage, *, bgr: bool = False) -> Any: ...
    @overload
    def __call__(self, images: Iterable[OneImage], *, bgr: bool = False) -> Any: ...
    def __call__(self, images: Any, *, bgr: bool = False) -> Any:
        """The result of one image (path, :class:`effbackbones.images.opening.Encoded` file, PIL image, array [H, W, C] or [H, W],
        tensor [C, H, W], a frame that :class:`effbackbones.images.video.Video` gives); a list of results for a list or
        tuple of them, or an array or tensor with a first axis more; an iterator for an iterator, which holds a few images at a time.

        Arrays and tensors: uint8, uint16, or floating point in 0..1, RGB, or with ``bgr`` (arrays alone) as OpenCV has them. Of a model
        that hears recordings (``image_spec.rate``): sound files, or arrays [T] or [T, C] of that rate, int16 or floating point in -1..1.
        Raises
        :class:`UserError` for what cannot be read or predicted, naming it; with ``on_error="return"`` a :class:`Failed` stands in
        its place.
        """
        if is_one(images):
            return next(self._stream([images], bgr))
        in_memory = isinstance(images, bytes | bytearray | memoryview) or hasattr(
            images, "read"
        )  # files too go line by line
        if in_memory or isinstance(images, Mapping) or not isinstance(images, Iterable):
            what = f"cannot be images: {type(images).__name__}"
            remedy = "give a path, an image, an array, a tensor, or a list of them"
            if in_memory:
                remedy = "give a path, or of a file in memory Encoded(name, bytes) of effbackbones.images.opening"
            raise UserError("images", what, remedy)
        if isinstance(images, Iterator):
            return self._stream(images, bgr)
        return list(self._stream(images, bgr))

    def __getstate__(self) -> dict[str, Any]:
        # On the CPU, so that it can go to a machine that has another device.
        model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        return {**self.__dict__, "model": model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.device = device_of(self.asked_device)
        self.model.to(self.device)

    def __repr__(self) -> str:
        config = self.model.config
        return f"Predictor({self.task}: {config.get('backbone')} + {config.get('head')}, {self.device})"

    @property
    def thresholds(self) -> dict[str, Thresholds]:
        """From which scores on boxes count, and classes that may be there together, by task: those that were asked for, else the
        model's own (:mod:`effbackbones.inference.thresholds`). Empty where the most probable class is the answer."""
        return thresholds_of(self.model, self.wishes.threshold)

    def told_thresholds(self) -> list[str]:
        """The same in a line for each task."""
        several = isinstance(self.classes, Mapping)
        return [
            one.told(word, self.classes[word] if several else self.classes) for word, one in self.thresholds.items()
        ]

    def limited(self, threshold: float | None = None, top_k: int | None = None) -> "Predictor":
        """The same predictor, of the same model, with other limits. Raises :class:`UserError` where the task has no use for them."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.wishes = replace(self.wishes, threshold=threshold, top_k=top_k)
        _refuse_idle(tuple(getattr(self.model.head, "heads", (self.task,))), other.wishes)
        return other

    def read(self, image: OneImage, number: int = 0) -> Fitted | list[Fitted] | Failed:
        """An image read and brought to size, as ``prepare.together`` takes it for :meth:`answer`; ``number`` names what has no name."""
        return self._fitted(self._source(image, number, bgr=False))

    def answer(self, batch: Prepared) -> list[Any]:
        """One result for each image of a batch that was read elsewhere (by ``prepare``,
        :class:`effbackbones.inference.views.Preparation`): the network is asked once for all images of a shape."""
        if self.looks is not None:
            return [self._result(one) for one in self.merged(batch)]
        found: dict[int, Any] = {
            row: self._failed(one) for row, one in enumerate(batch.places) if isinstance(one, Failed)
        }
        for rows, images in batch.groups:
            some = [one for row in rows if isinstance(one := batch.places[row], Placed)]
            with autocast(self.device, self.precision):
                results = answers(
                    self.model,
                    images,
                    some,
                    self.classes,
                    self.wishes,
                    reading=self.reading,
                    batch_size=self.batch_size,
                )
            for row, one, result in zip(rows, some, results, strict=True):
                wrong = isinstance(result, UserError)
                found[row] = self._failed(Failed(one.source.name, str(result))) if wrong else result
        return [found[row] for row in range(len(batch))]

    @property
    def at_once(self) -> int:
        """How many images make a batch: so many that the network is full, but one of those that are large."""
        if (self.reading.tile is not None and self.task == "seg") or (self.looks and self.looks.slices):
            return 1
        return self.batch_size if self.looks is None else max(1, self.batch_size // self.looks.views.count)

    def merged(self, batch: Prepared) -> list[Merged | Failed]:
        """What the looks at each image of a batch make together, for who wants no results of it; only where there are several."""
        assert self.looks is not None
        with autocast(self.device, self.precision):
            return merge_looks(
                self.model, batch, self.looks, self.wishes, reading=self.reading, batch_size=self.batch_size
            )

    def _result(self, one: Merged | Failed) -> Any:
        if isinstance(one, Failed):
            return self._failed(one)
        result: Any = one.found
        if not isinstance(result, UserError):
            alone = (
                {word: _alone(part) for word, part in result.items()} if isinstance(result, dict) else _alone(result)
            )
            result = results_of(self.model, alone, [one.place], self.classes, self.wishes)[0]
            if one.frames:
                result = timed(self.model, result, one.frames, one.windows)
        return self._failed(Failed(one.place.source.name, str(result))) if isinstance(result, UserError) else result

    def _stream(self, images: Iterable[Any], bgr: bool) -> Iterator[Any]:
        """Results in order. While the network works on one batch the next is read."""
        numbered = enumerate(images)
        with ThreadPoolExecutor(READERS, thread_name_prefix="predictor") as readers:
            coming = self._begun(readers, numbered, bgr)
            while coming:
                following = self._begun(readers, numbered, bgr)
                yield from self.answer(self.prepare.together([one.result() for one in coming]))
                coming = following

    def _begun(
        self, readers: ThreadPoolExecutor, numbered: Iterator[tuple[int, Any]], bgr: bool
    ) -> list["Future[Fitted | list[Fitted] | Failed]"]:
        """The next images, being read and brought to size; so many as a batch takes."""
        # Each is looked at before the next is asked for: an iterator may use its memory again.
        found = [self._source(given, number, bgr) for number, given in islice(numbered, self.at_once)]
        return [readers.submit(self._fitted, one) for one in found]

    def _source(self, given: Any, number: int, bgr: bool) -> ImageSource | Failed:
        try:
            spec, limit = self.model.image_spec, self.max_pixels
            return source_for(given, number, spec, self.reading, max_pixels=limit, bgr=bgr)
        except UserError as error:
            return Failed(f"image {number}", str(error))

    def _fitted(self, one: ImageSource | Failed) -> Fitted | list[Fitted] | Failed:
        found = self.prepare(one) if isinstance(one, ImageSource) else one
        return self._failed(found) if isinstance(found, Failed) else found

    def _failed(self, failed: Failed) -> Failed:
        if self.on_error == "raise":
            raise UserError(failed.error)
        return failed


load_predictor = Predictor


def faster(model: Model, backend: str | None, dtype: torch.dtype | str | None, precision: str) -> Model:
    """A copy for inference. Autocast to bf16, which graphs know nothing of, raises :class:`UserError` on a CPU, unless ``dtype`` says what
    is to be computed in."""
    if dtype is None and precision in ("bf16", "fp16") and next(model.parameters()).device.type == "cpu":
        what = f"{precision} is autocast, which a copy for inference knows nothing of"
        raise UserError("precision", what, "leave it at fp32, and ask for dtype bfloat16")
    return model.for_inference(dtype, backend or "auto")


def _model(source: str | PathLike[str] | Model) -> Model:
    if isinstance(source, Model):
        return source
    if not isinstance(source, str | PathLike):
        what = f"expected a model file, a run folder or a Model, got {type(source).__name__}"
        raise UserError("load_predictor", what, "give one of them")
    path = Path(source)
    if format_of(path) is not None and not path.is_dir():
        return ExportedModel.open(path)
    return load_model(path / BEST if path.is_dir() else path)


def _refuse_idle(tasks: tuple[str, ...], wishes: Wishes) -> None:
    """Refuse what none of the tasks has a use for."""
    for name, value in (("threshold", wishes.threshold), ("top_k", wishes.top_k)):
        if value is not None and LIMITED.isdisjoint(tasks):
            raise UserError(name, f"is not for what a head of task {', '.join(tasks)} predicts", "leave it out")
    if wishes.top_k is not None and tasks == ("seg",):
        what = "limits classes of an image or boxes, not masks"
        raise UserError("top_k", what, "leave it out, or ask for probabilities")
    if wishes.probabilities and len(tasks) == 1 and tasks[0] in ("cls", "det"):
        raise UserError("probabilities", "are those of every pixel, and go with segmentation", "leave it out")


def device_of(asked: str | torch.device) -> torch.device:
    """The device that is asked for; ``auto`` takes a GPU where there is one. One that cannot be used raises :class:`UserError`."""
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


def fitting_of(model: Model, reading: ReadingSpec) -> Fitting:
    """How images are brought to the size at which ``model`` is asked; a graph that resizes gets them as they are."""
    if model.resizes:
        return replace(Fitting.of_classes(model.image_spec), mode="own")
    if model.head.task == "cls":
        return Fitting.of_classes(model.image_spec)
    own_size = reading.tile is not None and model.head.task == "seg"
    return Fitting.of_places(
        model.image_spec, aspect=reading.batch_shape == "aspect", divisor=model.head.size_divisor, own_size=own_size
    )


def _alone(found: Any) -> Any:
    """What was found in one image as a batch of it."""
    return found[None] if isinstance(found, Tensor) else [found]


def _named(model: Any) -> Any:
    """Names of the classes of a model, by task where there are several; numbers where it has none."""
    given, numbers = model.classes, _numbered(model.head)
    if not given:
        return numbers
    if isinstance(numbers, dict) and isinstance(given, Mapping):
        given = {word: given.get(word) or numbers[word] for word in numbers}
    pairs = zip(given.values(), numbers.values(), strict=True) if isinstance(given, Mapping) else [(given, numbers)]
    for names, numbered in pairs:
        # One class may be told by two names: what it is, and what it is not.
        if isinstance(numbered, dict) or (len(names) != len(numbered) and (len(numbered), len(names)) != (1, 2)):
            expected = (
                f"names by task: {', '.join(numbered)}" if isinstance(numbered, dict) else f"{len(numbered)} names"
            )
            raise UserError("Model.classes", f"expected {expected}, got {str(names)[:60]}", "set them anew")
    return given


def _numbered(head: Any) -> Any:
    """Names of classes that have none: numbers."""
    heads = getattr(head, "heads", None)
    if heads is not None:
        return {word: _numbered(one) for word, one in heads.items()}
    return tuple(str(label) for label in range(head.num_classes))
