"""Batch norm, activation and squeeze-excite whose results are not kept for the backward pass, but made again there.

Between two convolutions autograd keeps the first one's output, a copy of what is normalised, what the activation makes of that, and
its product with the gate. All follow from the first by arithmetic that costs a few hundredths of a convolution. Here the first alone
is kept: a third of the memory, and, since fresh memory is what a processor waits for most, less time. Gradients are the same ones,
also of second order. Source of the idea: Rota Bulò et al., "In-place activated batch norm", 2018.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effbackbones.backbones.convolving import Geometry, autocast_as, autocast_of, of_bias

_aten = torch.ops.aten


class Act(NamedTuple):
    """An activation: ``apply`` overwrites its input, ``new`` does not; ``back``, of the gradient of its output and of its input,
    overwrites the latter."""

    apply: Callable[[Tensor], Tensor]
    new: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]


ACTS: Mapping[type[nn.Module], Act] = {
    nn.SiLU: Act(
        lambda z: F.silu(z, inplace=True), F.silu, lambda grad, z: _aten.silu_backward.grad_input(grad, z, grad_input=z)
    ),
    nn.ReLU6: Act(
        lambda z: F.relu6(z, inplace=True),
        F.relu6,
        lambda grad, z: _aten.hardtanh_backward.grad_input(grad, z, 0.0, 6.0, grad_input=z),
    ),
    nn.ReLU: Act(
        lambda z: F.relu(z, inplace=True),
        F.relu,
        lambda grad, z: _aten.threshold_backward.grad_input(grad, z, 0, grad_input=z),
    ),
}


class Norm(NamedTuple):
    """A call of a batch norm: what does not enter the gradient."""

    training: bool
    eps: float
    factor: float
    mean: Tensor
    var: Tensor

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "Norm":
        """As ``norm.forward`` begins."""
        factor = norm.momentum if norm.momentum is not None else 0.0
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:
                factor = 1.0 / float(norm.num_batches_tracked)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return cls(norm.training, norm.eps, factor, norm.running_mean, norm.running_var)

    def functional(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Without a trace in the running statistics."""
        if self.training:
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)
        return F.batch_norm(x, self.mean, self.var, weight, bias, False, 0.0, self.eps)


class Gate(NamedTuple):
    """What the gate of squeeze-excite was made of: means and both layers' results, [B, C] and [B, reduced]."""

    means: Tensor
    reduced: Tensor
    gate: Tensor

    @classmethod
    def of(cls, means: Tensor, parameters: tuple[Tensor, ...]) -> "Gate":
        down, down_bias, up, up_bias = parameters
        reduced = F.linear(means, down, down_bias)
        return cls(means, reduced, F.linear(F.silu(reduced), up, up_bias).sigmoid_())

    @property
    def wide(self) -> Tensor:
        """The gate [B, C, 1, 1]."""
        return self.gate[:, :, None, None]

    def back(self, grad: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Gradients of the means and of the four parameters, as matrix products."""
        down, _, up, _ = parameters
        means, reduced, gate = self
        before = grad.to(gate.dtype) * gate * (1 - gate)
        hidden = _aten.silu_backward(before @ up.to(gate.dtype), reduced)
        of_means = hidden @ down.to(gate.dtype)
        return of_means, (hidden.T @ means.to(hidden.dtype), hidden.sum(0), before.T @ F.silu(reduced), before.sum(0))


class NormActConv(torch.autograd.Function):
    """Batch norm, activation, gate if ``gated``, convolution if ``conv``; keeps what comes in.

    Inputs that may have gradients: ``x``, weight and bias of the norm; of the convolution, ``kernel`` and ``shift`` (which may be
    None); the four of the gate.
    """

    @staticmethod
    def forward(
        ctx: Any,
        norm: Norm,
        act: type[nn.Module],
        conv: Geometry | None,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        kernel: Tensor | None,
        shift: Tensor | None,
        *gated: Tensor,
    ) -> Tensor:
        found = torch._batch_norm_impl_index(
            x, weight, bias, norm.mean, norm.var, norm.training, norm.factor, norm.eps, torch.backends.cudnn.enabled
        )
        out, mean, invstd, reserve, ctx.kind = found
        out, gate = ACTS[act].apply(out), None
        if gated:
            gate = Gate.of(out.mean((2, 3)), gated)
            out.mul_(gate.wide)
        if conv is not None:
            assert kernel is not None
            out = conv(out, kernel, shift)
        ctx.norm, ctx.act, ctx.conv, ctx.gates, ctx.autocast = norm, act, conv, len(gated), autocast_of(x)
        ctx.save_for_backward(x, weight, bias, kernel, shift, mean, invstd, reserve, *gated, *(gate or ()))
        ctx.statistics = None if norm.training else (norm.mean, norm.var)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, bias, kernel, shift, mean, invstd, reserve, *rest = ctx.saved_tensors
        (grad,), norm, conv = gradients, ctx.norm, ctx.conv
        gated, gate = tuple(rest[: ctx.gates]), Gate(*rest[ctx.gates :]) if ctx.gates else None
        if torch.is_grad_enabled():  # a second derivative will be asked for
            return _with_graph(ctx, grad, x, weight, bias, kernel, shift, *gated)
        z = _normalised(x, weight, bias, norm, mean, invstd)
        of_kernel = of_shift = None
        of_gate: tuple[Tensor, ...] = ()
        further = any(ctx.needs_input_grad[3:6]) or gate is not None
        made = ACTS[ctx.act].new(z) if conv is not None or gate is not None else z
        if conv is not None:
            # Maps are as large as memory is dear: what the kernel's gradient needs goes before that of the input comes.
            if ctx.needs_input_grad[6]:
                inside = made if gate is None else made * gate.wide
                of_kernel = conv.of_weight(grad, inside.to(grad.dtype), kernel)
                del inside
            of_shift = of_bias(grad) if ctx.needs_input_grad[7] else None
            made = z if gate is None else made
            if further:
                like = x if x.dtype == grad.dtype else torch.empty_like(x, dtype=grad.dtype)
                grad = conv.of_input(grad, like, kernel)
        if gate is not None:
            of_means, of_gate = gate.back(made.mul_(grad).sum((2, 3)), gated)
            area = made.shape[2] * made.shape[3]
            grad = torch.addcmul((of_means / area)[:, :, None, None], grad, gate.wide, out=made)
        del made
        of_others = *_as((of_kernel, of_shift), (kernel, shift)), *_as(of_gate, gated)
        if not any(ctx.needs_input_grad[3:6]):
            return None, None, None, None, None, None, *of_others
        grad = ACTS[ctx.act].back(grad.to(x.dtype), z)
        running = ctx.statistics or (None, None)
        rest = (norm.training, norm.eps, list(ctx.needs_input_grad[3:6]), reserve)
        of_norm = _aten._batch_norm_impl_index_backward(ctx.kind, x, grad, weight, *running, mean, invstd, *rest)
        return None, None, None, *of_norm, *of_others


def _as(gradients: Any, inputs: Any) -> list[Tensor | None]:
    """Gradients in the dtypes of what they belong to: autocast computes in a smaller one."""
    return [None if g is None else g.to(i.dtype) for g, i in zip(gradients, inputs, strict=True)]


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, norm: Norm, mean: Tensor, invstd: Tensor) -> Tensor:
    """What the batch norm gave. In 16 bits by its own kernel: scale and shift rounded to them would be off by a share of the mean."""
    if not norm.training:
        mean, invstd = norm.mean, (norm.var + norm.eps).rsqrt()
    if x.dtype in (torch.bfloat16, torch.float16):
        return F.batch_norm(x, mean.to(weight.dtype), invstd.to(weight.dtype).pow(-2), weight, bias, False, 0.0, 0.0)
    scale = (weight * invstd).to(x.dtype)[:, None, None]
    shift = (bias - mean * weight * invstd).to(x.dtype)[:, None, None]
    return torch.addcmul(shift, x, scale)


def _with_graph(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> tuple[Any, ...]:
    """The gradients by autograd, so that they have gradients themselves."""
    norm: Norm = ctx.norm
    kernel, shift, *gated = rest
    inputs = [x, weight, bias, kernel, shift, *gated]
    wanted = [i for i, tensor in enumerate(inputs) if tensor is not None and ctx.needs_input_grad[3 + i]]
    with torch.enable_grad(), autocast_as(ctx.autocast):
        out = ACTS[ctx.act].apply(norm.functional(x, weight, bias))
        if gated:
            out = out * Gate.of(out.mean((2, 3)), tuple(gated)).wide
        if ctx.conv is not None:
            out = ctx.conv(out, kernel, shift)
        found = torch.autograd.grad(out, [inputs[i] for i in wanted], grad, create_graph=True)
    gradients = dict(zip(wanted, found, strict=True))
    return None, None, None, *(gradients.get(i) for i in range(len(inputs)))
