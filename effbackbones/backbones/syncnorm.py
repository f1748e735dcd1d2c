"""Batch norm whose statistics are those of the batches of all processes together."""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effbackbones.errors import UserError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncNorm(_BatchNorm):
    """What :class:`torch.nn.SyncBatchNorm` does, also on processors, where that and DistributedDataParallel refuse to. [N, C, ...] to
    the same shape and dtype.

    In training, mean and variance are those of the values that all processes give, each of which must call it as often as the
    others. In eval mode, in one process, and where ``shared`` is False it is a plain batch norm.
    """

    shared = True
    process_group = None  # of all processes
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [N, C, ...], got {list(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        together = self.training and self.shared and dist.is_initialized() and dist.get_world_size() > 1
        if not together:
            return super().forward(x)
        if x.device.type == "cpu":
            self._check_input_dim(x)
            return self._summed(x)
        found: Tensor = nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]  # it asks for no more than is above
        return found

    def _summed(self, x: Tensor) -> Tensor:
        """By sums over all processes, in float64."""
        axes, values = [0, *range(2, x.ndim)], x.double()
        total = values.sum(axes)
        count = torch.full_like(total, x.numel() / x.shape[1])
        total, squares, count = _Summed.apply(torch.stack([total, values.square().sum(axes), count]))
        mean = total / count
        variance = squares / count - mean.square()
        self._remember(mean.detach(), variance.detach(), count[0].detach())
        shape = [1, -1] + [1] * (x.ndim - 2)
        found = (values - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            found = found * self.weight.view(shape) + self.bias.view(shape)
        result: Tensor = found.to(x.dtype)
        return result

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics as a batch norm does: the variance without bias."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), share)


class SyncNormAct(SyncNorm):
    """The same with what follows it in timm's ``BatchNormAct2d``, ``drop`` and ``act``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.act(self.drop(super().forward(x)))
        return found


class _Summed(torch.autograd.Function):
    """The sum over all processes; so is its gradient, for the loss of each depends on the sum."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        found = values.clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        found = gradient.clone()
        dist.all_reduce(found)
        return found


def synchronise_batch_norm(module: nn.Module) -> int:
    """Put a :class:`SyncNorm` in the place of every batch norm inside ``module``, with the same parameters and statistics (the tensors
    themselves, under the same names), and what timm's do besides normalising; returns how many there are.

    Raises :class:`UserError` for other kinds of batch norm, of which it does not know what they do.
    """
    made: dict[int, SyncNorm] = {}
    for place, parent in list(module.named_modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncNorm):
                if id(child) not in made:
                    made[id(child)] = _synchronised(child, f"{place}.{name}")
                setattr(parent, name, made[id(child)])
    return len(made)


def _synchronised(norm: _BatchNorm, place: str) -> SyncNorm:
    timm: Any = sys.modules.get("timm.layers")  # who has such a layer has loaded it
    acting = timm is not None and type(norm) is timm.BatchNormAct2d
    if type(norm) not in _PLAIN and not acting:
        what = f"{type(norm).__module__}.{type(norm).__name__} at {place} is more than a batch norm"
        raise UserError("model.norm", what, "leave model.norm at batch")
    found = (SyncNormAct if acting else SyncNorm)(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    found.weight, found.bias = norm.weight, norm.bias
    found.running_mean, found.running_var = norm.running_mean, norm.running_var
    found.num_batches_tracked, found.training = norm.num_batches_tracked, norm.training
    if isinstance(found, SyncNormAct):
        found.drop, found.act = norm.drop, norm.act  # type: ignore[assignment]  # modules
    return found
