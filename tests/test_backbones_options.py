"""Every option of an EfficientNet backbone does what it says, and leaves no dead parameter behind."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from effbackbones.backbones.convolution import ConvNorm, Numerics
from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.backbones.folding import fold_batch_norm
from effbackbones.backbones.padding import Conv2dSame, same_padding
from effbackbones.contracts import LEVELS, ImageSpec
from effbackbones.errors import UserError

subsets = st.lists(st.sampled_from(LEVELS), min_size=1, max_size=5, unique=True)


def small(name: str = "b0", **options: Any) -> EfficientNet:
    """A narrow and shallow network of the family; everything but the channel counts is as in the real one."""
    return EfficientNet(name, width=0.25, depth=0.6, **options)


def images(size: tuple[int, int] = (64, 64), channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


def objective(maps: list[Tensor]) -> Tensor:
    return torch.stack([m.square().mean() for m in maps]).sum()


@settings(max_examples=40, deadline=None)
@given(
    levels=subsets,
    tap=st.sampled_from(["stage", "stem"]),
    output_stride=st.sampled_from([8, 16, 32]),
    stem_stride=st.sampled_from([1, 2]),
    numerics=st.sampled_from(["torch", "tf"]),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    family=st.sampled_from(["b0", "lite0"]),
)
def test_maps_are_as_declared_and_no_parameter_is_dead(
    levels: list[str],
    tap: str,
    output_stride: int,
    stem_stride: int,
    numerics: str,
    height: int,
    width: int,
    family: str,
) -> None:
    options = {
        "levels": levels,
        "tap": tap,
        "output_stride": output_stride,
        "stem_stride": stem_stride,
        "numerics": numerics,
    }
    backbone = small(family, drop_path=0.0, **options)
    spec = backbone.feature_spec
    assert spec.names == tuple(sorted(levels))
    assert spec.strides == tuple(min(2 ** int(level[1]), output_stride) * stem_stride // 2 for level in spec.names)
    maps = backbone.eval()(images((height, width)))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, -(-height // s), -(-width // s)) for c, s in zip(spec.channels, spec.strides, strict=True)
    ]
    torch.autograd.backward(objective(maps))
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    owned = [p for modules in backbone.level_modules().values() for module in modules for p in module.parameters()]
    assert list(map(id, owned)) == list(map(id, backbone.parameters()))


def test_levels_do_not_change_the_maps() -> None:
    whole, part = small().eval(), small(levels=["C4", "C2"]).eval()
    part.load_state_dict({key: value for key, value in whole.state_dict().items() if key in part.state_dict()})
    expected = whole(images())
    for got, want in zip(part(images()), (expected[1], expected[3]), strict=True):
        assert torch.equal(got, want)
    assert not any(key.startswith("stages.5") for key in part.state_dict())


def test_stem_tap_is_the_stem() -> None:
    backbone = small(tap="stem", levels=["C1"]).eval()
    assert torch.equal(backbone(images())[0], backbone.stem(images()))
    assert list(backbone.level_modules()) == ["stem", "C1"]
    assert len(backbone.stages) == 0


def test_output_stride_keeps_the_weights() -> None:
    """Dilation changes no shape: weights trained at stride 32 load at stride 8."""
    assert small(output_stride=8).state_dict().keys() == small().state_dict().keys()
    small(output_stride=8).load_state_dict(small().state_dict())


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_in_channels(channels: int) -> None:
    backbone = small(in_channels=channels)
    assert backbone.stem.conv.weight.shape[1] == channels
    assert backbone.image_spec.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),) * channels
    assert len(backbone(images(channels=channels))) == 5


def test_image_spec_by_family() -> None:
    assert EfficientNet("b3", levels=["C1"]).image_spec == ImageSpec((300, 300), crop_fraction=300 / 332)
    lite = EfficientNet("lite0", levels=["C1"]).image_spec
    assert (lite.mean, lite.std, lite.size) == ((0.5,) * 3, (0.5,) * 3, (224, 224))
    assert small(image_spec=ImageSpec((32, 32))).image_spec.size == (32, 32)


def test_numerics_reach_every_layer() -> None:
    for name, expected in (("b0", "torch"), ("lite0", "tf")):
        backbone = small(name)
        assert backbone.numerics == Numerics.named(expected)
        norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(m.eps, m.momentum) for m in norms} == {(backbone.numerics.bn_eps, backbone.numerics.bn_momentum)}
        assert (backbone.feature_spec.bn_eps, backbone.feature_spec.bn_momentum) == (norms[0].eps, norms[0].momentum)
        same = [m for m in backbone.modules() if isinstance(m, Conv2dSame)]
        assert len(same) == (5 if expected == "tf" else 0)  # the strided ones
    own = Numerics("same", 2e-3, 0.05)
    assert small(numerics=own).numerics is own


@given(st.integers(1, 2000), st.sampled_from([1, 3, 5, 7]), st.integers(1, 4), st.integers(1, 3))
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int, dilation: int) -> None:
    before, after = same_padding(size, kernel, stride, dilation)
    outputs = -(-size // stride)
    assert before + after == max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    assert after - before in (0, 1)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 5]))
def test_same_padding_without_a_copy_is_exact(height: int, width: int, kernel: int) -> None:
    """The widened kernel (inference on a CPU) and the padded image (everything else) are one convolution."""
    convolution = Conv2dSame(4, 4, kernel, stride=2, groups=2).double()
    given_images = images((height, width), 4).double()
    padded = convolution(given_images).detach()
    with torch.no_grad():
        widened = convolution(given_images)
    assert padded.shape == widened.shape == (2, 4, -(-height // 2), -(-width // 2))
    assert torch.allclose(padded, widened, atol=1e-12)


@pytest.mark.parametrize("numerics", ["torch", "tf", "same_static"])
def test_layout_is_kept(numerics: str) -> None:
    backbone = small(numerics=numerics).eval().to(memory_format=torch.channels_last)
    expected = backbone(images())
    for mode in (False, True):
        with torch.set_grad_enabled(mode):
            maps = backbone(images().to(memory_format=torch.channels_last))
        assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, expected, strict=True))


def test_drop_path_follows_the_linear_rule() -> None:
    backbone = EfficientNet("b0", drop_path=0.2)
    blocks = [block for stage in backbone.stages for block in stage]  # type: ignore[attr-defined]
    assert [block.drop_probability for block in blocks] == pytest.approx([0.2 * i / 16 for i in range(16)])
    part = EfficientNet("b0", drop_path=0.2, levels=["C3"])  # the rule counts what is not built as well
    kept = [block.drop_probability for stage in part.stages for block in stage]  # type: ignore[attr-defined]
    assert kept == pytest.approx([0.2 * i / 16 for i in range(5)])


def test_drop_path_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = [block for stage in EfficientNet("b0", drop_path=0.5).stages for block in stage][14]  # type: ignore[attr-defined]
    assert block.skip
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    x = images((3, 3), block.expand.conv.in_channels, batch=1).expand(1000, -1, -1, -1)
    branch = block(x) - x
    dropped = (branch == 0).flatten(1).all(1)
    probability = block.drop_probability
    assert probability == pytest.approx(0.5 * 14 / 16)
    assert float(dropped.float().mean()) == pytest.approx(probability, abs=0.06)  # four standard errors
    with torch.no_grad():
        full = block.eval()(x[:1]) - x[:1]
    kept = branch[~dropped]
    assert torch.allclose(kept, (full / (1 - probability)).expand_as(kept), atol=1e-4)


@pytest.mark.parametrize("name", ["b0", "lite0"])
def test_checkpointing_gives_equal_gradients_and_counts_statistics_once(name: str) -> None:
    torch.manual_seed(0)
    plain = small(name, drop_path=0.5).train()
    saving = small(name, drop_path=0.5, checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    for backbone in (plain, saving):
        torch.manual_seed(1)  # the same samples are dropped
        torch.autograd.backward(objective(backbone(images(batch=4))))
    for (key, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), key  # type: ignore[arg-type]
    for (key, one), other in zip(saving.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other), key
    assert int(saving.stem.bn.num_batches_tracked) == int(saving.stages[0][0].project.bn.num_batches_tracked) == 1  # type: ignore[index]


def test_checkpointing_saves_memory() -> None:
    kept = {}
    for checkpointing in (False, True):
        backbone, sizes = small(checkpointing=checkpointing).train(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            backbone(images())
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 3


@pytest.mark.parametrize("upto", ["stem", "C1", "C3", "C5", None])
def test_frozen_levels_stay_bit_equal(upto: str | None) -> None:
    """Ten steps with momentum and weight decay, batch norm included, through a call of .train()."""
    backbone = small().freeze(upto).train()
    frozen = ["stem", *LEVELS][: 6 if upto is None else ["stem", *LEVELS].index(upto) + 1]
    prefixes = (
        "stem.",
        *(f"stages.{i}." for i, level in enumerate(("C1", "C2", "C3", "C4", "C4", "C5", "C5")) if level in frozen),
    )
    before = copy.deepcopy(backbone.state_dict())
    optimiser = torch.optim.SGD(backbone.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(10):
        optimiser.zero_grad()
        loss = objective(backbone(images(batch=3)))
        if loss.requires_grad:
            torch.autograd.backward(loss)
        optimiser.step()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith(prefixes), key
    backbone.unfreeze()
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(m.training for m in backbone.modules())


@pytest.mark.parametrize("numerics", ["torch", "tf", "same_static"])
def test_folding_batch_norm_keeps_the_results(numerics: str) -> None:
    backbone = small(numerics=numerics)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    backbone.eval()
    folded = copy.deepcopy(backbone)
    fold_batch_norm(folded)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for size in ((64, 64), (63, 50)):
        for got, want in zip(folded(images(size)), backbone(images(size)), strict=True):
            assert float((got - want).abs().max() / want.abs().max()) < 1e-5
    fold_batch_norm(folded)  # a second time changes nothing
    assert isinstance(folded.stem, ConvNorm)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": ["C6"]}, "level 'C6'.*did you mean"),
        ({"levels": []}, "no level"),
        ({"tap": "steam"}, "tap.*did you mean stem"),
        ({"output_stride": 4}, "output_stride.*known: 16, 32, 8"),
        ({"stem_stride": 4}, "stem_stride"),
        ({"drop_path": 1.0}, "drop_path.*0.2 is published"),
        ({"in_channels": 0}, "in_channels"),
        ({"numerics": "tensorflow"}, "numerics 'tensorflow'.*known: same_static, tf, tf_original, torch, torch_tf"),
        ({"image_spec": ImageSpec(mean=(0.5,), std=(0.5,))}, "1 means for 3 channels"),
    ],
)
def test_wrong_option_is_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        EfficientNet("b0", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"padding": "valid"}, {"bn_eps": 0.0}, {"bn_momentum": 1.5}])
def test_wrong_numerics(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="numerics"):
        Numerics(**wrong)


@pytest.mark.parametrize(
    "given_images", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8), torch.zeros(3, 8, 8)]
)
def test_wrong_images_are_named(given_images: Tensor) -> None:
    with pytest.raises(UserError, match=r"expected normalised float \[B, 3, H, W\]"):
        small()(given_images)


def test_freeze_names_the_levels() -> None:
    with pytest.raises(UserError, match="known: C1, C2, C3, C4, C5, stem"):
        small().freeze("layer3")
    assert list(small(levels=["C3"]).level_modules()) == ["stem", "C1", "C2", "C3"]
    assert list(small(levels=["C3"], tap="stem").level_modules()) == ["stem", "C1", "C2", "C3"]
