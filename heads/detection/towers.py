"""Class and box nets: the small networks that read every level of the pyramid with the same convolutions.

Source: Lin et al., "Focal loss for dense object detection", 2017, section 4; separable convolutions and a batch norm of its
own for each level and repeat as in Tan, Pang and Le, "EfficientDet", 2020 (effdet ``efficientdet.py``).
"""

import copy
from collections.abc import Sequence
from typing import Literal, Self, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effbackbones.backbones import passes
from effbackbones.backbones.convolution import Activation, Foldable, activation_layer, convolution, fold_into
from heads.detection.bifpn import NUMERICS, SeparableConv
from heads.options import choice, require

Norm = Literal["none", "group"]
_GROUPS = 32  # of a group norm (Wu and He, 2018, section 3.1)


class Tower(Foldable):
    """``repeats`` of separable convolution, batch norm and activation, then a separable convolution that predicts.

    The convolutions are shared by all levels, the batch norms are not. ``outputs``: values predicted by each of the
    ``anchors`` of a cell.
    """

    def __init__(
        self, channels: int, repeats: int, num_levels: int, anchors: int, outputs: int, activation: Activation
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.depthwise = nn.ModuleList(
            convolution(channels, channels, 3, padding=NUMERICS.padding, groups=channels) for _ in range(repeats)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(repeats))
        self.bn = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels, NUMERICS.bn_eps, NUMERICS.bn_momentum) for _ in range(num_levels))
            for _ in range(repeats)
        )
        self.act = activation_layer(activation)
        self.predict = SeparableConv(channels, anchors * outputs, norm=False)
        self.predict.exact = True
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _init_fan_in(module)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map [B, channels, h, w] per level to [B, A, outputs], A = anchors of all cells of all levels: finest level
        first, in a level row by row, in a cell anchor by anchor."""
        return torch.cat([flattened(self._level(x, level), self.outputs) for level, x in enumerate(maps)], 1)

    def _level(self, x: Tensor, level: int) -> Tensor:
        lean = passes.eager(x) and passes.wants_gradient(x, self)
        for repeat, (depthwise, pointwise, norms) in enumerate(
            zip(self.depthwise, self.pointwise, self.bn, strict=True)
        ):
            project = pointwise[level] if isinstance(pointwise, nn.ModuleList) else pointwise
            norm = cast(nn.ModuleList, norms)[level]
            # With the next layer's convolution what lies between them need not be kept; the last layer may want other numbers.
            following = self.depthwise[repeat + 1] if repeat + 1 < len(self.depthwise) else None
            x = passes.convolve(x, depthwise) if repeat == 0 or not lean else x
            if lean and following is not None:
                x = passes.norm_act_conv(passes.convolve(x, project), norm, self.act, following)
            else:
                x = passes.conv_norm_act(x, project, norm, self.act)
        return in_full_precision(self.predict, x)

    def fold(self) -> Self:
        """As :meth:`Foldable.fold`; each level then has pointwise convolutions of its own."""
        for repeat, norms in enumerate(self.bn):
            shared = self.pointwise[repeat]
            if isinstance(shared, nn.ModuleList):
                break
            own = [cast(nn.Conv2d, copy.deepcopy(shared)) for _ in cast(nn.ModuleList, norms)]
            for conv, norm in zip(own, cast(nn.ModuleList, norms), strict=True):
                fold_into(conv, cast(_BatchNorm, norm))
            self.pointwise[repeat] = nn.ModuleList(own)
            self.bn[repeat] = nn.ModuleList(nn.Identity() for _ in own)
        return self


def check_norm(norm: object, channels: int) -> None:
    """The options ``norm`` and ``channels`` of a :class:`ConvTower`: one that there is, and for ``group`` more than one channel in each
    group, or :class:`UserError` says so."""
    choice("norm", norm, get_args(Norm))
    suits = norm == "none" or (channels % _GROUPS == 0 and channels > _GROUPS)
    require("channels", channels, suits, f"a multiple of {_GROUPS} above it, for the groups of norm: group")


class ConvTower(nn.Module):
    """``repeats`` of 3x3 convolution, ``norm`` and activation, the same for all levels: what RetinaNet and FCOS read their predictions
    from. ``bias``: whether the convolutions have one."""

    def __init__(
        self,
        channels: int,
        repeats: int,
        norm: Norm = "none",
        *,
        bias: bool = True,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=bias) for _ in range(repeats))
        self.norm = nn.ModuleList(
            nn.Identity() if norm == "none" else nn.GroupNorm(_GROUPS, channels) for _ in self.conv
        )
        self.act = activation_layer(activation)
        for conv in self.conv:
            _init_small(cast(nn.Conv2d, conv))

    def forward(self, x: Tensor) -> Tensor:
        """A level's map [B, channels, h, w] to one of the same shape."""
        for conv, norm in zip(self.conv, self.norm, strict=True):
            x = self.act(norm(conv(x)))
        return x


class Prediction(nn.Module):
    """The last layer behind a :class:`ConvTower`: a 3x3 convolution that says ``outputs`` values of each of the ``anchors`` of a
    cell, those of an anchor beside each other. All start at ``start``."""

    def __init__(self, channels: int, anchors: int, outputs: int, start: float = 0.0) -> None:
        super().__init__()
        self.outputs = outputs
        self.conv = nn.Conv2d(channels, anchors * outputs, 3, padding=1)
        _init_small(self.conv)
        nn.init.constant_(cast(Tensor, self.conv.bias), start)

    def forward(self, x: Tensor) -> Tensor:
        """A level's map [B, channels, h, w] to [B, A, outputs], row by row, in a cell anchor by anchor."""
        return flattened(in_full_precision(self.conv, x), self.outputs)


def in_full_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer`` of ``x``, in float32 under autocast, and behind layers of bfloat16, too: a last layer with its 8 bits would make most
    scores of an image tie."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):  # which knows no device without values
        out: Tensor = layer(x.to(next(layer.parameters()).dtype))
        return out
    with torch.autocast(x.device.type, enabled=False):
        exact: Tensor = layer(x.float())
    return exact


def flattened(x: Tensor, outputs: int) -> Tensor:
    """A map [B, anchors * outputs, h, w] as [B, h * w * anchors, outputs]."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, outputs)


def _init_small(conv: nn.Conv2d) -> None:
    """Normal weights of standard deviation 0.01, zero bias (Lin et al. 2017, section 4.1)."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _init_fan_in(conv: nn.Conv2d) -> None:
    """Normal weights of standard deviation sqrt(1 / fan in), zero bias (effdet ``_init_weight``, for the heads)."""
    nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
