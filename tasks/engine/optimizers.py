"""Optimisers that can skip a step on the device.

A step is skipped by setting ``optimizer.found_inf`` to a tensor of 1: torch's fused optimisers read it in their kernels,
ours do the same, so the host never waits to learn whether a gradient was finite.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class SGD(torch.optim.SGD):
    """Torch's fused SGD, safe to skip from the first step on, and in any memory layout.

    Torch allocates the momentum buffers of a first step without filling them and leaves that to the kernel, which returns
    early when told to skip: the second step would then add uninitialised memory. Zeros give the same first step and also
    serve parameters that thaw later.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; nothing changes where ``self.found_inf`` is 1."""
        loss = gradients(closure)
        for group in self.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None and self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        _agree_on_layout(self)
        super().step()
        return loss


class AdamW(torch.optim.AdamW):
    """Torch's fused AdamW, in any memory layout."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; nothing changes where ``self.found_inf`` is 1."""
        loss = gradients(closure)
        _agree_on_layout(self)
        super().step()
        return loss


def gradients(closure: Callable[[], float] | None) -> float | None:
    """Call what computes the gradients, if there is such a thing."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _agree_on_layout(optimizer: Optimizer) -> None:
    """Give gradients and state the strides of their parameters.

    Fused kernels walk through memory and do not look at strides: on the CPU a channels-last parameter with a contiguous
    moment (as it comes out of a file when a run is resumed) is updated with the wrong elements, silently.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            strides = parameter.stride()
            if parameter.grad is not None and parameter.grad.stride() != strides:
                parameter.grad = _with_strides_of(parameter, parameter.grad)
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if value is not None and value.shape == parameter.shape and value.stride() != strides:
                    state[name] = _with_strides_of(parameter, value)


def _with_strides_of(parameter: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class RMSpropTF(Optimizer):
    """RMSprop as TensorFlow computes it, which the published EfficientNet recipe relies on.

    Against ``torch.optim.RMSprop``: eps is added inside of the root, the mean square starts at 1, and the learning rate
    enters the momentum buffer (so a falling rate does not shrink what is already in it). With g = gradient + wd * p:
    ``s += (1 - alpha) (g^2 - s)``; ``b = momentum b + lr g / sqrt(s + eps)``; ``p -= b``.
    Source: TensorFlow's ``ApplyRMSProp`` kernel and ``tf.compat.v1.train.RMSPropOptimizer``. By hand, although timm has it: its
    step cannot be skipped on the device, the host would have to read the flag first.
    """

    _step_supports_amp_scaling = True  # GradScaler then hands over found_inf, and does not read it on the host

    def __init__(
        self,
        params: Any,
        lr: float = 0.016,
        *,
        alpha: float = 0.9,
        eps: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; nothing changes where ``self.found_inf`` is 1."""
        loss = gradients(closure)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "square_avg": torch.ones_like(parameter),
                    "momentum_buffer": torch.zeros_like(parameter),
                }
        squares = [self.state[p]["square_avg"] for p in parameters]
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        scale, skip = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            gradients = list(torch._foreach_div(gradients, scale.reshape(())))
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))

        rate: float | Tensor = 1 - group["alpha"]
        momentum: float | Tensor = group["momentum"]
        share: float | Tensor = 1.0
        if skip is not None:
            # A skipped step is an ordinary one that keeps the square, keeps the momentum and takes no share of it. What
            # may be NaN is masked first, since NaN times 0 is NaN.
            skip = skip.reshape(()) > 0
            gradients = [torch.where(skip, 0.0, gradient) for gradient in gradients]
            rate, momentum, share = (
                torch.where(skip, 0.0, rate),
                torch.where(skip, 1.0, momentum),
                torch.where(skip, 0.0, share),
            )
        changes = torch._foreach_mul(gradients, gradients)
        torch._foreach_sub_(changes, squares)
        torch._foreach_mul_(changes, rate)
        torch._foreach_add_(squares, changes)
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_addcdiv_(buffers, gradients, roots, value=group["lr"])
        torch._foreach_sub_(parameters, buffers if skip is None else torch._foreach_mul(buffers, share))
