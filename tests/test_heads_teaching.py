"""What a student loses against its teacher, held against the formulas written out."""

import math
from typing import Any

import pytest
import torch
from test_engine_normalising import OPTIONS, case, joint
from tests_support import one_line
from torch.nn import functional as F

from effbackbones import UserError
from effbackbones.conformance import check_head
from effbackbones.conformance.case import default_targets
from effbackbones.contracts import BoxTargets, ImageSizes
from effbackbones.registry import HEADS
from heads.teaching import quality_focal_sum, sigmoid_divergence, softmax_divergence

EACH: list[tuple[str, dict[str, Any], int]] = [
    ("classification", {"channels": 0}, 3),
    ("classification", {"channels": 0, "multilabel": True}, 3),
    ("efficientdet", {}, 3),
    ("fpn", {}, 3),
    ("fpn", {"class_weights": [0.2, 3.0, 0.7]}, 3),
    ("fpn", {}, 1),
]


def softmax(row: list[float], warmth: float) -> list[float]:
    powers = [math.exp(value / warmth) for value in row]
    return [power / sum(powers) for power in powers]


def test_divergences_equal_the_formulas_written_out() -> None:
    torch.manual_seed(0)
    student, teacher, warmth = torch.randn(2, 3), 2 * torch.randn(2, 3), 2.5
    for row, (own, soft) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
        p, q = softmax(own, warmth), softmax(soft, warmth)
        wanted = warmth**2 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        assert float(softmax_divergence(student, teacher, warmth)[row]) == pytest.approx(wanted, rel=1e-4)
        for column in range(3):
            a, b = (1 / (1 + math.exp(-each[column] / warmth)) for each in (own, soft))
            wanted = warmth**2 * (b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a)))
            found = sigmoid_divergence(student, teacher, warmth)[row, column]
            assert float(found) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_focal_form_equals_its_formula_and_its_gradient_that_of_autograd() -> None:
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(2, 5, 3)).double().requires_grad_(), 3 * torch.randn(2, 5, 3)
    ignored = torch.rand(2, 5) < 0.3
    for warmth in (1.0, 2.0):
        p, q = (student / warmth).sigmoid(), (teacher / warmth).sigmoid()
        each = (p - q).square() * F.binary_cross_entropy_with_logits(student / warmth, q.double(), reduction="none")
        plain = warmth**2 * each[~ignored].sum()
        (wanted,) = torch.autograd.grad(plain, student)
        single = student.detach().float().requires_grad_()
        found = quality_focal_sum(single, teacher, warmth, ignored)
        (gradient,) = torch.autograd.grad(found, single)
        assert found.item() == pytest.approx(plain.item(), rel=1e-5)
        assert torch.allclose(gradient.double(), wanted, atol=1e-5)
        assert not gradient[ignored].any()
    assert float(quality_focal_sum(teacher, teacher, 1.0)) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize(("name", "options", "classes"), EACH, ids=str)
def test_heads_learn_from_a_teacher(name: str, options: dict[str, Any], classes: int) -> None:
    """The promise of the contract: 0 against itself, a gradient for the student alone, counts that add up, no waiting for a device."""
    built = case(name, options, classes)
    targets = default_targets(built.head_class.task, options)
    if classes == 1:
        whole = targets
        targets = lambda sizes, _, empty: whole(sizes, 2, empty)  # noqa: E731
    elif options.get("multilabel"):
        targets = lambda sizes, count, _: torch.rand(len(sizes.valid), count)  # noqa: E731
    given = {**OPTIONS[name], **options}
    promises = ["distill", "no_sync"]
    assert check_head(built.head_class, num_classes=classes, options=given, targets=targets, promises=promises) == []


def test_ignored_pixels_and_anchors_teach_nothing() -> None:
    torch.manual_seed(0)
    head = case("fpn", {}, 3).build()
    sizes = ImageSizes.of(torch.zeros(1, 3, 4, 4))
    raw, theirs, masks = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), torch.randint(3, (1, 4, 4))
    masks[0, :, 2:] = 255
    left = softmax_divergence(raw[..., :2], theirs[..., :2], 1.0).mean()
    theirs[..., 3] = float("nan")
    assert float(head.distill(raw, theirs, masks, sizes)["distill"]) == pytest.approx(float(left), rel=1e-5)
    assert float(head.distill(raw, theirs, torch.full_like(masks, 255), sizes)["distill"]) == 0


def test_boxes_are_pulled_to_the_teachers_where_objects_are() -> None:
    torch.manual_seed(0)
    built = case("efficientdet", {"crowd_ignore": True}, 3)
    head = built.build().eval()
    features, sizes = built.inputs(head)
    raw = head(features, sizes)
    boxes = torch.tensor([[[10.0, 10, 60, 60], [0, 0, 30, 30]]]).repeat(2, 1, 1)
    targets = BoxTargets(boxes, torch.tensor([[1, 2], [1, -1]]), torch.tensor([[False, True], [False, False]]))
    matched = head.matched(raw, targets)  # type: ignore[operator]
    assert matched.ignored is not None
    teacher = raw._replace(deltas=raw.deltas + 0.3, logits=raw.logits + matched.ignored[..., None].float() * 4)
    losses = head.distill(raw, teacher, targets, sizes)
    assert float(losses["distill"]) == pytest.approx(0.0, abs=1e-8)  # only anchors in the crowd differ
    (gradient,) = torch.autograd.grad(losses["distill_box"], raw.deltas)
    reached = gradient.abs().sum(-1) > 0
    assert torch.equal(reached, matched.positive)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"num_scales": 2}, "anchors"), ({"anchor_scale": 3.0}, "other sides"), ({"levels": [3, 4, 5, 6]}, "strides")],
)
def test_other_anchors_are_refused(options: dict[str, Any], word: str) -> None:
    student, teacher = case("efficientdet", {}, 3).build(), case("efficientdet", options, 3).build()
    with pytest.raises(UserError) as caught:
        student.check_teacher(teacher)
    one_line(caught, "optim.distill.teacher", word)


def test_another_head_is_refused_with_that_as_the_remedy() -> None:
    """Options that both have would not make them alike."""
    student, teacher = case("ssd", {}, 3).build(), case("yolo", {}, 3).build()
    with pytest.raises(UserError, match=r"give both the same head, or set optim\.distill\.weight 0"):
        student.check_teacher(teacher)


def test_anchors_of_the_same_sides_in_other_places_are_refused() -> None:
    square: dict[str, Any] = {"aspect_ratios": [[1.0, 1.0]], "num_scales": 1}
    student = case("retinanet", square, 3).build()
    teacher = case("retinanet", square | {"anchors": "torchvision"}, 3).build()
    with pytest.raises(UserError) as caught:
        student.check_teacher(teacher)
    one_line(caught, "optim.distill.teacher", "places")


def test_a_teacher_pads_as_its_student() -> None:
    student, teacher = case("efficientdet", {}, 3).build(), case("efficientdet", {}, 3).build()
    teacher.size_divisor, teacher.min_size = 3 * student.size_divisor, 640
    assert teacher.padded(100) != student.padded(100)
    student.check_teacher(teacher)
    assert [teacher.padded(side) for side in (100, 700)] == [student.padded(side) for side in (100, 700)]


def test_a_joint_teacher_pads_as_its_student() -> None:
    """All of its heads together: for each of them alone its model does not ask."""
    (model, batch), (other, _) = joint(), joint()
    head: Any = other.head
    head.size_divisor, head.heads["det"].size_divisor = 3 * model.head.size_divisor, 96
    model.head.check_teacher(head)
    with torch.no_grad():
        ours, theirs = (each(batch.images, batch.sizes) for each in (model, other))
    assert ours["det"].logits.shape == theirs["det"].logits.shape


def test_other_classes_modes_and_heads_without_a_form_are_refused() -> None:
    cls = case("classification", {}, 3).build()
    several = case("classification", {"multilabel": True}, 3).build()
    for student, teacher, word in (
        (cls, several, "one class"),
        (cls, case("classification", {}, 4).build(), "4 classes"),
        (case("fpn", {"mode": "multilabel"}, 3).build(), case("fpn", {}, 3).build(), "multiclass"),
        (cls, case("fpn", {}, 3).build(), "seg"),
    ):
        with pytest.raises(UserError) as caught:
            student.check_teacher(teacher)
        one_line(caught, "optim.distill.teacher", word)
    silent = type("Silent", (HEADS.get("classification"),), {"distill": HEADS.get("classification").__mro__[1].distill})
    with pytest.raises(UserError) as caught:
        silent(cls.spec, 3).check_teacher(cls)
    one_line(caught, "Silent", "features")


def test_each_task_learns_from_its_part_of_the_teacher() -> None:
    """A joint teacher that lacks a task leaves it alone; images without labels of a task teach it nothing."""
    model, batch = joint({"seg": 0.5})
    other, _ = joint()
    torch.nn.init.normal_(next(other.backbone.parameters()))
    with torch.no_grad():
        theirs = other(batch.images, batch.sizes)
    raw = model(batch.images, batch.sizes)
    head: Any = model.head
    losses = head.distill(raw, theirs, batch.targets, batch.sizes)
    assert set(losses) == {"det/distill", "det/distill_box", "seg/distill", "cls/distill"}
    assert set(head.distilled) == set(losses) == set(head.count(batch.targets, batch.sizes)) - set(head.counted)
    rows, own = batch.targets["seg"]
    alone = head.heads["seg"].distill(raw["seg"][rows], theirs["seg"][rows], own, batch.sizes.select(rows))
    assert float(losses["seg/distill"]) == pytest.approx(0.5 * float(alone["distill"]), rel=1e-5)
    assert set(head.distill(raw, {"seg": theirs["seg"]}, batch.targets, batch.sizes)) == {"seg/distill"}
