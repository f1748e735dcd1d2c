"""Losses of detection against their definitions and against other libraries."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heads.detection.anchors import Deltas
from heads.detection.criteria import BoxLosses, Coder, Matched
from heads.detection.losses import IOU_LOSSES, focal_negative, focal_positive, focal_sum, huber_sum, iou_loss
from heads.detection.points import Distances


def case(seed: int = 0, classes: int = 5, anchors: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(2, anchors, classes, generator=generator)
    labels = torch.randint(classes, (2, anchors), generator=generator)
    return logits, torch.where(torch.rand(2, anchors, generator=generator) < 0.1, labels, -1)


def dense(logits: Tensor, labels: Tensor, alpha: float, gamma: float, smoothing: float) -> Tensor:
    """The definition, with the one-hot matrix, in float64."""
    logits = logits.double()
    target = F.one_hot(labels + 1, logits.shape[2] + 1)[..., 1:].double()
    p = logits.sigmoid()
    truth = target * p + (1 - target) * (1 - p)
    weight = target * alpha + (1 - target) * (1 - alpha)
    soft = target * (1 - smoothing) + smoothing / 2
    return weight * (1 - truth) ** gamma * F.binary_cross_entropy_with_logits(logits, soft, reduction="none")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 1.5), (0.25, 2.0), (0.4, 0.0), (0.9, 0.5)])
@pytest.mark.parametrize("classes", [1, 5])
def test_focal_loss_and_its_gradient_equal_the_definition(
    alpha: float, gamma: float, smoothing: float, classes: int
) -> None:
    logits, labels = case(classes=classes)
    gradients = []
    for compute in (
        lambda x: focal_sum(x, labels, alpha=alpha, gamma=gamma, smoothing=smoothing),
        lambda x: dense(x, labels, alpha, gamma, smoothing).sum(),
    ):
        x = logits.clone().requires_grad_()
        value = compute(x)
        torch.autograd.backward(value)
        gradients.append((value.detach().double(), x.grad))
    (value, gradient), (expected, expected_gradient) = gradients
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.peer
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_equals_the_reference(smoothing: float) -> None:
    effdet = pytest.importorskip("effdet.loss")
    logits, labels = case()
    expected = effdet.new_focal_loss(logits, effdet.one_hot(labels, 5), 0.25, 1.5, 1.0, smoothing).sum()
    assert float(focal_sum(logits, labels, smoothing=smoothing)) == pytest.approx(float(expected), rel=1e-6)


def test_ignored_anchors_cost_nothing() -> None:
    logits, labels = case()
    ignored = (torch.arange(200) < 50).expand(2, -1) & (labels < 0)
    logits.requires_grad_()
    value = focal_sum(logits, labels, ignored=ignored)
    torch.autograd.backward(value)
    expected = (dense(logits.detach(), labels, 0.25, 1.5, 0.0) * ~ignored[..., None]).sum()
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert logits.grad is not None
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].any(1).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 4.0])
def test_focal_loss_is_finite_everywhere(gamma: float) -> None:
    logits = torch.tensor([-1e4, -200.0, -89.0, -20.0, 0.0, 20.0, 89.0, 200.0, 1e4])
    for loss in (focal_negative, focal_positive):
        value, slope = loss(logits, gamma, 0.1)
        assert value.isfinite().all()
        assert slope.isfinite().all()
        assert (value >= 0).all()


def test_the_gradient_is_that_of_the_value() -> None:
    logits, labels = case(anchors=12)
    ignored = torch.zeros(2, 12, dtype=torch.bool)
    ignored[:, 3] = labels[:, 3] < 0
    logits = logits.double().requires_grad_()
    torch.autograd.gradcheck(lambda x: 3 * focal_sum(x, labels, smoothing=0.1, ignored=ignored), logits)


def test_huber_loss_by_hand() -> None:
    deltas = torch.tensor([[[0.05, -0.5, 3.0, 9.0], [9.0, 9.0, 9.0, 9.0]]], requires_grad=True)
    targets = torch.tensor([[[0.1, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])  # exactly 0 is no target
    value = huber_sum(deltas, targets, 0.1)
    assert value.item() == pytest.approx(0.5 * 0.05**2 + 0.1 * (1.0 - 0.05) + 0.1 * (2.0 - 0.05))
    (gradient,) = torch.autograd.grad(value, deltas)
    torch.testing.assert_close(gradient[0, 0], torch.tensor([-0.05, -0.1, 0.1, 0.0]))
    assert not gradient[0, 1].any()


@pytest.mark.peer
def test_huber_loss_equals_the_reference() -> None:
    effdet = pytest.importorskip("effdet.loss")
    torch.manual_seed(0)
    deltas, targets = torch.randn(2, 50, 4), 0.5 * torch.randn(2, 50, 4) * (torch.rand(2, 50, 1) < 0.3)
    expected = effdet.huber_loss(deltas, targets, 0.1, targets != 0, size_average=False)
    assert float(huber_sum(deltas, targets, 0.1)) == pytest.approx(float(expected), rel=1e-6)


def pairs(count: int = 60) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    corner = 100 * torch.rand(2, count, 2)
    boxes = torch.cat([corner, corner + 1 + 80 * torch.rand(2, count, 2)], 2)
    boxes[1, :5] = boxes[0, :5]
    return boxes[0], boxes[1]


@pytest.mark.peer
@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_iou_losses_equal_torchvision(kind: str) -> None:
    ops = pytest.importorskip("torchvision.ops")
    names = {"giou": "generalized_box_iou_loss", "diou": "distance_box_iou_loss", "ciou": "complete_box_iou_loss"}
    results = []
    for compute in (lambda a, b: iou_loss(a, b, kind), getattr(ops, names[kind])):  # type: ignore[arg-type]
        boxes, targets = pairs()
        boxes.requires_grad_()
        loss = compute(boxes, targets)
        (gradient,) = torch.autograd.grad(loss.sum(), boxes)
        results.append((loss.detach(), gradient))
    (loss, gradient), (expected, expected_gradient) = results
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    # Where boxes are equal, torchvision's and our sub-gradients of min and max may differ.
    torch.testing.assert_close(gradient[5:], expected_gradient[5:], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_iou_losses_pull_a_distant_box_closer(kind: str) -> None:
    target = torch.tensor([[50.0, 50.0, 70.0, 90.0]])
    assert iou_loss(target, target, kind).item() == pytest.approx(0.0, abs=1e-6)  # type: ignore[arg-type]
    near, far = (torch.tensor([[50.0 + x, 50.0, 70.0 + x, 90.0]], requires_grad=True) for x in (30.0, 60.0))
    losses = [iou_loss(box, target, kind) for box in (near, far)]  # type: ignore[arg-type]
    assert 1 < losses[0].item() < losses[1].item()
    (gradient,) = torch.autograd.grad(losses[1].sum(), far)
    assert gradient[0, 0] + gradient[0, 2] > 0
    empty = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(iou_loss(empty, target, kind).sum(), empty)  # type: ignore[arg-type]
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", IOU_LOSSES)
@pytest.mark.parametrize("side", [1e-3, 1.0, 700.0])
def test_a_box_that_is_its_target_costs_nothing_and_stays(kind: str, side: float) -> None:
    box = (torch.tensor([[0.0, 0.0, 1.0, 0.7]]) * side).requires_grad_()
    value = iou_loss(box, box.detach().clone(), kind)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(value.sum(), box)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert float(gradient.abs().max()) * side < 1e-5


@pytest.mark.parametrize("kind", IOU_LOSSES)
@pytest.mark.parametrize("coder", [Deltas(), Deltas("yx"), Deltas("xy", 0.1, 0.2), Distances()])
@pytest.mark.parametrize("size", [-1e6, -50.0, 0.0, 50.0, 1e6])
def test_losses_of_boxes_stay_finite_however_wrong_they_are(kind: str, coder: Coder, size: float) -> None:
    """One anchor that says a side of e^50 would else take every gradient of the batch with it."""
    anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0], [50.0, 50.0, 562.0, 306.0]])
    deltas = torch.full((1, 2, 4), size).requires_grad_()
    matched = Matched(torch.ones(1, 2).bool(), anchors[None] + 3, torch.zeros(1, 2).long(), None)
    losses = BoxLosses("l1", iou_loss=kind)  # type: ignore[arg-type]
    said = deltas.relu() if isinstance(coder, Distances) else deltas
    terms = losses.terms(said, anchors, matched, coder, torch.tensor(2.0))
    (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), deltas)
    assert all(value.isfinite() for value in terms.values())
    assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_at_ignored_anchors_does_not_count(value: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, 3), torch.tensor([[-1, 0, -1, 2, -1, -1]] * 2)
    ignored = torch.zeros(2, 6, dtype=torch.bool)
    ignored[:, [0, 4]] = True
    expected = focal_sum(logits, labels, ignored=ignored)
    logits[ignored] = value
    logits.requires_grad_()
    found = focal_sum(logits, labels, ignored=ignored)
    torch.autograd.backward(found)
    assert torch.allclose(found, expected)
    assert logits.grad is not None
    assert torch.equal(logits.grad[ignored], torch.zeros(4, 3))


def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 50, 3), torch.randint(-1, 3, (2, 50))
    found = []
    for size in (1, 40, 1 << 18):
        monkeypatch.setattr("heads.detection.losses._PART", size)
        given = logits.clone().requires_grad_()
        value = focal_sum(given, labels, ignored=labels.roll(1) == 0)
        torch.autograd.backward(value)
        assert given.grad is not None
        found.append((value.detach(), given.grad))
    for value, slope in found[1:]:
        assert torch.allclose(value, found[0][0])
        assert torch.allclose(slope, found[0][1], atol=1e-7)  # the last digit is another where a register is not full
