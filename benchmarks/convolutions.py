"""Single convolutions on a processor as :mod:`effbackbones.backbones.convolving` computes them, against torch's own (oneDNN): on the same
map, channels last: the weights' gradient of a depthwise one, both gradients of one with gaps, and a pointwise one there and back."""

import torch
from torch import Tensor, nn

from benchmarks.inference import timed
from benchmarks.row import Found, Setting
from effbackbones.backbones.convolving import Geometry
from effbackbones.errors import UserError

CLOSE = 1e-4
"""How far apart results may lie, in shares of the largest."""


def kernels(setting: Setting, channels: int, out: int, kernel: int, side: int, batch: int, gap: int = 1) -> Found:
    """A ``kernel`` above 1: depthwise, ``out`` as many as ``channels``, the gradient of the weights and with a ``gap`` that of the input;
    else pointwise."""
    batch = 2 if setting.dry else batch
    wide, of_input = kernel > 1, kernel == 1 or gap > 1
    conv = nn.Conv2d(channels, out, kernel, 1, kernel // 2 * gap, gap, groups=channels if wide else 1, bias=False)
    x, grad = (torch.randn(batch, count, side, side) for count in (channels, out))
    x, grad, weight = (one.to(memory_format=torch.channels_last) for one in (x, grad, conv.weight.detach()))
    geometry = Geometry.of(conv, x)

    def ours() -> list[Tensor]:
        gradients = [geometry.of_input(grad, x, weight)] if of_input else []
        gradients.append(geometry.of_weight(grad, x, weight))
        return gradients if wide else [geometry(x, weight, None), *gradients]

    def theirs() -> list[Tensor]:
        rest = (conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups, [of_input, True, False])
        gradients = [
            one for one in torch.ops.aten.convolution_backward(grad, x, weight, None, *rest) if one is not None
        ]
        return gradients if wide else [nn.functional.conv2d(x, weight), *gradients]

    with torch.no_grad():
        apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours(), theirs(), strict=True))
    if not apart <= CLOSE:
        raise UserError("results", f"differ by {apart:.2g} of the largest", "nothing was timed")
    found = Found("ms", proof=f"results equal to {apart:.0e}")
    return timed(found, {"ours": torch.no_grad()(ours)}, {"torch": torch.no_grad()(theirs)}, None, setting)
