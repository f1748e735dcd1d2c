"""Mixup, cutmix and smoothing against their definitions."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tasks.data.transforms.mixing import cut_box, mix, soft_targets

IMAGES = torch.rand(6, 3, 20, 30, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 3, 4, 1])


def one_hot(targets: torch.Tensor) -> torch.Tensor:
    return functional.one_hot(targets, 5).float()


def test_nothing_to_mix() -> None:
    images, targets = mix(IMAGES, TARGETS, 5)
    assert images is IMAGES
    assert torch.equal(targets, one_hot(TARGETS))
    alone, _ = mix(IMAGES[:1], TARGETS[:1], 5, mixup=1.0)
    assert torch.equal(alone, IMAGES[:1])


@pytest.mark.parametrize("step", range(8))
def test_mixup_is_its_definition(step: int) -> None:
    images, targets = mix(IMAGES, TARGETS, 5, mixup=0.8, seed=3, step=step)
    partner = torch.tensor([5, 0, 1, 2, 3, 4])
    # The share that the targets show must be the one that the images show.
    share = float(targets[0, TARGETS[0]])
    assert 0 <= share <= 1
    torch.testing.assert_close(images, share * IMAGES + (1 - share) * IMAGES[partner])
    torch.testing.assert_close(targets, share * one_hot(TARGETS) + (1 - share) * one_hot(TARGETS)[partner])


@pytest.mark.parametrize("step", range(8))
def test_cutmix_is_its_definition(step: int) -> None:
    images, targets = mix(IMAGES, TARGETS, 5, cutmix=1.0, seed=3, step=step)
    before = IMAGES.roll(1, 0)
    foreign = (images != IMAGES).any(1)  # [B, H, W]
    rows, columns = foreign[0].any(1).nonzero(), foreign[0].any(0).nonzero()
    box = torch.zeros(20, 30, dtype=torch.bool)
    if len(rows):
        box[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = True
    assert torch.equal(foreign, box.expand_as(foreign))  # a box, the same in all images
    assert torch.equal(images, torch.where(box, before, IMAGES))
    share = 1 - float(box.float().mean())
    torch.testing.assert_close(targets, share * one_hot(TARGETS) + (1 - share) * one_hot(TARGETS).roll(1, 0))


def test_both_take_turns_and_shares_follow_the_beta_distribution() -> None:
    def kind(step: int) -> str:
        images, _ = mix(IMAGES, TARGETS, 5, mixup=0.4, cutmix=1.0, seed=1, step=step)
        return "cutmix" if (images == IMAGES).any() else "mixup"

    kinds = [kind(step) for step in range(200)]
    assert 70 < kinds.count("cutmix") < 130
    shares = [float(mix(IMAGES[:2], TARGETS[:2], 5, mixup=0.4, seed=1, step=step)[1][0, 0]) for step in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.1)  # variance of Beta(a, a)


def test_a_function_of_seed_and_step_alone() -> None:
    def mixed(seed: int, step: int) -> torch.Tensor:
        return mix(IMAGES, TARGETS, 5, mixup=0.8, seed=seed, step=step)[0]

    first = mixed(0, 5)
    torch.rand(3)
    assert torch.equal(first, mixed(0, 5))
    assert not torch.equal(first, mixed(0, 6))
    assert not torch.equal(first, mixed(1, 5))


def test_the_global_generators_are_left_alone() -> None:
    state = torch.get_rng_state()
    mix(IMAGES, TARGETS, 5, mixup=0.8, cutmix=1.0)
    assert torch.equal(state, torch.get_rng_state())


def test_smoothing_is_that_of_cross_entropy() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    ours = functional.cross_entropy(logits, soft_targets(TARGETS, 5, 0.1))
    torch.testing.assert_close(ours, functional.cross_entropy(logits, TARGETS, label_smoothing=0.1))
    soft = one_hot(TARGETS) * 0.7 + 0.06
    ours = functional.cross_entropy(logits, soft_targets(soft, 5, 0.1))
    torch.testing.assert_close(ours, functional.cross_entropy(logits, soft, label_smoothing=0.1))


def test_targets_given_as_rows_are_mixed_too() -> None:
    rows = one_hot(TARGETS).double()
    images, targets = mix(IMAGES, rows, 5, mixup=0.8, smoothing=0.1, step=4)
    expected, by_index = mix(IMAGES, TARGETS, 5, mixup=0.8, smoothing=0.1, step=4)
    assert torch.equal(images, expected)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets, by_index)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_box_of_cutmix(share: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = cut_box((20, 30), share, rng)
        assert 0 <= left <= right <= 30
        assert 0 <= top <= bottom <= 20
        assert (right - left) * (bottom - top) <= (1 - share) * 20 * 30 + 1e-9


def test_layout_and_precision_are_kept() -> None:
    images = IMAGES.to(torch.bfloat16, memory_format=torch.channels_last)
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixed, targets = mix(images, TARGETS, 5, **options)
        assert mixed.dtype == torch.bfloat16
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert targets.dtype == torch.float32


def test_runs_where_values_cannot_be_read() -> None:
    """On the meta device nothing has a value: whatever would wait for the device fails here."""
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}, {"smoothing": 0.1}):
        images, targets = mix(IMAGES.to("meta"), TARGETS.to("meta"), 5, **options)
        assert images.shape == IMAGES.shape
        assert targets.shape == (6, 5)


def test_several_labels_are_smoothed_towards_a_half_as_in_the_loss() -> None:
    labels = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert torch.allclose(soft_targets(labels, 4, 0.2, multilabel=True), torch.tensor([[0.9, 0.1, 0.9, 0.1]]))
    assert torch.allclose(
        mix(torch.rand(2, 3, 4, 4), labels.repeat(2, 1), 4, mixup=1.0, smoothing=0.2, multilabel=True)[1][0],
        torch.tensor([0.9, 0.1, 0.9, 0.1]),
    )
