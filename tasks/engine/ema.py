"""Moving average of a model's weights, and protection of its buffers from a step that is skipped."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _Packed:
    """Copies of named tensors, one flat vector per dtype: a few kernels then serve hundreds of tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.names: dict[torch.dtype, list[str]] = {}
        for name, tensor in tensors.items():
            self.names.setdefault(tensor.dtype, []).append(name)
        self.flat = {dtype: self.pack(dtype, tensors) for dtype in self.names}

    def pack(self, dtype: torch.dtype, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensors of one dtype, end to end."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names[dtype]])

    def unpack(self) -> dict[str, Tensor]:
        """Views of the copies, by name."""
        views: dict[str, Tensor] = {}
        for dtype, names in self.names.items():
            pieces = torch.split(self.flat[dtype], [self.shapes[name].numel() for name in names])
            views |= {name: piece.view(self.shapes[name]) for name, piece in zip(names, pieces, strict=True)}
        return {name: views[name] for name in self.shapes}


class Ema:
    """Exponential moving average of every parameter and buffer in ``model.state_dict()``.

    After step n (from 1): ``average = d average + (1 - d) value`` with the ramped ``d = min(decay, (1 + n) / (10 + n))``,
    so that a short run is not left with its initial weights. With ``start`` steps before it the average is the weights themselves until
    then, and n counts from there. Integer buffers are copied. The ramp is that of
    ``tf.train.ExponentialMovingAverage(num_updates=step)``, which the published EfficientNets were trained with. By hand, although
    torch and timm have one: theirs cannot leave out a step on the device, and would take in its NaN for ever.
    """

    def __init__(self, model: nn.Module, decay: float, start: int = 0) -> None:
        self.decay, self.start = decay, start
        self._packed = _Packed(model.state_dict())

    def decay_at(self, step: int) -> float:
        """Decay used after ``step`` steps are done."""
        counted = step - self.start
        return min(self.decay, (1 + counted) / (10 + counted)) if counted > 0 else 0.0

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, skip: Tensor | None = None) -> None:
        """Take in the weights after ``step`` steps; where ``skip`` (one element) is 1, nothing changes."""
        state = model.state_dict()
        for dtype, average in self._packed.flat.items():
            value = self._packed.pack(dtype, state)
            if dtype.is_floating_point:
                value.lerp_(average, self.decay_at(step))
            if skip is None:
                average.copy_(value)
            else:  # a choice, not a weight of zero: what is skipped may be NaN
                torch.where(skip.reshape(()) > 0, average, value, out=average)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, ``model`` has the averaged weights; afterwards its own again, bit for bit."""
        raw = _Packed(model.state_dict())
        _load(model, self._packed)
        try:
            yield
        finally:
            _load(model, raw)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the names of ``model.state_dict()``; views, so copy what is kept."""
        return self._packed.unpack()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averages; names and shapes must be those of :meth:`state_dict`."""
        own = self._packed.unpack()
        if own.keys() != state.keys():
            raise ValueError(f"averages of other tensors: {sorted(own.keys() ^ state.keys())[:3]}")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"average of {name}: expected shape {tuple(tensor.shape)}, got {tuple(state[name].shape)}"
                )
            tensor.copy_(state[name])


class BufferGuard:
    """Gives a model its buffers back after a step that is skipped.

    Batch norm takes its statistics in the forward pass: a non-finite activation is in them before anybody can look, and
    an optimiser that skips the step leaves them so for ever.
    """

    def __init__(self, model: nn.Module) -> None:
        self._packed = _Packed(dict(model.named_buffers()))

    @torch.no_grad()
    def settle(self, model: nn.Module, skip: Tensor) -> None:
        """After a step: put back the buffers of the last call where ``skip`` (one element) is 1, else remember these."""
        buffers = dict(model.named_buffers())
        for dtype, kept in self._packed.flat.items():
            torch.where(skip.reshape(()) > 0, kept, self._packed.pack(dtype, buffers), out=kept)
        _copy(buffers, self._packed)


def _load(model: nn.Module, source: _Packed) -> None:
    _copy(model.state_dict(), source)


@torch.no_grad()
def _copy(targets: Mapping[str, Tensor], source: _Packed) -> None:
    """Overwrite tensors in place, keeping their memory format."""
    values = source.unpack()
    for names in source.names.values():
        torch._foreach_copy_([targets[name] for name in names], [values[name] for name in names])
