"""Convolutions by other ways than the library's: the same numbers, and no slow kernel."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effbackbones.backbones import convolving, maps, passes
from effbackbones.backbones.convolving import Convolve, Geometry
from effbackbones.backbones.padding import Conv2dFixed, Conv2dSame

LAST = torch.channels_last


def layer(kind: str) -> nn.Conv2d:
    """A convolution of eight channels, as its name says."""
    if kind == "fixed":
        return Conv2dFixed(8, 8, 5, stride=2, groups=8, before=1, after=2)
    if kind.startswith("same"):
        return Conv2dSame(8, 8, int(kind[-1]), stride=2, groups=8, bias=False)
    if kind == "dilated unevenly":
        return nn.Conv2d(8, 8, (5, 3), padding=(3, 0), dilation=(1, 2), groups=8, bias=False)
    if kind == "dilated same":
        return Conv2dSame(8, 8, 5, dilation=2, groups=8, bias=False)
    if kind == "dilated and fixed":
        return Conv2dFixed(8, 8, 3, dilation=2, groups=8, before=1, after=3, bias=False)
    if kind == "dilated with wide borders":
        return nn.Conv2d(8, 8, 3, padding=5, dilation=2, groups=8, bias=False)
    if kind == "uneven":
        return Conv2dFixed(8, 8, 3, before=0, after=2, bias=False)
    kernel, stride, groups, dilation, bias = {
        "pointwise": (1, 1, 1, 1, False),
        "pointwise with bias": (1, 1, 1, 1, True),
        "pointwise in steps": (1, 2, 1, 1, True),
        "depthwise 3": (3, 1, 8, 1, False),
        "depthwise 4": (4, 1, 8, 1, False),
        "depthwise 5": (5, 1, 8, 1, True),
        "depthwise 5 in steps": (5, 2, 8, 1, False),
        "depthwise 7": (7, 1, 8, 1, False),
        "depthwise 9": (9, 1, 8, 1, False),
        "dilated": (5, 1, 8, 2, False),
        "dilated 3": (3, 1, 8, 3, True),
        "grouped": (5, 1, 2, 1, False),
        "whole": (3, 1, 1, 1, True),
    }[kind]
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(8, 8, kernel, stride, padding, dilation, groups, bias)


KINDS = ["pointwise", "pointwise with bias", "pointwise in steps", "depthwise 3", "depthwise 4", "depthwise 5"]
KINDS += [
    "depthwise 5 in steps",
    "depthwise 7",
    "depthwise 9",
    "dilated",
    "dilated 3",
    "dilated unevenly",
    "dilated same",
    "dilated and fixed",
    "dilated with wide borders",
    "grouped",
    "whole",
    "same3",
    "same5",
    "fixed",
    "uneven",
]


@pytest.fixture(params=[False, True], ids=["convolutions", "products"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both kinds of processors."""
    monkeypatch.setattr(convolving, "products_pay", lambda: request.param)
    return request.param


def refused(kind: str, size: tuple[int, int]) -> bool:
    """Nothing comes out, or oneDNN refuses it."""
    narrow = kind in ("depthwise 4", "fixed", "depthwise 9") and min(size) < 2
    return narrow or (kind == "dilated unevenly" and size[1] < 5)


def found(call: Any, x: Tensor, conv: nn.Conv2d) -> list[Tensor]:
    """The result and all gradients, for a loss that weighs pixels differently."""
    conv.zero_grad()
    given = x.detach().clone().requires_grad_()
    out = call(given, conv)
    torch.autograd.backward((out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum())
    grads = [given.grad, *(parameter.grad for parameter in conv.parameters())]
    return [out.detach().double(), *(grad.double() for grad in grads if grad is not None)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(12, 11), (9, 16), (3, 4), (2, 1)], ids=str)
def test_results_and_gradients_are_the_layers(kind: str, size: tuple[int, int], products: Any) -> None:
    torch.manual_seed(0)
    conv = layer(kind)
    if refused(kind, size):
        pytest.skip("nothing comes out, or oneDNN refuses it")
    for layout in (LAST, torch.contiguous_format):
        x = torch.randn(3, 8, *size).to(memory_format=layout)
        conv = conv.to(memory_format=layout)
        ours = found(passes.convolve, x, conv)
        exact = found(lambda given, one: one(given), x.double(), conv.double())
        conv.float()
        for mine, true in zip(ours, exact, strict=True):
            assert float((mine - true).abs().max()) <= 1e-5 * float(true.abs().max() + 1e-3)


@pytest.mark.parametrize("kind", ["pointwise with bias", "depthwise 5", "same3", "whole"])
def test_gradients_have_gradients(kind: str, products: Any) -> None:
    torch.manual_seed(0)
    conv = layer(kind).double()
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64).to(memory_format=LAST).requires_grad_()
    inputs = [tensor.detach().requires_grad_() for tensor in conv.parameters()]

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = Convolve.apply(Geometry.of(conv, x), x, weight, bias)
        return out

    assert torch.autograd.gradcheck(call, (x, *inputs), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *inputs), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(12, 11), (9, 16), (3, 4), (2, 1)], ids=str)
def test_in_16_bits_they_are_as_near_as_those_allow(
    kind: str, size: tuple[int, int], products: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    conv = layer(kind).to(memory_format=LAST)
    if refused(kind, size):
        pytest.skip("nothing comes out, or oneDNN refuses it")
    x = torch.randn(3, 8, *size).bfloat16().float().to(memory_format=LAST)
    monkeypatch.setattr(convolving, "_PART", 2 * x[0].numel())  # two images, then one
    with torch.no_grad():
        conv.weight.copy_(conv.weight.bfloat16())
    ours = found(half, x, conv)
    exact = found(lambda given, one: one(given), x.double(), conv.double())
    for mine, true in zip(ours, exact, strict=True):
        assert float((mine - true).abs().max()) <= 0.015 * float(true.abs().max())


def test_in_16_bits_a_map_of_one_pixel_has_a_gradient() -> None:
    """oneDNN's own, of 200 channels in steps of two, is memory that nobody wrote."""
    torch.manual_seed(0)
    conv = nn.Conv2d(200, 200, 3, 2, 1, groups=200, bias=False).to(memory_format=LAST)
    x = torch.randn(4, 200, 1, 1).to(memory_format=LAST)
    ours, exact = found(half, x, conv), found(passes.convolve, x, conv)
    for mine, true in zip(ours, exact, strict=True):
        assert float((mine - true).abs().max()) <= 0.02 * float(true.abs().max())


def half(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """As mixed precision has it: the backward pass lies outside."""
    with torch.autocast("cpu", torch.bfloat16):
        return passes.convolve(x, conv)


SLOW = ["depthwise 5", "depthwise 5 in steps", "depthwise 7", "same3", "same5", "fixed", "dilated", "dilated 3"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", SLOW)
def test_no_depthwise_gradient_takes_a_slow_kernel(kind: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN is quick up to three columns without gaps, in maps not lower than the kernel, and in bfloat16 without steps."""
    asked: list[tuple[torch.Size, torch.Size]] = []
    library = Geometry._library

    def watch(self: Geometry, grad: Tensor, x: Tensor, weight: Tensor, *, of_weight: bool) -> Any:
        assert tuple(self.dilation) == (1, 1)
        assert x.dtype == grad.dtype == weight.dtype
        assert x.dtype == torch.float32 or max(self.stride) == 1
        if of_weight:
            asked.append((x.shape, weight.shape))
            assert x.is_contiguous(memory_format=LAST)
        return library(self, grad, x, weight, of_weight=of_weight)

    monkeypatch.setattr(Geometry, "_library", watch)
    conv = layer(kind).to(memory_format=LAST)
    for side in (4, 12):
        found(
            half if precision == "bf16" else passes.convolve, torch.randn(2, 8, side, side).to(memory_format=LAST), conv
        )
    assert asked
    for seen, kernel in asked:
        assert kernel[3] <= 3
        assert seen[2] >= kernel[2]


def test_only_what_is_asked_for_is_computed(products: Any) -> None:
    """A frozen kernel, an input without a gradient: as autograd has it."""
    conv = layer("depthwise 5").to(memory_format=LAST)
    x = torch.randn(2, 8, 6, 6).to(memory_format=LAST)
    conv.weight.requires_grad_(False)
    torch.autograd.backward(passes.convolve(x, conv).sum())
    assert conv.weight.grad is None
    assert conv.bias is not None
    assert conv.bias.grad is not None


def test_a_map_of_a_product_can_be_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolving, "products_pay", lambda: True)
    conv = layer("pointwise with bias").to(memory_format=LAST)
    x = torch.randn(2, 8, 3, 3).to(memory_format=LAST)
    torch.autograd.backward(nn.functional.silu(passes.convolve(x, conv), inplace=True).sum())
    assert conv.weight.grad is not None


def test_an_empty_batch_goes_both_ways(products: Any) -> None:
    x = torch.zeros(0, 8, 9, 9).to(memory_format=LAST).requires_grad_()
    for kind in ("pointwise", "depthwise 3", "depthwise 5 in steps", "dilated"):
        for call in (passes.convolve, half):
            torch.autograd.backward(call(x, layer(kind)).sum())
    assert x.grad is not None
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("kind", ["pointwise", "dilated"])
def test_autocast_around_the_backward_pass_changes_nothing(kind: str, products: Any) -> None:
    """What was computed in full precision inside has gradients in it."""
    torch.manual_seed(0)
    conv, x = layer(kind).to(memory_format=LAST), torch.randn(2, 8, 9, 9).to(memory_format=LAST)

    def under(given: Tensor, conv: nn.Conv2d) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return passes.convolve(given, conv)

    with torch.autocast("cpu", torch.bfloat16):
        mine = found(under, x, conv)
    exact = found(passes.convolve, x.double(), conv.double())
    for one, true in zip(mine, exact, strict=True):
        assert float((one - true).abs().max()) <= 1e-6 * float(true.abs().max())


def test_second_derivatives_under_autocast() -> None:
    conv, x = layer("whole").to(memory_format=LAST), torch.randn(2, 8, 6, 6).to(memory_format=LAST).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = passes.convolve(x.bfloat16(), conv)
    (slope,) = torch.autograd.grad(out.float().square().sum(), conv.weight, create_graph=True)
    torch.autograd.backward(slope.square().sum())
    assert x.grad is not None


@pytest.mark.parametrize("sides", [(2, 1, 0, 3), (-2, 4, 1, 0), (-5, 9, 0, 0), (6, -4, -1, 1), (0, 0, -9, 12)], ids=str)
def test_maps_are_padded_and_cut_as_torch_does_it(sides: maps.Sides) -> None:
    """Of a kernel that is much wider than its map some columns see nothing at all, where torch's own refuses."""
    x = torch.randn(2, 4, 3, 3).to(memory_format=LAST)
    left, right, top, bottom = sides
    wide = nn.functional.pad(x, (20, 20, 20, 20))
    expected = wide[:, :, 20 - top : 23 + bottom, 20 - left : 23 + right]
    made = maps.padded(x, sides)
    assert torch.equal(made, expected)
    assert made.is_contiguous(memory_format=LAST)


def test_one_image_without_a_batch_goes_the_layer_s_way(products: Any) -> None:
    x = torch.randn(8, 5, 5).requires_grad_()
    torch.autograd.backward(passes.convolve(x, layer("depthwise 3")).sum())
    assert x.grad is not None
