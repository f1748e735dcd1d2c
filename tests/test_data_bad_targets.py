"""Targets that a loss could not take are refused where a batch is collated."""

import numpy as np
import pytest

from effbackbones.errors import UserError
from tasks.data.collating import box_targets, class_targets, collate
from tasks.data.sample import Sample

IMAGE = np.zeros((8, 8, 3), np.uint8)


def boxed(*box: float, label: int = 0) -> Sample:
    return Sample(IMAGE, "one", boxes=np.array([box], np.float32), box_labels=np.array([label]))


@pytest.mark.parametrize(
    ("sample", "field"),
    [
        (Sample(IMAGE, "one", label=3), "label: expected less than 3"),
        (Sample(IMAGE, "one", labels=np.zeros(4, np.float32)), "labels: expected shape"),
        (boxed(1, 1, float("nan"), 4), "boxes: row 0"),
        (boxed(4, 1, 1, 4), "boxes: row 0"),
        (boxed(1, 1, 4), "boxes: expected numbers"),
        (boxed(1, 1, 4, 4, label=3), "box_labels: expected 0 or more, less than 3"),
        (boxed(1, 1, 4, 4, label=-1), "box_labels: expected 0 or more"),
    ],
)
def test_bad_target_is_named(sample: Sample, field: str) -> None:
    with pytest.raises(UserError, match=field) as caught:
        collate([sample], targets=class_targets, size_divisor=None, fill=(0, 0, 0), num_classes=3)
    assert "one" in str(caught.value)


def test_good_targets_pass() -> None:
    samples = [Sample(IMAGE, "one", label=2)]
    batch = collate(samples, targets=class_targets, size_divisor=None, fill=(0, 0, 0), num_classes=3)
    assert batch.targets.tolist() == [2]


def test_boxes_of_whole_pixels_pass() -> None:
    sample = Sample(IMAGE, "one", boxes=np.array([[1, 1, 4, 5]]), box_labels=np.array([2]))
    batch = collate([sample], targets=box_targets, size_divisor=None, fill=(0, 0, 0), num_classes=3)
    assert batch.targets.boxes[0, 0].tolist() == [1, 1, 4, 5]
