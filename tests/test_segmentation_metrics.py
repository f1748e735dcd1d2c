"""Segmentation scores: equal to references and to hand counts, independent of batches and processes, never raised by NaN."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests_support import class_names, one_line

from effbackbones.errors import UserError
from effbackbones.images.geometry import Mask
from tasks.segmentation import metrics
from tasks.segmentation.metrics import SegmentationMetrics, image_iou
from tasks.segmentation.results import Segmented

MEANS = ("miou", "pixel_accuracy", "dice", "boundary_iou")
KEYS = ["images", "pixels", "non_finite", *MEANS, "ece", "per_class", "confusion", "reliability"]


def segmented(labels: Any, confidence: Any = 0.75) -> Segmented:
    classes = torch.as_tensor(labels, dtype=torch.uint8)
    return Segmented(classes, torch.as_tensor(confidence, dtype=torch.float32).expand(classes.shape))


def random_regions(seed: int, k: int, sides: int = 40) -> tuple[Segmented, Mask]:
    """An image of regions with a prediction that is right in most; some pixels are ignored; the last classes are rare."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, sides, 2)
    coarse = (rng.random((2, height // 6 + 1, width // 6 + 1)) ** 2 * k).astype(np.uint8)
    truth, wrong = coarse.repeat(6, 1).repeat(6, 2)[:, :height, :width]
    labels = np.where(rng.random((height, width)) < 0.7, np.roll(truth, 1, 1), wrong).astype(np.uint8)
    mask = np.where(rng.random((height, width)) < 0.05, 255, truth).astype(np.uint8)
    return segmented(labels, torch.from_numpy(rng.random((height, width))).float()), mask


def score(images: list[tuple[Segmented, Mask]], k: int, batch: int = 100) -> dict[str, Any]:
    metric = SegmentationMetrics(class_names(k))
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        metric.update([found for found, _ in some], [mask for _, mask in some])
    return metric.compute()


def spoil(found: Segmented, bad: torch.Tensor, k: int) -> Segmented:
    """``found`` with what a network that gives NaN there leads to: any label, no confidence."""
    labels = torch.where(bad, (found.labels + 1) % k, found.labels).to(torch.uint8)
    return Segmented(labels, found.confidence.masked_fill(bad, torch.nan))


def test_a_case_counted_by_hand() -> None:
    mask = np.array([[0, 0, 1, 255], [0, 1, 1, 255]], np.uint8)
    result = score([(segmented([[0, 0, 1, 2], [1, 1, 3, 0]]), mask)], 5)
    assert list(result) == KEYS
    assert result["confusion"] == [[2, 1, 0, 0, 0], [0, 2, 0, 1, 0], *[[0] * 5] * 3]
    assert (result["images"], result["pixels"], result["non_finite"]) == (1, 6, 0)
    rows = result["per_class"]
    assert list(rows) == class_names(5)
    # Every pixel is in a band: the image is two pixels high.
    assert rows["class 0"] == {
        "iou": 2 / 3,
        "dice": 4 / 5,
        "precision": 1.0,
        "recall": 2 / 3,
        "boundary_iou": 2 / 3,
        "pixels": 3,
    }
    assert rows["class 1"] == {
        "iou": 2 / 4,
        "dice": 4 / 6,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "boundary_iou": 2 / 4,
        "pixels": 3,
    }
    # Predicted and never true: counts as 0; neither: nowhere. Class 2 is predicted on an ignored pixel alone.
    assert rows["class 3"] == {
        "iou": 0.0,
        "dice": 0.0,
        "precision": 0.0,
        "recall": None,
        "boundary_iou": 0.0,
        "pixels": 0,
    }
    assert rows["class 2"] == rows["class 4"] == {**dict.fromkeys(rows["class 0"]), "pixels": 0}
    assert result["miou"] == result["boundary_iou"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert result["dice"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert result["pixel_accuracy"] == 4 / 6
    assert result["ece"] == pytest.approx(0.75 - 4 / 6)
    assert [row["count"] for row in result["reliability"] if row["count"]] == [6]


def test_a_lost_pixel_counts_as_any_other_class() -> None:
    mask = np.zeros((2, 2), np.uint8)
    result = score([(segmented([[0, 0], [0, 2]], [[1, 1], [1, math.nan]]), mask)], 3)
    assert result["confusion"] == [[3, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert (result["non_finite"], result["pixel_accuracy"], result["ece"]) == (1, 0.75, 0.25)
    assert [row["iou"] for row in result["per_class"].values()] == [0.75, 0.0, 0.0]
    lost = np.array([[0, 255], [0, 255]], np.uint8)  # an ignored one does not count
    assert score([(segmented([[0, 2], [0, 2]], [[1, math.nan]] * 2), lost)], 3)["non_finite"] == 0


def reference_band(mask: np.ndarray, reach: int) -> np.ndarray:
    """The published way: the class less its erosion, ``reach`` times by 3 x 3, with nothing around the image."""
    import cv2

    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=reach)[1:-1, 1:-1]
    return mask & ~inner.astype(bool)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), chunk=st.sampled_from([1, 700, 2**20]))
def test_boundary_iou_equals_erosion(seed: int, k: int, chunk: int) -> None:
    images = [random_regions(seed + i, k, sides=240) for i in range(2)]
    counts = np.zeros((2, k), np.int64)
    for found, mask in images:
        reach = max(1, round(0.02 * math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)))
        labels = np.where(mask == 255, 255, found.labels.numpy())
        for c in range(k):
            true, predicted = (reference_band(array == c, reach) for array in (mask, labels))
            counts[:, c] += (true & predicted).sum(), (true | predicted).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        result = score(images, k)
    expected = [both / any_ if any_ else None for both, any_ in counts.T.tolist()]
    assert [row["boundary_iou"] for row in result["per_class"].values()] == expected
    assert score(images, k) == result


def test_boundary_iou_sees_what_iou_does_not() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[10:90, 10:90] = 1
    grown = np.zeros_like(mask)
    grown[8:92, 8:92] = 1
    result = score([(segmented(grown), mask)], 2)["per_class"]["class 1"]
    assert result["iou"] == 80**2 / 84**2
    # Bands three pixels wide; the true one has its outermost pixels alone in the predicted one.
    both, true, predicted = 80**2 - 78**2, 80**2 - 74**2, 84**2 - 78**2
    assert result["boundary_iou"] == both / (true + predicted - both)


@pytest.mark.peer
@pytest.mark.parametrize("k", [2, 12])
def test_equals_references(k: int) -> None:
    import segmentation_models_pytorch as smp
    from sklearn import metrics as reference
    from torchmetrics.functional.classification import multiclass_calibration_error

    images = [random_regions(seed, k) for seed in range(6)]
    result = score(images, k)
    labels = np.concatenate([found.labels.flatten() for found, _ in images])
    masks = np.concatenate([mask.flatten() for _, mask in images])
    valid = masks != 255
    true, predicted = masks[valid], labels[valid]
    assert result["confusion"] == reference.confusion_matrix(true, predicted, labels=range(k)).tolist()
    present = sorted({*true.tolist(), *predicted.tolist()})
    options = {"labels": present, "average": None, "zero_division": 0}
    rows = [result["per_class"][f"class {i}"] for i in present]
    assert [row["iou"] for row in rows] == pytest.approx(reference.jaccard_score(true, predicted, **options))
    assert [row["dice"] for row in rows] == pytest.approx(reference.f1_score(true, predicted, **options))
    assert [row["precision"] for row in rows] == pytest.approx(reference.precision_score(true, predicted, **options))
    assert [row["recall"] or 0.0 for row in rows] == pytest.approx(reference.recall_score(true, predicted, **options))
    assert result["pixel_accuracy"] == pytest.approx(reference.accuracy_score(true, predicted))
    as_images = (torch.from_numpy(array.astype(np.int64))[None, None] for array in (labels, masks))
    stats = smp.metrics.get_stats(*as_images, mode="multiclass", num_classes=k, ignore_index=255)
    if len(present) == k:  # there an absent class has IoU 1
        assert result["miou"] == pytest.approx(smp.metrics.iou_score(*stats, reduction="macro").item())
    confidence = torch.cat([found.confidence.flatten() for found, _ in images])[torch.from_numpy(valid)]
    scores = torch.zeros(len(true), k)
    scores[torch.arange(len(true)), torch.from_numpy(predicted).long()] = confidence
    kept = confidence > 0.05  # below, all entries may be equal
    error = multiclass_calibration_error(scores[kept], torch.from_numpy(true.astype(np.int64))[kept], k, n_bins=15)
    only = score([(segmented(predicted[kept][None], confidence[kept]), true[kept][None])], k)
    assert only["ece"] == pytest.approx(error.item(), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 7),
    k=st.integers(1, 9),
    batch=st.integers(1, 7),
    chunk=st.sampled_from([1, 99, 2**20]),
)
def test_batches_order_and_chunks_do_not_matter(seed: int, n: int, k: int, batch: int, chunk: int) -> None:
    images = [random_regions(seed + i, k) for i in range(n)]
    whole = score(images, k)
    order = np.random.default_rng(seed).permutation(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        assert score([images[i] for i in order], k, batch) == whole
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    found, mask = images[0]
    assert image_iou(found.labels.numpy(), mask, k) == pytest.approx(score(images[:1], k)["miou"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 5), share=st.floats(0, 1) | st.floats(0, 0.02))
def test_lost_pixels_never_raise_a_score(seed: int, k: int, share: float) -> None:
    found, mask = random_regions(seed, k, sides=80)
    bad = torch.rand(found.labels.shape, generator=torch.Generator().manual_seed(seed)) < share
    clean, result = score([(found, mask)], k), score([(spoil(found, bad, k), mask)], k)
    assert result["non_finite"] == int((bad & (torch.from_numpy(mask) != 255)).sum())
    assert result["pixels"] == clean["pixels"]
    for key in MEANS:
        assert result[key] is clean[key] is None or result[key] <= clean[key] + 1e-12
    assert clean["ece"] is None or result["ece"] >= clean["ece"] - 1e-12
    for before, after in zip(clean["per_class"].values(), result["per_class"].values(), strict=True):
        for key, value in after.items():
            assert value is None or before[key] is None or value <= before[key]
            assert before[key] is None or value is not None


def test_a_lost_pixel_makes_no_border() -> None:
    """Stripes two pixels wide are all border; a hole in a uniform prediction, taken for a border, would raise the score."""
    mask = np.tile(np.arange(20, dtype=np.uint8) // 2 % 2, (20, 1))
    uniform = segmented(np.zeros_like(mask))
    lost = torch.zeros(20, 20, dtype=torch.bool)
    lost[10, 9] = True
    clean, result = (score([(image, mask)], 2)["per_class"]["class 0"] for image in (uniform, spoil(uniform, lost, 2)))
    assert result["boundary_iou"] < clean["boundary_iou"]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 5))
def test_what_is_predicted_on_ignored_pixels_changes_nothing(seed: int, k: int) -> None:
    found, mask = random_regions(seed, k, sides=80)
    ignored = torch.from_numpy(mask) == 255
    assert score([(spoil(found, ignored, k), mask)], k) == score([(found, mask)], k)


def test_images_without_truth_and_ignored_ones() -> None:
    found, mask = random_regions(3, 4)
    metric = SegmentationMetrics(class_names(4))
    metric.update([found, found], [None, mask])
    assert metric.compute() == score([(found, mask)], 4)
    blank = score([(found, np.full_like(mask, 255))], 4)
    assert (blank["images"], blank["pixels"]) == (1, 0)
    assert [blank[key] for key in (*MEANS, "ece")] == [None] * 5
    assert image_iou(found.labels.numpy(), np.full_like(mask, 255), 4) is None


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_an_empty_split_is_undefined_not_zero() -> None:
    result = SegmentationMetrics(class_names(3)).compute()
    assert result["images"] == result["pixels"] == 0
    assert [result[key] for key in (*MEANS, "ece")] == [None] * 5


def test_reset_starts_again_even_under_inference_mode() -> None:
    images = [random_regions(seed, 4) for seed in range(3)]
    metric = SegmentationMetrics(class_names(4))
    with torch.inference_mode():
        metric.update([images[0][0]], [images[0][1]])
        metric.reset()
        metric.update([images[1][0]], [images[1][1]])
    metric.update([images[2][0]], [images[2][1]])
    assert metric.compute() == score(images[1:], 4)


def test_255_classes_fit() -> None:
    mask = np.arange(255, dtype=np.uint8).reshape(15, 17)
    result = score([(segmented(mask), mask)], 255)
    assert (result["miou"], result["boundary_iou"], result["pixels"]) == (1.0, 1.0, 255)


def test_impossible_input_is_named() -> None:
    mask = np.zeros((3, 4), np.uint8)
    mask[1, :2] = 7
    for images, words in (
        ([(segmented(np.zeros((3, 4))), mask)], ("2 true pixels", "3 classes", "255")),
        ([(segmented(np.full((3, 4), 3)), np.zeros((3, 4), np.uint8))], ("12 predicted pixels", "3 classes")),
        ([(segmented(np.zeros((3, 4)), 1.5), np.zeros((3, 4), np.uint8))], ("12 confidences", "0..1", "logits")),
        ([(segmented(np.zeros((4, 3))), mask)], ("[3, 4]", "[4, 3]", "original")),
        ([(segmented(np.zeros((3, 4))), mask.astype(np.int64))], ("int64 [3, 4]", "uint8")),
    ):
        with pytest.raises(UserError) as error:
            score(images, 3)
        one_line(error, *words)
    with pytest.raises(UserError) as error:
        SegmentationMetrics(class_names(3)).update([segmented(mask)], [])
    one_line(error, "1 predicted", "0 masks")
    for labels, true, words in ((mask[:, :3], mask, ("[3, 4]", "[3, 3]")), (mask, mask, ("none of 3",))):
        with pytest.raises(UserError) as error:
            image_iou(labels, true, 3)
        one_line(error, *words)


@pytest.mark.parametrize("classes", [["a", "b", "a"], [], class_names(256)])
def test_class_names_must_differ_and_fit(classes: list[str]) -> None:
    with pytest.raises(UserError) as error:
        SegmentationMetrics(classes)
    one_line(error, "distinct", "255")


def score_share(rank: int) -> list[Any]:
    """Process ``rank`` of 2 scores its share; of one of the sets the second process has no image at all."""
    images = [random_regions(seed, 4) for seed in range(5)]
    return [score(images[share], 4, 1) for share in (slice(rank, None, 2), slice(0, None if rank == 0 else 0))]


def score_whole() -> list[Any]:
    """What each process of :func:`score_share` has to find."""
    return [score([random_regions(seed, 4) for seed in range(5)], 4)] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_update_never_waits_for_the_device() -> None:
    found, mask = random_regions(5, 4)
    metric = SegmentationMetrics(class_names(4)).to("cuda")
    moved = Segmented(found.labels.cuda(), found.confidence.cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update([moved], [mask])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metric.compute() == score([(found, mask)], 4)
