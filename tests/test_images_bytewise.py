"""Resizing bytes by torch's kernels: two levels from PIL at most where nothing overshoots, in the same place, and never for evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from effbackbones.images import bytewise
from effbackbones.images.geometry import ResizePlan, resize
from effbackbones.images.spec import ImageSpec
from tasks.data.door.transforms import class_transform, view_transform
from tasks.data.sample import Sample
from tasks.settings.data import DataConfig

NOISE = np.random.default_rng(0).integers(0, 256, (150, 200, 4), dtype=np.uint8)
SOFT = (64 + NOISE // 2).astype(np.uint8)
"""Noise with room above and below, where the cubic filter overshoots without reaching black or white."""
SPEC = ImageSpec((48, 64))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from((1, 3, 4)),
    st.sampled_from(bytewise.MODES),
)
def test_two_levels_from_pil(height: int, width: int, rows: int, columns: int, channels: int, mode: str) -> None:
    source = NOISE if mode == "bilinear" else SOFT
    image = source[7 : 7 + height, 9 : 9 + width, :channels]  # a part of an image, as a crop is
    quick = bytewise.resized(image, (rows, columns), mode)
    assert quick.dtype == np.uint8
    assert quick.shape == (rows, columns, channels)
    assert np.abs(quick.astype(int) - resize(image, (rows, columns), mode)).max() <= 2


plans = st.builds(
    ResizePlan,
    st.just((40, 60)),
    st.tuples(st.integers(1, 120), st.integers(1, 120)),
    st.tuples(st.integers(-30, 130), st.integers(-30, 130)),
    st.just((32, 48)),
    st.tuples(st.booleans(), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(plans, st.sampled_from(bytewise.MODES))
def test_a_plan_shows_the_same_part_turned_alike(plan: ResizePlan, mode: str) -> None:
    image = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    exact, quick = (plan.apply_image(image, mode, (1, 2, 3), quick=how) for how in (False, True))
    assert np.abs(exact.astype(int) - quick).max() <= 2
    left, top, right, bottom = plan.content
    outside = np.ones(plan.size, bool)
    outside[top:bottom, left:right] = False
    assert (quick[outside] == (1, 2, 3)).all()


@pytest.mark.parametrize("turns", [(False, False), (True, False), (False, True), (True, True)])
def test_turned_over(turns: tuple[bool, bool]) -> None:
    expected = NOISE[:: -1 if turns[0] else 1, :: -1 if turns[1] else 1]
    found = bytewise.mirrored(NOISE, *turns)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous
    read_only = NOISE[::-1]
    read_only.flags.writeable = False
    np.testing.assert_array_equal(bytewise.mirrored(read_only, *turns), expected[::-1])


def test_other_numbers_are_resized_as_before() -> None:
    plan = ResizePlan.letterbox((150, 200), (48, 64))
    for image, mode in (
        (NOISE.astype(np.uint16), "bicubic"),
        (NOISE / np.float32(255), "bilinear"),
        (NOISE, "nearest"),
    ):
        np.testing.assert_array_equal(plan.apply_image(image, mode, quick=True), plan.apply_image(image, mode))


def seen(data: DataConfig, *, train: bool, boxes: bool) -> np.ndarray:
    make = view_transform if boxes else class_transform
    more = {"epochs": 1.0, "size_divisor": 1} if boxes else {}
    sample = Sample(SOFT[..., :3].copy(), "a")
    return make(data, SPEC, train=train, **more)(sample, np.random.default_rng(3)).image


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("crop", ["resized", "pad", "center", "none"])
def test_training_is_quick_unless_it_is_to_be_exact_and_evaluation_never(boxes: bool, crop: str) -> None:
    """The same draws of chance either way, so the same picture but for the levels."""
    quick = DataConfig(root="/data", crop=crop, image_size=(48, 64), scale_jitter=(0.8, 1.2))
    exact = replace(quick, resize="exact")
    assert quick.resize == "quick"
    one, other = (seen(data, train=True, boxes=boxes) for data in (quick, exact))
    difference = np.abs(one.astype(int) - other)
    assert 0 < difference.max() <= 2
    np.testing.assert_array_equal(*(seen(data, train=False, boxes=boxes) for data in (quick, exact)))


def test_any_number_of_threads_gives_the_same_bytes() -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(bytewise.resized(NOISE, (400, 500), "bicubic"))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)
