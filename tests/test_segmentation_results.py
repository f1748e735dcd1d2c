"""Segmentations come back to original pixels: in bands as in one piece, at any size, without pretending."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests_support import one_line
from torch import Tensor

import effbackbones
from effbackbones.contracts import ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan
from effbackbones.inference import masks
from effbackbones.inference.tiling import predict_tiles
from tasks.data.batch import Batch, ImageMeta
from tasks.segmentation.results import Segmented, predict_tiled, restore

SIDES = st.integers(1, 90)
SIZES = st.tuples(SIDES, SIDES)
WHOLE = st.one_of(
    st.builds(ResizePlan.letterbox, SIZES, SIZES),
    st.builds(ResizePlan.squash, SIZES, SIZES),
    st.builds(
        lambda original, size, turned: ResizePlan(original, size, (0, 0), size, turned),
        SIZES,
        SIZES,
        st.tuples(st.booleans(), st.booleans()),
    ),
)


def batch_by_plans(*plans: ResizePlan | None, images: Tensor | None = None, originals: Any = None) -> Batch:
    """A batch of images that came by ``plans``, padded to one size."""
    sizes = (
        [plan.size for plan in plans if plan] or [tuple(images.shape[-2:])]
        if images is None or any(plans)
        else [images.shape[-2:]]
    )
    height, width = (max(side) for side in zip(*sizes, strict=True))
    valid = torch.tensor([plan.valid if plan else (height, width) for plan in plans])
    meta = [
        ImageMeta(f"image {i}", f"image{i}.png", plan.original if plan else originals[i], plan)
        for i, plan in enumerate(plans)
    ]
    images = torch.zeros(len(plans), 3, height, width, dtype=torch.uint8) if images is None else images
    return Batch(images, ImageSizes((height, width), valid), None, meta)


def random_scores(seed: int, k: int, *size: int) -> Tensor:
    logits = 3 * torch.randn(k, *size, generator=torch.Generator().manual_seed(seed))
    return logits.softmax(0) if k > 1 else logits.sigmoid()


@settings(max_examples=30, deadline=None)
@given(plan=WHOLE, k=st.integers(1, 5), seed=st.integers(0, 1000), limit=st.sampled_from([1, 400, 2000, 2**21]))
def test_bands_give_what_the_whole_gives(plan: ResizePlan, k: int, seed: int, limit: int) -> None:
    scores = random_scores(seed, k, *plan.size)
    whole = plan.restore_map(scores)
    both = torch.cat([1 - whole, whole]) if k == 1 else whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_BAND", limit)
        (found,) = restore(batch_by_plans(plan), scores[None])
    assert (found.labels.dtype, found.confidence.dtype) == (torch.uint8, torch.float32)
    assert torch.equal(found.labels.long(), (whole[0] > 0.5).long() if k == 1 else whole.argmax(0))
    assert torch.equal(found.confidence, both.amax(0))


@settings(max_examples=20, deadline=None)
@given(plan=WHOLE, seed=st.integers(0, 1000))
def test_restored_scores_are_bilinear(plan: ResizePlan, seed: int) -> None:
    """Against torch's own resize, where that is right: it is not for images of one column."""
    scores = random_scores(seed, 2, *plan.size)
    height, width = plan.valid
    if plan.original[1] > 1:
        cut = scores[None, :, :height, :width]
        expected = torch.nn.functional.interpolate(
            cut, plan.original, mode="bilinear", antialias=True, align_corners=False
        )[0]
        axes = [axis - 2 for axis in range(2) if plan.mirrored[axis]]
        torch.testing.assert_close(plan.restore_map(scores), expected.flip(axes), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(33, 97), (100, 75), (270, 480), (1080, 1920)])
def test_every_image_gets_its_own_size_back(size: tuple[int, int]) -> None:
    plan = ResizePlan.letterbox(size, (256, 256))
    (found,) = restore(batch_by_plans(plan), random_scores(0, 3, 256, 256)[None])
    assert found.labels.shape == found.confidence.shape == size
    assert found.confidence.isfinite().all()


def test_padding_of_a_batch_of_several_sizes_is_cut_off() -> None:
    plans = [
        ResizePlan.letterbox((40, 60), (32, 48)),
        ResizePlan.letterbox((60, 40), (48, 32)),
        ResizePlan.squash((30, 30), (30, 30)),
    ]
    scores = torch.stack([random_scores(seed, 3, 48, 48) for seed in range(3)])
    together = restore(batch_by_plans(*plans), scores)
    for plan, found, score in zip(plans, together, scores, strict=True):
        (alone,) = restore(batch_by_plans(plan), score[None, :, : plan.size[0], : plan.size[1]])
        assert found.labels.shape == plan.original
        assert torch.equal(found.labels, alone.labels)
        assert torch.equal(found.confidence, alone.confidence)


def test_the_class_is_chosen_after_the_resize() -> None:
    """Between two sure neighbours lies a class that is second in both; nearest labels would never show it."""
    plan = ResizePlan.squash((1, 3), (1, 2))
    scores = torch.tensor([[0.55, 0.0], [0.0, 0.55], [0.45, 0.45]])[:, None]
    (found,) = restore(batch_by_plans(plan), scores[None])
    assert found.labels.tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_restored_in_float32(dtype: torch.dtype) -> None:
    plan = ResizePlan.letterbox((70, 50), (32, 32))
    scores = random_scores(1, 4, 32, 32).to(dtype)
    short, long = restore(batch_by_plans(plan), scores[None]) + restore(batch_by_plans(plan), scores[None].float())
    assert torch.equal(short.labels, long.labels)
    assert torch.equal(short.confidence, long.confidence)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("k", [1, 3])
def test_what_is_not_finite_stays_so(value: float, k: int) -> None:
    scores = random_scores(2, k, 8, 8)
    scores[-1, 2, 3] = value
    (found,) = restore(batch_by_plans(ResizePlan.squash((8, 8), (8, 8))), scores[None])
    assert found.confidence.isnan().nonzero().tolist() == [[2, 3]]
    (enlarged,) = restore(batch_by_plans(ResizePlan.squash((16, 16), (8, 8))), scores[None])
    lost = enlarged.confidence.isnan()
    assert lost[4:6, 6:8].all()
    assert lost.sum() <= 36


def test_what_cannot_be_restored_is_refused() -> None:
    scores = random_scores(0, 2, 20, 20)[None]
    with pytest.raises(UserError) as error:
        restore(batch_by_plans(ResizePlan.center_crop((20, 40), (20, 20))), scores)
    one_line(error, "image0.png", "[20, 20]", "[20, 40]", "letterbox")
    with pytest.raises(UserError) as error:
        restore(batch_by_plans(None, images=torch.zeros(1, 3, 20, 20), originals=[(20, 40)]), scores)
    one_line(error, "image0.png", "[20, 20]", "[20, 40]", "Sample.plan")
    (found,) = restore(batch_by_plans(None, images=torch.zeros(1, 3, 20, 20), originals=[(20, 20)]), scores)
    assert torch.equal(found.labels.long(), scores[0].argmax(0))


@pytest.mark.parametrize("classes", [1, 3])
def test_tiles_of_a_batch_are_those_of_its_images(classes: int) -> None:
    model = effbackbones.build_model(task="seg", backbone="lite0", num_classes=classes).eval()
    images = torch.randint(0, 256, (2, 3, 90, 100), dtype=torch.uint8)
    plans = [ResizePlan.squash(size, size) for size in ((90, 70), (40, 100))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effbackbones.Model, "forward", lambda self, images, sizes: images[:, :classes].float() / 100)
        found = predict_tiled(model, batch_by_plans(*plans, images=images), (64, 48), 16)
        for plan, image, one in zip(plans, images, found, strict=True):
            height, width = plan.original
            bands = predict_tiles(model, image[:, :height, :width], tile=(64, 48), overlap=16)
            whole = torch.cat([band for _, band in bands], 1)
            assert torch.equal(one.labels.long(), (whole[0] > 0.5).long() if classes == 1 else whole.argmax(0))
            assert one.confidence.shape == plan.original
            expected = whole.amax(0) if classes > 1 else torch.maximum(whole[0], 1 - whole[0])
            assert torch.equal(one.confidence, expected)


def test_tiles_are_for_images_at_their_own_size() -> None:
    model = effbackbones.build_model(task="seg", backbone="lite0", num_classes=2).eval()
    for plan in (
        ResizePlan.letterbox((80, 80), (64, 64)),
        ResizePlan((64, 64), (64, 64), (0, 0), (64, 64), (False, True)),
    ):
        with pytest.raises(UserError) as error:
            predict_tiled(model, batch_by_plans(plan), (32, 32), 8)
        one_line(error, "image0.png", "own size")


def test_the_best_class_of_equals_is_the_lower_one() -> None:
    (found,) = restore(batch_by_plans(ResizePlan.squash((4, 4), (4, 4))), torch.full((1, 5, 4, 4), 0.2))
    assert isinstance(found, Segmented)
    assert found.labels.max() == 0
    np.testing.assert_allclose(found.confidence, 0.2)
