"""What a student loses against its teacher: functions of two sets of logits, in float32, without host synchronisation.

Both are divided by a temperature T, and the loss is multiplied by T^2, so that gradients keep their size (Hinton, Vinyals and Dean,
"Distilling the knowledge in a neural network", 2015, arXiv:1503.02531, section 2). Gradients reach the student's logits alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F


def softmax_divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int = 1) -> Tensor:
    """T^2 KL(teacher || student) of the softmax over ``dim``, which the result lacks."""
    own = (student.float() / temperature).log_softmax(dim)
    soft = (teacher.detach().float() / temperature).log_softmax(dim)
    return temperature**2 * (soft.exp() * (soft - own)).sum(dim)


def sigmoid_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of each sigmoid, as yes or no: of the shape of the logits."""
    own, soft = student.float() / temperature, teacher.detach().float() / temperature
    yes = soft.sigmoid() * (F.logsigmoid(soft) - F.logsigmoid(own))
    no = (-soft).sigmoid() * (F.logsigmoid(-soft) - F.logsigmoid(-own))
    return temperature**2 * (yes + no)


class _QualityFocalSum(torch.autograd.Function):
    """Value and gradient in one pass, as for the focal loss: autograd would keep several more tensors of this size."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, wanted: Tensor, ignored: Tensor | None) -> Tensor:
        p = logits.sigmoid()
        gap = p - wanted
        cross_entropy = F.softplus(logits).addcmul_(wanted, logits, value=-1)
        value, slope = gap.square() * cross_entropy, gap**3
        slope.add_(gap.mul_(2).mul_(cross_entropy).mul_(p).mul_(1 - p))
        if ignored is not None:
            value.masked_fill_(ignored[..., None], 0.0)
            slope.masked_fill_(ignored[..., None], 0.0)
        ctx.save_for_backward(slope)
        return value.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0], None, None


def quality_focal_sum(student: Tensor, teacher: Tensor, temperature: float, ignored: Tensor | None = None) -> Tensor:
    """T^2 times the sum of |p - q|^2 BCE(p, q) over logits [B, A, K], p the student's sigmoid and q the teacher's; ``ignored`` bool
    [B, A] is left out. 0 where they agree: most of the anchors are background to both, and would drown the others.

    The quality focal loss with the teacher's probability in the place of the quality: Li et al., "Generalized focal loss", 2020,
    equation 2, beta 2; for a teacher's dense output Zhou et al., "Dense Teacher", 2022. Differentiable once.
    """
    wanted = (teacher.detach().float() / temperature).sigmoid()
    value: Tensor = _QualityFocalSum.apply(student.float() / temperature, wanted, ignored)
    return temperature**2 * value
