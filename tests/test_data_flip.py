"""Flips that alternate: both sides of every image in any two epochs, whoever reads it."""

from dataclasses import replace

import numpy as np
import pytest

from effbackbones.images.spec import ImageSpec
from tasks.data.batch import KeyedDataset, mirrored_in
from tasks.data.door.transforms import class_transform, view_transform
from tasks.data.sample import Sample, Transform
from tasks.settings.data import DataConfig

SPEC = ImageSpec((8, 8))
DATA = DataConfig(crop="none", flip_mode="alternating", resize="exact")


class Halves:
    """Images of which the left half is white, with a box around that and a mask of it."""

    classes = ("half",)

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Sample:
        image = np.zeros((8, 8, 3), np.uint8)
        image[:, :4] = 255
        boxes, mask = np.array([[0, 0, 4, 8]], np.float32), (image[..., 0] > 0).astype(np.uint8)
        return Sample(image, str(index), label=0, boxes=boxes, box_labels=np.zeros(1, np.int64), mask=mask)


def transforms(data: DataConfig) -> list[Transform]:
    """Of classification, and of places."""
    views = view_transform(data, SPEC, train=True, epochs=4, size_divisor=1)
    return [class_transform(data, SPEC, train=True), views]


def turned(sample: Sample) -> bool:
    """Whether it was mirrored; image, box and mask agree in it."""
    right = bool(sample.image[0, -1, 0])
    assert right != bool(sample.image[0, 0, 0])
    if sample.boxes is not None and sample.mask is not None:
        assert (sample.boxes[0, 0] == 4) == right == bool(sample.mask[0, -1])
    return right


@pytest.mark.parametrize("kind", [0, 1])
def test_any_two_epochs_show_both_sides_of_every_image(kind: int) -> None:
    seen = KeyedDataset(Halves(), transforms(DATA)[kind], seed=3, alternate=True)
    epochs = np.array([[turned(seen[epoch, index]) for index in range(200)] for epoch in range(3)])
    assert (epochs[0] != epochs[1]).all()
    assert (epochs[0] == epochs[2]).all()
    assert 70 < epochs[0].sum() < 130  # half of them begin mirrored, and not every second one
    assert epochs[0].tolist() == [mirrored_in(3, 0, index) for index in range(200)]
    assert epochs[0].tolist() != [mirrored_in(4, 0, index) for index in range(200)]


def test_nothing_else_that_is_drawn_changes_by_it() -> None:
    data = replace(DATA, scale_jitter=(0.5, 1.5), vertical_flip=0.5)
    transform = transforms(data)[1]
    by_chance, in_turn = (KeyedDataset(Halves(), transform, alternate=way) for way in (False, True))
    for index in range(20):
        one, other = by_chance[0, index], in_turn[0, index]
        assert one.plan is not None
        assert other.plan is not None
        mirrored = (one.plan.mirrored[0], other.plan.mirrored[1])
        assert replace(one.plan, mirrored=mirrored) == other.plan


def test_four_images_set_together_are_turned_each_in_its_turn() -> None:
    transform = transforms(replace(DATA, mosaic=1.0))[1]
    seen = KeyedDataset(Halves(), transform, alternate=True)
    samples = [replace(Halves()[0], mirrored=True)] * 4
    plain = [replace(Halves()[0], mirrored=False)] * 4
    made = [transform.combine(each, np.random.default_rng(0)).image for each in (samples, plain)]  # type: ignore[attr-defined]
    assert not np.array_equal(*made)
    shown: list[Sample] = []
    transform.combine = lambda four, rng: shown.extend(four) or four[0]  # type: ignore[attr-defined]
    for index in range(8):
        assert seen[1, index].mirrored == mirrored_in(0, 1, index)
    assert len(shown) == 8 * 4
    assert all(sample.mirrored == mirrored_in(0, 1, int(sample.id)) for sample in shown)  # the partners too


def test_where_flips_are_off_none_is_made() -> None:
    for transform in transforms(replace(DATA, flip=0.0)):
        seen = KeyedDataset(Halves(), transform, alternate=True)
        assert not any(turned(seen[epoch, index]) for epoch in range(2) for index in range(10))
