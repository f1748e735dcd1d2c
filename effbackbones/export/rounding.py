"""Numbers rounded as a file in int8 rounds them, with gradients, in whatever a network computes.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 3;
gradients pass through the rounding as through the identity inside of the range, and are 0 outside (Bengio et al., 2013). Weights get a
symmetric scale for each output channel, so that a batch norm behind them, which scales channels, need not be folded in first: rounding
w and scaling it gives what scaling and rounding gives.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import TensorWeakRef

_LAYERS = {"conv2d": 0, "linear": 0, "conv_transpose2d": 1}
"""Functions with weights, and the axis of their output channels."""
_CUTS = ("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_")
_ASKS = ("__get__", "size", "dim", "numel", "stride", "is_contiguous", "is_floating_point")
"""What only asks for what a tensor is."""


def fake_weights(weight: Tensor, axis: int = 0) -> Tensor:
    """``weight`` rounded to -127..127 steps of a scale for each of its channels along ``axis``."""
    with torch.no_grad():
        others = tuple(place for place in range(weight.ndim) if place != axis)
        scale = weight.detach().abs().amax(others).float() / 127
        scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -127, 127)


def in_steps(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """``x`` rounded to 256 steps of ``scale`` around ``zero``, float32 [] both."""
    rounded: Tensor = _Steps.apply(x, scale, zero)
    return rounded


class _Steps(torch.autograd.Function):
    """torch's own multiplies by one over the scale, which decides otherwise than
    a file in the middle between two steps, where images in whole grey levels often are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        steps = (x.float() / scale).round_().add_(zero)
        ctx.save_for_backward((steps >= 0) & (steps <= 255))
        return steps.clamp_(0, 255).sub_(zero).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


class Rounding(TorchFunctionMode):
    """Rounds what layers in int8 take, their weights, and what they give: behind the batch norm, and behind what cuts it off."""

    def __init__(
        self,
        calls: Mapping[int, Sequence[int | None]],
        fake: Callable[[Tensor, int], Tensor],
        cut: Collection[int] | None,
    ) -> None:
        """``calls``: by the identity of a weight, for each of its calls, the number of the call among those in int8. ``fake`` rounds a map
        at a point: twice the number for what the call takes, one more for what it gives; that behind the function that cuts it off where
        the point is in ``cut``. None: what calls give stays float."""
        super().__init__()
        self.calls, self.fake, self.cut = calls, fake, cut
        self._met: dict[int, int] = {}
        """By weight, how often it was called."""
        self._given: dict[int, tuple[TensorWeakRef, int]] = {}
        """What layers gave that nobody has read yet, with its point."""
        self._rounded: dict[int, tuple[TensorWeakRef, TensorWeakRef | None, int]] = {}
        """Of a map, what was made of it, at which point; of that, itself."""
        self._padded: dict[int, tuple[TensorWeakRef, TensorWeakRef]] = {}
        """Of a map with zeros around it, the map without them: in a file the zeros are part of the layer that takes them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _ASKS:
            return func(*args, **kwargs)
        point = self._waiting(args[0]) if args and (name == "batch_norm" or name in _CUTS) else None
        if point is None or not (name == "batch_norm" or point in (self.cut or ())):
            args, kwargs = tree_map_only(Tensor, self._read, (args, kwargs))
            if name in _LAYERS:
                return self._layer(func, name, args, kwargs)
            out = func(*args, **kwargs)
            if (
                name == "pad"
                and kwargs.get("mode", "constant") == "constant"
                and not kwargs.get("value")
                and not args[2:]
            ):
                self._pad(args[0], out)
            return out
        del self._given[id(args[0])]
        out = func(*args, **kwargs)
        if name == "batch_norm":
            self._given[id(out)] = (TensorWeakRef(out), point)
            return out
        return self._round(out, point)

    def _layer(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A call of a function with weights."""
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        calls = self.calls.get(id(weight))
        if calls is None:
            return func(*args, **kwargs)
        met = self._met.get(id(weight), 0)
        self._met[id(weight)] = met + 1
        call = calls[met % len(calls)]
        if call is None or not args:
            return func(*args, **kwargs)
        x = self._round(args[0], 2 * call)
        kept, inner = self._padded.get(id(args[0]), (None, None))
        if kept is not None and inner is not None and kept() is args[0] and (source := inner()) is not None:
            known, _, _ = self._rounded.get(id(source), (None, None, 0))
            if known is None or known() is not source:  # another map of before had that identity
                self._rounded[id(source)] = (inner, None, 2 * call)
        small = fake_weights(weight, _LAYERS[name])
        if name == "linear" and x.ndim > 2:  # which a graph has as a product, whose result is rounded, and a sum
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            out = func(x, small)
            out = out if self.cut is None else self._round(out, 2 * call + 1)
            return out if bias is None else out + bias
        if len(args) > 1:
            args = (x, small, *args[2:])
        else:
            args, kwargs = (x,), {**kwargs, "weight": small}
        out = func(*args, **kwargs)
        if self.cut is not None:
            self._given[id(out)] = (TensorWeakRef(out), 2 * call + 1)
        return out

    def _pad(self, x: Tensor, out: Tensor) -> None:
        """Zeros around what is rounded need no rounding."""
        kept, _, point = self._rounded.get(id(x), (None, None, 0))
        if kept is not None and kept() is x:
            self._rounded[id(out)] = (TensorWeakRef(out), TensorWeakRef(out), point)
        else:
            self._padded[id(out)] = (TensorWeakRef(out), TensorWeakRef(x))

    def _waiting(self, x: Any) -> int | None:
        """The point of a map that a layer gave and nobody has read."""
        kept, point = self._given.get(id(x), (None, None))
        return point if kept is not None and kept() is x else None

    def _read(self, x: Tensor) -> Tensor:
        """``x``, rounded if it is what a layer gave, or what one took before: in a file all that read a map read what it was rounded to."""
        point = self._waiting(x)
        if point is None:
            kept, _, point = self._rounded.get(id(x), (None, None, None))
            point = point if kept is not None and kept() is x else None
        return x if point is None else self._round(x, point)

    def _round(self, x: Tensor, point: int) -> Tensor:
        """``x`` rounded, the same for all that read it."""
        kept, made, _ = self._rounded.get(id(x), (None, None, None))
        if kept is not None and made is not None and kept() is x and (known := made()) is not None:
            return known  # type: ignore[no-any-return]  # a weak reference
        out = self.fake(x, point)
        self._rounded[id(x)] = (TensorWeakRef(x), TensorWeakRef(out), point)
        self._rounded[id(out)] = (TensorWeakRef(out), TensorWeakRef(out), point)
        return out
