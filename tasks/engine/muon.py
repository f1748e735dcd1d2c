"""Muon: momentum whose steps are brought to the nearest orthogonal matrix, for the kernels and matrices of a network.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the length of a step, by which a learning rate
of AdamW serves, from Liu et al., "Muon is Scalable for LLM Training" (2025, arXiv:2502.16982).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tasks.engine.optimizers import AdamW, gradients

_QUINTIC = 3.4445, -4.775, 2.0315
"""Of the polynomial that is applied five times: singular values of 1 to about 0.01 come to between 0.7 and 1.2, smaller ones near to it."""
_LEAST = 4
"""Rows and columns of a matrix from which on its directions are worth the work."""


class Muon(AdamW):
    """Muon for matrices and for kernels [N, C, ...], taken as [N, C ...], and AdamW for all else: depthwise kernels, biases, norms.

    With the gradient g of a matrix [n, m]: ``b += (1 - momentum) (g - b)``; d = b, with ``nesterov`` ``g + momentum (b - g)``;
    ``p -= lr (wd p + 0.2 sqrt(max(n, m)) orthogonal(d))``. By hand, although timm and torch have it: their steps cannot be skipped on the
    device, and torch's takes no kernels.
    """

    def __init__(self, params: Iterable[Any], *, momentum: float = 0.9, nesterov: bool = False, **options: Any) -> None:
        """``options`` are those of AdamW, ``lr`` and the decay of ``params`` being of both."""
        super().__init__(params, **options)
        own = {"momentum": momentum, "nesterov": nesterov}
        self.defaults.update(own)
        for group in self.param_groups:
            group.update(own)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; nothing changes where ``self.found_inf`` is 1."""
        loss = gradients(closure)
        chosen = [
            (p, group) for group in self.param_groups for p in group["params"] if p.grad is not None and is_matrix(p)
        ]
        taken = [p.grad for p, _ in chosen]
        for p, _ in chosen:
            if not self.state[p]:
                # AdamW looks for a step in every state that is there, when it is loaded.
                self.state[p] = {"step": torch.zeros((), device=p.device), "momentum_buffer": torch.zeros_like(p)}
            p.grad = None
        try:
            super().step()
        finally:
            for (p, _), gradient in zip(chosen, taken, strict=True):
                p.grad = gradient
        for p, group in chosen:
            self._step_matrix(p, group)
        return loss

    def _step_matrix(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        gradient, buffer = p.grad, self.state[p]["momentum_buffer"]
        assert gradient is not None
        scale, skip = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            gradient = gradient / scale.reshape(())
        moved: Tensor = torch.lerp(buffer, gradient, 1 - group["momentum"])
        direction = torch.lerp(gradient, moved, group["momentum"]) if group["nesterov"] else moved
        change = orthogonal(direction.flatten(1)).reshape(p.shape).to(p.dtype)
        length = 0.2 * max(len(p), math.prod(p.shape[1:])) ** 0.5
        new = torch.add(p * (1 - group["lr"] * group["weight_decay"]), change, alpha=-group["lr"] * length)
        if skip is not None:
            bad = skip.reshape(()) > 0
            new, moved = torch.where(bad, p, new), torch.where(bad, buffer, moved)
        p.copy_(new)
        buffer.copy_(moved)


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon's are the steps of ``parameter``: at least 4 rows and columns as a matrix, and no depthwise kernel [C, 1, ...]."""
    shape = parameter.shape
    return len(shape) > 1 and shape[1] > 1 and min(shape[0], math.prod(shape[1:])) >= _LEAST


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly U V' of a matrix [n, m] = U S V', by Newton-Schulz iterations, bfloat16 on a GPU and float32 elsewhere; 0 of 0."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x.T if tall else x
    x = x / x.norm().clamp_min(1e-7)
    linear, cubic, quintic = _QUINTIC
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=cubic, alpha=quintic), x, beta=linear)
    return x.T if tall else x
