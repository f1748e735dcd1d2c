"""Samples, batches, keyed reading, and the check of a user's own data set."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from effbackbones.build import build_model
from effbackbones.contracts import BoxTargets, ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan
from tasks.classification.task import TASK
from tasks.data.batch import MAX_SKIPPED, Batch, ImageMeta, KeyedDataset, SkipCount, stack_images
from tasks.data.check import check_dataset
from tasks.data.collating import class_targets, collate, mask_targets
from tasks.data.sample import Sample
from tasks.data.sampling import Repeated
from tasks.settings.sections import Config
from tasks.verbs.command import explain

CLASSES = partial(collate, targets=class_targets, size_divisor=None, fill=(0.5, 0.5, 0.5))


class Numbers:
    """Images whose pixels are their index; ``bad`` ones cannot be read."""

    classes = ("even", "odd")

    def __init__(self, count: int = 40, bad: Sequence[int] = (), error: type[Exception] = UserError) -> None:
        self.count, self.bad, self.error = count, set(bad), error

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise self.error(f"/data/{index}.jpg: broken")
        return Sample(np.full((4, 6, 3), index % 256, np.uint8), str(index), f"/data/{index}.jpg", label=index % 2)


def noisy(sample: Sample, rng: np.random.Generator) -> Sample:
    """A random transform."""
    return replace(sample, image=sample.image + rng.integers(100, size=sample.image.shape, dtype=np.uint8))


def failing(sample: Sample, rng: np.random.Generator) -> Sample:
    """A transform with a mistake in it."""
    raise IndexError("oops")


def keys(epoch: int, count: int, batch: int) -> list[list[tuple[int, int]]]:
    return [[(epoch, index) for index in range(start, min(start + batch, count))] for start in range(0, count, batch)]


def where_it_lies(samples: Sequence[Sample]) -> tuple[bool, Batch]:
    """Whether the images of a batch are in shared memory before they are sent anywhere, and the batch."""
    batch = CLASSES(samples)
    return batch.images.is_shared(), batch


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_processes_collate_where_others_see_it(workers: int) -> None:
    loader = DataLoader(
        KeyedDataset(Numbers(), noisy), batch_sampler=keys(0, 8, 8), collate_fn=where_it_lies, num_workers=workers
    )
    [(shared, batch)] = loader
    assert shared == bool(workers)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack([KeyedDataset(Numbers(), noisy)[0, index].image for index in range(8)])
    np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1), expected)


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    first, again = (KeyedDataset(Numbers(), noisy, seed=3) for _ in range(2))
    image = first[1, 5].image
    _ = first[0, 9], first[7, 0]  # what was read before does not matter
    np.testing.assert_array_equal(first[1, 5].image, image)
    np.testing.assert_array_equal(again[1, 5].image, image)
    others = [first[2, 5].image, KeyedDataset(Numbers(), noisy, seed=4)[1, 5].image, first[1, 6].image - 1]
    assert not any(np.array_equal(image, other) for other in others)


@pytest.mark.parametrize(("workers", "method"), [(1, "spawn"), (2, "fork")])
def test_workers_give_the_same_batches(workers: int, method: str) -> None:
    dataset = KeyedDataset(Numbers(), noisy, seed=3, on_error="skip")
    loaders = [
        DataLoader(dataset, batch_sampler=keys(2, 40, 8), collate_fn=CLASSES, num_workers=0),
        DataLoader(
            dataset,
            batch_sampler=keys(2, 40, 8),
            collate_fn=CLASSES,
            num_workers=workers,
            multiprocessing_context=method,
        ),
    ]
    pairs = list(zip(*loaders, strict=True))
    assert len(pairs) == 5
    for here, there in pairs:
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.targets, there.targets)
        assert here.meta == there.meta
        assert there.images.is_contiguous(memory_format=torch.channels_last)


def test_collated_batch() -> None:
    samples = [Numbers()[index] for index in (3, 4, 9)]
    batch = CLASSES(samples)
    assert len(batch) == 3
    assert batch.images.shape == (3, 3, 4, 6)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images[:, 0, 0, 0].tolist() == [3, 4, 9]
    assert batch.targets.tolist() == [1, 0, 1]
    assert batch.targets.dtype == torch.int64
    assert batch.sizes.batch == (4, 6)
    assert batch.sizes.valid.tolist() == [[4, 6]] * 3
    assert batch.meta[2] == ImageMeta("9", "/data/9.jpg", (4, 6), label=1)


def test_a_classifier_is_never_given_padded_images() -> None:
    """Its head looks at whole maps, and would not know padding from the image."""
    together = TASK.collate(Config(), build_model("cls", "lite0"))
    assert together([Numbers()[3]]).images.shape == (1, 3, 4, 6)
    with pytest.raises(UserError, match="bring all images to one size"):
        together([Numbers()[3], replace(Numbers()[4], image=np.zeros((4, 5, 3), np.uint8))])


def test_masks_of_other_sizes_are_padded_with_ignored_pixels() -> None:
    samples = [
        replace(Numbers()[1], image=np.zeros((*size, 3), np.uint8), mask=np.ones(size, np.uint8))
        for size in ((4, 6), (3, 9))
    ]
    batch = collate(samples, targets=mask_targets, size_divisor=8, fill=(0.5, 0.5, 0.5))
    assert batch.targets.shape == (2, 8, 16)
    for mask, (height, width) in zip(batch.targets, ((4, 6), (3, 9)), strict=True):
        assert mask[:height, :width].eq(1).all()
        assert mask.eq(255).sum() == 8 * 16 - height * width
    with pytest.raises(UserError, match="has no mask, others of its batch have"):
        collate([samples[0], replace(samples[0], mask=None)], targets=mask_targets, fill=(0.5, 0.5, 0.5))


def test_collated_plan_and_labels() -> None:
    plan = ResizePlan.letterbox((2, 6), (4, 6))
    labels = np.array([0, 1, 1], np.float32)
    sample = replace(Numbers()[1], label=None, labels=labels, plan=plan, original=(2, 6))
    batch = CLASSES([sample, sample])
    assert batch.sizes.valid.tolist() == [[2, 6]] * 2
    assert batch.targets.dtype == torch.float32
    assert batch.targets.tolist() == [[0, 1, 1]] * 2
    assert batch.meta[0].plan == plan
    assert batch.meta[0].original == (2, 6)
    unlabelled = replace(sample, labels=None)
    assert CLASSES([unlabelled]).targets is None
    with pytest.raises(UserError, match=r"/data/1\.jpg: has no label"):
        CLASSES([sample, unlabelled])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_images_stack(dtype: type) -> None:
    image = np.ones((5, 4, 2), dtype)
    images, _ = stack_images([Sample(image, "a"), Sample(image, "b")])
    assert images.shape == (2, 2, 5, 4)
    assert images.numpy().dtype == dtype


@pytest.mark.parametrize(
    "image", [np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6, 1), np.uint8), np.zeros((4, 6, 3), np.uint16)]
)
def test_odd_image_in_a_batch_is_named(image: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"odd\.png: is 4 x . x . uint.*4 x 6 x 3 uint8"):
        CLASSES([Numbers()[0], replace(Numbers()[1], image=image, path="odd.png")])


class Pair(NamedTuple):
    one: torch.Tensor
    two: torch.Tensor


def test_batches_move_with_any_targets() -> None:
    images, word = torch.zeros(2, 3, 4, 4), torch.ones(2)
    boxes = BoxTargets(torch.zeros(2, 1, 4), torch.zeros(2, 1), torch.zeros(2, 1))
    for targets in (None, word, boxes, {"det": boxes, "seg": word}, [word, (word, word)]):
        batch = Batch(images, ImageSizes.of(images), targets, [])
        moved = batch.to("meta")
        assert moved.images.device.type == moved.sizes.valid.device.type == "meta"
        assert type(moved.targets) is type(targets)
    assert moved.targets[1][0].device.type == "meta"
    assert batch.targets[0].device.type == "cpu"  # the original stays
    nested = Batch(images, ImageSizes.of(images), {"det": boxes}, []).to("meta").targets["det"]
    assert isinstance(nested, BoxTargets)
    assert nested.crowd.device.type == "meta"


def test_lightning_moves_a_batch() -> None:
    from lightning.fabric.utilities.apply_func import move_data_to_device

    batch = CLASSES([Numbers()[0]])
    assert move_data_to_device(batch, torch.device("meta")).images.device.type == "meta"


def test_stop_passes_the_message_on() -> None:
    with pytest.raises(UserError, match=r"/data/5\.jpg: broken"):
        KeyedDataset(Numbers(bad=[5]))[0, 5]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_mistakes_in_code_are_not_skipped(on_error: str) -> None:
    with pytest.raises(IndexError, match="oops") as caught:
        KeyedDataset(Numbers(), failing, on_error=on_error)[0, 5]
    assert "sample 5, id '5', file '/data/5.jpg' of Numbers" in caught.value.__notes__[0]
    with pytest.raises(ZeroDivisionError) as caught:
        KeyedDataset(Numbers(bad=[7], error=ZeroDivisionError), on_error=on_error)[0, 7]
    assert "sample 7 of Numbers" in caught.value.__notes__[0]


def test_skip_replaces_by_the_key_and_says_so() -> None:
    dataset = KeyedDataset(Numbers(bad=[5, 6]), noisy, on_error="skip")
    sample, again = dataset[0, 5], pickle.loads(pickle.dumps(dataset))[0, 5]  # noqa: S301  # our own bytes
    assert sample.id not in ("5", "6")
    assert sample.id == again.id
    np.testing.assert_array_equal(sample.image, again.image)
    assert sample.skipped[0] == "/data/5.jpg: broken"
    assert dataset[0, 4].skipped == ()
    assert len({dataset[epoch, 5].id for epoch in range(20)}) > 5  # not the same one for ever


def test_all_bad_ends() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        KeyedDataset(Numbers(bad=range(40)), on_error="skip")[0, 5]


@pytest.mark.parametrize(("bad", "stops"), [(0, False), (10, False), (11, True), (100, True)])
def test_more_than_one_percent_stops(bad: int, stops: bool) -> None:
    total = 1000
    dataset = KeyedDataset(Numbers(total, bad=range(bad)), on_error="skip")
    count = SkipCount(total)
    assert MAX_SKIPPED * total == 10

    def read() -> None:
        for epoch in range(2):  # the second epoch meets the same ones, which count once
            for batch in keys(epoch, total, 100):
                count.add(CLASSES([dataset[key] for key in batch]).meta)

    if stops:
        with pytest.raises(UserError, match=r"of 1000 samples, more than 1%.*/data/0\.jpg: broken"):
            read()
    else:
        read()
        assert len(count.messages) == bad


def boxed(sample: Sample, **changes: object) -> Sample:
    box = {"boxes": np.array([[0, 0, 3, 2]], np.float32), "box_labels": np.array([1]), "crowd": np.array([False])}
    return replace(sample, label=None, **box | changes)


class Changed(Numbers):
    """A sound data set, but for a change to each sample."""

    def __init__(self, change: Callable[[Sample, int], object]) -> None:
        super().__init__()
        self.change = change
        self.reads = 0

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        return self.change(super().__getitem__(index), self.reads)  # type: ignore[return-value]  # also wrong ones


VIOLATIONS: dict[str, tuple[Callable[[Sample, int], object], str]] = {
    "no sample": (lambda s, n: (s.image, s.label), "expected a Sample, got tuple"),
    "no id": (lambda s, n: replace(s, id=""), "expected an id"),
    "number as id": (lambda s, n: replace(s, id=7), "expected an id"),
    "same id": (lambda s, n: replace(s, id="a"), "id 'a' belongs to sample 0 too"),
    "torch image": (lambda s, n: replace(s, image=torch.zeros(3, 4, 4)), "image: expected an array"),
    "two axes": (lambda s, n: replace(s, image=s.image[..., 0]), "image: expected an array"),
    "no pixels": (lambda s, n: replace(s, image=s.image[:0]), "image: expected an array"),
    "channels first": (lambda s, n: replace(s, image=np.zeros((3, 20, 20), np.uint8)), "looks like"),
    "dtype": (lambda s, n: replace(s, image=s.image.astype(np.int64)), "image: expected uint8"),
    "float in 0..255": (lambda s, n: replace(s, image=np.full((4, 6, 3), 2.0, np.float32)), "must lie in 0..1"),
    "not finite": (lambda s, n: replace(s, image=np.full((4, 6, 3), np.nan, np.float32)), "must lie in 0..1"),
    "label too large": (lambda s, n: replace(s, label=2), "label: expected an int in 0..1, got 2"),
    "label negative": (lambda s, n: replace(s, label=-1), "label: expected"),
    "label of text": (lambda s, n: replace(s, label="odd"), "label: expected"),
    "labels dtype": (lambda s, n: replace(s, label=None, labels=np.zeros(2)), "labels: expected an array of float32"),
    "labels length": (
        lambda s, n: replace(s, label=None, labels=np.zeros(3, np.float32)),
        r"labels: expected shape \[2\]",
    ),
    "labels values": (
        lambda s, n: replace(s, label=None, labels=np.full(2, 0.5, np.float32)),
        "labels: expected zeros and ones",
    ),
    "boxes shape": (lambda s, n: boxed(s, boxes=np.zeros((1, 5), np.float32)), r"boxes: expected shape \[M, 4\]"),
    "boxes dtype": (lambda s, n: boxed(s, boxes=np.zeros((1, 4))), "boxes: expected an array of float32"),
    "boxes infinite": (lambda s, n: boxed(s, boxes=np.array([[0, 0, np.inf, 1]], np.float32)), "not finite"),
    "boxes as widths": (lambda s, n: boxed(s, boxes=np.array([[3, 2, 1, 1]], np.float32)), "width, height"),
    "boxes outside": (
        lambda s, n: boxed(s, boxes=np.array([[0, 0, 7, 2]], np.float32)),
        "outside of the image of width 6",
    ),
    "no box labels": (lambda s, n: boxed(s, box_labels=None), "box_labels: expected an array"),
    "box label": (lambda s, n: boxed(s, box_labels=np.array([2])), "box_labels: expected 0..1, got 2"),
    "box labels length": (lambda s, n: boxed(s, box_labels=np.array([1, 1])), r"box_labels: expected shape \[1\]"),
    "crowd dtype": (lambda s, n: boxed(s, crowd=np.array([0])), "crowd: expected an array of bool"),
    "mask size": (lambda s, n: replace(s, mask=np.zeros((6, 4), np.uint8)), r"mask: expected shape \[4, 6\]"),
    "mask dtype": (lambda s, n: replace(s, mask=np.zeros((4, 6), np.int64)), "mask: expected an array of uint8"),
    "mask value": (lambda s, n: replace(s, mask=np.full((4, 6), 7, np.uint8)), "or 255 .ignored., got 7"),
    "not repeatable image": (lambda s, n: replace(s, image=s.image + np.uint8(n)), "image: reading the sample again"),
    "not repeatable label": (lambda s, n: replace(s, label=n % 2), "label: reading the sample again"),
    "label on some": (
        lambda s, n: replace(s, label=s.label if s.id == "0" else None),
        "label: the first sample has one",
    ),
    "channels on some": (
        lambda s, n: s if s.id == "0" else replace(s, image=s.image[..., :1]),
        "3 channels, this one uint8 with 1",
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_first_violation_is_named(name: str) -> None:
    change, message = VIOLATIONS[name]
    with pytest.raises(UserError, match=message) as caught:
        check_dataset(Changed(change))
    assert str(caught.value).startswith("Changed[")
    assert "\n" not in str(caught.value)


def test_a_violation_names_what_its_author_wrote_and_what_code_of_theirs_raises_says_where() -> None:
    change, message = next(iter(VIOLATIONS.values()))
    with pytest.raises(UserError, match=rf"^Changed\[2\].*{message}"):
        check_dataset(Repeated(Changed(change), np.array([2])))
    with pytest.raises(ZeroDivisionError) as caught:
        check_dataset(Repeated(Changed(lambda sample, n: 1 // 0), np.array([2])))
    assert explain(caught.value)[0].startswith("data: while reading Changed[2]: ZeroDivisionError")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "expected a tuple"),
        (["a", "b"], "expected a tuple"),
        (("a", ""), "expected a tuple"),
        (("a", "a"), "'a' stands there twice"),
    ],
)
def test_classes_are_checked(classes: object, message: str) -> None:
    dataset = Numbers()
    dataset.classes = classes  # type: ignore[assignment]  # wrong on purpose
    with pytest.raises(UserError, match=message):
        check_dataset(dataset)


def test_sound_data_sets_pass() -> None:
    check_dataset(Numbers())
    check_dataset(Numbers(count=1))
    check_dataset(Changed(lambda sample, n: boxed(sample)))
    none = {"boxes": np.zeros((0, 4), np.float32), "box_labels": np.zeros(0, np.int64), "crowd": None}
    check_dataset(Changed(lambda sample, n: boxed(sample, **none)))
    check_dataset(Changed(lambda sample, n: replace(sample, mask=np.array([[0, 1, 255, 0, 1, 0]] * 4, np.uint8))))
    with pytest.raises(UserError, match="no samples"):
        check_dataset(Numbers(count=0))


def test_a_free_target_travels_to_the_batch() -> None:
    """For a task of the user's: through collation and into what predictions are scored against."""
    samples = [
        Sample(np.zeros((4, 4, 3), np.uint8), str(number), target={"count": number, "at": np.arange(number)})
        for number in range(2)
    ]

    class Counted:
        classes = ("x",)

        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> Sample:
            return replace(samples[index], target={"count": index, "at": np.arange(index)})

    check_dataset(Counted(), labels=("target",))
    batch = collate(samples, targets=lambda some: torch.tensor([one.target["count"] for one in some]), fill=(0, 0, 0))
    assert batch.targets.tolist() == [0, 1]
    assert [meta.target["count"] for meta in batch.meta] == [0, 1]
    with pytest.raises(UserError, match="has no label; wanted is target"):
        check_dataset(cast(Any, Unlabelled()), labels=("target",))


class Unlabelled:
    classes = ("x",)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((4, 4, 3), np.uint8), "0")
