"""One image and what is known of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.geometry import IGNORE as IGNORE, Mask, Pixels, ResizePlan, Size


@dataclass(frozen=True)
class Truth:
    """Ground truth of one image as it is scored: in original pixels and at the precision of the file, untouched by any resize.

    ``boxes`` float64 [M, 4] as x, y, width, height; ``labels`` int64 [M] in 0..K-1; ``crowd`` bool [M]; ``area`` float64 [M]
    in square pixels (of the object, which may be less than its box).
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]

    @classmethod
    def of(cls, sample: "Sample") -> "Truth | None":
        """From the boxes of a sample that no transform has changed yet; None where it has none."""
        if sample.boxes is None or sample.box_labels is None:
            return None
        boxes = sample.boxes.astype(np.float64)
        sides = boxes[:, 2:] - boxes[:, :2]
        crowd = np.zeros(len(boxes), np.bool_) if sample.crowd is None else sample.crowd
        return cls(np.concatenate([boxes[:, :2], sides], 1), sample.box_labels, crowd, sides.prod(1))


@dataclass
class Sample:
    """One image and what is known of it. A data set fills in what it has; transforms keep it consistent.

    ``image`` [H, W, C]: uint8, uint16, or float32 in 0..1. ``id``: unique in the data set. ``path``: the file, for messages.
    ``label``: 0..K-1 or ``labels`` float32 [K] of 0 and 1. ``boxes`` float32 [M, 4] xyxy pixels of ``image`` with
    ``box_labels`` int64 [M] and ``crowd`` bool [M]. ``mask`` uint8 [H, W], a class in each pixel, 255 = ignore,
    or int32 [H, W], a set of classes in each, -1 = ignore (:mod:`effbackbones.images.classsets`).
    Set by transforms: ``plan``, how the image was brought to its size (None: in a way that cannot be undone, or not at
    all), ``original``, (H, W) before. ``skipped``: messages on unreadable samples that this one stands for.
    ``truth``: what boxes are scored against, where the data set knows it better than ``Truth.of`` would make it.
    ``truth_mask``: the mask before any transform, which predictions are scored against.
    ``mirrored``: set when it is read, where horizontal flips alternate: whether this epoch shows it mirrored (None: left to chance).
    ``target``: free for a task of your own (a number, an array, a dict of them); transforms and batches pass it on as it is.
    ``source``: what a data set made the image of, if it read no image, for transforms that make another; no batch has it.
    """

    image: Pixels
    id: str
    path: str = ""
    label: int | None = None
    labels: NDArray[np.float32] | None = None
    boxes: NDArray[np.float32] | None = None
    box_labels: NDArray[np.int64] | None = None
    crowd: NDArray[np.bool_] | None = None
    mask: Mask | None = None
    target: Any = None
    original: Size | None = None
    plan: ResizePlan | None = None
    skipped: tuple[str, ...] = ()
    truth: Truth | None = None
    truth_mask: Mask | None = None
    mirrored: bool | None = None
    source: Any = None


class Transform(Protocol):
    """Any callable that changes a sample and draws from ``rng`` alone what it needs at random."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


@runtime_checkable
class MixingTransform(Transform, Protocol):
    """A transform that may want other samples of the data set beside the one that is due, as a mosaic does."""

    def partners(self, epoch: int, rng: np.random.Generator) -> int:
        """How many others this sample is to be mixed with; they are chosen at random by the same key."""

    def combine(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """The sample that is due (first) and its partners as one, transformed; called only where there are partners."""


def labels_of(sample: Sample) -> NDArray[np.int64]:
    """The labels of its boxes, int64 [M]; boxes without them raise :class:`UserError`."""
    count = 0 if sample.boxes is None else len(sample.boxes)
    labels = np.zeros(0, np.int64) if sample.box_labels is None else sample.box_labels
    if len(labels) != count:
        raise UserError(
            sample.path or sample.id, f"has {count} boxes and {len(labels)} box_labels", "give each box a label"
        )
    return labels


def crowd_of(sample: Sample) -> NDArray[np.bool_]:
    """Which of its boxes are crowds, bool [M]; none, where it does not say."""
    if sample.crowd is not None:
        return sample.crowd
    return np.zeros(0 if sample.boxes is None else len(sample.boxes), np.bool_)
