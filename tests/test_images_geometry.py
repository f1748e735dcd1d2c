"""Resize plans: where pixels, boxes, masks and scores go, and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan, resize, resize_nearest

SIDES = st.integers(1, 700)
SIZES = st.tuples(SIDES, SIDES)
OFFSETS = st.tuples(st.integers(-50, 50), st.integers(-50, 50))
PLANS = st.one_of(
    st.builds(ResizePlan.letterbox, SIZES, SIZES),
    st.builds(ResizePlan.squash, SIZES, SIZES),
    st.builds(ResizePlan.center_crop, SIZES, SIZES, st.floats(0.5, 1)),
    st.builds(ResizePlan, SIZES, SIZES, OFFSETS, SIZES, st.tuples(st.booleans(), st.booleans())),
)
RNG = np.random.default_rng(0)


@given(PLANS, st.integers(0, 2**32 - 1))
def test_boxes_and_points_come_back(plan: ResizePlan, seed: int) -> None:
    height, width = plan.original
    points = np.random.default_rng(seed).uniform((0, 0), (width, height), (5, 2)).astype(np.float32)
    boxes = np.concatenate([points[:-1], points[1:]], 1)
    tolerance = 1e-5 * max(*plan.original, *plan.scaled, 50) / min(1.0, *plan.scale)
    for given_, moved in ((points, plan.apply_boxes(points)), (boxes, plan.apply_boxes(boxes))):
        np.testing.assert_allclose(plan.restore_boxes(moved), given_, atol=tolerance)
    tensors = plan.restore_boxes(plan.apply_boxes(torch.from_numpy(boxes)))
    assert tensors.dtype == torch.float32
    np.testing.assert_allclose(tensors, boxes, atol=tolerance)


@given(SIZES, SIZES)
def test_letterbox_fits_keeps_its_shape_and_wastes_nothing(original: tuple[int, int], size: tuple[int, int]) -> None:
    plan = ResizePlan.letterbox(original, size)
    scale = min(size[0] / original[0], size[1] / original[1])
    assert plan.valid == plan.scaled
    assert plan.offset == (0, 0)
    assert any(side == room for side, room in zip(plan.scaled, size, strict=True))
    for side, before, room in zip(plan.scaled, original, size, strict=True):
        assert 1 <= side <= room
        # int(side * scale) of the published preprocessing, without its rounding errors just below a whole number.
        assert side == max(1, int(before * scale + 1e-9))


def test_letterbox_of_a_photograph() -> None:
    plan = ResizePlan.letterbox((427, 640), (512, 512))
    assert plan == ResizePlan((427, 640), (341, 512), (0, 0), (512, 512))
    np.testing.assert_allclose(
        plan.apply_boxes(np.array([[64, 42.7, 640, 427]], np.float32)), [[51.2, 34.1, 512, 341]], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("size", "fraction", "target"),
    [
        (224, 224 / 256, 256),
        (300, 0.904, 331),
        (380, 380 / 384, 384),
        (240, 240 / 255, 255),
        (456, 1.0, 456),
        (600, 0.949, 632),
    ],
)
def test_shorter_side_before_the_crop(size: int, fraction: float, target: int) -> None:
    """The published pairs of crop fraction and resize (reference: torchvision's and timm's tables)."""
    plan = ResizePlan.center_crop((target, target * 2), (size, size), fraction)
    assert plan.scaled == (target, target * 2)
    assert plan.valid == plan.size == (size, size)


@given(SIZES, st.integers(1, 80), st.floats(0.5, 1))
def test_centre_crop_covers_the_window_with_image(original: tuple[int, int], side: int, fraction: float) -> None:
    plan = ResizePlan.center_crop(original, (side, side), fraction)
    assert plan.valid == (side, side)
    assert min(plan.offset) >= 0


@settings(max_examples=30)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(16, 120), st.integers(16, 120))
def test_letterboxed_scores_come_back(height: int, width: int, room_h: int, room_w: int) -> None:
    """A smooth map, through the letterbox as an image and back as scores, is itself within what resizing rounds away."""
    rows, columns = np.linspace(0, 1, height), np.linspace(0, 1, width)
    smooth = np.stack([np.add.outer(rows, columns) / 2, np.add.outer(1 - rows, columns) / 2], 2).astype(np.float32)
    plan = ResizePlan.letterbox((height, width), (room_h, room_w))
    boxed = plan.apply_image(smooth, "bilinear", fill=1.0)
    restored = plan.restore_map(torch.from_numpy(np.ascontiguousarray(boxed.transpose(2, 0, 1))))
    assert restored.shape == (2, height, width)
    # Within a pixel of the coarser grid; each axis runs over half of the range.
    tolerance = sum(1.0 / min(before, after) for before, after in zip(plan.original, plan.scaled, strict=True))
    np.testing.assert_allclose(restored.numpy().transpose(1, 2, 0), smooth, atol=tolerance)


def test_scores_beyond_a_centre_crop_are_zero() -> None:
    plan = ResizePlan.center_crop((40, 80), (40, 40))
    restored = plan.restore_map(torch.ones(3, 40, 40))
    assert restored.shape == (3, 40, 80)
    assert restored[:, :, 20:60].min() == 1
    assert restored[:, :, :20].max() == restored[:, :, 60:].max() == 0


def test_identity_costs_and_changes_nothing() -> None:
    image = RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    for make in (ResizePlan.letterbox, ResizePlan.squash, ResizePlan.center_crop):
        plan = make((32, 48), (32, 48))
        assert plan.identity
        assert plan.apply_image(image) is image
    scores = torch.rand(2, 32, 48)
    assert torch.equal(plan.restore_map(scores), scores)


def test_padding_has_the_fill_and_the_content_is_at_the_top_left() -> None:
    image = np.full((10, 20, 3), 7, np.uint8)
    boxed = ResizePlan.letterbox((10, 20), (32, 32)).apply_image(image, fill=(1, 2, 3))
    assert (boxed[:16] == 7).all()
    assert (boxed[16:] == (1, 2, 3)).all()
    mask = ResizePlan.letterbox((10, 20), (32, 32)).apply_mask(np.ones((10, 20), np.uint8))
    assert mask.dtype == np.uint8
    assert (mask[:16] == 1).all()
    assert (mask[16:] == 255).all()


def test_windows_off_the_image_are_padding() -> None:
    image = RNG.integers(0, 256, (8, 8, 1), dtype=np.uint8)
    plan = ResizePlan((8, 8), (8, 8), (-2, 3), (7, 9))
    window = plan.apply_image(image, fill=99)
    np.testing.assert_array_equal(window[2:, :5], image[:5, 3:])
    assert (window[:2] == 99).all()
    assert (window[:, 5:] == 99).all()
    assert (ResizePlan((8, 8), (8, 8), (8, 0), (4, 4)).apply_image(image, fill=5) == 5).all()


def test_boxes_follow_the_pixels() -> None:
    """A bright rectangle stays inside of its box, and fills it, whatever the plan."""
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 30:70] = 255
    box = np.array([30, 20, 70, 40], np.float32)
    for plan in (
        ResizePlan.letterbox((60, 90), (128, 100)),
        ResizePlan.squash((60, 90), (100, 64)),
        ResizePlan.center_crop((60, 90), (80, 80), 0.9),
        ResizePlan((60, 90), (120, 180), (-4, 30), (128, 128)),
        ResizePlan((60, 90), (120, 180), (-4, 30), (128, 128), (True, False)),
        ResizePlan((60, 90), (80, 120), (7, -20), (100, 128), (False, True)),
    ):
        bright = plan.apply_image(image, "bilinear")[..., 0] > 127
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        x0, y0, x1, y1 = np.clip(plan.apply_boxes(box), 0, (plan.size[1], plan.size[0]) * 2)
        np.testing.assert_allclose([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], [x0, y0, x1, y1], atol=1)
        marked = plan.apply_mask((image[..., 0] > 0).astype(np.uint8), fill=0) == 1
        assert (marked != bright).mean() < 0.02


def test_a_mirrored_plan_turns_the_image_over_first() -> None:
    image = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    scores = torch.rand(2, 24, 32)
    for mirrored, axes in (((True, False), (0,)), ((False, True), (1,)), ((True, True), (0, 1))):
        plan = ResizePlan((20, 30), (40, 45), (6, -4), (24, 32), mirrored)
        plain = ResizePlan((20, 30), (40, 45), (6, -4), (24, 32))
        np.testing.assert_array_equal(plan.apply_image(image, fill=9), plain.apply_image(np.flip(image, axes), fill=9))
        mask = image[..., 0].astype(np.uint8)
        np.testing.assert_array_equal(plan.apply_mask(mask), plain.apply_mask(np.flip(mask, axes)))
        assert torch.equal(plan.restore_map(scores), plain.restore_map(scores).flip([axis - 2 for axis in axes]))
        assert not ResizePlan((20, 30), (20, 30), (0, 0), (20, 30), mirrored).identity
    np.testing.assert_array_equal(
        ResizePlan((20, 30), (20, 30), (0, 0), (20, 30), (True, True)).apply_boxes(
            np.array([1.0, 2, 11, 6], np.float32)
        ),
        [19, 14, 29, 18],
    )


@given(
    SIZES,
    SIZES,
    st.tuples(st.floats(-0.2, 1), st.floats(-0.2, 1)),
    st.integers(1, 200),
    st.sampled_from(("bilinear", "bicubic")),
)
@settings(max_examples=80, deadline=None)
def test_resizing_only_what_is_seen_gives_the_same_pixels(
    original: tuple[int, int], scaled: tuple[int, int], place: tuple[float, float], side: int, interpolation: str
) -> None:
    """Against resizing all of it and cropping then. Bytes are rounded between the two passes, which doubles a difference; what
    bicubic makes of noise is clipped there too, and PIL chooses which pass comes first."""
    image = np.random.default_rng(0).integers(0, 256, (*original, 3), dtype=np.uint8)
    offset = (int(scaled[0] * place[0]), int(scaled[1] * place[1]))
    plan = ResizePlan(original, scaled, offset, (side, side), (False, True))
    whole, part = (
        plan.apply_image(image, interpolation, (1, 2, 3), exact=exact).astype(int) for exact in (True, False)
    )
    assert interpolation == "bicubic" or np.abs(whole - part).max() <= 2
    real = (image[..., :1] / 255).astype(np.float32)
    whole, part = (plan.apply_image(real, interpolation, exact=exact) for exact in (True, False))
    np.testing.assert_allclose(part, whole, atol=1e-4)


def test_of_a_photograph_few_bytes_differ_and_by_little(data_root) -> None:
    from effbackbones.images.reading import read_image

    for path in sorted((data_root / "coco_mini" / "val2017").glob("*.jpg"))[:5]:
        image = read_image(path)
        for factor, offset in ((0.7, (40, 60)), (1.9, (301, 77)), (3.3, (200, 1000))):
            scaled = (int(image.shape[0] * factor), int(image.shape[1] * factor))
            plan = ResizePlan(image.shape[:2], scaled, offset, (256, 256))
            for interpolation in ("bilinear", "bicubic"):
                whole, part = (
                    plan.apply_image(image, interpolation, exact=exact).astype(int) for exact in (True, False)
                )
                assert np.abs(whole - part).max() <= 2
                assert (whole != part).mean() < 0.1


def test_a_small_crop_of_a_much_enlarged_image_is_cheap() -> None:
    """An image of 40 gigapixels would not fit into memory."""
    image = RNG.integers(0, 256, (50, 50, 3), dtype=np.uint8)
    plan = ResizePlan((50, 50), (200_000, 200_000), (100_000, 40_000), (64, 64))
    near = plan.apply_image(image, "bilinear", exact=False)
    # A pixel is 4000 wide here: the window sees next to nothing of the way between two of them.
    expected = image[24:26, 9:11].astype(float).mean((0, 1))
    np.testing.assert_allclose(near.reshape(-1, 3).mean(0), expected, atol=3)


def test_what_the_window_shows_is_where_it_is_said_to_be() -> None:
    for plan, content in (
        (ResizePlan((8, 8), (16, 16), (-3, 5), (12, 14)), (0, 3, 11, 12)),
        (ResizePlan.letterbox((8, 4), (10, 10)), (0, 0, 5, 10)),
        (ResizePlan((8, 8), (8, 8), (-9, 0), (4, 4)), (0, 4, 4, 4)),
    ):
        assert plan.content == content
        left, top, right, bottom = content
        mask = plan.apply_mask(np.ones(plan.original, np.uint8))
        assert (mask == 1).sum() == (right - left) * (bottom - top)
        assert (mask[top:bottom, left:right] == 1).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_channel_is_resized_alike(channels: int, dtype: type) -> None:
    """Each channel for itself: a fourth one is no alpha that would weight the others."""
    full = 1 if dtype == np.float32 else np.iinfo(dtype).max
    image = (RNG.random((20, 30, channels)) * full).astype(dtype)
    resized = resize(image, (13, 17), "bicubic")
    assert resized.dtype == dtype
    assert resized.shape == (13, 17, channels)
    for channel in range(channels):
        alone = resize(np.ascontiguousarray(image[..., channel : channel + 1]), (13, 17), "bicubic")
        np.testing.assert_array_equal(resized[..., channel], alone[..., 0])
    assert resized.min() >= 0
    assert resized.max() <= full


def test_deep_and_float_images_resize_like_bytes() -> None:
    image = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    small = resize(image, (15, 25), "bicubic").astype(float)
    np.testing.assert_allclose(resize(image.astype(np.uint16) * 257, (15, 25), "bicubic") / 257, small, atol=1.5)
    np.testing.assert_allclose(resize((image / 255).astype(np.float32), (15, 25), "bicubic") * 255, small, atol=1.5)


@given(SIZES, SIZES)
@settings(max_examples=40)
def test_nearest_is_that_of_pil_but_for_ties(size: tuple[int, int], new: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    equal = resize_nearest(array.astype(np.int64), new) == resize(array[..., None], new, "nearest")[..., 0]
    # PIL adds up rounded steps, so that it goes either way where a pixel centre falls between two pixels.
    rows, columns = (
        (2 * np.arange(after) + 1) * before % (2 * after) == 0 for before, after in zip(size, new, strict=True)
    )
    assert (equal | rows[:, None] | columns).all()


def test_wrong_use_is_named() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="bicubic"):
        resize(image, (4, 4), "bicubik")
    with pytest.raises(ValueError, match=r"\(9, 8\)"):
        ResizePlan.letterbox((9, 8), (4, 4)).apply_image(image)
    with pytest.raises(ValueError, match="scores"):
        ResizePlan.letterbox((9, 8), (4, 4)).restore_map(torch.zeros(2, 5, 4))


@pytest.mark.peer
@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (333, 500), (50, 31), (1, 300), (224, 224), (256, 341)])
@pytest.mark.parametrize(("side", "fraction"), [(224, 0.875), (300, 0.904), (240, 1.0), (237, 0.9)])
def test_centre_crop_equals_torchvision(shape: tuple[int, int], side: int, fraction: float) -> None:
    from PIL import Image
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for name, mode in (("bicubic", InterpolationMode.BICUBIC), ("bilinear", InterpolationMode.BILINEAR)):
        steps = [transforms.Resize(int(side / fraction), interpolation=mode), transforms.CenterCrop(side)]
        expected = np.asarray(transforms.Compose(steps)(Image.fromarray(image)))
        ours = ResizePlan.center_crop(shape, (side, side), fraction).apply_image(image, name)
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.peer
@pytest.mark.parametrize("size", [(224, 224), (192, 256), (256, 128), (300, 300)])
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("fraction", [0.875, 0.904, 1.0])
def test_evaluation_equals_timm(size: tuple[int, int], mode: str, fraction: float) -> None:
    from PIL import Image
    from timm.data import create_transform

    transform = create_transform(
        (3, *size),
        crop_pct=fraction,
        crop_mode=mode,
        interpolation="bicubic",
        normalize=False,
        use_prefetcher=True,
        is_training=False,
    )
    for shape in ((427, 640), (640, 427), (301, 299)):
        image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
        expected = np.asarray(transform(Image.fromarray(image))).reshape(3, *size).transpose(1, 2, 0)
        plan = ResizePlan.center_crop(shape, size, fraction, squash=mode == "squash")
        np.testing.assert_array_equal(plan.apply_image(image, "bicubic"), expected)
