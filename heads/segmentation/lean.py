"""Parts of smp's decoders with fewer passes over memory; names in the state dict, numbers and results are theirs."""

from typing import Any, ClassVar

import torch
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones import passes


class ConvNormReLU(nn.Sequential):
    """smp's: convolution, batch norm, ReLU."""

    calls_in_order: ClassVar[bool] = True
    """As a plain one, as far as folding is concerned."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, act = self
        return passes.conv_norm_act(x, conv, norm, act)


class UNetStep(nn.Module):
    """A step of smp's U-Net: grown, joined with the skip, two convolutions. What lies between these is not kept for the way back."""

    def __init__(self, block: UnetDecoderBlock) -> None:
        super().__init__()
        self.interpolation_mode = block.interpolation_mode
        self.conv1, self.attention1 = block.conv1, block.attention1
        self.conv2, self.attention2 = block.conv2, block.attention2

    def forward(self, x: Tensor, height: int, width: int, skip_connection: Tensor | None = None) -> Tensor:
        """Map [B, C, h, w] and skip connection [B, c, height, width] to [B, channels, height, width]."""
        x = F.interpolate(x, size=(height, width), mode=self.interpolation_mode)
        if skip_connection is not None:
            x = self.attention1(torch.cat([x, skip_connection], dim=1))
        if passes.eager(x) and passes.wants_gradient(x, self) and not passes.watched(self.conv1, self.conv2):
            conv, norm, act = self.conv1
            following, last_norm, last_act = self.conv2
            x = passes.norm_act_conv(passes.convolve(x, conv), norm, act, following)
            x = passes.norm_act(x, last_norm, last_act)
        else:
            x = self.conv2(self.conv1(x))
        out: Tensor = self.attention2(x)
        return out


def make_lean(decoder: nn.Module) -> None:
    """Put these parts in the place of smp's, in place."""
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            lean: Any = None
            if type(child) is Conv2dReLU:
                lean = ConvNormReLU(*child.children())
            elif type(child) is UnetDecoderBlock:
                lean = UNetStep(child)
                make_lean(lean)
            if lean is not None:
                setattr(parent, name, lean)
