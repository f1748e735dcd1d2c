"""Convolutions by other ways than the library's: the same numbers, and no slow kernel."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effbackbones.backbones import convolving, passes
from effbackbones.backbones.convolving import Convolve, Geometry
from effbackbones.backbones.padding import Conv2dFixed, Conv2dSame

LAST = torch.channels_last


def layer(kind: str) -> nn.Conv2d:
    """A convolution of eight channels, as its name says."""
    if kind == "fixed":
        return Conv2dFixed(8, 8, 5, stride=2, groups=8, before=1, after=2)
    if kind.startswith("same"):
        return Conv2dSame(8, 8, int(kind[-1]), stride=2, groups=8, bias=False)
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
        "dilated": (5, 1, 8, 2, False),
        "grouped": (5, 1, 2, 1, False),
        "whole": (3, 1, 1, 1, True),
    }[kind]
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(8, 8, kernel, stride, padding, dilation, groups, bias)


KINDS = ["pointwise", "pointwise with bias", "pointwise in steps", "depthwise 3", "depthwise 4", "depthwise 5"]
KINDS += ["depthwise 5 in steps", "depthwise 7", "dilated", "grouped", "whole", "same3", "same5", "fixed", "uneven"]


@pytest.fixture(params=[False, True], ids=["convolutions", "products"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both kinds of processors."""
    monkeypatch.setattr(convolving, "products_pay", lambda: request.param)
    return request.param


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
    if kind in ("depthwise 4", "fixed") and min(size) < 2:
        pytest.skip("nothing comes out")
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


@pytest.mark.parametrize("kind", ["depthwise 5", "depthwise 5 in steps", "depthwise 7", "same5", "fixed"])
def test_no_depthwise_gradient_takes_the_slow_kernel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN is quick up to three columns, in maps not lower than the kernel."""
    asked: list[tuple[torch.Size, torch.Size]] = []
    library = Geometry._library

    def watch(self: Geometry, grad: Tensor, x: Tensor, weight: Tensor, *, of_weight: bool) -> Any:
        if of_weight:
            asked.append((x.shape, weight.shape))
            assert x.is_contiguous(memory_format=LAST)
        return library(self, grad, x, weight, of_weight=of_weight)

    monkeypatch.setattr(Geometry, "_library", watch)
    conv = layer(kind).to(memory_format=LAST)
    for side in (4, 12):
        found(passes.convolve, torch.randn(2, 8, side, side).to(memory_format=LAST), conv)
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
