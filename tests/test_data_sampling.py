"""Rare classes more often, images of similar shape together: as functions of (seed, epoch)."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from effbackbones.errors import UserError
from tasks.data.boxes.table import BoxDataset
from tasks.data.check import check_dataset
from tasks.data.sample import Sample
from tasks.data.sampling import Repeated, repeat_factors
from tasks.data.sets.shapes import ShapesDataset
from tasks.engine.order import GlobalBatches, by_aspect, shuffled
from tasks.settings.data import DataConfig


class Labelled:
    """A data set of which only the labels matter."""

    def __init__(
        self, labels: list[list[int]], classes: int = 3, crowd: Callable[[int], bool] = lambda label: False
    ) -> None:
        self.labels, self.crowd = labels, crowd
        self.classes = tuple(f"class {number}" for number in range(classes))
        self.aspects = np.linspace(0.5, 2, len(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        labels = np.array(self.labels[index], np.int64)
        boxes = np.tile(np.array([0, 0, 4, 4], np.float32), (len(labels), 1))
        crowd = np.array([self.crowd(label) for label in labels], np.bool_)
        return Sample(np.zeros((8, 8, 3), np.uint8), str(index), boxes=boxes, box_labels=labels, crowd=crowd)


def test_factors_by_hand() -> None:
    """Class 0 in all of 16 images, class 1 in 4, class 2 in 1: with threshold 1, factors 1, 2 and 4."""
    labels = [[0, 0]] * 12 + [[0, 1, 1]] * 3 + [[2, 1, 0]]
    counts = np.bincount(repeat_factors(Labelled(labels), 1.0))
    assert counts.tolist() == [1] * 12 + [2] * 3 + [4]
    assert np.bincount(repeat_factors(Labelled(labels), 0.25)).tolist() == [1] * 15 + [2]
    assert repeat_factors(Labelled(labels), 1e-9).tolist() == list(range(16))


def test_fractions_are_rounded_at_random_from_the_seed() -> None:
    labels = [[0]] * 60 + [[0, 1]] * 40
    drawn = [repeat_factors(Labelled(labels), 0.9, seed) for seed in range(200)]
    counts = np.array([np.bincount(indices, minlength=100) for indices in drawn])
    assert (counts[:, :60] == 1).all()
    assert set(counts[:, 60:].ravel()) == {1, 2}
    assert counts[:, 60:].mean() == pytest.approx(np.sqrt(0.9 / 0.4), abs=0.01)
    np.testing.assert_array_equal(repeat_factors(Labelled(labels), 0.9, 7), drawn[7])
    assert any(len(indices) != len(drawn[0]) for indices in drawn)
    assert all((np.diff(indices) >= 0).all() for indices in drawn)


def test_empty_images_and_crowds_have_no_factor() -> None:
    labels = [[0]] * 15 + [[1]] + [[]] * 4
    assert np.bincount(repeat_factors(Labelled(labels), 0.2)).tolist() == [1] * 15 + [2, 1, 1, 1, 1]
    crowds = Labelled(labels, crowd=lambda label: label == 1)
    assert repeat_factors(crowds, 0.2).tolist() == list(range(20))
    assert repeat_factors(Labelled([[]] * 5), 0.5).tolist() == list(range(5))


def test_data_without_boxes_is_refused() -> None:
    class Unlabelled(Labelled):
        def __getitem__(self, index: int) -> Sample:
            return Sample(np.zeros((8, 8, 3), np.uint8), str(index), path=f"{index}.png")

    with pytest.raises(UserError, match=r"data\.repeat_threshold: 0\.png has no boxes"):
        repeat_factors(Unlabelled([[0]]), 0.5)


def test_the_table_gives_what_the_samples_give(data_root: Path) -> None:
    from tasks.data.door.boxes import coco

    data = DataConfig(name="coco", root=str(data_root / "coco_mini"))
    dataset = coco(data, "train", None)
    assert isinstance(dataset, BoxDataset)
    # Crowds are few and of frequent classes there; so that it matters, let half of the classes be nothing else.
    dataset = BoxDataset(replace(dataset.table, crowd=dataset.table.labels % 2 == 1), dataset.reader)

    class Plain:
        classes = dataset.classes

        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, index: int) -> Sample:
            return dataset[index]

    by_table = repeat_factors(dataset, 0.2, 3)
    np.testing.assert_array_equal(by_table, repeat_factors(Plain(), 0.2, 3))
    assert len(by_table) > len(dataset)
    view = Repeated(dataset, by_table)
    assert view.category_ids == dataset.category_ids
    for index in range(0, len(view), 20):
        np.testing.assert_array_equal(view.table.truth(index).boxes, view[index].truth.boxes)
        height, width = view[index].image.shape[:2]
        assert view.aspects[index] == width / height


def test_a_view_is_a_data_set() -> None:
    shapes = ShapesDataset((32, 32), 10)
    view = Repeated(shapes, np.array([3, 3, 9]))
    assert len(view) == 3
    assert [view[index].id for index in range(3)] == ["train-3", "train-3", "train-9"]
    assert view.mask_classes == shapes.mask_classes
    for name in ("aspects", "table", "category_ids"):
        assert getattr(view, name, None) is None
    with pytest.raises(IndexError):
        view[3]
    check_dataset(Repeated(shapes, np.array([5, 2])))
    copy = pickle.loads(pickle.dumps(view))  # noqa: S301  # our own bytes
    assert copy[2].id == "train-9"
    assert Repeated(Labelled([[0]] * 5), np.array([4, 0])).aspects.tolist() == [2.0, 0.5]


@given(st.integers(1, 400), st.integers(1, 9), st.integers(0, 9), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_order_by_aspect_is_a_permutation_and_pure(count: int, batch_size: int, seed: int, epoch: int) -> None:
    aspects = np.random.default_rng(seed).uniform(0.3, 3, count)
    order = by_aspect(shuffled(count, seed), aspects, batch_size, seed)
    indices = order(epoch)
    assert sorted(indices.tolist()) == list(range(count))
    np.testing.assert_array_equal(indices, by_aspect(shuffled(count, seed), aspects, batch_size, seed)(epoch))


def test_batches_are_alike_and_their_order_is_not() -> None:
    count, size = 4003, 16
    aspects = np.random.default_rng(0).choice([0.66, 0.75, 1.0, 1.33, 1.5], count, p=[0.1, 0.2, 0.1, 0.4, 0.2])
    plain = shuffled(count, 1)
    order = by_aspect(plain, aspects, size, 1)

    def spread(indices: np.ndarray) -> float:
        batches = aspects[indices[: count // size * size]].reshape(-1, size)
        return float(np.ptp(batches, axis=1).mean())

    assert spread(plain(0)) > 0.7
    assert spread(order(0)) < 0.1
    first = aspects[order(0)[: count // size * size : size]]
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.2  # the next batch may have any shape
    batches = [
        {frozenset(order(epoch)[i : i + size].tolist()) for i in range(0, count - size, size)} for epoch in (0, 1)
    ]
    assert not batches[0] & batches[1]  # other samples meet in another epoch
    assert not np.array_equal(order(0), by_aspect(shuffled(count, 2), aspects, size, 2)(0))


def test_an_epoch_goes_on_where_it_stopped() -> None:
    count, size = 50, 8
    order = by_aspect(shuffled(count, 0), np.linspace(0.5, 2, count), size, 0)
    whole = list(GlobalBatches(order, count, size, start=0, stop=14))
    assert whole[9:] == list(GlobalBatches(order, count, size, start=9, stop=14))
    assert {index for batch in whole[:7] for _, index in batch} == set(range(count))
