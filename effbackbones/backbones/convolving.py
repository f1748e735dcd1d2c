"""Convolutions on a processor where the library's own way is not the quickest: the same sums, in another order.

* Pointwise ones are matrix products of pixels by channels. Where MKL is at home, on processors of Intel, its products are quicker than
  oneDNN's convolutions, most so on small maps (``python -m benchmarks pointwise``).
* oneDNN has no quick kernel for the gradient of depthwise weights of more than three columns; three columns at a time it is quick
  (``python -m benchmarks depthwise-gradient``).
* Nor has it one for either gradient of a depthwise convolution with gaps, which ends every backbone that keeps its resolution. That of the
  input is a convolution with the kernel turned round; for that of the weights, pixels that are seen together are put together
  (``python -m benchmarks dilated-gradient``).
* In bfloat16 oneDNN is fast where a processor multiplies it, but for the gradients above and for depthwise ones in steps, which take it
  many times as long as in float32. Those in steps are computed in float32.

All need channels last; anything else goes to the library.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from effbackbones.backbones.maps import Sides, arranged, as_map, is_last, padded, phases, pixels
from effbackbones.backbones.padding import PaddedConv2d

_COLUMNS = 3  # of a depthwise kernel, up to which oneDNN's gradient of the weights is quick
_GAPS = 4  # of a dilation, up to which what is done here is quicker
_PART = 2**21  # numbers that are copied to float32 at a time
_EXACT = (torch.float32, torch.float64)
_MULTIPLIED = (*_EXACT, torch.bfloat16)  # on the way back, where nothing is added in 16 bits
_DEPTHWISE = (torch.float32, torch.bfloat16)


@cache
def products_pay() -> bool:
    """Whether matrix products are quicker than convolutions here: MKL is there and the processor is Intel's."""
    if not torch._C.has_mkl:
        return False
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


class Geometry(NamedTuple):
    """The geometry of a convolution; ``pad`` is what is added in front of it (left, right, top, bottom), or None."""

    stride: Any
    padding: Any
    dilation: Any
    groups: int
    pad: Sides | None

    @classmethod
    def of(cls, conv: Any, x: Tensor) -> "Geometry":
        """Of a layer, for an input."""
        sides = conv.sides(*x.shape[-2:]) if isinstance(conv, PaddedConv2d) else None
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups, sides)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer gives."""
        if self._is_product(x, weight):
            return _product(x, weight.flatten(1).t(), bias)
        geometry, kernel = self._widened(x, weight)
        x = F.pad(x, geometry.pad) if geometry.pad else x
        return F.conv2d(x, kernel, bias, self.stride, geometry.padding, self.dilation, self.groups)

    def of_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the weight, in the dtype of ``x``, which is that of ``grad``, or in float32."""
        grad, weight = arranged(grad, x), weight.to(x.dtype)
        if self._is_product(x, weight, _MULTIPLIED):
            ours, theirs = pixels(x), pixels(grad)
            # of both orders the one with fewer rows is quicker
            found = (ours.t() @ theirs).t() if len(weight) > weight.shape[1] else theirs.t() @ ours
            return found.reshape(weight.shape)
        if self._is_slow_in_half(x, weight):
            return sum(
                (self.of_weight(g.float(), part.float(), weight) for g, part in _parts(grad, x)), torch.zeros(())
            )
        if self._has_gaps(x, weight):
            return self._by_phases(grad, x, weight)
        if self._goes_by_columns(x, weight):
            return self._by_columns(grad, x, weight)
        seen = padded(x, self.pad) if self.pad else x
        return self._library(grad, seen, weight, of_weight=True)

    def of_input(self, grad: Tensor, like: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the input, of which shape, dtype and layout are looked at and no value."""
        grad, weight = arranged(grad, like), weight.to(like.dtype)
        if self._is_product(like, weight, _MULTIPLIED):
            return as_map(pixels(grad) @ weight.flatten(1), like)
        if self._is_slow_in_half(like, weight):
            made = torch.empty_like(like)
            for g, part in _parts(grad, made):
                part.copy_(self.of_input(g.float(), torch.empty_like(part, dtype=torch.float32), weight))
            return made
        if self._has_gaps(like, weight):
            return F.conv2d(grad, weight.flip(2, 3), None, 1, self._turned(weight), self.dilation, self.groups)
        geometry, kernel = self._widened(like, weight)
        if not geometry.pad:
            return geometry._library(grad, like, kernel, of_weight=False)
        left, right, top, bottom = geometry.pad
        whole = self._library(grad, padded(like, geometry.pad), weight, of_weight=False)
        return F.pad(whole, (-left, -right, -top, -bottom))

    def _library(self, grad: Tensor, x: Tensor, weight: Tensor, *, of_weight: bool) -> Tensor:
        """One of the gradients, of what is padded already."""
        rest = (self.stride, self.padding, self.dilation, False, [0, 0], self.groups, [not of_weight, of_weight, False])
        found: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)[int(of_weight)]
        return found

    def _widened(self, x: Tensor, weight: Tensor) -> tuple["Geometry", Tensor]:
        """A zero tap in front of the kernel undoes the pixel that SAME adds less in front than behind: so the map need not be copied."""
        if self.pad is None or x.device.type != "cpu" or tuple(self.dilation) != (1, 1):
            return self, weight
        left, right, top, bottom = self.pad
        if not {right - left, bottom - top} <= {0, 1}:
            return self, weight
        return self._replace(padding=(bottom, right), pad=None), F.pad(weight, (right - left, 0, bottom - top, 0))

    def _is_product(self, x: Tensor, weight: Tensor, dtypes: tuple[torch.dtype, ...] = _EXACT) -> bool:
        plain = tuple(weight.shape[2:]) == (1, 1) and self.groups == 1 and tuple(self.stride) == (1, 1)
        still = plain and not any(self.padding) and not any(self.pad or ()) and not torch.is_autocast_enabled("cpu")
        fits = x.dtype == weight.dtype and x.dtype in dtypes and x.shape[1] == weight.shape[1]
        return still and fits and is_last(x) and products_pay()

    def _goes_by_columns(self, x: Tensor, weight: Tensor) -> bool:
        return self._is_depthwise(x, weight) and tuple(self.dilation) == (1, 1) and weight.shape[3] > _COLUMNS

    def _is_depthwise(self, x: Tensor, weight: Tensor) -> bool:
        return self.groups == x.shape[1] == weight.shape[0] and x.dtype in _DEPTHWISE and is_last(x)

    def _is_slow_in_half(self, x: Tensor, weight: Tensor) -> bool:
        return x.dtype == torch.bfloat16 and max(self.stride) > 1 and self._is_depthwise(x, weight)

    @property
    def _front(self) -> tuple[int, int]:
        """Rows and columns of zeros before a map."""
        left, _, top, _ = self.pad or (0, 0, 0, 0)
        return top + self.padding[0], left + self.padding[1]

    def _has_gaps(self, x: Tensor, weight: Tensor) -> bool:
        left, right, top, bottom = self.pad or (0, 0, 0, 0)
        even = (left, top) == (right, bottom) and tuple(self.stride) == (1, 1)
        wide = 1 < max(self.dilation) <= _GAPS and not torch.is_autocast_enabled("cpu")
        return even and wide and self._is_depthwise(x, weight) and min(self._turned(weight)) >= 0

    def _turned(self, weight: Tensor) -> list[int]:
        """Padding of the convolution back."""
        geometry = zip(weight.shape[2:], self.dilation, self._front, strict=True)
        return [(size - 1) * gap - front for size, gap, front in geometry]

    def _by_phases(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of depthwise weights with gaps: pixels as far apart as its taps make maps of their own, which are seen without gaps."""
        size = [-(-side // gap) for side, gap in zip(grad.shape[2:], self.dilation, strict=True)]
        wide = [side + taps - 1 for side, taps in zip(size, weight.shape[2:], strict=True)]
        seen = phases(x, self.dilation, self._front, wide)
        plain = Geometry((1, 1), (0, 0), (1, 1), self.groups, None)
        return plain.of_weight(phases(grad, self.dilation, (0, 0), size), seen, weight)

    def _by_columns(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of depthwise weights, three columns at a time: for each the columns of the input that it looks at."""
        (top, left), bottom = self._front, (self.pad[3] if self.pad else 0) + self.padding[0]
        # a map that is lower than the kernel is padded here, for oneDNN is slow there too
        rows, inside = ((top, bottom), 0) if top != bottom or x.shape[2] < weight.shape[2] else ((0, 0), top)
        found = torch.empty_like(weight)
        for first in _strips(weight.shape[3]):
            span = (grad.shape[3] - 1) * self.stride[1] + _COLUMNS
            seen = padded(x, (left - first, span - (left - first) - x.shape[3], *rows))
            part = found[..., first : first + _COLUMNS]
            rest = self._replace(padding=(inside, 0), pad=None)
            part.copy_(rest._library(grad, seen, part, of_weight=True))
        return found


class Convolve(torch.autograd.Function):
    """A convolution by its geometry; keeps what any convolution keeps."""

    @staticmethod
    def forward(ctx: Any, geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.geometry, ctx.autocast = geometry, autocast_of(x)
        ctx.save_for_backward(x, weight, bias)
        return geometry(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (grad,), geometry, wanted = gradients, ctx.geometry, list(ctx.needs_input_grad[1:])
        inputs = ctx.saved_tensors
        if not torch.is_grad_enabled():
            x, weight, _ = inputs
            x = x.to(grad.dtype)  # autocast computes in a smaller one
            return (
                None,
                geometry.of_input(grad, x, weight).to(inputs[0].dtype) if wanted[0] else None,
                geometry.of_weight(grad, x, weight).to(weight.dtype) if wanted[1] else None,
                of_bias(grad).to(weight.dtype) if wanted[2] else None,
            )
        with torch.enable_grad(), autocast_as(ctx.autocast):  # a second derivative will be asked for
            chosen = [tensor for tensor, yes in zip(inputs, wanted, strict=True) if yes]
            again = iter(torch.autograd.grad(geometry(*inputs), chosen, grad, create_graph=True))
        return None, *(next(again) if yes else None for yes in wanted)


Autocast = tuple[str, torch.dtype, bool]


def autocast_of(x: Tensor) -> Autocast:
    """What a forward pass of ``x`` is computed in: kept for :func:`autocast_as`, which is dear to make in every call."""
    kind = x.device.type
    return kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)


def autocast_as(kept: Autocast) -> torch.autocast:
    """The same once more."""
    return torch.autocast(*kept)


def of_bias(grad: Tensor) -> Tensor:
    """Gradient of the bias of a convolution."""
    return grad.sum((0, 2, 3))


def _parts(grad: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some images at a time: copies in float32 of as many as memory that was used before has room for."""
    count = max(1, _PART // max(1, x[:1].numel()))
    yield from zip(torch.split(grad, count), torch.split(x, count), strict=True)


def _strips(width: int) -> Iterator[int]:
    """Where strips of columns begin that cover a kernel; the last may overlap the one before."""
    for first in range(0, width, _COLUMNS):
        yield min(first, width - _COLUMNS)


def _product(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Pixels of a map times ``kernel`` [C, channels], and ``bias``, as a map, channels last."""
    flat = pixels(x)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, kernel, bias)):
        return as_map(flat @ kernel if bias is None else torch.addmm(bias, flat, kernel), x)
    shape = (len(x), kernel.shape[1], *x.shape[2:])
    made = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    # written there, for a map that is a view could not be overwritten by the next layer
    into = made.permute(0, 2, 3, 1).view(len(flat), kernel.shape[1])
    torch.mm(flat, kernel, out=into)
    if bias is not None:
        into.add_(bias)  # addmm fills the map with it first, which takes longer
    return made
