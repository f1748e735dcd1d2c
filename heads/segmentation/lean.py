"""Parts of smp's decoders with fewer passes over memory; numbers, and names in the state dict (but of hastened copies), are theirs."""

from typing import Any, ClassVar

import torch
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from segmentation_models_pytorch.decoders.unetplusplus.decoder import DecoderBlock
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones import passes
from effbackbones.backbones.folding import Hastening
from heads.segmentation.growing import GrownConv, can_double, doubled, is_usual, pays


class ConvNormReLU(nn.Sequential):
    """smp's: convolution, batch norm, ReLU."""

    calls_in_order: ClassVar[bool] = True
    """As a plain one, as far as folding is concerned."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, act = self
        return passes.conv_norm_act(x, conv, norm, act)


class _Step(Hastening):
    """A map is grown and joined with a skip, two convolutions follow. What lies between these is not kept for the way back."""

    in_channels: int | None = None
    """Of the map without the skip, where the head has said so."""

    def __init__(self, block: UnetDecoderBlock | DecoderBlock) -> None:
        super().__init__()
        self.grown: GrownConv | None = None  # of a hastened copy
        self.interpolation_mode = block.interpolation_mode
        self.attends = type(block.attention1.attention) is not nn.Identity
        self.conv1, self.attention1 = block.conv1, block.attention1
        self.conv2, self.attention2 = block.conv2, block.attention2

    def step(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Map [B, C, h, w] and skip [B, c, H, W], of ``size``, to [B, channels, H, W]."""
        if self.grown is not None and self._takes(x, skip, size):
            answered: Tensor = self.attention2(self.conv2(self.grown(x, skip)))
            return answered
        trained = passes.eager(x) and passes.wants_gradient(x, self) and not passes.watched(self.conv1, self.conv2)
        doubles = self._doubles(x, skip, size)
        if not doubles:
            x = self.grow(x, size)
            if skip is not None:
                x = self.attention1(torch.cat([x, skip], dim=1))
        if trained:
            conv, norm, act = self.conv1
            following, last_norm, last_act = self.conv2
            x = doubled(x, skip, conv.weight, conv.bias) if doubles else passes.convolve(x, conv)
            x = passes.norm_act_conv(x, norm, act, following)
            x = passes.norm_act(x, last_norm, last_act)
        else:
            x = self._answered(x, skip) if doubles else self.conv1(x)
            x = self.conv2(x)
        out: Tensor = self.attention2(x)
        return out

    def grow(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The map brought to ``size``."""
        return F.interpolate(x, size=size, mode=self.interpolation_mode)

    def hasten(self) -> None:
        """The first convolution with sums of its taps made once, where its batch norm is folded."""
        conv, norm, act = self.conv1
        count = self.in_channels
        if count is None or not is_usual(conv) or type(norm) is not nn.Identity:
            return
        if self._joins_plainly(count == conv.in_channels) and not self._is_watched():
            self.grown = GrownConv(conv, act, count)

    def _takes(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> bool:
        """Whether what :meth:`hasten` made serves this map."""
        return size == (2 * x.shape[2], 2 * x.shape[3]) and self._joins_plainly(skip is None) and pays(x)

    def _joins_plainly(self, alone: bool) -> bool:
        """Whether nothing but nearest neighbours and a skip stand before the first convolution; ``alone``: no skip either."""
        return self.interpolation_mode == "nearest" and (alone or not self.attends)

    def _is_watched(self) -> bool:
        """Whether somebody waits for these layers by hooks, as who counts operations."""
        return passes.watched(self.conv1, *self.conv1, self.attention1, self.attention1.attention)

    def _doubles(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> bool:
        """Whether the first convolution is that of a doubled map, and may be computed so."""
        conv, norm, act = self.conv1
        if not (self._joins_plainly(skip is None) and can_double(x, skip, conv, size)):
            return False
        return passes.known(norm, act) and not self._is_watched()

    def _answered(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """The first convolution of a doubled map, its batch norm and activation; in eval mode, where no gradient is asked, in one pass."""
        conv, norm, act = self.conv1
        if passes.wants_gradient(x, self.conv1) or not passes.folds(x, norm):
            return passes.norm_act(doubled(x, skip, conv.weight, conv.bias), norm, act)
        scale, shift = passes.scale_and_shift(norm, conv.bias)
        out: Tensor = act(doubled(x, skip, conv.weight * scale.view(-1, 1, 1, 1), shift))
        return out


class UNetStep(_Step):
    """A step of smp's U-Net, to the size of the skip."""

    def forward(self, x: Tensor, height: int, width: int, skip_connection: Tensor | None = None) -> Tensor:
        """As :meth:`step`."""
        return self.step(x, skip_connection, (height, width))


class UNetPlusPlusStep(_Step):
    """A step of smp's U-Net++, to twice the size."""

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """As :meth:`step`."""
        return self.step(x, skip, (2 * x.shape[2], 2 * x.shape[3]))

    def grow(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """As smp does it: graphs of any size are then simpler."""
        return F.interpolate(x, scale_factor=2.0, mode=self.interpolation_mode)


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
            elif type(child) is DecoderBlock and not child.is_empty:
                lean = UNetPlusPlusStep(child)
                make_lean(lean)
            if lean is not None:
                setattr(parent, name, lean)
