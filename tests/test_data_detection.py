"""Samples with boxes to batches: whatever is drawn at random, pixels, boxes and mask stay together."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests_support import printed_by
from torch.utils.data import DataLoader

from effbackbones.contracts import BoxTargets, ImageSpec
from effbackbones.errors import UserError
from tasks.data.batch import Batch, ImageMeta, KeyedDataset
from tasks.data.collating import box_targets, collate
from tasks.data.sample import MixingTransform, Sample, Truth
from tasks.data.sets.shapes import ShapesDataset
from tasks.data.transforms.mosaic import mosaic
from tasks.data.transforms.views import Jitter, JitterRange, jittered
from tasks.data.transforms.window import ViewTransform
from tasks.engine.order import GlobalBatches, shuffled

SPEC = ImageSpec(size=(64, 64), interpolation="bilinear")
WILD = dict(flip=0.5, vertical_flip=0.5, scale_jitter=(0.4, 2.0), mosaic=0.5, color_jitter=0.3)
CHANNELS = 12
DARK = ImageSpec(mean=(0.1,) * CHANNELS, std=(0.2,) * CHANNELS, interpolation="bilinear")
"""For images of as many rectangles as channels; the padding is darker than any of them."""
SIDES = st.tuples(st.integers(20, 150), st.integers(20, 150))
ROOMS = st.tuples(st.integers(24, 130), st.integers(24, 130))
DATA = st.builds(
    dict,
    flip=st.sampled_from((0.0, 0.5, 1.0)),
    vertical_flip=st.sampled_from((0.0, 0.5, 1.0)),
    scale_jitter=st.sampled_from(((1.0, 1.0), (0.5, 2.0), (2.5, 3.5), (0.4, 0.6))),
    batch_shape=st.sampled_from(("fixed", "aspect")),
    min_box=st.sampled_from((0.0, 1.0, 4.0)),
)


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def rectangles(size: tuple[int, int], channels: Sequence[int], seed: int) -> Sample:
    """Black but for one bright rectangle in each of ``channels``, which is its label too; the mask marks the last one."""
    height, width = size
    generator = rng(seed, *channels)
    image, mask = np.zeros((height, width, CHANNELS), np.uint8), np.zeros(size, np.uint8)
    boxes = []
    for channel in channels:
        w, h = int(generator.integers(10, width + 1)), int(generator.integers(10, height + 1))
        left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
        image[top : top + h, left : left + w, channel] = 255
        boxes.append((left, top, left + w, top + h))
    left, top, right, bottom = boxes[-1]
    mask[top:bottom, left:right] = channels[-1] + 1
    crowd = np.array([channel % 3 == 1 for channel in channels])
    return Sample(
        image,
        f"{seed}-{channels[0]}",
        boxes=np.array(boxes, np.float32),
        box_labels=np.array(channels),
        crowd=crowd,
        mask=mask,
    )


def extent(marked: np.ndarray) -> tuple[int, int, int, int] | None:
    rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None


def check_together(sample: Sample, labels: Sequence[int], masked: Sequence[int], min_box: float) -> int:
    """Every rectangle that can be seen has its box where it is; returns how many."""
    boxes = dict(zip(sample.box_labels.tolist(), sample.boxes, strict=True))
    assert len(boxes) == len(sample.boxes)
    for label in labels:
        found = extent(sample.image[..., label] > 127)
        if label not in boxes:  # too small to be kept
            assert found is None or min(found[2] - found[0], found[3] - found[1]) <= min_box + 1.5
        elif min(boxes[label][2:] - boxes[label][:2]) >= 2:
            np.testing.assert_allclose(found, boxes[label], atol=1.0)
            if label in masked:
                np.testing.assert_allclose(extent(sample.mask == label + 1), boxes[label], atol=1.0)
    assert (sample.crowd == (sample.box_labels % 3 == 1)).all()
    return len(boxes)


@given(SIDES, ROOMS, DATA, st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_boxes_and_mask_stay_with_their_pixels(
    original: tuple[int, int], size: tuple[int, int], data: dict[str, Any], seed: int
) -> None:
    sample = rectangles(original, (0, 1, 2), seed)
    transform = ViewTransform(DARK, size, True, **data | {"crowd": "ignore"}, size_divisor=8)
    out = transform(sample, rng(seed))
    assert all(side <= room for side, room in zip(out.image.shape, size, strict=False))
    check_together(out, (0, 1, 2), (2,), data["min_box"])
    height, width = out.plan.valid
    assert (out.image[height:] == 26).all()
    assert (out.image[:, width:] == 26).all()
    assert (out.mask[height:] == 255).all()
    assert (out.mask[:height, :width] != 255).all()
    assert (out.boxes >= 0).all()
    assert (out.boxes <= (width, height) * 2).all()


@given(st.lists(SIDES, min_size=4, max_size=4), ROOMS, DATA, st.integers(0, 2**32 - 1))
@settings(max_examples=120, deadline=None)
def test_boxes_and_masks_stay_with_their_pixels_in_a_mosaic(
    originals: list[tuple[int, int]], size: tuple[int, int], data: dict[str, Any], seed: int
) -> None:
    samples = [rectangles(original, (3 * i, 3 * i + 1, 3 * i + 2), seed) for i, original in enumerate(originals)]
    transform = ViewTransform(DARK, size, True, **data | {"crowd": "ignore"}, size_divisor=8)
    out = transform.combine(samples, rng(seed))
    assert (out.id, out.plan, out.original) == (samples[0].id, None, originals[0])
    check_together(out, range(CHANNELS), range(2, CHANNELS, 3), data["min_box"])


def test_those_rectangles_are_seen_often_enough_to_tell() -> None:
    """The two tests above would notice a box that is three pixels off, and most boxes are looked at."""
    data = dict(flip=0.5, scale_jitter=(0.5, 2.0), crowd="ignore")
    transform = ViewTransform(DARK, (96, 96), True, **data)
    kept = 0
    for seed in range(60):
        out = transform(rectangles((60, 90), (0, 1, 2), seed), rng(seed))
        kept += check_together(out, (0, 1, 2), (2,), 1.0)
        shifted = replace(out, boxes=out.boxes + np.float32(3))
        with pytest.raises(AssertionError):
            check_together(shifted, (0, 1, 2), (2,), 1.0)
    assert kept > 120


@given(SIDES, ROOMS, st.sampled_from(("fixed", "aspect")), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_evaluation_boxes_come_back(original: tuple[int, int], size: tuple[int, int], shape: str, seed: int) -> None:
    sample = rectangles(original, (0, 1, 2), seed)
    data = dict(batch_shape=shape, flip=1.0, mosaic=1.0, scale_jitter=(0.1, 9), min_box=500, crowd="skip")
    transform = ViewTransform(DARK, size, False, **data, size_divisor=8)
    assert transform.partners(0, rng(seed)) == 0
    out = transform(sample, rng(seed))
    np.testing.assert_array_equal(out.image, transform(sample, rng(seed + 1)).image)
    np.testing.assert_allclose(out.plan.restore_boxes(out.boxes), sample.boxes, atol=1e-3)
    np.testing.assert_array_equal(out.box_labels, sample.box_labels)
    assert out.boxes.dtype == np.float32
    assert out.original == original
    np.testing.assert_array_equal(out.truth.boxes[:, :2], sample.boxes[:, :2])
    np.testing.assert_array_equal(out.truth.boxes[:, 2:], sample.boxes[:, 2:] - sample.boxes[:, :2])
    known = replace(sample, truth=Truth(np.ones((1, 4)), np.array([7]), np.array([True]), np.ones(1)))
    assert transform(known, rng(0)).truth is known.truth


def photograph(channels: int = 3, dtype: type = np.uint8) -> Sample:
    """A smooth image with three boxes, the second of them a crowd."""
    rows, columns, layers = np.meshgrid(
        np.linspace(0, 1, 60), np.linspace(0, 1, 100), np.linspace(0, 1, channels), indexing="ij"
    )
    image = (rows + columns + layers) / 3 * (1 if dtype == np.float32 else np.iinfo(dtype).max)
    boxes = np.array([[10, 10, 40, 50], [0, 0, 100, 30], [50, 20, 53, 58]], np.float32)
    return Sample(
        image.astype(dtype),
        "a",
        "a.png",
        boxes=boxes,
        box_labels=np.array([4, 5, 6]),
        crowd=np.array([False, True, False]),
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_depth_and_channel_count(dtype: type, channels: int) -> None:
    sample = photograph(channels, dtype)
    spec = replace(SPEC, mean=(0.5,) * channels, std=(0.2,) * channels)
    data = dict(flip=0.5, vertical_flip=0.5, scale_jitter=(0.3, 3), mosaic=1.0)
    transform = ViewTransform(spec, (64, 48), True, **data)
    for out in (transform(sample, rng(0)), transform.combine([sample] * 4, rng(0))):
        assert out.image.dtype == dtype
    batch = collate([transform(sample, rng(seed)) for seed in range(4)], targets=box_targets, fill=spec.mean)
    assert batch.images.shape == (4, channels, 64, 48)
    assert batch.images.dtype == {np.uint8: torch.uint8, np.uint16: torch.uint16, np.float32: torch.float32}[dtype]


def test_colours_of_four_channels_are_refused_in_one_line() -> None:
    spec = replace(SPEC, mean=(0.5,) * 4, std=(0.2,) * 4)
    with pytest.raises(UserError, match=r"data\.color_jitter: needs images of 1 or 3 channels, got 4"):
        ViewTransform(spec, (64, 64), True, color_jitter=0.2)(photograph(4), rng(0))


def test_small_boxes_and_crowds_are_left_out_in_training_alone() -> None:
    sample = replace(photograph(), truth=Truth.of(photograph()))
    for data, labels in (
        (dict(min_box=0), [4, 6]),
        (dict(min_box=3), [4]),  # 64 / 100 of 3 pixels
        (dict(min_box=1, crowd="ignore"), [4, 5, 6]),
        (dict(min_box=3, crowd="ignore"), [4, 5]),
        (dict(min_box=1000), []),
    ):
        plain = ViewTransform(SPEC, (64, 64), True, **data | dict(flip=0.0))(sample, rng(0))
        assert plain.box_labels.tolist() == labels
        assert plain.crowd.tolist() == [label == 5 for label in labels]
        assert plain.truth is None  # nothing is scored in training
        assert ViewTransform(SPEC, (64, 64), False, **data)(sample, rng(0)).box_labels.tolist() == [4, 5, 6]


def test_what_is_cropped_away_has_no_box() -> None:
    data = dict(flip=0.0, scale_jitter=(4.0, 4.0), min_box=0)
    sample = replace(photograph(), crowd=None)
    kept = [len(ViewTransform(SPEC, (64, 64), True, **data)(sample, rng(seed)).boxes) for seed in range(60)]
    assert min(kept) == 0
    assert max(kept) > 0


def test_the_letterbox_is_scaled_by_the_factor_and_cropped_anywhere() -> None:
    """Reference 2.9: factor uniform, crop offset uniform where the image is larger, top left where it is smaller."""
    jitter, shares = (
        JitterRange(flip=0.25, vertical_flip=0.5, scale=(0.1, 2.0)),
        np.array([0.05, 0.25, 0.5, 0.75, 0.95]),
    )
    plans = [jittered((60, 100), (512, 512), (512, 512), jitter.draw(rng(seed))) for seed in range(2000)]
    np.testing.assert_allclose(
        np.quantile([plan.scaled[1] / 512 for plan in plans], shares), 0.1 + 1.9 * shares, atol=0.08
    )
    for axis in (0, 1):
        beyond = np.array([plan.scaled[axis] - 512 for plan in plans])
        offsets = np.array([plan.offset[axis] for plan in plans])
        assert (offsets[beyond <= 0] == 0).all()
        places = offsets[beyond > 20] / beyond[beyond > 20]
        assert ((places >= 0) & (places <= 1)).all()
        np.testing.assert_allclose(np.quantile(places, shares), shares, atol=0.08)
    corners = [
        jittered((60, 100), (80, 80), (80, 80), Jitter(2.0, place, (False, False)))
        for place in ((0.0, 0.0), (0.999, 0.999))
    ]
    assert [plan.scaled for plan in corners] == [(96, 160)] * 2
    assert [plan.offset for plan in corners] == [(0, 0), (16, 80)]
    assert np.mean([plan.mirrored for plan in plans], axis=0).tolist() == pytest.approx([0.5, 0.25], abs=0.04)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    sample = replace(photograph(), crowd=None)
    still = dict(flip=0.0, min_box=0)
    trained, evaluated = (ViewTransform(SPEC, (64, 64), train, **still)(sample, rng(0)) for train in (True, False))
    np.testing.assert_array_equal(trained.image, evaluated.image)
    np.testing.assert_array_equal(trained.boxes, evaluated.boxes)
    assert trained.plan == evaluated.plan


def test_a_crop_is_as_large_as_it_says_with_mosaics_too() -> None:
    data = dict(crop_size=(32, 48), mosaic=1.0, scale_jitter=(0.8, 1.5))
    transform = ViewTransform(SPEC, (64, 96), True, **data)
    assert transform(photograph(), rng(0)).image.shape[:2] == (32, 48)
    assert transform.combine([photograph()] * 4, rng(0)).image.shape[:2] == (32, 48)
    assert ViewTransform(SPEC, (64, 96), False, **data)(photograph(), rng(0)).image.shape[:2] == (64, 96)


@pytest.mark.parametrize("closed_from", [2.5, 3])
def test_mosaic_closes_and_has_its_probability(closed_from: float) -> None:
    transform = ViewTransform(SPEC, (64, 64), True, mosaic=0.3, closed_from=closed_from)
    assert isinstance(transform, MixingTransform)
    for epoch, share in ((0, 0.3), (2, 0.3), (3, 0.0), (9, 0.0)):
        partners = [transform.partners(epoch, rng(epoch, index)) for index in range(2000)]
        assert set(partners) <= {0, 3}
        assert np.mean(np.array(partners) == 3) == pytest.approx(share, abs=0.04 if share else 0)
    assert all(ViewTransform(SPEC, (64, 64), True, mosaic=1.0).partners(10**6, rng(i)) == 3 for i in range(20))
    assert all(ViewTransform(SPEC, (64, 64), True).partners(0, rng(i)) == 0 for i in range(20))


def test_a_mosaic_shows_all_four_images_around_a_point_of_the_middle() -> None:
    samples = [Sample(np.full((80, 80, 1), level, np.uint8), str(level), boxes=None) for level in (50, 100, 150, 200)]
    spec = replace(SPEC, mean=(0.0,), std=(1.0,))
    cuts = []
    for seed in range(200):
        image = mosaic(samples, (64, 100), JitterRange(), spec, rng(seed)).image[..., 0]
        assert set(np.unique(image)) <= {0, 50, 100, 150, 200}
        seen = [extent(image == level) for level in (50, 100, 150, 200)]
        assert all(seen)
        (_, _, x, y), (x1, _, _, y1), (_, y2, x2, _), (x3, y3, _, _) = seen
        assert (x1, x2, x3) == (x, x, x)
        assert (y1, y2, y3) == (y, y, y)
        cuts.append((y / 64, x / 100))
    np.testing.assert_allclose(np.min(cuts, axis=0), 0.25, atol=0.02)
    np.testing.assert_allclose(np.max(cuts, axis=0), 0.75, atol=0.02)
    np.testing.assert_allclose(np.mean(cuts, axis=0), 0.5, atol=0.04)


def test_images_that_differ_in_kind_are_no_mosaic() -> None:
    plain = photograph()
    for odd in (
        photograph(dtype=np.uint16),
        photograph(channels=1),
        replace(plain, mask=np.zeros((60, 100), np.uint8)),
    ):
        with pytest.raises(UserError, match=r"b\.png: is .*, a\.png is uint8 with 3 channels and boxes:"):
            mosaic([plain, plain, replace(odd, path="b.png"), plain], (64, 64), JitterRange(), SPEC, rng(0))


def keyed(data: dict[str, Any], seed: int = 5) -> KeyedDataset:
    return KeyedDataset(
        ShapesDataset((48, 72), 30, seed=3), ViewTransform(SPEC, (64, 64), True, **data, closed_from=2), seed
    )


def batches(dataset: KeyedDataset, workers: int) -> list[Batch]:
    order = GlobalBatches(shuffled(30, 5), 30, 8, start=2, stop=10)
    boxed = partial(collate, targets=box_targets, fill=SPEC.mean)
    return list(DataLoader(dataset, batch_sampler=order, num_workers=workers, collate_fn=boxed))  # type: ignore[arg-type]


def test_batches_are_a_function_of_seed_epoch_and_index_for_any_number_of_workers() -> None:
    runs = [batches(keyed(WILD), workers) for workers in (0, 1, 2)]
    for again in runs[1:]:
        for one, other in zip(runs[0], again, strict=True):
            assert torch.equal(one.images, other.images)
            assert all(torch.equal(a, b) for a, b in zip(one.targets, other.targets, strict=True))
            assert torch.equal(one.sizes.valid, other.sizes.valid)
    assert not torch.equal(batches(keyed(WILD, 6), 0)[0].images, runs[0][0].images)
    dataset = keyed(WILD)
    assert not np.array_equal(dataset[0, 3].image, dataset[1, 3].image)
    copy: KeyedDataset = pickle.loads(pickle.dumps(dataset))  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(copy[1, 4].image, dataset[1, 4].image)


def test_samples_are_not_changed_in_place() -> None:
    sample = photograph()
    before = pickle.dumps(sample)
    transform = ViewTransform(SPEC, (64, 64), True, **WILD | dict(crowd="ignore"))
    for seed in range(20):
        transform(sample, rng(seed))
        transform.combine([sample] * 4, rng(seed))
    assert pickle.dumps(sample) == before


def test_empty_images_of_any_size_never_raise() -> None:
    generator = rng(0)
    samples = []
    for number in range(200):
        height, width = generator.integers(1, 200, 2).tolist()
        empty = np.zeros((0, 4), np.float32)
        sample = Sample(
            np.zeros((height, width, 3), np.uint8), str(number), boxes=empty, box_labels=np.zeros(0, np.int64)
        )
        data = WILD | dict(batch_shape=("fixed", "aspect")[number % 2], scale_jitter=(0.1, 2.0), mosaic=1.0)
        transform = ViewTransform(SPEC, (64, 96), True, **data, size_divisor=32)
        samples.append(transform(sample, generator) if number % 3 else transform.combine([sample] * 4, generator))
    batch = collate(samples, targets=box_targets, size_divisor=32, fill=SPEC.mean)
    assert batch.images.shape == (200, 3, 64, 96)
    assert batch.targets.boxes.shape == (200, 8, 4)
    assert (batch.targets.labels == -1).all()
    assert not batch.targets.boxes.any()


def with_boxes(count: int, size: tuple[int, int] = (20, 30)) -> Sample:
    boxes = np.tile(np.array([1, 2, 9, 12], np.float32), (count, 1)) + np.arange(count, dtype=np.float32)[:, None] / 100
    return Sample(np.zeros((*size, 3), np.uint8), "a", "a.png", boxes=boxes, box_labels=np.arange(count) % 5)


@pytest.mark.parametrize(
    ("most", "rows"),
    [(0, 8), (1, 8), (8, 8), (9, 16), (33, 64), (65, 100), (100, 100), (101, 128), (129, 256), (256, 256), (700, 1024)],
)
def test_rows_of_targets_come_in_few_numbers(most: int, rows: int) -> None:
    crowded = replace(with_boxes(most), crowd=np.arange(most) % 2 == 1)
    targets = collate([with_boxes(0), crowded], targets=box_targets, fill=SPEC.mean).targets
    assert isinstance(targets, BoxTargets)
    assert targets.boxes.shape == (2, rows, 4)
    assert targets.boxes.dtype == torch.float32
    assert (targets.labels.dtype, targets.crowd.dtype) == (torch.int64, torch.bool)
    np.testing.assert_array_equal(targets.boxes[1, :most], crowded.boxes)
    np.testing.assert_array_equal(targets.labels[1, :most], crowded.box_labels)
    np.testing.assert_array_equal(targets.crowd[1, :most], crowded.crowd)
    assert (targets.labels[0] == -1).all()
    assert (targets.labels[1, most:] == -1).all()
    assert not targets.boxes[1, most:].any()


def test_images_of_different_size_are_padded_to_the_largest() -> None:
    small, wide = with_boxes(1, (20, 30)), with_boxes(2, (10, 50))
    alone = collate([small], targets=box_targets, size_divisor=32, fill=SPEC.mean)
    assert alone.images.shape == (1, 3, 20, 30)  # the model pads a batch of one size by itself
    batch = collate([small, wide], targets=box_targets, size_divisor=32, fill=SPEC.mean)
    assert batch.images.shape == (2, 3, 32, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes.batch == (32, 64)
    assert batch.sizes.valid.tolist() == [[20, 30], [10, 50]]
    assert not batch.images[0, :, :20, :30].any()
    assert (batch.images[0, :, 20:] == torch.tensor([124, 116, 104])[:, None, None]).all()
    assert (batch.images[1, :, :, 50:] == torch.tensor([124, 116, 104])[:, None, None]).all()


def test_meta_and_missing_labels() -> None:
    transform = ViewTransform(SPEC, (64, 64), False)
    batch = collate([transform(photograph(), rng(0))], targets=box_targets, fill=SPEC.mean)
    assert isinstance(batch.meta[0], ImageMeta)
    assert batch.meta[0].plan.scaled == (38, 64)
    assert batch.meta[0].truth.boxes.tolist()[0] == [10, 10, 30, 40]
    assert batch.sizes.valid.tolist() == [[38, 64]]
    unknown = Sample(photograph().image, "b", "b.png")
    assert collate([transform(unknown, rng(0))] * 2, targets=box_targets, fill=SPEC.mean).targets is None
    with pytest.raises(UserError, match=r"b\.png: has no boxes"):
        collate([transform(photograph(), rng(0)), transform(unknown, rng(0))], targets=box_targets, fill=SPEC.mean)
    for labels in (None, np.array([1])):
        with pytest.raises(UserError, match=r"a\.png: has 3 boxes and [01] box_labels"):
            collate([replace(photograph(), box_labels=labels)], targets=box_targets, fill=SPEC.mean)


def test_batches_by_aspect_carry_less_padding() -> None:
    sizes = [(480, 640), (426, 640), (480, 640), (427, 640)]
    shapes = {}
    for shape in ("fixed", "aspect"):
        for train, jitter in ((False, (1.0, 1.0)), (True, (0.5, 2.0))):
            transform = ViewTransform(SPEC, (128, 128), train, batch_shape=shape, scale_jitter=jitter, size_divisor=32)
            samples = [transform(Sample(np.zeros((*size, 3), np.uint8), "a"), rng(i)) for i, size in enumerate(sizes)]
            shapes[shape, train] = tuple(
                collate(samples, targets=box_targets, size_divisor=32, fill=SPEC.mean).images.shape[2:]
            )
    assert shapes["fixed", False] == shapes["fixed", True] == (128, 128)
    assert shapes["aspect", False] == shapes["aspect", True] == (96, 128)


def test_aspect_windows_never_exceed_the_size() -> None:
    transform = ViewTransform(SPEC, (100, 70), False, batch_shape="aspect", size_divisor=64)
    for original, window in (
        ((500, 500), (100, 70)),
        ((100, 700), (64, 70)),
        ((1000, 100), (100, 64)),
        ((1, 5000), (64, 70)),
    ):
        assert transform(Sample(np.zeros((*original, 3), np.uint8), "a"), rng(0)).image.shape[:2] == window


def darker(sample: Sample, rng: np.random.Generator) -> Sample:
    """A user's own step, which sees image and boxes together."""
    return replace(
        sample,
        image=sample.image // 2,
        boxes=sample.boxes[:1],
        box_labels=sample.box_labels[:1],
        crowd=sample.crowd[:1],
    )


def test_own_steps_come_after_ours_in_training() -> None:
    data = dict(scale_jitter=(0.5, 2.0), color_jitter=0.3, crowd="ignore", min_box=0)
    plain, added = (
        ViewTransform(SPEC, (64, 64), True, **data, extra=extra)(photograph(), rng(1)) for extra in ((), (darker,))
    )
    np.testing.assert_array_equal(added.image, plain.image // 2)
    assert len(added.boxes) <= 1
    still = ViewTransform(SPEC, (64, 64), False, **data, extra=[darker])(photograph(), rng(1))
    assert len(still.boxes) == 3


def test_colours_change_neither_boxes_nor_padding() -> None:
    data = dict(flip=0.0, min_box=0, crowd="ignore")
    plain, coloured = (
        ViewTransform(SPEC, (64, 64), True, **data | dict(color_jitter=strength))(photograph(), rng(2))
        for strength in (0.0, 0.5)
    )
    np.testing.assert_array_equal(plain.boxes, coloured.boxes)
    assert plain.plan.valid == (38, 64)
    assert (plain.image[:38] != coloured.image[:38]).mean() > 0.5
    np.testing.assert_array_equal(plain.image[38:], coloured.image[38:])  # padding looks as in evaluation


def test_the_plain_path_imports_nothing_heavy() -> None:
    code = """
import sys, numpy as np
from effbackbones.contracts import ImageSpec
from tasks.data.batch import Sample
from tasks.data.collating import box_targets, collate
from tasks.data.transforms.window import ViewTransform
transform = ViewTransform(ImageSpec(), (32, 32), True, mosaic=1.0, scale_jitter=(0.1, 2.0))
sample = Sample(np.zeros((40, 40, 3), np.uint8), "a", boxes=np.zeros((0, 4), np.float32))
collate([transform.combine([sample] * 4, np.random.default_rng(0))], targets=box_targets, fill=(0.5, 0.5, 0.5))
print({"torchvision", "albumentations", "cv2", "lightning"} & set(sys.modules))
"""
    assert printed_by(code) == "set()"
