"""Channels that are taken out of blocks: the same answers as with zeros, ordinary files, and which go first."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import one_line

from effbackbones import UserError, build_model, create_backbone, load_model, save_model
from effbackbones.model import Model
from effbackbones.pruning import LEAST, Block, blocks_of, choose, describe, magnitudes, pruned, sensitivities

NARROW = {"width": 0.5, "depth": 0.5, "drop_path": 0.2}


def model_of(backbone: str = "b0", task: str = "cls", **more: Any) -> Model:
    torch.manual_seed(0)
    options = {"det": {"channels": 16, "cells": 1, "repeats": 1}}.get(task, {})
    model = build_model(task, backbone, num_classes=3, backbone_options={**NARROW, **more}, head_options=options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after some training
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def half(model: Model) -> Model:
    blocks = describe(model, [magnitudes(block) for block in blocks_of(model)])
    whole = sum(block.work * len(block.middle) for block in blocks)
    return pruned(model, choose(blocks, 0.5 * whole, multiple=4))


@pytest.mark.parametrize(
    ("backbone", "task", "more"),
    [
        ("b0", "cls", {}),
        ("lite0", "cls", {}),
        pytest.param("b0", "det", {}, marks=pytest.mark.slow),
        pytest.param("b0", "seg", {"output_stride": 16}, marks=pytest.mark.slow),
        pytest.param("b0", "cls", {"in_channels": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_pruned_model_is_the_whole_one_with_zeros(backbone: str, task: str, more: dict[str, Any]) -> None:
    model = model_of(backbone, task, **more)
    blocks = describe(model, [magnitudes(block) for block in blocks_of(model)])
    whole = sum(block.work * len(block.middle) for block in blocks)
    kept = choose(blocks, 0.5 * whole, multiple=4)
    small = pruned(model, kept)
    images = torch.rand(2, more.get("in_channels", 3), 64, 64)
    model.requires_grad_(False)
    small.requires_grad_(False)
    untouched = model(images)
    for place, own in kept.items():
        block = blocks_of(model)[place]
        gone = torch.ones(len(block.depthwise.bn.weight), dtype=torch.bool)
        gone[own.middle] = False
        with torch.no_grad():  # what is 0 behind the depthwise convolution is 0 behind the activation and the gate
            block.depthwise.bn.weight[gone] = 0
            block.depthwise.bn.bias[gone] = 0
            if hasattr(block, "squeeze_excite"):
                closed = torch.ones(block.squeeze_excite.reduce.out_features, dtype=torch.bool)
                closed[own.squeezed] = False
                block.squeeze_excite.reduce.weight[closed] = 0
                block.squeeze_excite.reduce.bias[closed] = 0
    for found, wanted in zip(leaves(small(images)), leaves(model(images)), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))
    assert not torch.allclose(leaves(untouched)[0], leaves(small(images))[0], atol=1e-3)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def leaves(raw: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = torch.utils._pytree.tree_leaves(raw)
    return found


def test_its_file_is_an_ordinary_one(tmp_path: Path) -> None:
    """Loads, starts another run with its widths, folds, exports, and is pruned again."""
    small = half(model_of())
    small.classes = ("a", "b", "c")
    save_model(small, tmp_path / "small.safetensors")
    again, images = load_model(tmp_path / "small.safetensors"), torch.rand(1, 3, 64, 64)
    assert torch.equal(again(images), small(images))
    assert again.classes == small.classes
    started = build_model(
        "cls", "b0", num_classes=3, weights=tmp_path / "small.safetensors", backbone_options=NARROW
    ).eval()
    assert torch.allclose(started(images), small(images), atol=1e-6)
    assert started.config["backbone_options"]["middle"] == small.config["backbone_options"]["middle"]
    assert torch.allclose(small.folded_copy()(images), small(images), atol=1e-4)
    exported = torch.export.export(small, (images,)).module()
    assert torch.allclose(exported(images), small(images), atol=1e-5)
    assert sum(p.numel() for p in half(again).parameters()) < sum(p.numel() for p in again.parameters())
    small.train()(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_the_least_important_channels_go_first_in_whole_multiples() -> None:
    scores = torch.arange(1.0, 25.0).roll(5)
    blocks = [Block(1, scores, torch.tensor([3.0, 1.0, 2.0]), 10.0), Block(2, scores + 100, torch.zeros(0), 10.0)]
    kept = choose(blocks, 75.0, multiple=8)
    assert len(kept[1].middle) == 16
    assert set(kept[1].middle.tolist()) == set(torch.topk(scores, 16).indices.tolist())
    assert kept[1].squeezed.tolist() == [0, 2]
    assert kept[1].middle.tolist() == sorted(kept[1].middle.tolist())
    assert len(kept[2].middle) == 24
    assert len(kept[2].squeezed) == 0
    cheap = [blocks[0], Block(2, scores, torch.zeros(0), 1000.0)]
    by_work = choose(cheap, 1.0, multiple=8, by_work=True)
    assert (len(by_work[1].middle), len(by_work[2].middle)) == (24, 16)  # the same loss for a hundredth of the work


def test_what_cannot_be_saved_is_said() -> None:
    block = Block(1, torch.rand(40), torch.zeros(0), 1e6)
    with pytest.raises(UserError) as caught:
        choose([block], 39e6, multiple=8)
    one_line(caught, "--target", "at most 32 M")
    assert len(choose([block], 32e6, multiple=8)[1].middle) == 8 >= LEAST * 40
    other = build_model("cls", "timm:resnet10t", num_classes=3)
    with pytest.raises(UserError) as caught:
        blocks_of(other)
    one_line(caught, "no EfficientNet")


def test_work_is_that_of_the_networks_own_count() -> None:
    """Of what a channel takes, as counted by torch before and after."""
    from torch.utils.flop_counter import FlopCounterMode

    def counted(model: Model) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, *model.image_spec.size))
        return counter.get_total_flops() / 2

    model = model_of("lite0")
    blocks = describe(model, [magnitudes(block) for block in blocks_of(model)])
    kept = choose(blocks, 0.3 * sum(block.work * len(block.middle) for block in blocks))
    saved = sum(block.work * (len(block.middle) - len(kept[block.place].middle)) for block in blocks)
    assert counted(model) - counted(pruned(model, kept)) == pytest.approx(saved, rel=1e-6)


def test_weights_that_a_batch_norm_divides_again_matter_no_more() -> None:
    block = blocks_of(model_of())[-1]
    before, _ = magnitudes(block)
    with torch.no_grad():
        for part in (block.expand, block.depthwise):
            part.conv.weight.mul_(3)
            part.bn.running_var.add_(part.bn.eps).mul_(9).sub_(part.bn.eps)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(magnitudes(block)[0], before)


def test_a_channel_that_does_nothing_has_no_importance() -> None:
    model = model_of().train()
    block = blocks_of(model)[-1]
    with torch.no_grad():
        block.depthwise.bn.weight[3] = 0
        block.depthwise.bn.bias[3] = 0
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    sum(model.loss(images, labels).values()).backward()  # type: ignore[union-attr]
    middle, squeezed = sensitivities(block)
    assert middle.argmin() == 3
    assert float(middle[3]) == 0
    assert (squeezed >= 0).all()
    assert len(squeezed) == block.squeeze_excite.reduce.out_features


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"middle": [8, 8]}, "one for each block"),
        ({"middle": [0] * 16}, "from 1 up"),
        ({"middle": [8] * 16}, "no expansion"),
        ({"squeezed": [1]}, "squeezed"),
    ],
)
def test_widths_that_no_network_has_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError) as caught:
        create_backbone("b0", **options)
    one_line(caught, word)
