"""Segmentation losses: equal to the references, blind to ignored pixels, and right on examples done by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn import functional as F

from effbackbones.conformance import check_head, enforce
from effbackbones.contracts import FeatureSpec, ImageSizes
from effbackbones.errors import UserError
from heads.segmentation import losses
from heads.segmentation.losses import LOSSES, MODES, pixels_of
from heads.segmentation.ushaped import UNetHead

IGNORE = 255
EVERY = [(name, mode) for name in LOSSES for mode in MODES]


def make_batch(
    mode: str, *, seed: int = 0, ignored: float = 0.3, classes: int = 4, size: tuple[int, int] = (5, 7)
) -> tuple[Tensor, Tensor]:
    """Logits [2, K, H, W] and targets of which about the share ``ignored`` is 255."""
    generator = torch.Generator().manual_seed(seed)
    channels = 1 if mode == "binary" else classes
    logits = 3 * torch.randn(2, channels, *size, generator=generator)
    shape = (2, channels, *size) if mode == "multilabel" else (2, *size)
    targets = torch.randint(2 if mode != "multiclass" else classes, shape, generator=generator)
    targets[torch.rand(shape, generator=generator) < ignored] = IGNORE
    return logits, targets.float() if mode == "multilabel" else targets


def evaluate(name: str, mode: str, logits: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """A loss and its gradient by the logits."""
    logits = logits.clone().requires_grad_()
    loss = LOSSES[name](pixels_of(logits, targets, mode, IGNORE), **options)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def ignored_logits(mode: str, logits: Tensor, targets: Tensor) -> Tensor:
    return (targets == IGNORE) if mode == "multilabel" else (targets == IGNORE)[:, None].expand_as(logits)


def class_weights(mode: str) -> Tensor:
    return torch.tensor([0.3, 2.0] if mode == "binary" else [0.2, 1.0, 3.0, 0.7])


@pytest.mark.parametrize(("name", "mode"), EVERY)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    ignored=st.floats(0.05, 1),
    weighted=st.booleans(),
    junk=st.sampled_from([0.0, 50.0, -1e30, math.inf, -math.inf, math.nan]),
)
def test_logits_under_ignored_pixels_change_nothing(
    name: str, mode: str, seed: int, ignored: float, weighted: bool, junk: float
) -> None:
    logits, targets = make_batch(mode, seed=seed, ignored=ignored)
    options = {"class_weights": class_weights(mode)} if weighted else {}
    hidden = ignored_logits(mode, logits, targets)
    loss, gradient = evaluate(name, mode, logits, targets, **options)
    other, other_gradient = evaluate(name, mode, logits.masked_fill(hidden, junk), targets, **options)
    assert loss == other
    assert torch.equal(gradient, other_gradient)
    assert not gradient[hidden].any()
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(("name", "mode"), [pair for pair in EVERY if pair[1] != "multilabel"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), weighted=st.booleans())
def test_ignored_pixels_might_as_well_not_be_there(name: str, mode: str, seed: int, weighted: bool) -> None:
    """Masking is the same as cutting out: neither sums nor counts contain an ignored pixel."""
    logits, targets = make_batch(mode, seed=seed, ignored=0.4)
    targets[0, 0, 0] = 1  # one pixel at least
    options = {"class_weights": class_weights(mode)} if weighted else {}
    kept = targets != IGNORE
    loss, gradient = evaluate(name, mode, logits, targets, **options)
    some_logits = logits.movedim(1, -1)[kept].T[None, :, None]  # [1, K, 1, n]
    some, some_gradient = evaluate(name, mode, some_logits, targets[kept][None, None], **options)
    torch.testing.assert_close(loss, some, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.movedim(1, -1)[kept], some_gradient[0, :, 0].T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_label_ignored_for_one_class_leaves_the_others_alone(name: str) -> None:
    logits, targets = make_batch("multilabel", ignored=0.0)
    loss, _ = evaluate(name, "multilabel", logits, targets)
    targets[:, 2] = IGNORE
    others, gradient = evaluate(name, "multilabel", logits, targets)
    assert loss != others
    assert not gradient[:, 2].any()
    assert gradient[:, [0, 1, 3]].any()


@pytest.mark.parametrize(("name", "mode"), EVERY)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_of_ignored_pixels_is_worth_0(name: str, mode: str, weighted: bool) -> None:
    logits, targets = make_batch(mode)
    options = {"class_weights": class_weights(mode)} if weighted else {}
    loss, gradient = evaluate(name, mode, logits * 30, torch.full_like(targets, IGNORE), **options)
    assert loss == 0
    assert not gradient.any()  # also false for NaN


@pytest.mark.parametrize(("name", "mode"), EVERY)
def test_a_step_down_the_gradient_helps(name: str, mode: str) -> None:
    """Descending on the logits alone ends with every labelled pixel right."""
    logits, targets = make_batch(mode, ignored=0.2)
    logits = (0.1 * logits).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        LOSSES[name](pixels_of(logits, targets, mode)).backward()
        optimiser.step()
    decided = (
        logits.argmax(1)
        if mode == "multiclass"
        else (logits > 0).squeeze(1).long()
        if mode == "binary"
        else (logits > 0).float()
    )
    kept = targets != IGNORE
    assert bool((decided == targets)[kept].all())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_equals_torch(weighted: bool, smoothing: float) -> None:
    logits, targets = make_batch("multiclass")
    weights = class_weights("multiclass") if weighted else None
    expected = F.cross_entropy(logits, targets, weights, ignore_index=IGNORE, label_smoothing=smoothing)
    found = losses.cross_entropy(pixels_of(logits, targets), weights, smoothing)
    torch.testing.assert_close(found, expected)


def test_binary_cross_entropy_equals_torch_with_weights_of_background_and_foreground() -> None:
    logits, targets = make_batch("binary", ignored=0.0)
    weights = class_weights("binary")
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0], targets.float(), weight=weights[targets], reduction="sum"
    )
    found = losses.cross_entropy(pixels_of(logits, targets, "binary"), weights)
    torch.testing.assert_close(found, expected / weights[targets].sum())


def reference(name: str, mode: str, weights: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    import segmentation_models_pytorch.losses as smp

    weighted = {} if weights is None else {"class_weights": weights.tolist()}
    found: Callable[[Tensor, Tensor], Tensor] = {
        "dice": lambda: smp.DiceLoss(mode, **weighted),
        "jaccard": lambda: smp.JaccardLoss(mode, **weighted),
        "tversky": lambda: smp.TverskyLoss(mode, alpha=0.3, beta=0.7, **weighted),
        "focal": lambda: smp.FocalLoss(mode, gamma=1.5, alpha=0.3, **weighted),
        "lovasz": lambda: smp.LovaszLoss(mode),
    }[name]()
    return found


WITH_WEIGHTS = [
    (name, mode, True) for name in ("dice", "jaccard", "tversky", "focal") for mode in ("multiclass", "multilabel")
]
# smp's Lovasz makes one problem of all classes of a multi-label batch; ours are averaged.
WITHOUT = [
    (name, mode, False) for name, mode in EVERY if name != "cross_entropy" and (name, mode) != ("lovasz", "multilabel")
]


@pytest.mark.peer
@pytest.mark.parametrize(("name", "mode", "weighted"), WITH_WEIGHTS + WITHOUT)
def test_equals_smp_where_nothing_is_ignored(name: str, mode: str, weighted: bool) -> None:
    logits, targets = make_batch(mode, ignored=0.0)
    if mode == "multiclass":
        targets[targets == 3] = 0  # a class that is absent
    weights = class_weights(mode) if weighted else None
    expected = reference(name, mode, weights)(logits, targets)
    options: dict[str, Any] = {"tversky": {"alpha": 0.3, "beta": 0.7}, "focal": {"gamma": 1.5, "alpha": 0.3}}.get(
        name, {}
    )
    found = LOSSES[name](pixels_of(logits, targets, mode), weights, **options)
    torch.testing.assert_close(found, expected.squeeze(), rtol=1e-5, atol=1e-6)


def test_region_losses_by_hand() -> None:
    """Sure predictions, three classes, one absent: class 0 has 2 of 3 pixels right, class 1 takes one too many."""
    guess, target = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 1]])
    pixels = pixels_of(200 * (F.one_hot(guess, 3).float().movedim(-1, 1)[:, :, None] - 0.5), target[:, None])
    intersection, union, sizes = (2, 1), (3, 2), (5, 3)  # sizes: predicted plus true
    assert float(losses.jaccard(pixels)) == pytest.approx(
        sum(1 - i / u for i, u in zip(intersection, union, strict=True)) / 3
    )
    assert float(losses.dice(pixels)) == pytest.approx(
        sum(1 - 2 * i / s for i, s in zip(intersection, sizes, strict=True)) / 3
    )
    # Only false negatives: class 0 misses one, class 1 none. The absent class is no part of Lovasz's mean.
    assert float(losses.tversky(pixels, alpha=0.0, beta=1.0)) == pytest.approx((1 - 2 / 3) / 3)
    assert float(losses.lovasz(pixels)) == pytest.approx(((1 - 2 / 3) + (1 - 1 / 2)) / 2)


def test_weights_move_the_mean_between_classes() -> None:
    logits, targets = make_batch("multiclass", ignored=0.2)
    pixels = pixels_of(logits, targets)
    for name, loss in LOSSES.items():
        alone = [float(loss(pixels, torch.eye(4)[i])) for i in range(4)]
        both = float(loss(pixels, torch.tensor([2.0, 2.0, 0.0, 0.0])))
        assert min(alone[:2]) - 1e-6 <= both <= max(alone[:2]) + 1e-6, name
        assert len({round(value, 5) for value in alone}) == 4, name


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_finite_where_it_is_certain(gamma: float) -> None:
    _, targets = make_batch("binary", ignored=0.0)
    certain = torch.where(targets[:, None] == 1, 1e4, -1e4)
    loss, gradient = evaluate("focal", "binary", certain, targets, gamma=gamma)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert bool(gradient.isfinite().all())
    wrong, gradient = evaluate("focal", "binary", -certain, targets, gamma=gamma)
    assert float(wrong) == pytest.approx(1e4)
    assert bool(gradient.isfinite().all())


def test_an_ignore_index_may_be_a_class() -> None:
    """``ignore_index=0`` leaves the background out."""
    logits, targets = make_batch("multiclass", ignored=0.0)
    renamed = targets.masked_fill(targets == 0, IGNORE)
    for name, loss in LOSSES.items():
        assert loss(pixels_of(logits, targets, ignore_index=0)) == loss(pixels_of(logits, renamed)), name


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_masks_of_any_integer_type(dtype: torch.dtype) -> None:
    logits, targets = make_batch("multiclass")
    expected = losses.cross_entropy(pixels_of(logits, targets))
    assert losses.cross_entropy(pixels_of(logits, targets.to(dtype))) == expected


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_logits_are_read_in_float32(mode: str) -> None:
    logits, targets = make_batch(mode)
    for name, loss in LOSSES.items():
        half = loss(pixels_of(logits.bfloat16(), targets, mode))
        assert half.dtype == torch.float32, name
        assert half == loss(pixels_of(logits.bfloat16().float(), targets, mode)), name


@pytest.mark.parametrize("mode", MODES)
def test_wrong_targets_are_named(mode: str) -> None:
    logits, targets = make_batch(mode)
    wrong = [targets[:, :-1], targets[..., None], targets[:1], targets == 1]
    wrong += [targets.float()] if mode != "multilabel" else []
    wrong += [make_batch("multilabel")[1] if mode != "multilabel" else make_batch("multiclass")[1]]
    for bad in wrong:
        with pytest.raises(UserError, match=f"{mode} expects .*got {bad.dtype}"):
            pixels_of(logits, bad, mode)


def test_binary_wants_one_channel() -> None:
    logits, targets = make_batch("multiclass")
    with pytest.raises(UserError, match="one channel of logits, got 4"):
        pixels_of(logits, targets, "binary")
    with pytest.raises(UserError, match=r"unknown value 'multi'.*did you mean"):
        pixels_of(logits, targets, "multi")


def test_parse_losses() -> None:
    assert losses.parse_losses("dice") == {"dice": 1.0}
    assert losses.parse_losses(["cross_entropy", "dice*0.5", "lovasz * 2"]) == {
        "cross_entropy": 1.0,
        "dice": 0.5,
        "lovasz": 2.0,
    }
    assert losses.parse_losses({"cross_entropy": 1, "dice": 0.5}) == {"cross_entropy": 1.0, "dice": 0.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dise", "did you mean dice"),
        (["dice", "dice*2"], "twice"),
        ("dice*", "positive factor"),
        ("dice*x", "positive factor"),
        ("dice*0", "positive factor"),
        ("dice*-1", "positive factor"),
        ("dice*inf", "positive factor"),
        ("dice*nan", "positive factor"),
        ([], "expected names"),
        (None, "expected names"),
        (3, "expected names"),
        ({}, "expected names"),
        ({"dise": 1}, "did you mean dice"),
        ({"dice": 0}, "positive factor"),
        ({"dice": "much"}, "positive factor"),
    ],
)
def test_parse_losses_refuses(text: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        losses.parse_losses(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", MODES)
def test_all_losses_together_keep_the_contract(mode: str) -> None:
    """No synchronisation, finite under autocast and on batches without a label, pure: for the weighted sum of all of them."""

    def targets(sizes: ImageSizes, num_classes: int, empty: bool) -> Tensor:
        _, made = make_batch(mode, classes=num_classes, size=sizes.batch)
        return torch.full_like(made, IGNORE) if empty else made

    classes = 1 if mode == "binary" else 4
    options = {"loss": list(LOSSES), "mode": mode, "channels": [8] * 5, "class_weights": class_weights(mode).tolist()}
    names = ["no_sync", "loss_finite", "loss_scalar", "loss_pure", "amp", "gradient_reach", "mode_independent"]
    enforce(check_head(UNetHead, num_classes=classes, options=options, targets=targets, promises=names))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_sets_of_classes_are_the_planes_that_they_stand_for(name: str) -> None:
    """int32 [B, H, W] of bits gives the loss, gradient and count of float [B, K, H, W], where ignored pixels are so for all."""
    logits, _ = make_batch("multilabel")
    planes = torch.randint(2, logits.shape).float()
    sets = sum(planes[:, label].int() << label for label in range(logits.shape[1]))
    unknown = torch.rand(sets.shape) < 0.2
    sets, planes = sets.masked_fill(unknown, -1), planes.masked_fill(unknown[:, None], IGNORE)
    for weights in (None, class_weights("multilabel")):
        found, expected = (
            evaluate(name, "multilabel", logits, targets, class_weights=weights) for targets in (sets, planes)
        )
        torch.testing.assert_close(found, expected)
        whole = [losses.counts(targets, "multilabel", logits.shape[1], weights) for targets in (sets, planes)]
        torch.testing.assert_close(*whole)
    nothing, gradient = evaluate(name, "multilabel", logits, torch.full_like(sets, -1))
    assert nothing == 0
    assert not gradient.any()


def test_sets_have_room_for_31_classes() -> None:
    with pytest.raises(UserError, match="room for 31 classes, these are 32"):
        pixels_of(torch.zeros(1, 32, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int32), "multilabel")
    full = pixels_of(torch.zeros(1, 31, 1, 2), torch.tensor([[[2**31 - 1, 1 << 30]]], dtype=torch.int32), "multilabel")
    assert full.labels[0, :, 0].all()
    assert full.labels[0, :, 1].tolist() == [0.0] * 30 + [1.0]


def test_ratios_of_pieces_do_not_make_that_of_the_batch() -> None:
    """Why Dice is averaged over the pieces of a batch and cross-entropy is not: by hand, of one class in one channel. A piece that is
    wholly right (TP 1 of 1) and one that is half right (TP 1 of 2, nothing else said) are 1 - 2 * 2 / (2 + 3) together."""
    sure = 50.0
    logits = torch.tensor([sure, -sure, sure, -sure]).view(2, 1, 1, 2)
    targets = torch.tensor([[[1, 0]], [[1, 1]]])
    pieces = [evaluate("dice", "binary", logits[row : row + 1], targets[row : row + 1])[0] for row in (0, 1)]
    assert [float(loss) for loss in pieces] == pytest.approx([0, 1 - 2 / 3], abs=1e-6)
    assert float(evaluate("dice", "binary", logits, targets)[0]) == pytest.approx(1 - 4 / 5)
    assert float(sum(pieces) / 2) != pytest.approx(1 - 4 / 5)


@pytest.mark.parametrize(
    ("loss", "mode", "idle"),
    [
        (
            "cross_entropy",
            "multiclass",
            {"focal_gamma": 5.0, "focal_alpha": 0.9, "tversky_alpha": 0.9, "tversky_beta": 0.1},
        ),
        ("focal", "multilabel", {"label_smoothing": 0.3, "tversky_alpha": 0.9, "tversky_beta": 0.1}),
        ("tversky", "multiclass", {"label_smoothing": 0.3, "focal_gamma": 5.0, "focal_alpha": 0.9}),
        ("dice", "binary", {"class_weights": [1.0, 9.0], "label_smoothing": 0.3, "focal_gamma": 5.0}),
    ],
)
def test_options_that_rest_change_nothing_and_the_others_do(loss: str, mode: str, idle: dict[str, Any]) -> None:
    classes, sizes = (1 if mode == "binary" else 3), ImageSizes.of(torch.zeros(2, 3, 64, 64))
    spec = FeatureSpec("b0", ("C1", "C2", "C3"), (8, 8, 8), (2, 4, 8))
    torch.manual_seed(0)
    shape = (2, classes, 64, 64) if mode == "multilabel" else (2, 64, 64)
    raw, targets = torch.randn(2, classes, 64, 64), torch.randint(0, 2, shape)
    weights = [1.0, 9.0, 3.0][: max(classes, 2)]
    others = {
        "label_smoothing": 0.3,
        "focal_gamma": 5.0,
        "focal_alpha": 0.9,
        "tversky_alpha": 0.9,
        "class_weights": weights,
    }

    def said(**more: Any) -> tuple[UNetHead, float]:
        head = UNetHead(spec, classes, channels=[8, 8, 8], levels=[1, 2, 3], mode=mode, loss=loss, **more)
        return head, float(sum(head.loss(raw, targets, sizes).values()))

    head, before = said()
    assert set(idle) <= set(head.resting())
    assert said(**idle)[1] == before
    for name in others.keys() - head.resting().keys():
        assert said(**{name: others[name]})[1] != before, name
