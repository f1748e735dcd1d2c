"""What a loss would take for something else is refused from Python, with the field, the value and the remedy."""

from typing import Any

import numpy as np
import pytest
import torch
from tests_support import Synchronisations, one_line, printed_by
from torch import Tensor
from torch.nn import functional as F

from effbackbones import BoxTargets, build_model
from effbackbones.conformance import check_head, enforce
from effbackbones.contracts import ImageSizes
from effbackbones.errors import UserError
from effbackbones.model import Model
from heads.classification import ClassificationHead
from heads.detection import anchors as anchor_file
from heads.detection.anchors import IouMatching
from heads.detection.points import CenterMatching
from tasks.classification.metrics import ClassificationMetrics
from tasks.data.transforms.mixing import mix

SMALL: dict[str, dict[str, Any]] = {
    "cls": {"channels": 0, "dropout": 0.0},
    "det": {"channels": 16, "cells": 1, "repeats": 1, "levels": [3, 4, 5]},
    "seg": {"channels": [8, 8, 8, 8, 8]},
}


def small(task: str, num_classes: int = 3, **options: Any) -> Model:
    torch.manual_seed(0)
    narrow = {"width": 0.25, "depth": 0.3, "drop_path": 0.0}
    head = {**SMALL[task], **options}
    return build_model(task, "b0", num_classes=num_classes, backbone_options=narrow, head_options=head).eval()


IMAGES = torch.rand(2, 3, 64, 64)


def boxes(box: list[float], label: int = 0) -> BoxTargets:
    return BoxTargets(torch.tensor([[box]] * 2), torch.tensor([[label]] * 2), torch.zeros(2, 1, dtype=torch.bool))


MASK = torch.zeros(2, 64, 64, dtype=torch.int64)


@pytest.mark.parametrize(
    ("task", "classes", "options", "targets", "words"),
    [
        ("cls", 3, {}, torch.tensor([0, 3]), ("targets[1]", "0..2", "got 3", "num_classes")),
        ("cls", 3, {}, torch.tensor([-100, 1]), ("targets[0]", "got -100")),
        ("cls", 3, {}, torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]]), ("targets[1, 1]", "got 2")),
        ("cls", 3, {}, torch.tensor([0, 1, 2]), ("targets", "[2]", "[3]")),
        ("cls", 3, {}, [0, 1], ("targets", "list")),
        ("cls", 1, {}, torch.tensor([0, 2]), ("targets[1]", "0..1", "got 2")),
        ("cls", 3, {"multilabel": True}, torch.tensor([[0.0, 1, 1], [1, -1, 0]]), ("targets[1, 1]", "got -1", "ignore_unknown")),
        ("cls", 3, {"multilabel": True}, torch.tensor([0, 1]), ("targets", "[2, 3]")),
        ("seg", 3, {}, MASK - 100, ("targets[0, 0, 0]", "got -100", "255")),
        ("seg", 3, {}, MASK + 3, ("targets[0, 0, 0]", "0..2", "got 3")),
        ("seg", 3, {}, MASK[:, :32], ("targets", "[2, 64, 64]", "[2, 32, 64]")),
        ("seg", 1, {}, MASK.index_fill(1, torch.tensor([5]), 255), ("targets[0, 5, 0]", "got 255", "as 1")),
        ("det", 3, {}, boxes([40.0, 8, 20, 30]), ("targets.boxes[0, 0]", "x1 <= x2", "40.0")),
        ("det", 3, {}, boxes([1.0, 8, float("nan"), 30]), ("targets.boxes[0, 0, 2]", "finite", "nan")),
        ("det", 3, {}, boxes([10.0, 8, 20, 30], 3), ("targets.labels[0, 0]", "0..2", "got 3")),
        ("det", 3, {}, boxes([10.0, 8, 20, 30], -2), ("targets.labels[0, 0]", "-1", "got -2")),
        ("det", 3, {}, boxes([0.1, 0.2, 0.5, 0.6]), ("targets.boxes", "0..1", "pixels")),
        ("det", 3, {}, torch.zeros(2, 1, 4), ("targets", "BoxTargets", "Tensor")),
        ("det", 3, {}, boxes([10.0, 8, 20, 30])._replace(crowd=torch.zeros(2, 2)), ("targets.crowd", "[2, 1]")),
        ("det", 3, {}, boxes([10.0, 8, 20, 30])._replace(crowd=torch.zeros(2, 1)), ("targets.crowd", "bool", "float32")),
        ("det", 3, {}, boxes([10.0, 8, 20, 30])._replace(labels=torch.zeros(2, 1)), ("targets.labels", "int64", "float32")),
        ("det", 3, {}, boxes([110.0, 8, 120, 30]), ("targets.boxes[0, 0]", "beside", "64 x 64", "110.0", "resize")),
        ("det", 3, {}, boxes([10.0, 8, 220, 30]), ("targets.boxes[0, 0]", "by more than its size", "220.0", "resize")),
        ("det", 3, {}, boxes([10.0, 8, 20, 30])._replace(crowd=torch.zeros(2, 1, dtype=torch.int64)), ("targets.crowd", "int64")),
        ("cls", 3, {}, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), ("targets[1]", "sum to 1", "got 2", "multilabel")),
        ("cls", 3, {}, torch.tensor([[1, 0, 0], [0, 1, 0]]), ("targets", "floating point", "int64", "argmax")),
    ],
)  # fmt: skip
def test_targets_out_of_range_are_named(
    task: str, classes: int, options: dict[str, Any], targets: Any, words: Any
) -> None:
    model = small(task, classes, **options)
    with pytest.raises(UserError) as error:
        model.loss(IMAGES, targets)
    one_line(error, *words)


def test_right_targets_pass_and_nobody_waits() -> None:
    """Padding may hold anything; ignored pixels in the padding of a binary mask without foreground are no mistake."""
    counted = Synchronisations()
    for task, classes, targets in (
        ("cls", 3, torch.tensor([0, 2])),
        ("cls", 3, torch.full((2, 3), 1 / 3)),
        ("cls", 3, torch.full((2, 3), 1 / 3, dtype=torch.float16)),
        ("cls", 3, torch.tensor([0, 2], dtype=torch.int32)),
        ("det", 3, boxes([-10.0, -8, 20, 30])),
        (
            "det",
            3,
            boxes([10.0, 8, 20, 30])._replace(
                boxes=torch.tensor([[[10.0, 8, 20, 30], [9.0, 9, 0, float("nan")]]] * 2),
                labels=torch.tensor([[0, -1]] * 2),
                crowd=torch.zeros(2, 2, dtype=torch.bool),
            ),
        ),
        ("seg", 1, MASK.index_fill(1, torch.arange(50, 64), 255)),
        ("seg", 3, MASK.index_fill(1, torch.arange(50, 64), 255).to(torch.uint8)),
    ):
        model, sizes = small(task, classes), ImageSizes((64, 64), torch.tensor([[50, 64]] * 2))
        with counted:
            model.head.check_targets(targets, sizes)
        assert all(bool(loss.isfinite()) for loss in model.loss(IMAGES, targets, sizes).values())
    assert counted.seen == []


def test_targets_of_several_tasks_are_looked_at_each_by_its_head() -> None:
    model = build_model(
        ("cls", "seg"), "b0", num_classes={"cls": 3, "seg": 3}, backbone_options={"width": 0.25, "depth": 0.3}
    )
    with pytest.raises(UserError, match=r"targets\[1\]"):
        model.loss(IMAGES, {"cls": torch.tensor([0, 3])})
    with pytest.raises(UserError, match=r"'sge'.*seg"):
        model.loss(IMAGES, {"sge": MASK})
    with pytest.raises(UserError, match="dict by task"):
        model.loss(IMAGES, MASK)


@pytest.mark.parametrize("unknown", [-1.0, float("nan")])
def test_unknown_labels_are_left_out(unknown: float) -> None:
    head = small("cls", 3, multilabel=True, ignore_unknown=True, label_smoothing=0.1).head
    raw, targets = torch.randn(2, 3, requires_grad=True), torch.tensor([[1.0, unknown, 0.0], [unknown, unknown, 1.0]])
    sizes = ImageSizes.of(IMAGES)
    head.check_targets(targets, sizes)
    (loss,) = head.loss(raw, targets, sizes).values()
    loss.backward()
    known = targets >= 0
    expected = F.binary_cross_entropy_with_logits(raw.detach()[known], targets[known] * 0.9 + 0.05)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert raw.grad is not None
    assert torch.equal(raw.grad != 0, known)
    assert int(head.count(targets, sizes)["binary_cross_entropy"]) == 3
    nothing = head.loss(raw.detach(), torch.full((2, 3), unknown), sizes)["binary_cross_entropy"]
    assert float(nothing) == 0.0
    mixed = mix(IMAGES, targets.nan_to_num(nan=-1.0), 3, mixup=0.5)[1]
    assert torch.equal(mixed.isnan(), (targets.roll(1, 0) >= 0).logical_not() | ~known)


def test_unknown_labels_are_in_no_figure() -> None:
    """The figures are those of the known labels alone; without the option unknown ones are refused."""
    scores = torch.tensor([[0.9, 0.2], [0.4, 0.8], [0.7, 0.6], [float("nan"), 0.1]])
    targets = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, float("nan")], [float("nan"), 0.0]])
    metric, column = ClassificationMetrics(["a", "b"], True, ignore_unknown=True), ClassificationMetrics(["a"], True)
    metric.update(scores, targets)
    column.update(scores[[0, 2], :1], targets[[0, 2], :1])
    found, alone = metric.compute(), column.compute()
    assert found["per_class"]["a"] == alone["per_class"]["a"]
    assert found["per_class"]["b"]["support"] == 1
    assert (found["non_finite"], found["samples"]) == (0, 4)
    refusing = ClassificationMetrics(["a", "b"], True)
    refusing.update(scores, targets)
    with pytest.raises(UserError, match="3 targets"):
        refusing.compute()


def test_one_class_is_a_yes_or_no() -> None:
    """A sigmoid, as in segmentation; metrics see the classes "not X" and X."""
    model = small("cls", 1)
    promises = ["loss_finite", "gradient_reach", "count", "no_sync", "select", "predict_pure"]
    enforce(
        check_head(ClassificationHead, num_classes=1, options={"channels": 0}, targets=yes_or_no, promises=promises)
    )
    raw, labels = model(IMAGES), torch.tensor([1, 0])
    expected = F.binary_cross_entropy_with_logits(raw[:, 0], labels.float())
    for targets in (labels, labels.float(), labels[:, None].float()):
        (loss,) = model.loss(IMAGES, targets).values()
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    loss.backward()
    assert any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
    probabilities = model.predict(IMAGES)
    assert torch.allclose(probabilities, raw.detach().sigmoid())
    assert probabilities.shape == (2, 1)
    metric = ClassificationMetrics(["cat"])
    metric.update(torch.tensor([[0.9], [0.2], [0.7], [float("nan")]]), torch.tensor([1, 0, 0, 1]))
    scores = metric.compute()
    assert scores["top1"] == 0.5
    assert scores["confusion"] == [[1, 1], [0, 1]]
    assert set(scores["per_class"]) == {"not cat", "cat"}
    assert mix(IMAGES, labels, 1, smoothing=0.2)[1].flatten().tolist() == pytest.approx([0.9, 0.1])


def yes_or_no(sizes: ImageSizes, num_classes: int, empty: bool) -> Tensor:
    return torch.randint(2, (len(sizes.valid),))


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["predict", "loss", "forward"])
@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGES * 255, ("0..1", "divide by 255")),
        (IMAGES * 2 - 1, ("0..1", "normalised already", "normalized=True")),
        (np.zeros((2, 64, 64, 3), np.uint8), ("numpy ndarray", "load_predictor")),
        ([IMAGES[0]], ("list", "load_predictor")),
        ("photo.jpg", ("str", "load_predictor")),
        (IMAGES[0], ("[3, 64, 64]", "image[None]")),
        (IMAGES[:0], ("[0, 3, 64, 64]", "at least one")),
        (IMAGES.permute(0, 2, 3, 1), ("[2, 64, 64, 3]", "[B, 3, H, W]", "permute(0, 3, 1, 2)")),
        (IMAGES[:, :1], ("[2, 1, 64, 64]", "in_channels")),
        (IMAGES * float("nan"), ("nan", "0..1")),
    ],
    ids=["bytes", "normalised", "numpy", "list", "path", "single", "empty", "channels last", "grey", "nan"],
)  # fmt: skip
def test_images_that_are_no_batch_of_0_to_1(verb: str, images: Any, words: tuple[str, ...]) -> None:
    model = small("cls").eval()
    with pytest.raises(UserError) as error:
        {"predict": model.predict, "loss": lambda x: model.loss(x, torch.tensor([0, 1])), "forward": model}[verb](
            images
        )
    one_line(error, "images", *words)


def test_what_is_in_range_passes_unseen_by_the_device() -> None:
    model, counted = small("cls"), Synchronisations()
    with counted, torch.no_grad():
        for images in (IMAGES, IMAGES * 1.5 - 0.2, (IMAGES * 255).byte(), IMAGES.bfloat16()):
            model(images)
        model(IMAGES * 4 - 2, normalized=True)
    assert counted.seen == []


@pytest.mark.parametrize(("task", "side"), [("cls", 32), ("det", 32), ("seg", 32)])
def test_a_training_batch_of_one_tiny_image(task: str, side: int) -> None:
    model = small(task, **({"levels": [3, 4, 5, 6, 7]} if task == "det" else {})).train()
    with pytest.raises(UserError) as error:
        model(torch.rand(1, 3, side, side))
    one_line(error, "training batch", "batch norm", "at least 2 images")
    model(torch.rand(2, 3, side, side))


# ---- thousands of boxes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [IouMatching(), IouMatching(0.5, 0.4, "lift"), IouMatching(0.5, 0.4, "none"), CenterMatching(1.5)], ids=str
)
def test_boxes_are_matched_in_parts_with_the_same_result(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    corner = torch.rand(2, 90, 2) * 100
    found = torch.cat([corner, corner + 1 + torch.rand(2, 90, 2) * 40], 2).round()  # equal overlaps occur
    found[:, 60:] = found[:, :30]
    usable, crowd = torch.rand(2, 90) < 0.8, torch.rand(2, 90) < 0.1
    middle = torch.cartesian_prod(torch.arange(8, 128, 16.0), torch.arange(8, 128, 16.0))
    anchors = torch.cat([torch.cat([middle - half, middle + half], 1) for half in (8.0, 16.0)])
    whole = rule(anchors, found, usable, crowd)
    for pairs in (1, 7 * len(anchors), 2 * 31 * len(anchors)):
        monkeypatch.setattr(anchor_file, "_MOST_PAIRS", pairs)
        parts = rule(anchors, found, usable, crowd)
        assert torch.equal(parts.match, whole.match)
        assert torch.equal(parts.ignored, whole.ignored)


PEAK = """
import resource, torch
from heads.detection.anchors import assign
torch.set_num_threads(1)
at = torch.cartesian_prod(torch.arange(2, 512, 4.0), torch.arange(2, 512, 4.0))
anchors = torch.cat([at - 8, at + 8], 1)
corner = torch.rand(1, 10_000, 2) * 480
boxes = torch.cat([corner, corner + 12], 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
match = assign(anchors, boxes, torch.ones(1, 10_000, dtype=torch.bool)).match
assert int((match >= 0).sum()) > 5000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_ten_thousand_boxes_of_an_image_fit_into_memory() -> None:
    assert int(printed_by(PEAK)) < 1500
