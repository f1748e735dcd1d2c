"""The procedural data set: what it promises of classes, boxes and masks."""

import pickle

import numpy as np
import pytest

from effbackbones.errors import UserError
from tasks.data.check import check_dataset
from tasks.data.door.labels import shapes
from tasks.data.sets.shapes import CLASSES, ShapesDataset
from tasks.settings.data import DataConfig


def test_keeps_the_promises_of_a_data_set() -> None:
    for size in ((64, 64), (48, 96)):
        check_dataset(ShapesDataset(size, 200))


def test_boxes_are_tight_and_agree_with_the_mask() -> None:
    dataset = ShapesDataset((64, 80), 300)
    counts = set()
    for index in range(300):
        sample = dataset[index]
        assert sample.image.shape == (64, 80, 3)
        assert sample.mask is not None
        assert sample.boxes is not None
        assert sample.box_labels is not None
        assert sample.label is not None
        counts.add(len(sample.boxes))
        # Every pixel of the mask lies in a box of its class; each edge of a box touches a pixel of its class.
        covered = np.zeros(sample.mask.shape, bool)
        for (x0, y0, x1, y1), label in zip(sample.boxes.astype(int), sample.box_labels, strict=True):
            inside = sample.mask[y0:y1, x0:x1] == label + 1
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # noqa: PT018
            covered[y0:y1, x0:x1] |= inside
        np.testing.assert_array_equal(covered, sample.mask > 0)
        if len(sample.boxes) == len(
            set(sample.box_labels.tolist())
        ):  # one object of each class: its area is the mask's
            areas = np.bincount(sample.mask.ravel(), minlength=len(CLASSES) + 1)[1:]
            assert sample.label == areas.argmax()
    assert counts == {1, 2, 3, 4}


def test_every_class_occurs_alike() -> None:
    labels = np.bincount([ShapesDataset((32, 32), 1200)[index].label for index in range(1200)], minlength=6)
    assert labels.min() > 1200 / 6 * 0.75


def test_a_function_of_seed_split_and_index() -> None:
    dataset = pickle.loads(pickle.dumps(ShapesDataset(seed=1)))  # noqa: S301  # our own bytes
    image = ShapesDataset(seed=1)[7].image
    np.testing.assert_array_equal(dataset[7].image, image)
    others = [ShapesDataset(seed=2)[7], ShapesDataset(seed=1, split="val")[7], dataset[8]]
    assert not any(np.array_equal(other.image, image) for other in others)
    ids = {ShapesDataset(split=split)[index].id for split in ("train", "val", "test") for index in range(3)}
    assert len(ids) == 9
    with pytest.raises(IndexError):
        ShapesDataset(count=5)[5]


def test_outlines_are_visible() -> None:
    """An object differs from its surroundings by more than the noise."""
    for index in range(50):
        sample = ShapesDataset((64, 64), 50)[index]
        assert sample.mask is not None
        inside = sample.image[sample.mask == sample.label + 1].mean(0)
        around = sample.image[sample.mask == 0].mean(0)
        assert np.sqrt(((inside - around) ** 2).mean()) > 30


def test_factory() -> None:
    data = DataConfig(name="shapes", image_size=(40, 56), options={"val": 9, "objects": 1, "seed": 3})
    dataset = shapes(data, "val", None)
    assert len(dataset) == 9
    assert dataset[0].image.shape == (40, 56, 3)
    assert all(len(dataset[index].boxes) == 1 for index in range(9))  # type: ignore[arg-type]  # it has boxes
    assert len(shapes(data, "train", dataset.classes)) == 4096
    assert shapes(DataConfig(image_size=32), "test", None)[0].image.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objcts": 2}, "did you mean objects"),
        ({"objects": 0}, "at least 1"),
        ({"train": "many"}, "whole"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        shapes(DataConfig(name="shapes", options=options), "train", None)
    assert str(caught.value).startswith(f"data.options.{next(iter(options))}")


def test_classes_of_another_model_are_refused() -> None:
    with pytest.raises(UserError, match="circle"):
        shapes(DataConfig(name="shapes"), "val", ("cat", "dog"))


@pytest.mark.slow
def test_a_small_network_learns_it_and_a_linear_one_does_not() -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)

    def read(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        dataset = ShapesDataset((48, 48), count, split=split, objects=2)
        samples = [dataset[index] for index in range(count)]
        images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
        return images / 255 - 0.5, torch.tensor([sample.label for sample in samples])

    (images, labels), (val_images, val_labels) = read("train", 3000), read("val", 500)

    def accuracy(net: nn.Module, epochs: int) -> float:
        optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
        for _ in range(epochs):
            for ids in torch.randperm(3000).split(50):
                loss = nn.functional.cross_entropy(net(images[ids]), labels[ids])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            return float((net.eval()(val_images).argmax(1) == val_labels).float().mean())

    def block(before: int, after: int) -> list[nn.Module]:
        convolutions = nn.Conv2d(before, after, 3, 2, 1), nn.Conv2d(after, after, 3, 1, 1)
        return [layer for convolution in convolutions for layer in (convolution, nn.BatchNorm2d(after), nn.ReLU())]

    small = nn.Sequential(
        *block(3, 24), *block(24, 48), *block(48, 96), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 6)
    )
    assert accuracy(small, 8) > 0.6
    assert accuracy(nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 6)), 3) < 0.4
