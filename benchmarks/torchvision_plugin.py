"""torchvision's detectors and backbones as plug-ins, so that the engine trains them on the same samples, by the same steps, as ours.

    effbackbones train detect --config bccd --data.root bccd --plugins benchmarks/torchvision_plugin.py --model.head torchvision_ssd

``benchmarks/detector_accuracy.py`` does it. Head and losses are torchvision's own, on any backbone; backbones are its MobileNetV3 and B0
(``--model.backbone torchvision_b0 --model.backbone_options '{file: STATE_DICT.pth}'``; without a file of weights they start at random).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, mobilenet_v3_large

from benchmarks.detectors import KINDS, Maps, Raw
from effbackbones import (
    Backbone,
    BackboneNeeds,
    BoxTargets,
    Detections,
    FeatureSpec,
    Head,
    ImageSizes,
    ImageSpec,
    register_backbone,
    register_head,
)
from effbackbones.errors import UserError
from effbackbones.weights.kinds import check_file
from effbackbones.weights.pickled import read_pickled

SIDE = 256  # what torchvision's transform would resize to; unused, for the engine resizes


class TorchvisionHead(Head):
    """Neck, head, matching, losses and suppression of torchvision's detector of the ``kind``."""

    task: ClassVar[str] = "det"
    kind: ClassVar[str]

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        kind = KINDS[self.kind]
        self.shift = int(kind.background)
        self.raw = Raw(kind.network(nn.Identity(), spec.channels, num_classes, SIDE))
        self.raw.network.score_thresh = 0.001  # as ours: low scores count in AP
        self.size_divisor = spec.strides[-1]

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(("C3", "C4", "C5")[-KINDS[cls.kind].maps :])

    def image_spec(self, spec: ImageSpec) -> ImageSpec:
        return ImageSpec((SIDE, SIDE), spec.mean, spec.std, "bilinear", 1.0, "letterbox")

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Any:
        maps, said = self.raw(features)
        return {"maps": maps, "said": said}

    def _size(self, sizes: ImageSizes) -> tuple[int, int]:
        return self.padded(sizes.batch[0]), self.padded(sizes.batch[1])

    def loss(self, raw: Any, targets: BoxTargets, sizes: ImageSizes) -> dict[str, Tensor]:
        told = []
        for boxes, labels, crowd in zip(*targets, strict=True):
            real = (labels >= 0) & ~crowd
            told.append({"boxes": boxes[real], "labels": labels[real] + self.shift})
        losses: dict[str, Tensor] = self.raw.losses(raw["maps"], raw["said"], self._size(sizes), told)
        return losses

    @torch.no_grad()
    def predict(self, raw: Any, sizes: ImageSizes) -> Detections:
        return self.raw.selected(raw["maps"], raw["said"], self._size(sizes), self.shift)


@register_head("torchvision_retinanet")
class RetinaNet(TorchvisionHead):
    kind = "retinanet"


@register_head("torchvision_fcos")
class FCOS(TorchvisionHead):
    kind = "fcos"


@register_head("torchvision_ssd")
class SSD(TorchvisionHead):
    kind = "ssd"


class TorchvisionBackbone(Backbone):
    """``features`` of a network of torchvision: C3 to C5 that end at ``ends``, of ``channels``."""

    make: ClassVar[Callable[..., Any]]
    ends: ClassVar[tuple[int, ...]]
    channels: ClassVar[tuple[int, ...]]

    def __init__(self, *, levels: tuple[str, ...] = ("C3", "C4", "C5"), file: str = "") -> None:
        super().__init__()
        network, count = type(self).make(), len(levels)
        if file:
            check_file(Path(file))
            try:
                network.load_state_dict(read_pickled(Path(file), {}))
            except RuntimeError:  # torch names every key, a line each
                what = f"is no state dict of torchvision's {type(self).make.__name__}"
                raise UserError(file, what, "take the file that torchvision publishes") from None
        self.maps = Maps(network.features, self.ends[-count:])
        self.name, self.image_spec = f"torchvision_{type(self).__name__.lower()}", ImageSpec()
        self.feature_spec = FeatureSpec(self.name, tuple(levels), self.channels[-count:], (8, 16, 32)[-count:])

    def forward(self, images: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.maps(images)
        return found


@register_backbone("torchvision_mobilenet")
class MobileNet(TorchvisionBackbone):
    make, ends, channels = staticmethod(mobilenet_v3_large), (7, 13, 17), (40, 112, 960)


@register_backbone("torchvision_b0")
class B0(TorchvisionBackbone):
    make, ends, channels = staticmethod(efficientnet_b0), (4, 6, 8), (40, 112, 320)
