"""Compound scaling: the rows' parameter counts, what lies between and beyond them, rounding, names."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.backbones.scaling import (
    SCALINGS,
    Scaling,
    head_channels,
    round_depth,
    round_width,
    scaled,
    scaling,
    stage_channels,
    stage_layers,
)
from effbackbones.errors import UserError

# Parameters of stem and stages, counted on torchvision and timm: without the 1x1 head convolution and the classifier.
PARAMETERS = {
    "b0": 3_595_388,
    "b1": 6_101_024,
    "b2": 7_202_562,
    "b3": 10_103_336,
    "b4": 16_742_216,
    "b5": 27_288_112,
    "b6": 39_403_992,
    "b7": 62_143_440,
    "lite0": 2_958_848,
    "lite1": 3_723_520,
    "lite2": 4_357_952,
    "lite3": 6_422_016,
    "lite4": 11_149_568,
}
HEADS = dict(b0=1280, b1=1280, b2=1408, b3=1536, b4=1792, b5=2048, b6=2304, b7=2560) | {
    f"lite{i}": 1280 for i in range(5)
}


def parameters(name: str | Scaling, **options: float) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in EfficientNet(name, **options).parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_exact(name: str) -> None:
    assert parameters(name) == PARAMETERS[name]
    assert head_channels(scaling(name)) == HEADS[name]


def test_rows_from_explicit_multipliers() -> None:
    assert parameters("b0", width=1.4, depth=1.8) == PARAMETERS["b4"]
    assert parameters("lite0", width=1.4, depth=1.8) == PARAMETERS["lite4"]
    assert parameters("b0", width=0.5, depth=0.5) < PARAMETERS["b0"] / 3


def test_layers_and_channels() -> None:
    assert stage_layers(scaling("b7")) == (4, 7, 7, 10, 10, 13, 4)
    assert stage_layers(scaling("lite4")) == (1, 4, 4, 6, 6, 8, 1)  # ends not deepened
    assert stage_channels(scaling("b5")) == (24, 40, 64, 128, 176, 304, 512)


@pytest.mark.parametrize(("family", "last"), [("b", 7), ("lite", 4)])
def test_scaled_gives_the_rows_at_whole_phi(family: str, last: int) -> None:
    for phi in range(last + 1):
        assert scaled(phi, family) is SCALINGS[f"{family}{phi}"]  # type: ignore[arg-type]


def test_scaled_between_rows_is_geometric() -> None:
    half = scaled(3.5)
    assert half.width == pytest.approx(math.sqrt(1.2 * 1.4))
    assert half.depth == pytest.approx(math.sqrt(1.4 * 1.8))
    assert half.resolution == 336  # sqrt(300 * 380) = 337.6, to a multiple of 4
    assert half.dropout == pytest.approx(0.35)
    assert PARAMETERS["b3"] < parameters(half) < PARAMETERS["b4"]
    assert scaling("b3.5") == half == scaling("efficientnet_b3.5")


def test_scaled_beyond_the_ends_follows_the_compound_law() -> None:
    above, below = scaled(8), scaled(-1)
    assert (above.width, above.depth, above.resolution) == (pytest.approx(2.0 * 1.1), pytest.approx(3.1 * 1.2), 688)
    assert (below.width, below.depth, below.resolution) == (pytest.approx(1 / 1.1), pytest.approx(1 / 1.2), 196)
    assert parameters(above) > PARAMETERS["b7"]
    assert parameters(below) < PARAMETERS["b0"]
    assert scaling("b-1.0") == below
    assert scaled(5, "lite").family == "lite"


@given(st.floats(-2, 9), st.floats(0, 2))
def test_scaled_never_shrinks(phi: float, more: float) -> None:
    small, large = scaled(phi), scaled(phi + more)
    for field in ("width", "depth", "resolution", "dropout"):
        assert getattr(small, field) <= getattr(large, field) * (1 + 1e-12)


@given(st.integers(1, 4096), st.floats(0.1, 8))
def test_rounding(channels: int, multiplier: float) -> None:
    rounded = round_width(channels, multiplier)
    assert rounded % 8 == 0
    assert rounded >= max(8, 0.9 * channels * multiplier)
    assert rounded <= max(8, channels * multiplier + 8)
    assert 0 <= round_depth(channels, multiplier) - channels * multiplier < 1


@pytest.mark.parametrize(
    ("name", "says"), [("b8", "b7"), ("lite9", "lite0"), ("resnet50", "known: b0"), ("b", "b0"), ("b1.2.3", "b1")]
)
def test_unknown_name_says_the_nearest(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        scaling(name)


@pytest.mark.parametrize("phi", [math.nan, math.inf, -math.inf])
def test_phi_must_be_finite(phi: float) -> None:
    with pytest.raises(UserError, match="a phi of -20 to 20"):
        scaled(phi)


@pytest.mark.parametrize("wrong", [{"width": 0.0}, {"depth": -1.0}, {"width": math.nan}, {"depth": math.inf}])
def test_multipliers_must_be_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="positive"):
        EfficientNet("b0", **wrong)
