"""Convolutions as EfficientNet's sources pad them, with batch norm, and the numerics that a set of weights needs.

Sources: SAME padding and initialisation as in the TensorFlow release of EfficientNet.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effbackbones.backbones import passes
from effbackbones.backbones.padding import Conv2dFixed, Conv2dSame, same_padding
from effbackbones.errors import UserError, nearest

Padding = Literal["same", "symmetric", "same_static"]
_PADDINGS = ("same", "symmetric", "same_static")
Activation = Literal["silu", "relu6", "relu"]
_ACTIVATIONS: dict[Activation, type[nn.SiLU] | type[nn.ReLU6] | type[nn.ReLU]] = {
    "silu": nn.SiLU,
    "relu6": nn.ReLU6,
    "relu": nn.ReLU,
}


def activation_layer(name: Activation) -> nn.Module:
    """The activation called ``name``; it overwrites its input."""
    return _ACTIVATIONS[name](inplace=True)


@dataclass(frozen=True)
class Numerics:
    """What a set of weights was trained with besides its values: padding, and epsilon and momentum of batch norm.

    ``padding``: ``symmetric`` (kernel - 1) // 2 on each side; ``same`` TensorFlow's, which on strided convolutions depends
    on the input's size; ``same_static`` the same but fixed at the variant's native resolution (lukemelas, smp), where maps of
    other sizes may come out a pixel smaller than ceil(size / stride), as they do there.
    ``bn_momentum`` is PyTorch's: the weight of the new batch.
    """

    padding: Padding = "symmetric"
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1

    def __post_init__(self) -> None:
        if self.padding not in _PADDINGS:
            raise UserError(
                "numerics.padding", f"unknown value {self.padding!r}", nearest(str(self.padding), _PADDINGS)
            )
        if not (self.bn_eps > 0 and 0 <= self.bn_momentum <= 1):
            raise UserError(
                "numerics", f"bn_eps must be positive and bn_momentum in [0, 1]; got {self}", "correct them"
            )

    @classmethod
    def named(cls, name: "str | Numerics") -> "Numerics":
        """The numerics called ``name``, a key of :data:`NUMERICS`; a :class:`Numerics` is passed on."""
        if isinstance(name, Numerics):
            return name
        if name not in NUMERICS:
            raise UserError(f"numerics {name!r}", "no such name", nearest(str(name), NUMERICS))
        return NUMERICS[name]


NUMERICS = {
    "torch": Numerics("symmetric", 1e-5, 0.1),  # torchvision B0-B4, timm efficientnet_b*
    "torch_tf": Numerics("symmetric", 1e-3, 0.01),  # torchvision B5-B7: TensorFlow's weights under symmetric padding
    "tf": Numerics("same", 1e-3, 0.1),  # timm tf_efficientnet_*
    "tf_original": Numerics("same", 1e-3, 0.01),  # TensorFlow's release itself, zylo117
    "same_static": Numerics("same_static", 1e-3, 0.01),  # lukemelas, segmentation-models-pytorch
}


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    padding: Padding,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    nominal_size: int = 0,
) -> nn.Conv2d:
    """A convolution whose output is ceil(input / stride) wide, padded in the manner ``padding``.

    ``nominal_size`` is the input's side in pixels at which ``same_static`` is fixed; the other manners ignore it.
    """
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias}
    if stride > 1 and padding == "same":
        return Conv2dSame(in_channels, out_channels, kernel, **options)
    if stride > 1 and padding == "same_static":
        before, after = same_padding(nominal_size, kernel, stride, dilation)
        if before != after:
            return Conv2dFixed(in_channels, out_channels, kernel, before=before, after=after, **options)
        return nn.Conv2d(in_channels, out_channels, kernel, padding=before, **options)
    return nn.Conv2d(in_channels, out_channels, kernel, padding=dilation * (kernel - 1) // 2, **options)


def init_fan_out(layer: nn.Conv2d | nn.Linear) -> None:
    """Normal weights of standard deviation sqrt(2 / fan out), the fan out counted within a group; zero bias.

    As the TensorFlow release does it, its 1x1 convolutions of squeeze-excite (linear layers here) included.
    """
    fan_out = layer.weight.shape[0] * math.prod(layer.weight.shape[2:])
    nn.init.normal_(layer.weight, std=math.sqrt(2 * getattr(layer, "groups", 1) / fan_out))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Foldable(nn.Module, ABC):
    """A module with batch norms that can be made part of its convolutions."""

    @abstractmethod
    def fold(self) -> Self:
        """Fold the running statistics into the convolutions, in place: the same results in eval mode, fewer passes."""


class ConvNorm(Foldable):
    """Convolution without bias, batch norm, and ``activation`` (None: linear).

    [B, in_channels, H, W] to [B, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        numerics: Numerics,
        activation: Activation | None = "silu",
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        nominal_size: int = 0,
    ) -> None:
        super().__init__()
        self.conv = convolution(
            in_channels,
            out_channels,
            kernel,
            padding=numerics.padding,
            stride=stride,
            dilation=dilation,
            groups=groups,
            nominal_size=nominal_size,
        )
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, numerics.bn_eps, numerics.bn_momentum)
        self.act = nn.Identity() if activation is None else activation_layer(activation)  # on a tensor of our own
        init_fan_out(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return passes.conv_norm_act(x, self.conv, self.bn, self.act)

    def fold(self) -> Self:
        if isinstance(self.bn, _BatchNorm):
            fold_into(self.conv, self.bn)
            self.bn = nn.Identity()
        return self


@torch.no_grad()
def fold_into(conv: nn.Conv2d, bn: _BatchNorm) -> None:
    """Fold the running statistics of ``bn`` into the ``conv`` in front of it, in place; computed in float64."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    bias = -bn.running_mean.double() if conv.bias is None else conv.bias.double() - bn.running_mean.double()
    shift = bias * scale if bn.bias is None else bias * scale + bn.bias.double()
    conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
