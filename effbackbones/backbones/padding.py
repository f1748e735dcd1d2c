"""Convolutions as TensorFlow pads them. Source: SAME padding as in the TensorFlow release of EfficientNet."""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) of one axis of ``size`` pixels: ceil(size / stride) outputs, the odd pixel after.

    Written so that a symbolic ``size`` stays symbolic and the padded size cancels to stride * ((size - 1) // stride) + span:
    anything else makes ``torch.export`` refuse a range of sizes that it cannot prove.
    """
    span = dilation * (kernel - 1) + 1
    total = (size - 1) // stride * stride + span - size
    if span < stride:
        total = max(total, 0)
    return total // 2, total - total // 2


class PaddedConv2d(nn.Conv2d):
    """Convolution of an input that is padded first, by numbers that differ from side to side."""

    @abstractmethod
    def sides(self, height: int, width: int) -> tuple[int, int, int, int]:
        """What is added to an input of that size: left, right, top, bottom."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        left, right, top, bottom = self.sides(*input.shape[-2:])
        out: Tensor
        if not self._may_widen(input, right - left, bottom - top):
            out = super()._conv_forward(F.pad(input, (left, right, top, bottom)), weight, bias)
            return out
        # SAME pads even sides by one pixel less in front than behind. A zero tap in front of the kernel undoes that pixel, so the
        # image need not be copied: a sixth of B0's inference time on a CPU.
        kernel = F.pad(weight, (right - left, 0, bottom - top, 0))
        return F.conv2d(input, kernel, bias, self.stride, (bottom, right), self.dilation, self.groups)

    def _may_widen(self, input: Tensor, columns: int, rows: int) -> bool:
        """Inference on a CPU, by a single tap. A traced or compiled graph must hold for other sizes too; elsewhere it does not pay."""
        tracing = bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]  # untyped in torch
        changed = (
            torch._C._len_torch_function_stack() > 0
        )  # somebody changes functions, and knows weights by themselves
        if torch.compiler.is_compiling() or tracing or changed or torch.is_grad_enabled():
            return False
        return input.device.type == "cpu" and self.dilation == (1, 1) and {rows, columns} <= {0, 1}


class Conv2dSame(PaddedConv2d):
    """Convolution with TensorFlow's SAME padding, computed from the size of each input."""

    def sides(self, height: int, width: int) -> tuple[int, int, int, int]:
        top, bottom = same_padding(height, self.kernel_size[0], self.stride[0], self.dilation[0])
        return *same_padding(width, self.kernel_size[1], self.stride[1], self.dilation[1]), top, bottom


class Conv2dFixed(PaddedConv2d):
    """Convolution with a fixed padding that differs from side to side: SAME at one nominal input size."""

    def __init__(self, *args: Any, before: int, after: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before, self.after = before, after

    def sides(self, height: int, width: int) -> tuple[int, int, int, int]:
        return self.before, self.after, self.before, self.after
