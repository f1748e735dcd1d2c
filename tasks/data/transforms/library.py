"""Transforms of albumentations, applied to samples: image, boxes and mask move together, drawn from the sample's generator alone.

The library is imported where a transform is first made, for that takes seconds; it never asks the network for its newest version.
"""

import os
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.classsets import IGNORE, UNKNOWN, are_sets
from effbackbones.images.geometry import Mask
from tasks.data.sample import Sample, crowd_of, labels_of


def library() -> Any:
    """The module ``albumentations``; one that cannot be imported raises :class:`UserError`."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # read as it is imported
    try:
        import albumentations
        import cv2
    except ImportError as error:
        what = f"albumentations cannot be imported here ({error})"
        raise UserError("data.augment", what, "install albumentations again, or leave out data.augment") from None
    cv2.setNumThreads(0)  # its threads would starve the loaders, and do not survive in forked ones
    return albumentations


def seeded(compose: Any, rng: np.random.Generator) -> Any:
    """An albumentations ``Compose`` that will draw from ``rng`` alone. Its own seeding would give every transform in it
    the same stream."""
    compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    return compose


class Composed:
    """Made transforms of albumentations in a row, as one of ours. ``where`` names them in messages.

    Boxes that leave the image are left out with their labels, others clipped to it; a mask keeps its numbers of classes.
    """

    def __init__(self, transforms: Sequence[Any], where: str) -> None:
        self.transforms, self.where = list(transforms), where
        self._composes: dict[bool, Any] = {}  # with boxes and without

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with image, boxes and mask changed; it has no plan, for the way back is not known."""
        given: dict[str, Any] = {"image": np.ascontiguousarray(sample.image)}
        if sample.boxes is not None:
            given["bboxes"] = _numbered(sample)
        if sample.mask is not None:
            masked = _Bytes(sample.mask, sample.path or sample.id)
            given["mask"] = masked.mask
        try:
            got = seeded(self._compose("bboxes" in given), rng)(**given)
        except Exception as error:  # whatever the library or OpenCV raises: its arguments do not suit this image
            what = f"{self.where} fails on it: {' '.join(str(error).split())[:200]}"
            remedy = "correct its arguments, or put a Resize or PadIfNeeded before it"
            raise UserError(sample.path or sample.id, what, remedy) from error
        changed = replace(sample, image=self._checked(got["image"], sample), plan=None)
        if "mask" in given:
            changed = replace(changed, mask=masked.mask_of(got["mask"]))
        if "bboxes" in given:
            boxes = np.asarray(got["bboxes"], np.float32).reshape(-1, 5)
            rows = boxes[:, 4].astype(np.int64)
            labels, crowd = labels_of(sample)[rows], crowd_of(sample)[rows]
            changed = replace(changed, boxes=boxes[:, :4].copy(), box_labels=labels, crowd=crowd)
        return changed

    def _compose(self, boxes: bool) -> Any:
        if boxes not in self._composes:
            module = library()
            params = module.BboxParams(format="pascal_voc", clip=True) if boxes else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no transform in the row moves boxes is no fault
                self._composes[boxes] = module.Compose(self.transforms, bbox_params=params)
        return self._composes[boxes]

    def _checked(self, image: Any, sample: Sample) -> Any:
        """The image with its axis of channels; other numbers or channels than before raise :class:`UserError`."""
        image = image[..., None] if image.ndim == 2 else image
        before = sample.image
        if image.dtype != before.dtype or image.shape[2] != before.shape[2]:
            was, is_ = (f"{pixels.dtype} with {pixels.shape[2]} channels" for pixels in (before, image))
            what = f"gives images of {is_}, the data's are {was}"
            raise UserError(self.where, what, "leave out what changes the kind of number or the channels")
        return image


class _Bytes:
    """A mask as the library takes it, which fills and moves bytes: numbers of classes as they are; of sets of classes the number of
    each that occurs, 0 for no class and 255 for what is ignored. What has several channels it would fill in the first alone."""

    def __init__(self, mask: Mask, name: str) -> None:
        self.values: NDArray[np.int32] | None = None
        if not are_sets(mask):
            self.mask = np.ascontiguousarray(mask)
            return
        found = np.setdiff1d(mask, (0, UNKNOWN))
        if len(found) > IGNORE - 1:
            what = f"has {len(found)} different sets of classes in its mask, and data.augment moves {IGNORE - 1}"
            raise UserError(
                name, what, "leave data.augment out (data.flip, scale_jitter and crop_size move any), or join classes"
            )
        self.values = np.full(IGNORE + 1, UNKNOWN, np.int32)
        self.values[0], self.values[1 : len(found) + 1] = 0, found
        numbers = np.where(mask == 0, 0, 1 + np.searchsorted(found, mask))
        self.mask = np.where(mask == UNKNOWN, IGNORE, numbers).astype(np.uint8)

    def mask_of(self, moved: Any) -> Mask:
        """The mask that became of it."""
        numbers = np.asarray(moved, np.uint8)
        return numbers if self.values is None else self.values[numbers]


def _numbered(sample: Sample) -> Any:
    """Boxes float32 [N, 5]: clipped to the image, those that have an extent, with their number in the sample."""
    height, width = sample.image.shape[:2]
    assert sample.boxes is not None
    boxes = sample.boxes.clip(0, (width, height) * 2)
    rows = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    return np.concatenate([boxes[rows], rows[:, None]], 1).astype(np.float32)
