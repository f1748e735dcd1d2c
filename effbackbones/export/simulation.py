"""Training that sees what int8 will do: weights and maps rounded on the way forward as the exported file rounds them.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 3;
gradients pass through the rounding as through the identity inside of the range, and are 0 outside (Bengio et al., 2013). Weights get a
symmetric scale for each output channel, so that a batch norm behind them, which scales channels, need not be folded in first: rounding
w and scaling it gives what scaling and rounding gives. Batch norms that have statistics keep them (Krishnamoorthi, "Quantizing deep
convolutional networks for efficient inference", 2018, section 4.2.1): the file is computed with these, not with those of a batch.

The model stays the ordinary one, and nothing of this is in its file.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from effbackbones.errors import UserError
from effbackbones.export.following import follow
from effbackbones.model import Model

SLOWEST = 0.02
"""Weight of the newest step in a range: the last 50 steps count, before that all alike."""
_LAYERS = {"conv2d": 0, "linear": 0, "conv_transpose2d": 1}
"""Functions with weights, and the axis of their output channels."""
_CUTS = ("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_")
_ASKS = ("__get__", "size", "dim", "numel", "stride", "is_contiguous", "is_floating_point")
"""What only asks for what a tensor is."""


class Int8Simulation:
    """Int8 in the layers that an export of ``model`` computes in it (:func:`effbackbones.export.following.follow`).

    Ranges of maps are running means of each image's least and greatest value, float32 [points], two points a call of a layer: what it
    takes and what it gives. They move at :meth:`settle` alone, so that what a step does follows from what was before it.
    """

    def __init__(self, model: Model) -> None:
        self.model, called = model, follow(model)
        weights = dict(model.named_parameters())
        self.calls: dict[int, list[int | None]] = {}
        """By weight, for each of its calls, the number of the call among those in int8."""
        count = 0
        for name, int8 in zip(called.weights, called.int8, strict=True):
            self.calls.setdefault(id(weights[name]), []).append(count if int8 else None)
            count += int8
        if not count:
            what = f"{type(model.head).__name__} on {model.backbone.name} has no layer that an export computes in int8"
            raise UserError("int8", what, "leave it out")
        self.count, self.gives_float = count, called.gives_float
        self.layers = tuple(sorted({name for name, int8 in zip(called.weights, called.int8, strict=True) if int8}))
        device = next(model.parameters()).device
        self.low, self.high, self.seen = (torch.zeros(2 * count, device=device) for _ in range(3))
        self._sums = torch.zeros(3, 2 * count, device=device)
        self.norms = [
            one
            for one in model.modules()
            if isinstance(one, _BatchNorm) and one.running_mean is not None and bool(one.running_mean.any())
        ]

    @contextmanager
    def applied(self, *, observe: bool = False) -> Iterator[None]:
        """Inside, whatever calls the model gets what int8 makes of it; if it is to ``observe``, values are noted for the ranges."""
        if self.model.training:
            for norm in self.norms:
                norm.eval()
        with _Rounding(self, observe):
            yield

    def fake(self, x: Tensor, point: int, observe: bool) -> Tensor:
        """``x`` [B, ...] rounded to 256 steps of the range of ``point``; before the first step of its own."""
        with torch.no_grad():
            low, high = self.low[point], self.high[point]
            new = self.seen[point] == 0
            if observe or not x.requires_grad:
                axes = tuple(range(1, x.ndim))
                least, most = x.detach().amin(axes).float().mean(), x.detach().amax(axes).float().mean()
                if observe:
                    self._sums[:, point] += torch.stack([least, most, torch.ones_like(least)])
                low, high = torch.where(new, least, low), torch.where(new, most, high)
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = (high - low) / 255
            scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
            zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255).to(x.dtype)

    @torch.no_grad()
    def settle(self, skip: Tensor) -> None:
        """After a step: ranges take in what was noted, unless ``skip`` (one element) is 1 or it is not finite."""
        count = self._sums[2]
        least, most = self._sums[:2] / count.clamp(min=1)
        taken = (count > 0) & (skip.reshape(()) == 0) & least.isfinite() & most.isfinite()
        share = (1 / (self.seen + 1)).clamp(min=SLOWEST)
        self.low.copy_(torch.where(taken, self.low + share * (least - self.low), self.low))
        self.high.copy_(torch.where(taken, self.high + share * (most - self.high), self.high))
        self.seen += taken
        self.drop()

    def drop(self) -> None:
        """Forget what a step noted that was left in its midst."""
        self._sums.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The ranges."""
        return {"low": self.low, "high": self.high, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over ranges of the same model."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def fake_weights(weight: Tensor, axis: int = 0) -> Tensor:
    """``weight`` rounded to -127..127 steps of a scale for each of its channels along ``axis``."""
    with torch.no_grad():
        others = tuple(place for place in range(weight.ndim) if place != axis)
        scale = weight.detach().abs().amax(others).float() / 127
        scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -127, 127)


class _Rounding(TorchFunctionMode):
    """Rounds what layers in int8 take, their weights, and what they give: behind the batch norm, and behind what cuts it off."""

    def __init__(self, simulation: Int8Simulation, observe: bool) -> None:
        super().__init__()
        self.simulation, self.observe = simulation, observe
        self._met: dict[int, int] = {}
        """By weight, how often it was called."""
        self._given: dict[int, tuple[Any, int]] = {}
        """What layers gave that nobody has read yet, with its point."""
        self._rounded: dict[int, tuple[Any, Any]] = {}
        """Of a map, what was made of it; of that, itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _ASKS:
            return func(*args, **kwargs)
        point = self._waiting(args[0]) if args and (name == "batch_norm" or name in _CUTS) else None
        if point is None:
            if self._given:
                args, kwargs = tree_map_only(Tensor, self._read, (args, kwargs))
            return self._layer(func, name, args, kwargs) if name in _LAYERS else func(*args, **kwargs)
        del self._given[id(args[0])]
        out = func(*args, **kwargs)
        if name == "batch_norm":
            self._given[id(out)] = (weakref.ref(out), point)
            return out
        return self._round(out, point)

    def _layer(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A call of a function with weights."""
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        calls = self.simulation.calls.get(id(weight))
        if calls is None:
            return func(*args, **kwargs)
        met = self._met.get(id(weight), 0)
        self._met[id(weight)] = met + 1
        call = calls[met % len(calls)]
        if call is None or not args:
            return func(*args, **kwargs)
        x = self._round(args[0], 2 * call)
        if len(args) > 1:
            args = (x, fake_weights(weight, _LAYERS[name]), *args[2:])
        else:
            args, kwargs = (x,), {**kwargs, "weight": fake_weights(weight, _LAYERS[name])}
        out = func(*args, **kwargs)
        if not self.simulation.gives_float:
            self._given[id(out)] = (weakref.ref(out), 2 * call + 1)
        return out

    def _waiting(self, x: Any) -> int | None:
        """The point of a map that a layer gave and nobody has read."""
        kept, point = self._given.get(id(x), (None, None))
        return point if kept is not None and kept() is x else None

    def _read(self, x: Tensor) -> Tensor:
        """``x``, rounded if it is what a layer gave."""
        point = self._waiting(x)
        return x if point is None else self._round(x, point)

    def _round(self, x: Tensor, point: int) -> Tensor:
        """``x`` rounded, the same for all that read it."""
        kept, made = self._rounded.get(id(x), (None, None))
        if kept is not None and kept() is x and (known := made()) is not None:
            return known  # type: ignore[no-any-return]  # a weak reference
        out = self.simulation.fake(x, point, self.observe)
        self._rounded[id(x)] = (weakref.ref(x), weakref.ref(out))
        self._rounded[id(out)] = (weakref.ref(out), weakref.ref(out))
        return out
