"""An image looked at through a window, with its boxes and its mask: the geometry that all of them share.

A :class:`ResizePlan` says where everything goes; only the plan is random.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from effbackbones.images.colours import fill_of
from effbackbones.images.geometry import ResizePlan, Size
from tasks.data.sample import Sample, crowd_of, labels_of

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec


class Jitter(NamedTuple):
    """What is drawn for one view: the factor on the letterbox, the place of the crop in what it may move (0..1, vertical and
    horizontal), and whether the image is turned over (upside down, left to right)."""

    factor: float
    place: tuple[float, float]
    mirrored: tuple[bool, bool]


class JitterRange(NamedTuple):
    """What a :class:`Jitter` is drawn from: the range of the factor, and the probabilities of a vertical and a horizontal flip."""

    scale: tuple[float, float] = (1.0, 1.0)
    vertical_flip: float = 0.0
    flip: float = 0.5

    def draw(self, rng: np.random.Generator, mirrored: bool | None = None) -> Jitter:
        """One of them; always five numbers of ``rng``. Whether it is ``mirrored`` left to right may be known (of :class:`Sample`)."""
        low, high = self.scale
        scale, down, right, upside_down, left_to_right = rng.random(5).tolist()
        turned = left_to_right < self.flip if mirrored is None else mirrored and self.flip > 0
        return Jitter(low + (high - low) * scale, (down, right), (upside_down < self.vertical_flip, turned))


def jittered(
    original: Size, room: Size, window: Size, jitter: Jitter, at_end: tuple[bool, bool] = (False, False)
) -> ResizePlan:
    """The letterbox of ``room`` times the factor, seen through ``window`` (all H, W).

    On an axis where the image is larger than the window, a part of it is seen, at a random place; where it is smaller, it lies
    at the beginning of the window, or ``at_end`` of it (vertical, horizontal).
    """
    height, width = (max(1, int(side * jitter.factor)) for side in room)
    scaled = ResizePlan.letterbox(original, (height, width)).scaled
    beyond = [side - seen for side, seen in zip(scaled, window, strict=True)]
    top, left = (
        int(place * (more + 1)) if more > 0 else more * last
        for more, place, last in zip(beyond, jitter.place, at_end, strict=True)
    )
    return ResizePlan(original, scaled, (top, left), window, jitter.mirrored)


def through(sample: Sample, plan: ResizePlan, spec: "ImageSpec", *, exact: bool, quick: bool = False) -> Sample:
    """Image, boxes and mask of ``sample`` through ``plan``: padded with the mean colour and with ignored pixels, boxes clipped
    to what is seen of the image. No box is left out, not even where nothing is seen of it. ``exact``, ``quick``: of ``apply_image``."""
    fill = fill_of(sample.image, spec.mean).tolist()
    image = plan.apply_image(sample.image, spec.interpolation, fill, exact=exact, quick=quick)
    boxes = sample.boxes
    if boxes is not None:
        left, top, right, bottom = plan.content
        boxes = plan.apply_boxes(boxes).clip((left, top) * 2, (right, bottom) * 2).astype(np.float32, copy=False)
    mask = None if sample.mask is None else plan.apply_mask(sample.mask)
    return replace(sample, image=image, boxes=boxes, mask=mask, plan=plan, original=plan.original)


def trainable(sample: Sample, min_box: float, *, crowds: bool) -> Sample:
    """Without the boxes that have no extent or a side of less than ``min_box`` pixels, and without crowds unless ``crowds``."""
    if sample.boxes is None:
        return sample
    sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
    keep = ((sides >= min_box) & (sides > 0)).all(1)
    crowd, labels = crowd_of(sample), labels_of(sample)
    if not crowds:
        keep &= ~crowd
    if keep.all():
        return sample
    return replace(sample, boxes=sample.boxes[keep], box_labels=labels[keep], crowd=crowd[keep])
