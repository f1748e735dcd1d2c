"""Classification transforms: the published evaluation numbers, and training augmentation that is a function of its key."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from tests_support import printed_by

from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from effbackbones.images.colours import fill_of
from tasks.data.sample import Sample
from tasks.data.transforms.images import (
    ClassificationTransform,
    RandomErasing,
    drawn_shift,
    random_area,
    seeded,
    shifted,
)

SPEC = ImageSpec(size=(32, 32))
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
SAMPLE = Sample(IMAGE, "a", "a.jpg", label=1)
RECIPES = {
    "resized": dict(),
    "pad": dict(crop="pad"),
    "center": dict(crop="center"),
    "none": dict(crop="none"),
    "randaugment": dict(crop="pad", randaugment=(2, 9)),
    "jitter": dict(color_jitter=0.4),
    "erasing": dict(erasing=1.0),
    "all": dict(randaugment=(3, 15), color_jitter=0.4, erasing=0.5),
}


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


@pytest.mark.parametrize("name", RECIPES)
def test_a_function_of_the_generator_alone(name: str) -> None:
    transform = ClassificationTransform(SPEC, (32, 32), True, **RECIPES[name])
    first = transform(SAMPLE, rng(0, 1, 2))
    torch.rand(5)
    _ = transform(SAMPLE, rng(9))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = pickle.loads(pickle.dumps(transform))(SAMPLE, rng(0, 1, 2))  # noqa: S301  # our own bytes
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert first.image.shape == (32, 32, 3)
    assert first.image.dtype == np.uint8
    assert (first.label, first.id, first.original) == (1, "a", (40, 50))
    np.testing.assert_array_equal(first.image, again.image)
    assert len({transform(SAMPLE, rng(0, 1, index)).image.tobytes() for index in range(20)}) > 1
    np.testing.assert_array_equal(SAMPLE.image, np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_depths_and_channels(dtype: type, channels: int) -> None:
    image = (np.random.default_rng(0).random((40, 50, channels)) * (1 if dtype == np.float32 else 65535)).astype(dtype)
    spec = replace(SPEC, mean=(0.5,) * channels, std=(0.2,) * channels)
    for augment in (dict(crop="pad", erasing=1.0), dict(erasing=1.0)):
        for train in (True, False):
            out = ClassificationTransform(spec, (32, 32), train, **augment)(Sample(image, "a"), rng(1)).image
            assert out.dtype == dtype
            assert out.shape == (32, 32, channels)
            assert 0 < out.mean() < (1 if dtype == np.float32 else 65535)


def test_boxes_and_mask_are_dropped_since_they_would_be_wrong() -> None:
    sample = replace(
        SAMPLE, boxes=np.zeros((1, 4), np.float32), box_labels=np.zeros(1, np.int64), mask=np.zeros((40, 50), np.int64)
    )
    out = ClassificationTransform(SPEC, (32, 32), False)(sample, rng(0))
    assert out.boxes is out.box_labels is out.mask is None
    assert out.plan is not None
    assert out.plan.original == (40, 50)


def test_evaluation_is_not_random_and_ignores_the_augmentation() -> None:
    transforms = [ClassificationTransform(SPEC, (32, 32), False, **augment) for augment in RECIPES.values()]
    images = [transform(SAMPLE, rng(seed)).image for seed, transform in enumerate(transforms)]
    assert all(np.array_equal(images[0], image) for image in images)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("mode", "interpolation"), [("center", "bicubic"), ("center", "bilinear"), ("squash", "bicubic")]
)
def test_evaluation_equals_timm_on_photographs(data_root, mode: str, interpolation: str) -> None:
    from PIL import Image
    from timm.data import create_transform

    from effbackbones.images.reading import read_image

    spec = ImageSpec(size=(224, 224), crop_mode=mode, interpolation=interpolation)
    ours = ClassificationTransform(spec, spec.size, False)
    theirs = create_transform(
        (3, 224, 224), crop_pct=0.875, crop_mode=mode, interpolation=interpolation, normalize=False, use_prefetcher=True
    )
    for path in sorted((data_root / "coco_mini" / "val2017").glob("*.jpg"))[:8]:
        expected = np.asarray(theirs(Image.open(path).convert("RGB"))).reshape(3, 224, 224).transpose(1, 2, 0)
        np.testing.assert_array_equal(ours(Sample(read_image(path), "a"), rng(0)).image, expected)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1), st.floats(0.1, 10), st.integers(0, 2**32 - 1))
def test_random_area_lies_inside(height: int, width: int, scale: float, ratio: float, seed: int) -> None:
    left, top, right, bottom = random_area((height, width), (scale, 1.0), (min(ratio, 1), max(ratio, 1)), rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_area_has_the_stated_area_and_aspect() -> None:
    generator = rng(0)
    boxes = np.array([random_area((400, 400), (0.2, 0.5), (0.5, 2.0), generator) for _ in range(2000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, aspects = widths * heights / 400**2, np.log(widths / heights)
    assert 0.19 < areas.min() < 0.21
    assert 0.49 < areas.max() < 0.51
    assert np.mean(areas) == pytest.approx(0.35, abs=0.01)  # uniform
    assert np.mean(aspects) == pytest.approx(0, abs=0.03)  # log-uniform
    assert np.var(aspects) == pytest.approx((2 * np.log(2)) ** 2 / 12, rel=0.1)
    assert np.mean(boxes[:, 0] / np.maximum(400 - widths, 1)) == pytest.approx(0.5, abs=0.03)  # anywhere


def test_random_area_of_a_strip_falls_back_to_its_middle() -> None:
    assert random_area((10, 1000), (0.9, 1.0), (0.75, 4 / 3), rng(0)) == (493, 0, 506, 10)
    assert random_area((1, 5000), (0.08, 1.0), (0.75, 4 / 3), rng(0)) == (2499, 0, 2500, 1)


@pytest.mark.peer
def test_random_area_has_the_distribution_of_torchvision() -> None:
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    empty = torch.zeros(3, 375, 500)
    theirs = np.array(
        [RandomResizedCrop.get_params(empty, (0.08, 1.0), (0.75, 4 / 3)) for _ in range(4000)]
    )  # top, left, height, width
    generator = rng(0)
    boxes = np.array([random_area((375, 500), (0.08, 1.0), (0.75, 4 / 3), generator) for _ in range(4000)])
    ours = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], 1)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        np.testing.assert_allclose(np.quantile(ours, quantile, axis=0), np.quantile(theirs, quantile, axis=0), atol=14)


def test_flip_probability() -> None:
    for flip, expected in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
        transform = ClassificationTransform(replace(SPEC, crop_fraction=1.0), (40, 50), True, crop="none", flip=flip)
        flipped = [np.array_equal(transform(SAMPLE, rng(index)).image, IMAGE[:, ::-1]) for index in range(400)]
        assert np.mean(flipped) == pytest.approx(expected, abs=0.08 if flip == 0.5 else 0)


def test_padding_crop_shows_every_shift_and_the_mean_beyond() -> None:
    image = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    fill = np.array([1, 2, 3], np.uint8)
    padded = np.empty((8 + 4, 6 + 2, 3), np.uint8)
    padded[:] = fill
    padded[2:10, 1:7] = image
    seen = {shifted(image, *drawn_shift(2, 1, rng(seed)), fill).tobytes() for seed in range(400)}
    assert seen == {padded[y : y + 8, x : x + 6].tobytes() for y in range(5) for x in range(3)}


def test_fill_is_the_mean_colour() -> None:
    assert fill_of(IMAGE, (0.485, 0.456, 0.406)).tolist() == [124, 116, 104]
    assert fill_of(IMAGE.astype(np.uint16), (0.5, 0.5, 1.0)).tolist() == [32768, 32768, 65535]
    with pytest.raises(UserError, match="has 1 values, the image 3"):
        fill_of(IMAGE, (0.5,))


def test_erasing_replaces_one_box_by_noise() -> None:
    erased = 0
    for seed in range(300):
        image = RandomErasing(0.25, SPEC)(replace(SAMPLE, image=np.zeros((64, 64, 3), np.uint8)), rng(seed)).image
        rows, columns = np.flatnonzero(image.any((1, 2))), np.flatnonzero(image.any((0, 2)))
        if len(rows):
            erased += 1
            area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / 64**2
            assert 0.01 < area < 0.36
            noise = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert (noise.any(2)).mean() > 0.95
    assert erased / 300 == pytest.approx(0.25, abs=0.08)


@pytest.mark.peer
@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_is_torchvisions(channels: int) -> None:
    from PIL import Image
    from torchvision.transforms import InterpolationMode, RandAugment

    image = np.ascontiguousarray(IMAGE[..., :channels])
    spec = replace(SPEC, mean=SPEC.mean[:channels], std=SPEC.std[:channels])
    data = dict(crop="none", flip=0, randaugment=(2, 9))
    transform = ClassificationTransform(spec, (40, 50), True, **data)
    policy = RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR, fill=[124, 116, 104][:channels])
    for seed in range(30):
        ours = transform(Sample(image, "a"), rng(seed)).image
        generator = rng(seed)
        generator.random()  # the flip
        torch.manual_seed(int(generator.integers(2**63)))
        theirs = np.asarray(policy(Image.fromarray(image.squeeze()))).reshape(image.shape)
        np.testing.assert_array_equal(ours, theirs)


def test_randaugment_refuses_what_it_cannot_do() -> None:
    for image in (IMAGE.astype(np.uint16), np.dstack([IMAGE, IMAGE[..., :1]])):
        spec = replace(SPEC, mean=(0.5,) * image.shape[2], std=(0.2,) * image.shape[2])
        transform = ClassificationTransform(spec, (32, 32), True, randaugment=(2, 9.0))
        with pytest.raises(UserError, match=r"data\.randaugment"):
            transform(Sample(image, "a"), rng(0))


def test_jitter_changes_colours_and_keeps_places() -> None:
    transform = ClassificationTransform(SPEC, (40, 50), True, crop="none", flip=0, color_jitter=0.4)
    grey = np.repeat(np.linspace(60, 180, 40).astype(np.uint8)[:, None, None], 50, 1).repeat(3, 2)
    images = [transform(Sample(grey, "a"), rng(seed)).image.astype(int) for seed in range(20)]
    assert np.std([image.mean() for image in images]) > 5
    for image in images:
        assert (np.diff(image[:, 0, 0]) >= 0).all()  # the ramp stays a ramp
        assert (image == image[:, :1, :1]).all()


def test_albumentations_draws_from_the_generator_alone() -> None:
    import albumentations

    compose = albumentations.Compose([albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)])
    outcomes = {seeded(compose, rng(seed))(image=IMAGE)["image"].tobytes() for seed in range(40)}
    assert len(outcomes) == 4  # the two do not always fire together
    assert (
        seeded(compose, rng(3))(image=IMAGE)["image"].tobytes()
        == seeded(compose, rng(3))(image=IMAGE)["image"].tobytes()
    )


def darker(sample: Sample, rng: np.random.Generator) -> Sample:
    """A user's own transform."""
    return replace(sample, image=sample.image // 2)


def test_own_transforms_are_added_in_training() -> None:
    data = dict(crop="none", flip=0)
    plain, added = (
        ClassificationTransform(SPEC, (32, 32), True, extra, **data)(SAMPLE, rng(0)).image for extra in ((), (darker,))
    )
    np.testing.assert_array_equal(added, plain // 2)
    evaluation = ClassificationTransform(SPEC, (32, 32), False, [darker], **data)(SAMPLE, rng(0)).image
    np.testing.assert_array_equal(
        evaluation, ClassificationTransform(SPEC, (32, 32), False, **data)(SAMPLE, rng(0)).image
    )


def test_the_plain_path_imports_nothing_heavy() -> None:
    code = """
import sys, numpy as np
from effbackbones.contracts import ImageSpec
from tasks.data.batch import KeyedDataset, Sample
from tasks.data.transforms.images import ClassificationTransform
transform = ClassificationTransform(ImageSpec(), (32, 32), True, erasing=1.0)
transform(Sample(np.zeros((40, 40, 3), np.uint8), "a"), np.random.default_rng(0))
print({"torchvision", "albumentations", "cv2", "lightning"} & set(sys.modules))
"""
    assert printed_by(code) == "set()"


def test_letterbox_keeps_the_whole_image_and_fills_with_the_mean() -> None:
    """What a detector beside the classifier asks for (``crop_mode`` letterbox)."""
    spec = ImageSpec(size=(32, 32), mean=(0.2, 0.4, 0.6), crop_mode="letterbox")
    image = np.full((20, 40, 3), 255, np.uint8)
    sample = ClassificationTransform(spec, spec.size, False)(Sample(image, "a"), np.random.default_rng(0))
    assert sample.image.shape == (32, 32, 3)
    assert (sample.image[:16] == 255).all()
    assert (sample.image[16:] == [51, 102, 153]).all()
    assert sample.plan is not None
    assert sample.plan.valid == (16, 32)
