"""Our backbones under torchvision's detectors (Faster R-CNN, Mask R-CNN, RetinaNet, FCOS): with a feature pyramid, as torchvision builds
its own."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from effbackbones import Backbone, UserError, create_backbone

_TOPS = {"pool": ("C2", "C3", "C4", "C5"), "p6p7": ("C3", "C4", "C5")}
"""What is added on top of the pyramid, and the levels that go with it (``torchvision/models/detection``)."""


class FPNBackbone(nn.Module):
    """Normalised images [B, C, H, W] to an ordered dict of maps with ``out_channels`` each, finest first: what torchvision's detectors
    call a backbone. ``body`` is our backbone, ``image_mean`` and ``image_std`` are what its weights want of a detector."""

    def __init__(
        self, body: Backbone, out_channels: int, top: str, norm_layer: Callable[..., nn.Module] | None = None
    ) -> None:
        super().__init__()
        extra = LastLevelMaxPool() if top == "pool" else LastLevelP6P7(out_channels, out_channels)
        channels = list(body.feature_spec.channels)
        self.body = body
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=extra, norm_layer=norm_layer)
        self.out_channels = out_channels
        self.image_mean, self.image_std = list(body.image_spec.mean), list(body.image_spec.std)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        named = OrderedDict((str(i), found) for i, found in enumerate(self.body(images)))
        maps: OrderedDict[str, Tensor] = self.fpn(named)
        return maps


def fpn_backbone(
    backbone: str = "b0",
    *,
    top: str = "pool",
    levels: Sequence[str] | None = None,
    out_channels: int = 256,
    norm_layer: Callable[..., nn.Module] | None = None,
    **options: Any,
) -> FPNBackbone:
    """A backbone with a feature pyramid for a detector of torchvision::

        net = fpn_backbone("b3", weights="imagenet")
        FasterRCNN(net, num_classes=91, image_mean=net.image_mean, image_std=net.image_std)
        net = fpn_backbone("b3", weights="imagenet", top="p6p7")
        RetinaNet(net, num_classes=91, image_mean=net.image_mean, image_std=net.image_std)   # and FCOS

    ``top``: ``pool`` adds a pooled map to C2-C5 (Faster R-CNN), ``p6p7`` two convolutions to C3-C5 (RetinaNet, FCOS). ``levels``: others
    than these; anchor generators must then have as many sizes as there are maps. ``options`` are those of ``create_backbone``.
    """
    if top not in _TOPS:
        raise UserError("fpn_backbone top", f"unknown value {top!r}", f"one of {', '.join(_TOPS)}")
    body = create_backbone(backbone, levels=tuple(levels or _TOPS[top]), **options)
    return FPNBackbone(body, out_channels, top, norm_layer)
