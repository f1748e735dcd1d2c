"""The blocks of an EfficientNet: squeeze-excite, stochastic depth, MBConv.

Sources: MBConv from Sandler et al., "MobileNetV2", 2018; squeeze-excite from Hu et al., "Squeeze-and-Excitation Networks",
2018; stochastic depth from Huang et al., "Deep Networks with Stochastic Depth", 2016.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from effbackbones.backbones import passes
from effbackbones.backbones.convolution import Activation, ConvNorm, Numerics, init_fan_out


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in 0..1 computed from all channels' means.

    The published layers are 1x1 convolutions on 1x1 maps; as linear layers on [B, C] they give the same numbers and a
    training step that is a tenth faster.
    """

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, reduced)
        self.expand = nn.Linear(reduced, channels)
        init_fan_out(self.reduce)
        init_fan_out(self.expand)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """``x`` [B, C, H, W], gated; ``overwrite`` puts it into ``x`` itself."""
        gate = self.gate(x.mean((2, 3)))[:, :, None, None]
        return x.mul_(gate) if overwrite else x * gate

    def gate(self, means: Tensor) -> Tensor:
        """The gate of each channel, 0..1, [B, C] like the ``means``."""
        found: Tensor = self.expand(F.silu(self.reduce(means))).sigmoid()
        return found


def drop_path(x: Tensor, probability: float, overwrite: bool = False) -> Tensor:
    """Zero whole samples of [B, ...] with ``probability`` and scale the others so that the expectation stays; ``overwrite`` does so
    in ``x`` itself."""
    keep = 1 - probability
    mask = x.new_empty([x.shape[0]] + [1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)
    return x.mul_(mask) if overwrite else x * mask


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 expansion (absent for ``expand`` 1), depthwise convolution, squeeze-excite, 1x1 projection.

    ``middle`` and ``squeezed``: channels of the middle and of squeeze-excite, of a block that is not as published.

    The input is added where stride and channels allow; there the branch is dropped with ``drop_path`` per sample in
    training. The output is linear: no activation follows the projection.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int,
        dilation: int,
        expand: int,
        squeeze_excite: bool,
        activation: Activation,
        numerics: Numerics,
        drop_path: float,
        nominal_size: int,
        middle: int | None = None,
        squeezed: int | None = None,
    ) -> None:
        super().__init__()
        middle = in_channels * expand if middle is None else middle
        self.drop_probability = drop_path
        self.skip = stride == 1 and in_channels == out_channels
        if expand != 1:
            self.expand = ConvNorm(in_channels, middle, numerics=numerics, activation=activation)
        self.depthwise = ConvNorm(
            middle,
            middle,
            kernel,
            numerics=numerics,
            activation=activation,
            stride=stride,
            dilation=dilation,
            groups=middle,
            nominal_size=nominal_size,
        )
        if squeeze_excite:
            # a quarter of the block's input, not of the middle
            self.squeeze_excite = SqueezeExcite(middle, max(1, in_channels // 4) if squeezed is None else squeezed)
        self.project = ConvNorm(middle, out_channels, numerics=numerics, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        # expand, depthwise, squeeze_excite, project: those that this block has, in order
        parts: list[Any] = [*self._modules.values()]
        own = passes.eager(x) and not passes.watched(*parts, *self._overwritten())
        if own and passes.wants_gradient(x, self):
            out = self._kept_little(x)
        else:
            out = x
            for part in parts:
                out = part(out, own) if isinstance(part, SqueezeExcite) else part(out)
        if self.skip and self.training and self.drop_probability:
            out = drop_path(out, self.drop_probability, own)
        if not self.skip:
            return out
        return out.add_(x) if own else out + x

    def _overwritten(self) -> tuple[nn.Module, ...]:
        """The layers whose output is overwritten where it is nobody else's. (By the tables: attributes of modules are slow.)"""
        modules: Any = self._modules
        depthwise, project = modules["depthwise"]._modules, modules["project"]._modules
        return depthwise["bn"], depthwise["act"], project["bn"], project["act"]

    def _kept_little(self, x: Tensor) -> Tensor:
        """In training: of all that is as wide as the middle, only what comes out of the convolutions is kept for the way back."""
        if hasattr(self, "expand"):
            x = passes.norm_act_conv(
                passes.convolve(x, self.expand.conv), self.expand.bn, self.expand.act, self.depthwise.conv
            )
        else:
            x = passes.convolve(x, self.depthwise.conv)
        depthwise, project, gate = self.depthwise, self.project, getattr(self, "squeeze_excite", None)
        x = passes.norm_act_conv(x, depthwise.bn, depthwise.act, project.conv, gate)
        return passes.norm_act(x, project.bn, project.act)
