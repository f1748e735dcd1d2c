"""The feature pyramid network: maps of a backbone in, maps of one width out, coarser ones added. No boxes in this file.

Sources: Lin et al., "Feature pyramid networks for object detection", 2017, section 3; P6 and P7 as in Lin et al., "Focal loss for
dense object detection", 2017, section 4 (there of C5), and Tian et al., "FCOS", 2019, section 3.2 (of P5).
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from heads.detection.levels import Source, level_strides
from heads.options import choice

ExtraFrom = Literal["p5", "c5"]


class FPN(nn.Module):
    """Maps of a backbone to ``levels`` maps of ``channels`` each.

    ``inputs``: the backbone's maps, finest first, which are the first of ``levels``. Coarser levels are made by 3x3 convolutions of
    stride 2, the first ``extra_from`` the pyramid's last map (``p5``) or the backbone's (``c5``), the others from the rectified one
    before them. Names of levels appear in the state dict: ``lateral.5`` is the 1x1 convolution of C5, ``smooth.5`` the 3x3 one
    that gives P5, ``extra.6`` gives P6. ``strides`` has the stride of every level in pixels, ``head`` is named in errors.
    """

    def __init__(
        self,
        inputs: Sequence[Source],
        levels: Sequence[int],
        channels: int,
        *,
        extra_from: ExtraFrom = "p5",
        head: str = "fpn",
    ) -> None:
        super().__init__()
        choice("extra_from", extra_from, get_args(ExtraFrom))
        self.strides = level_strides([source.stride for source in inputs], len(levels), head)
        own, added = [str(level) for level in levels[: len(inputs)]], [str(level) for level in levels[len(inputs) :]]
        self.lateral = nn.ModuleDict(
            {level: nn.Conv2d(source.channels, channels, 1) for level, source in zip(own, inputs, strict=True)}
        )
        self.smooth = nn.ModuleDict({level: nn.Conv2d(channels, channels, 3, padding=1) for level in own})
        self.extra = nn.ModuleDict()
        self.from_backbone = extra_from == "c5"
        width = inputs[-1].channels if self.from_backbone else channels
        for level in added:
            self.extra[level] = nn.Conv2d(width, channels, 3, stride=2, padding=1)
            width = channels
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type] # there is one

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps [B, c, h, w] to one map [B, channels, h, w] per level, finest first; an added one has ceil(h / 2)
        by ceil(w / 2) cells."""
        merged: list[Tensor] = []
        for feature, lateral in reversed(list(zip(features, self.lateral.values(), strict=True))):
            own = lateral(feature)
            merged.append(own + F.interpolate(merged[-1], size=list(own.shape[-2:])) if merged else own)
        maps = [smooth(x) for x, smooth in zip(reversed(merged), self.smooth.values(), strict=True)]
        x = features[-1] if self.from_backbone else maps[-1]
        for step, conv in enumerate(self.extra.values()):
            x = conv(x.relu() if step else x)
            maps.append(x)
        return maps
