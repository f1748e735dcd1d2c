"""The feature pyramid of RetinaNet and FCOS: equal to torchvision's, of any levels and sizes."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from effbackbones.errors import UserError
from heads.detection.fpn import FPN
from heads.detection.levels import STANDARD, Source

CHANNELS = (6, 8, 10)


def features(height: int, width: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, -(-height // s), -(-width // s)) for c, s in zip(CHANNELS, (8, 16, 32), strict=True)]


def pyramid(levels: tuple[int, ...] = STANDARD, extra_from: str = "p5", channels: int = 16) -> FPN:
    torch.manual_seed(0)
    inputs = [Source(c, s) for c, s in zip(CHANNELS, (8, 16, 32), strict=True)]
    return FPN(inputs[: len(levels)], levels, channels, extra_from=extra_from)  # type: ignore[arg-type]


@pytest.mark.peer
@pytest.mark.parametrize("extra_from", ["p5", "c5"])
@pytest.mark.parametrize("size", [(128, 256), (200, 72)])
def test_it_equals_torchvision(extra_from: str, size: tuple[int, int]) -> None:
    """The names of the file are torchvision's with the levels instead of places."""
    peer = pytest.importorskip("torchvision.ops.feature_pyramid_network")
    ours = pyramid(extra_from=extra_from)
    extra = peer.LastLevelP6P7(16 if extra_from == "p5" else CHANNELS[-1], 16)
    theirs = peer.FeaturePyramidNetwork(list(CHANNELS), 16, extra)
    state = {}
    for name, tensor in theirs.state_dict().items():
        kind, place, *_, last = name.split(".")
        if kind == "extra_blocks":
            state[f"extra.{place[1:]}.{last}"] = tensor
        else:
            state[f"{'lateral' if kind == 'inner_blocks' else 'smooth'}.{int(place) + 3}.{last}"] = tensor
    ours.load_state_dict(state)
    maps = features(*size)
    expected = theirs(OrderedDict((str(i), m) for i, m in enumerate(maps))).values()
    found = ours(maps)
    assert len(found) == len(expected) == 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("levels", [(3, 4), (3, 4, 5), (3, 4, 5, 6)])
def test_every_map_has_its_size_and_reaches_every_weight(levels: tuple[int, ...]) -> None:
    net = pyramid(levels)
    maps = net(features(104, 72)[: len(levels)])
    assert net.strides == (8, 16, 32, 64)[: len(levels)]
    assert [m.shape[-2:] for m in maps] == [(-(-104 // s), -(-72 // s)) for s in net.strides]
    torch.stack([m.square().mean() for m in maps]).sum().backward()  # type: ignore[no-untyped-call] # untyped in torch
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert isinstance(net.lateral["3"], nn.Conv2d)


def test_wrong_options_are_named() -> None:
    with pytest.raises(UserError, match=r"head_options\.extra_from: unknown value 'p6'"):
        pyramid(extra_from="p6")
    with pytest.raises(UserError, match=r"head fcos: .*multiples of the next finer"):
        FPN([Source(8, 8), Source(8, 12)], (3, 4), 8, head="fcos")
