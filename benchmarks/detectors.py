"""torchvision's detectors on its own EfficientNet, and ours with the same weights.

Its images are not resized by the network, its boxes are kept where they lie: what is compared is backbone, head, losses and suppression.
A head is a row of :data:`KINDS`.
"""

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import Answer, Pair, settle
from effbackbones import BoxTargets, Detections, build_model

WIDTHS = {"b0": (40, 112, 320)}
"""Channels of C3 to C5."""
_ENDS = (4, 6, 8)  # of the stages that give them, in torchvision's ``features``


class Maps(nn.Module):
    """What the ``features`` of a network of torchvision are at these ``ends``, as a list."""

    def __init__(self, features: nn.Sequential, ends: Sequence[int]) -> None:
        super().__init__()
        starts = (0, *ends[:-1])
        self.parts = nn.ModuleList(features[start:end] for start, end in zip(starts, ends, strict=True))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        for part in self.parts:
            images = part(images)
            maps.append(images)
        return maps


@dataclass(frozen=True)
class Kind:
    """``network``: torchvision's detector, given what makes its maps, their channels, the number of classes and of pixels a side.
    ``names``: its state dict without the backbone under the names of our head; ``last``: what says the logits. ``options`` of ours
    that are its numbers. ``background``: whether its labels count one. ``maps`` of the backbone, C5 the last, that it reads."""

    network: Callable[[nn.Module, Sequence[int], int, int], Any]
    names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    last: Callable[[Any], list[nn.Conv2d]]
    options: Mapping[str, Any] = field(default_factory=dict)
    background: bool = False
    maps: int = 3


def pyramid(body: nn.Module, widths: Sequence[int]) -> nn.Module:
    """torchvision's feature pyramid, P3 to P7, on the maps that ``body`` gives."""
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

    class Pyramid(nn.Module):
        out_channels = 256

        def __init__(self) -> None:
            super().__init__()
            self.body = body
            self.fpn = FeaturePyramidNetwork(list(widths), 256, LastLevelP6P7(256, 256))

        def forward(self, images: Tensor) -> Any:
            return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self.body(images))))

    return Pyramid()


def _pyramid_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    blocks, found = {"inner_blocks": "lateral", "layer_blocks": "smooth"}, {}
    for name, tensor in state.items():
        part = name.split(".")
        if part[:2] == ["backbone", "fpn"]:
            own = f"extra.{part[3][1:]}" if part[2] == "extra_blocks" else f"{blocks[part[2]]}.{int(part[3]) + 3}"
            found[f"neck.{own}.{part[-1]}"] = tensor
    return found


def retinanet(body: nn.Module, widths: Sequence[int], classes: int, side: int) -> Any:
    """torchvision's RetinaNet as it comes, on the maps that ``body`` gives."""
    from torchvision.models.detection import RetinaNet

    return RetinaNet(pyramid(body, widths), classes, min_size=side, max_size=side, detections_per_img=100)


def _retinanet_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    nets, kinds = {"classification_head": "class_net", "regression_head": "box_net"}, ("conv", "norm")
    found = _pyramid_names(state)
    for name, tensor in state.items():
        part = name.split(".")
        if part[0] == "head":
            own = f"tower.{kinds[int(part[4])]}.{part[3]}" if part[2] == "conv" else "predict.conv"
            found[f"{nets[part[1]]}.{own}.{part[-1]}"] = tensor
    return found


def fcos(body: nn.Module, widths: Sequence[int], classes: int, side: int) -> Any:
    """torchvision's FCOS, with its points in the middle of cells, as in the paper: it puts them into corners."""
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    strides = (8, 16, 32, 64, 128)
    generator = AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * 5)
    generator.cell_anchors = [torch.tensor([[0.0, 0.0, stride, stride]]) for stride in strides]
    sizes: Any = {"min_size": side, "max_size": side}
    return FCOS(pyramid(body, widths), classes, anchor_generator=generator, **sizes)


def _fcos_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    nets, kinds = {"classification_head": "class_net", "regression_head": "box_net"}, ("conv", "norm")
    last, found = {"cls_logits": "classes", "bbox_reg": "sides", "bbox_ctrness": "central"}, _pyramid_names(state)
    for name, tensor in state.items():
        part = name.split(".")
        if part[0] == "head" and part[2] in last:
            found[f"{last[part[2]]}.conv.{part[-1]}"] = tensor
        elif part[0] == "head":
            layer, kind = divmod(int(part[3]), 3)  # of convolution, norm and activation
            found[f"{nets[part[1]]}.{kinds[kind]}.{layer}.{part[-1]}"] = tensor
    return found


def ssd(body: nn.Module, widths: Sequence[int], classes: int, side: int) -> Any:
    """torchvision's SSDLite with its numbers."""
    from torchvision.models.detection import ssdlite
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    norm, each = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03), [*widths, 512, 256, 256, 128]

    class Extended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body
            self.extra = nn.ModuleList(ssdlite._extra_block(*each[i : i + 2], norm) for i in range(1, 5))
            ssdlite._normal_init(self.extra)  # as its own extractor has it

        def forward(self, images: Tensor) -> Any:
            maps = list(self.body(images))
            for block in self.extra:
                maps.append(block(maps[-1]))
            return OrderedDict((str(i), m) for i, m in enumerate(maps))

    generator = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    head = ssdlite.SSDLiteHead(each, generator.num_anchors_per_location(), classes + 1, norm)
    limits: Any = {"score_thresh": 0.001, "nms_thresh": 0.55, "detections_per_img": 100, "topk_candidates": 300}
    return SSD(Extended(), generator, (side, side), classes + 1, head=head, **limits)


def _ssd_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    nets, kinds = {"classification_head": "class_net", "regression_head": "box_net"}, ("conv", "bn")
    found = {}
    for name, tensor in state.items():
        part = name.split(".")
        if part[0] == "backbone":
            if part[1] == "extra":
                found[f"extra.{int(part[2]) + 6}.{part[3]}.{kinds[int(part[4])]}.{part[-1]}"] = tensor
        else:
            own = f"depthwise.{kinds[int(part[5])]}" if part[4] == "0" else "conv"
            found[f"{nets[part[1]]}.{part[3]}.{own}.{part[-1]}"] = tensor
    return found


KINDS = {
    "retinanet": Kind(
        retinanet,
        _retinanet_names,
        lambda network: [network.head.classification_head.cls_logits],
        {"anchors": "torchvision", "score_threshold": 0.05},
    ),
    "fcos": Kind(
        fcos, _fcos_names, lambda network: [network.head.classification_head.cls_logits], {"score_threshold": 0.2}
    ),
    "ssd": Kind(
        ssd,
        _ssd_names,
        lambda network: [block[1] for block in network.head.classification_head.module_list],
        {"pre_nms": 5000},
        background=True,
        maps=2,
    ),
}


def torchvision_detector(name: str, device: str = "cpu", classes: int = 20, side: int = 256) -> Pair:
    """``name``: a head of :data:`KINDS` and a backbone of :data:`WIDTHS`, as "retinanet-b0"."""
    from torchvision.models import efficientnet_b0

    head, _, backbone = name.partition("-")
    kind, whole = KINDS[head], efficientnet_b0(stochastic_depth_prob=0.0)
    network = kind.network(Maps(whole.features, _ENDS[-kind.maps :]), WIDTHS[backbone][-kind.maps :], classes, side)
    if head == "fcos":  # boxes of some extent, for torchvision keeps empty ones
        nn.init.constant_(network.head.regression_head.bbox_reg.bias, 2.0)
    raw = Raw(network)
    pixels = settle(raw, kind.last(network), side)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.pth"
        torch.save(whole.state_dict(), path)
        more: Any = {"backbone_options": {"drop_path": 0.0, "numerics": "torch"}, "head_options": dict(kind.options)}
        ours = build_model("det", backbone, head=head, num_classes=classes, weights=path, **more)
    ours.head.load_state_dict(kind.names(network.state_dict()))
    shift = int(kind.background)

    def answer(peer: Any) -> Answer:
        return lambda images: peer.detections(images, shift)

    def loss(peer: Any, targets: BoxTargets) -> Answer:
        told = [{"boxes": b, "labels": own + shift} for b, own in zip(targets.boxes, targets.labels, strict=True)]
        return lambda images: peer.loss(images, told)

    def targets(batch: int, side: int) -> BoxTargets:
        """The same in each image, for torchvision's RetinaNet divides each by its own positives; larger than the smallest default box,
        within which many overlap equally, and which is the best is left to rounding."""
        shares = torch.tensor([[[0.05, 0.1, 0.41, 0.5], [0.5, 0.1, 0.95, 0.62], [0.2, 0.45, 0.72, 0.94]]])
        corners, labels = shares * side, torch.randint(classes, (1, 3))
        one = BoxTargets(corners, labels, torch.zeros_like(labels, dtype=torch.bool))
        return BoxTargets(*(part.expand(batch, *part.shape[1:]).contiguous().to(device) for part in one))

    return Pair(ours.to(device), raw.to(device), answer, loss, targets, "torchvision", pixels)


class Raw(nn.Module):
    """A detector of torchvision on a batch of normalised images, which it need not copy and resize."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Any) -> Any:
        """Maps, and what the head says of them."""
        maps = list(self.network.backbone(images).values())
        return maps, self.network.head(maps)

    def anchors(self, size: Sequence[int], maps: list[Tensor]) -> Any:
        """Of each of the images, of (H, W) pixels; and these sizes."""
        from torchvision.models.detection.image_list import ImageList

        sizes = [(size[0], size[1])] * len(maps[0])
        return self.network.anchor_generator(ImageList(torch.empty(0, *size, device="meta"), sizes), maps), sizes

    def detections(self, images: Tensor, shift: int) -> Detections:
        """Its post-processing, in rows of fixed number."""
        maps, said = self(images)
        return self.selected(maps, said, images.shape[-2:], shift)

    def selected(self, maps: list[Tensor], said: Any, size: Sequence[int], shift: int) -> Detections:
        """The detections in what the head ``said`` of images of (H, W) pixels."""
        anchors, sizes = self.anchors(size, maps)
        if not shift:  # RetinaNet and FCOS select level by level
            cells = [m.shape[2] * m.shape[3] for m in maps]
            each = said["cls_logits"].shape[1] // sum(cells)
            counts = [each * count for count in cells]
            said = {name: list(value.split(counts, 1)) for name, value in said.items()}
            anchors = [list(own.split(counts)) for own in anchors]
        found = self.network.postprocess_detections(said, anchors, sizes)
        most = self.network.detections_per_img
        parts = []
        for name in ("boxes", "scores", "labels"):
            rows = found[0][name].new_zeros((len(found), most, *found[0][name].shape[1:]))
            for row, one in zip(rows, found, strict=True):
                row[: len(one[name])] = one[name]
            parts.append(rows)
        number = torch.tensor([len(one["boxes"]) for one in found], device=parts[0].device)
        return Detections(parts[0], parts[1], parts[2] - shift, number)

    def loss(self, images: Tensor, told: list[dict[str, Tensor]]) -> Tensor:
        """Matching and losses, as its own ``forward`` in training does it."""
        maps, said = self(images)
        return torch.stack(list(self.losses(maps, said, images.shape[-2:], told).values())).sum()

    def losses(self, maps: list[Tensor], said: Any, size: Sequence[int], told: list[dict[str, Tensor]]) -> Any:
        """Of what the head ``said`` of images of (H, W) pixels with the boxes and labels ``told``."""
        from torchvision.ops.boxes import box_iou

        anchors, _ = self.anchors(size, maps)
        if "bbox_ctrness" in said:  # FCOS matches by itself
            return self.network.compute_loss(told, said, anchors, [m.shape[2] * m.shape[3] for m in maps])
        pairs = zip(told, anchors, strict=True)
        matched = [
            self.network.proposal_matcher(box_iou(one["boxes"], own))
            if len(one["boxes"])
            else torch.full((len(own),), -1, device=own.device)
            for one, own in pairs
        ]
        mines = hasattr(self.network, "neg_to_pos_ratio")  # SSD alone, in losses of its own
        owner = self.network if mines else self.network.head
        return owner.compute_loss(told, said, anchors, matched)
