"""Class and box nets: the small networks that read every level of the pyramid with the same convolutions.

Source: Lin et al., "Focal loss for dense object detection", 2017, section 4; separable convolutions and a batch norm of its
own for each level and repeat as in Tan, Pang and Le, "EfficientDet", 2020 (effdet ``efficientdet.py``).
"""

import copy
from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effbackbones.backbones import passes
from effbackbones.backbones.convolution import Activation, Foldable, activation_layer, convolution, fold_into
from heads.detection.bifpn import NUMERICS, SeparableConv


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
        return torch.cat([self._flat(self._level(x, level)) for level, x in enumerate(maps)], 1)

    def _level(self, x: Tensor, level: int) -> Tensor:
        lean = passes.eager(x) and passes.wants_gradient(x, self)
        for repeat, (depthwise, pointwise, norms) in enumerate(
            zip(self.depthwise, self.pointwise, self.bn, strict=True)
        ):
            project = pointwise[level] if isinstance(pointwise, nn.ModuleList) else pointwise
            norm = cast(nn.ModuleList, norms)[level]
            # With the next layer's convolution what lies between them need not be kept; the last layer may want other numbers.
            following = self.depthwise[repeat + 1] if repeat + 1 < len(self.depthwise) else None
            x = depthwise(x) if repeat == 0 or not lean else x
            if lean and following is not None:
                x = passes.norm_act_conv(project(x), norm, self.act, following)
            else:
                x = passes.conv_norm_act(x, project, norm, self.act)
        return self._predicted(x)

    def _predicted(self, x: Tensor) -> Tensor:
        """The last layer, in float32 under autocast, and behind layers of bfloat16, too: with its 8 bits most scores of an image would
        tie."""
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):  # which knows no device without values
            out: Tensor = self.predict(x.to(next(self.predict.parameters()).dtype))
            return out
        with torch.autocast(x.device.type, enabled=False):
            exact: Tensor = self.predict(x.float())
        return exact

    def _flat(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.outputs)

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


def _init_fan_in(conv: nn.Conv2d) -> None:
    """Normal weights of standard deviation sqrt(1 / fan in), zero bias (effdet ``_init_weight``, for the heads)."""
    nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
