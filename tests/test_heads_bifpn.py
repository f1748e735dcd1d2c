"""The pyramid: its wiring, its sizes, its arithmetic."""

import math

import pytest
import torch
from torch import Tensor, nn

from effbackbones.errors import UserError
from heads.detection.bifpn import BiFPN, FusionNode, Resize, max_pool_same, wiring
from heads.detection.levels import Source, level_strides
from heads.detection.towers import Tower


def test_the_cell_is_wired_as_published() -> None:
    """Reference sheet 2.3: levels 3-7 of D0-D7, 3-8 of D7x."""
    assert [(place.level + 3, list(place.inputs)) for place in wiring(5)] == [
        (6, [3, 4]),
        (5, [2, 5]),
        (4, [1, 6]),
        (3, [0, 7]),
        (4, [1, 7, 8]),
        (5, [2, 6, 9]),
        (6, [3, 5, 10]),
        (7, [4, 11]),
    ]
    assert [(place.level + 3, list(place.inputs)) for place in wiring(6)] == [
        (7, [4, 5]),
        (6, [3, 6]),
        (5, [2, 7]),
        (4, [1, 8]),
        (3, [0, 9]),
        (4, [1, 9, 10]),
        (5, [2, 8, 11]),
        (6, [3, 7, 12]),
        (7, [4, 6, 13]),
        (8, [5, 14]),
    ]
    assert [tuple(place) for place in wiring(2)] == [(0, (0, 1)), (1, (1, 2))]


def pyramid(
    levels: tuple[int, ...] = (3, 4, 5, 6, 7), fusion: str = "fast", strides: tuple[int, ...] = (8, 16, 32)
) -> BiFPN:
    torch.manual_seed(0)
    inputs = [Source(c, s) for c, s in zip((6, 8, 10), strides, strict=False)]
    return BiFPN(inputs, levels, 8, 2, fusion, "silu").eval()  # type: ignore[arg-type]


def features(height: int, width: int, strides: tuple[int, ...] = (8, 16, 32)) -> list[Tensor]:
    return [torch.randn(2, c, -(-height // s), -(-width // s)) for c, s in zip((6, 8, 10), strides, strict=False)]


def test_projections_stand_where_widths_differ() -> None:
    """Each edge has its own: the second level is projected twice unless it has the pyramid's width already."""
    names = {name.rpartition(".conv.weight")[0] for name in pyramid().state_dict()}
    assert {name for name in names if ".laterals." in name or name.startswith("resample")} == {
        "resample.6",
        "cells.0.nodes.1.laterals.2",
        "cells.0.nodes.3.laterals.0",
        "cells.0.nodes.5.laterals.2",
    }


@pytest.mark.parametrize("size", [(256, 256), (320, 448), (40, 104), (33, 97), (8, 8)])
def test_every_level_keeps_its_size(size: tuple[int, int]) -> None:
    maps = features(*size)
    with torch.no_grad():
        out = pyramid()(maps)
    expected = [tuple(m.shape[-2:]) for m in maps]
    for _ in range(2):
        expected.append(tuple(-(-side // 2) for side in expected[-1]))
    assert [tuple(m.shape) for m in out] == [(2, 8, *size) for size in expected]


@pytest.mark.parametrize(
    ("strides", "all_strides"),
    [((8, 16, 16), (8, 16, 16, 32, 64)), ((8, 8, 8), (8, 8, 8, 16, 32)), ((4, 16, 32), (4, 16, 32, 64, 128))],
)
def test_strides_need_not_double(strides: tuple[int, ...], all_strides: tuple[int, ...]) -> None:
    network = pyramid(strides=strides)
    assert network.strides == all_strides
    with torch.no_grad():
        out = network(features(128, 256, strides))
    assert [tuple(m.shape[-2:]) for m in out] == [(-(-128 // s), -(-256 // s)) for s in all_strides]


def test_strides_that_cannot_be_pooled_are_refused() -> None:
    with pytest.raises(UserError, match="multiples of the next finer one, got 8, 12"):
        level_strides((8, 12), 3)


def test_pooling_ignores_its_padding() -> None:
    """TensorFlow's SAME: on even sides all padding is behind; a pad cell of 0 would win over negative values."""
    x = -torch.arange(1.0, 37.0).view(1, 1, 6, 6)
    pooled = max_pool_same(x, 2)
    assert pooled[0, 0].tolist() == [[-1, -3, -5], [-13, -15, -17], [-25, -27, -29]]
    assert max_pool_same(x[..., :5, :5], 2)[0, 0].tolist() == [[-1, -2, -4], [-7, -8, -10], [-19, -20, -22]]
    assert max_pool_same(x[..., :1, :1], 2).item() == -1


@pytest.mark.peer
@pytest.mark.parametrize("stride", [2, 4])
def test_pooling_equals_the_reference(stride: int) -> None:
    layers = pytest.importorskip("timm.layers")
    for height, width in ((8, 8), (7, 12), (5, 1), (10, 3)):
        x = torch.randn(1, 2, height, width) - 3
        expected = layers.create_pool2d("max", kernel_size=stride + 1, stride=stride, padding="same")(x)
        assert torch.equal(max_pool_same(x, stride), expected)


def test_resizing_repeats_or_pools_or_does_nothing() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert Resize(16, 16)(x, (2, 3)) is x
    assert Resize(16, 8)(x, (3, 6))[0, 0].tolist() == [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]
    assert Resize(8, 16)(x, (1, 2)).shape[-2:] == (1, 2)


@pytest.mark.parametrize(
    ("fusion", "shares"),
    [
        ("fast", [2 / (3 + 1e-4), 0.0, 1 / (3 + 1e-4)]),
        ("softmax", torch.tensor([2.0, -1.0, 1.0]).softmax(0).tolist()),
        ("sum", [1, 1, 1]),
    ],
)
def test_inputs_are_weighted(fusion: str, shares: list[float]) -> None:
    node = FusionNode({i: Source(4, 8) for i in range(3)}, Source(4, 8), fusion, "relu")  # type: ignore[arg-type]
    node.conv = nn.Identity()  # type: ignore[assignment]
    if fusion == "sum":
        assert node.weights is None
    else:
        assert node.weights is not None
        assert torch.equal(node.weights, torch.ones(3))
        node.weights.data.copy_(torch.tensor([2.0, -1.0, 1.0]))
    maps = [torch.rand(1, 4, 3, 3) for _ in range(3)]
    expected = sum(share * m for share, m in zip(shares, maps, strict=True))
    torch.testing.assert_close(node(maps, (3, 3)), expected)


def test_fusion_weights_are_exact_under_autocast() -> None:
    """In bfloat16 the denominator's 1e-4 would vanish, and with relu(w) = 0 the division would be 0 / 0."""
    node = FusionNode({0: Source(4, 8), 1: Source(4, 8)}, Source(4, 8), "fast", "relu")
    assert node.weights is not None
    node.weights.data.fill_(-1.0)
    maps = [torch.rand(1, 4, 3, 3, dtype=torch.bfloat16) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        out = node(maps, (3, 3))
    assert out.isfinite().all()


def test_weights_start_as_published() -> None:
    """Reference sheet 2.4: Glorot's uniform limits in the neck, normal by fan in in the towers, biases 0."""
    torch.manual_seed(0)
    neck = BiFPN([Source(40, 8), Source(112, 16), Source(320, 32)], (3, 4, 5, 6, 7), 64, 1, "fast", "silu")
    tower = Tower(64, 3, 5, 9, 4, "silu")
    limits = {
        "depthwise": math.sqrt(3 / 9),
        "pointwise": math.sqrt(3 / 64),
        "resample.6.conv": math.sqrt(6 / (320 + 64)),
    }
    for name, limit in limits.items():
        weights = torch.cat([p.detach().flatten() for key, p in neck.named_parameters() if f"{name}.weight" in key])
        assert 0.95 * limit < float(weights.abs().max()) <= limit
        assert float(weights.std()) == pytest.approx(limit / math.sqrt(3), rel=0.05)
    for name, deviation in {"depthwise": 1 / 3, "pointwise": 1 / 8}.items():
        weights = torch.cat(
            [p.detach().flatten() for key, p in tower.named_parameters() if name in key and key.endswith("weight")]
        )
        assert float(weights.std()) == pytest.approx(deviation, rel=0.05)
    assert not any(bool(p.any()) for net in (neck, tower) for key, p in net.named_parameters() if key.endswith("bias"))


def test_levels_share_convolutions_and_not_statistics() -> None:
    torch.manual_seed(0)
    tower = Tower(8, 2, 3, 9, 4, "silu").train()
    maps = [torch.randn(2, 8, side, side) * scale for side, scale in ((8, 1.0), (4, 5.0), (2, 0.1))]
    out = tower(maps)
    assert out.shape == (2, 9 * (64 + 16 + 4), 4)
    means = torch.stack([tower.bn[0][level].running_var for level in range(3)])  # type: ignore[index, union-attr]
    assert not torch.allclose(means[0], means[1])
    assert len([name for name, _ in tower.named_parameters() if "pointwise" in name]) == 2 * 3
    assert torch.equal(tower.eval()(maps)[:, : 9 * 64], tower(maps[:1])), "finest level first"
