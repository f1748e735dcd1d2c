"""What moves between a data set and the engine: batches, and the reading of a sample by (epoch, index).

What users' data sets and transforms begin with can be imported from here too, whichever file holds it.
"""

import errno
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effbackbones.contracts import ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.geometry import Mask, Pixels, ResizePlan, Size
from tasks.data.files.jpeg import Lowest, rows_needed
from tasks.data.files.slate import reading_sample
from tasks.data.sample import (
    IGNORE as IGNORE,
    MixingTransform as MixingTransform,
    Sample as Sample,
    Transform as Transform,
    Truth as Truth,
)

if TYPE_CHECKING:
    from tasks.data.dataset import Dataset

READING = "while reading"
"""How the note on an exception begins that came out of a data set or a transform."""
SUBSTITUTES = 20
"""So many other samples are tried in place of an unreadable one before giving up."""
_FLIP_STREAM = 2
"""Sets the draw of an alternating flip apart from others of the same seed and sample."""
MAX_SKIPPED = 0.01
"""Share of unreadable samples above which ``on_error="skip"`` stops all the same."""


@dataclass
class ImageMeta:
    """What a batch remembers of an image: ``original`` (H, W), the ``plan`` that restores predictions to it, and what those
    are scored against: the ``label`` or the labels float32 [K], the boxes of ``truth``, the classes of ``mask`` uint8 [original],
    the ``target`` of a task of the user's."""

    id: str
    path: str
    original: Size
    plan: ResizePlan | None = None
    skipped: tuple[str, ...] = ()
    truth: Truth | None = None
    mask: Mask | None = None
    label: int | NDArray[np.float32] | None = None
    target: Any = None

    @property
    def name(self) -> str:
        """What a reader knows the image by: the name of its file, and its id where that says more."""
        file = PurePath(self.path)
        if not self.path or (PurePath(self.id).name == file.name and not PurePath(self.id).is_absolute()):
            return self.id
        return file.name if self.id in (self.path, file.stem) else f"{file.name} \u00b7 {self.id}"

    @classmethod
    def of(cls, sample: Sample) -> "ImageMeta":
        """The meta data of a sample."""
        height, width = sample.original or sample.image.shape[:2]
        label = sample.labels if sample.label is None else sample.label
        known = sample.plan, sample.skipped, sample.truth, sample.truth_mask, label, sample.target
        return cls(sample.id, sample.path, (height, width), *known)


@dataclass
class Batch:
    """``images`` [B, C, H, W] of the samples' dtype, in channels-last memory; ``targets`` as the task's head wants them
    (a tensor, or tensors in a NamedTuple, dict or list), None without labels."""

    images: Tensor
    sizes: ImageSizes
    targets: Any = None
    meta: list[ImageMeta] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch with its tensors on ``device``."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch with its tensors in page-locked memory (called by the loader)."""
        return self.mapped(lambda tensor: tensor.pin_memory())

    def plans(self) -> list[ResizePlan]:
        """What brings predictions back to each image. One that came without a plan must have its original size, else
        :class:`UserError` names it."""
        missing = any(meta.plan is None for meta in self.meta)
        valid = self.sizes.valid.tolist() if missing else [None] * len(self.meta)
        return [meta.plan or _unchanged(meta, known) for meta, known in zip(self.meta, valid, strict=True)]

    def mapped(self, change: Callable[[Any], Any], kind: type = Tensor) -> Self:
        """The batch with ``change`` made to each of its tensors, or of what stands for them and is of that ``kind``."""
        sizes = self.sizes._replace(valid=change(self.sizes.valid))
        return replace(self, images=change(self.images), sizes=sizes, targets=_mapped(self.targets, change, kind))


def _unchanged(meta: ImageMeta, valid: Sequence[int]) -> ResizePlan:
    """The plan of an image that came without one, and has its original size."""
    if list(valid) != list(meta.original):
        what = f"is {list(valid)} pixels large and was {list(meta.original)}, and nothing says how to go back"
        raise UserError(meta.path or meta.id, what, "an evaluation transform must set Sample.plan")
    return ResizePlan.squash(meta.original, meta.original)


def _mapped(tree: Any, change: Callable[[Any], Any], kind: type) -> Any:
    """``change`` applied to everything of that ``kind`` in nested dicts, lists, tuples and NamedTuples."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change, kind) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [_mapped(value, change, kind) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


class KeyedDataset(torch.utils.data.Dataset[Sample]):
    """A data set read by the key ``(epoch, index)``: augmentation is a pure function of (seed, epoch, index).

    ``on_error``: ``stop`` lets the :class:`UserError` of an unreadable sample pass; ``skip`` puts another sample in its
    place, chosen by the key, whose ``skipped`` says so: :class:`SkipCount` adds these up where the batches arrive.
    Other exceptions are mistakes in code; they come out as they are, with a note that names the sample.

    ``alternate``: of each sample ``mirrored`` is said, in turn from epoch to epoch, from a start that (seed, index) draws: two epochs
    then show both sides of every image, where chance shows half of them one side twice (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a
    Single GPU", 2024, section 3.6).
    """

    def __init__(
        self,
        dataset: "Dataset",
        transform: Transform | None = None,
        seed: int = 0,
        on_error: str = "stop",
        *,
        alternate: bool = False,
    ) -> None:
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be stop or skip, got {on_error!r}")
        self.dataset, self.transform, self.seed, self.on_error = dataset, transform, seed, on_error
        self.alternate = alternate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = int(key[0]), int(key[1])
        try:
            return self._read(epoch, index)
        except UserError as error:
            if self.on_error == "stop" or getattr(error.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise  # in want of open files every sample is unreadable
            return self._substitute(epoch, index, error)

    def _read(self, epoch: int, index: int) -> Sample:
        sample: Sample | None = None
        reading_sample(f"sample {index}")
        try:
            sample = self._seen(epoch, index)
            if self.transform is None:
                return sample
            rng = np.random.default_rng((self.seed, epoch, index))
            if (mixing := _mixing(self.transform)) is not None and (count := mixing.partners(epoch, rng)):
                others = [self._seen(epoch, other) for other in rng.integers(len(self), size=count).tolist()]
                return mixing.combine([sample, *others], rng)
            return self.transform(sample, rng)
        except UserError:
            raise
        except Exception as error:
            where = f"sample {index}" if sample is None else f"sample {index}, id {sample.id!r}, file {sample.path!r}"
            # With its own text: a loader process sends an exception as its traceback, of which the last line is told.
            text = " ".join(f"{type(error).__name__} {error}".split())[:300]
            error.add_note(f"{READING} {where} of {type(self.dataset).__name__}: {text}")
            raise

    def _seen(self, epoch: int, index: int) -> Sample:
        """A sample as it is before the transform."""
        with rows_needed(self._lowest(epoch, index)):
            sample = self.dataset[index]
        return replace(sample, mirrored=mirrored_in(self.seed, epoch, index)) if self.alternate else sample

    def _lowest(self, epoch: int, index: int) -> Lowest | None:
        """What the transform looks at, where it says so and the data set itself looks at nothing."""
        tell: Callable[[tuple[int, ...]], Lowest | None] | None = getattr(self.transform, "lowest", None)
        return tell((self.seed, epoch, index)) if tell and only_reads(self.dataset) else None

    def _substitute(self, epoch: int, index: int, error: UserError) -> Sample:
        skipped, tried = [str(error)], {index}
        for other in np.random.default_rng((self.seed, epoch, index, 1)).integers(len(self), size=SUBSTITUTES).tolist():
            tried.add(other)  # of few samples one may be drawn again
            try:
                return replace(self._read(epoch, other), skipped=tuple(skipped))
            except UserError as again:
                skipped.append(str(again))
        what = f"{len(tried)} of {len(self)} samples were tried and cannot be read; the first: {skipped[0]}"
        raise UserError("data", what, "repair the data")


def _mixing(transform: Transform) -> MixingTransform | None:
    """A transform that mixes samples, else None. (``isinstance`` with a protocol takes ten times as long, for every sample.)"""
    mixes = hasattr(transform, "partners") and hasattr(transform, "combine")
    return cast(MixingTransform, transform) if mixes else None


def only_reads(dataset: Any) -> bool:
    """Whether a data set gives images as its reader reads them: by the ``only_reads`` of its own class, for one derived from it may not."""
    return "only_reads" in vars(type(dataset)) and dataset.only_reads is True


def mirrored_in(seed: int, epoch: int, index: int) -> bool:
    """Whether an alternating flip shows sample ``index`` mirrored in ``epoch``: every other one, half of the samples from the first on."""
    first = int(np.random.SeedSequence((seed, index, _FLIP_STREAM)).generate_state(1)[0]) & 1
    return (first + epoch) % 2 == 1


class SkipCount:
    """Unreadable samples met so far, counted in the process that consumes the batches.

    ``messages`` holds one line for each, in the order met. ``add`` raises :class:`UserError` once they are more than
    ``MAX_SKIPPED`` of the ``total`` samples of the data set.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.messages: dict[str, None] = {}

    def add(self, meta: Sequence[ImageMeta]) -> None:
        """Count what a batch had to skip; the same sample in a later epoch counts once."""
        for item in meta:
            self.messages.update(dict.fromkeys(item.skipped))
        if len(self.messages) > MAX_SKIPPED * self.total:
            share = f"{len(self.messages)} of {self.total} samples, more than {MAX_SKIPPED:.0%}, cannot be read"
            raise UserError("data", f"{share}; the first: {next(iter(self.messages))}", "repair the data")


def stack_images(samples: Sequence[Sample]) -> tuple[Tensor, ImageSizes]:
    """Images of one size as [B, C, H, W] in channels-last memory, and their sizes.

    Images that differ in shape or dtype raise :class:`UserError` naming two of them.
    """
    first = samples[0].image
    for sample in samples:
        if sample.image.shape != first.shape or sample.image.dtype != first.dtype:
            what = f"is {_kind(sample.image)}, {samples[0].path or samples[0].id} is {_kind(first)}"
            raise UserError(
                sample.path or sample.id, what, "bring all images to one size, dtype and number of channels"
            )
    pixels = _room_for((len(samples), *first.shape), torch.from_numpy(np.empty(0, first.dtype)).dtype)
    np.stack([sample.image for sample in samples], out=pixels.numpy())
    height, width = first.shape[:2]
    valid = [sample.plan.valid if sample.plan else (height, width) for sample in samples]
    return pixels.permute(0, 3, 1, 2), ImageSizes((height, width), torch.tensor(valid, dtype=torch.int64))


def _room_for(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor; in a loader process in memory that others see, so that the batch need not be copied there."""
    if torch.utils.data.get_worker_info() is not None:
        with suppress(RuntimeError, OSError):  # the loader finds another way, and tells
            new_shared: Any = torch.UntypedStorage._new_shared  # as torch's own collate does it
            storage: torch.UntypedStorage = new_shared(math.prod(shape) * dtype.itemsize)
            return torch.empty(0, dtype=dtype).set_(storage).view(shape)
    return torch.empty(shape, dtype=dtype)


def _kind(image: Pixels) -> str:
    return f"{' x '.join(map(str, image.shape))} {image.dtype}"
