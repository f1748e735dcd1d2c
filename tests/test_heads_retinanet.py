"""RetinaNet: equal to torchvision's on the same weights, and every promise of a head."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effbackbones.conformance import check_head, enforce
from effbackbones.conformance.head import HEAD_PROMISES
from effbackbones.contracts import BoxTargets, FeatureSpec, ImageSizes, head_options
from effbackbones.errors import UserError
from heads.detection.anchors import pairwise_iou
from heads.detection.retinanet import RetinaNetHead

SPEC = FeatureSpec("lite0", ("C3", "C4", "C5"), (6, 8, 10), (8, 16, 32))
SIZE = (256, 384)
CLASSES = 3
GRAPHS = ("export", "compile")


class Features(nn.Module):
    """A backbone of torchvision's form that gives what it was given, through its pyramid."""

    def __init__(self, fpn: nn.Module, channels: int, maps: Sequence[Tensor]) -> None:
        super().__init__()
        self.fpn, self.out_channels, self.maps = fpn, channels, maps

    def forward(self, images: Tensor) -> Any:
        return self.fpn(OrderedDict((str(i), m[: len(images)]) for i, m in enumerate(self.maps)))


def features(batch: int = 2, size: tuple[int, int] = SIZE) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, c, size[0] // s, size[1] // s) for c, s in zip(SPEC.channels, SPEC.strides, strict=True)]


def reference(extra_from: str, norm: str, maps: Sequence[Tensor], channels: int = 64) -> Any:
    """torchvision's, with logits and boxes spread so that there is something to compare."""
    peer = pytest.importorskip("torchvision.models.detection.retinanet")
    pyramid = pytest.importorskip("torchvision.ops.feature_pyramid_network")
    torch.manual_seed(0)
    extra = pyramid.LastLevelP6P7(channels if extra_from == "p5" else SPEC.channels[-1], channels)
    fpn = pyramid.FeaturePyramidNetwork(list(SPEC.channels), channels, extra)
    layer = None if norm == "none" else lambda width: nn.GroupNorm(32, width)
    head = peer.RetinaNetHead(channels, 9, CLASSES, norm_layer=layer)
    options: dict[str, Any] = {
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
        "min_size": 256,
        "max_size": 384,
        "topk_candidates": 10**6,
    }
    network = peer.RetinaNet(Features(fpn, channels, maps), CLASSES, head=head, **options)
    for name, weight in head.named_parameters():
        if name.endswith("weight") and weight.ndim == 4:
            nn.init.normal_(weight, std=0.05 if ".conv." in name else 0.1 if "logits" in name else 0.02)
    return network


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's, without its backbone, under our names."""
    kinds = {"inner_blocks": "lateral", "layer_blocks": "smooth"}
    found = {}
    for name, tensor in state.items():
        part = name.split(".")
        if part[1] == "fpn":
            own = f"extra.{part[3][1:]}" if part[2] == "extra_blocks" else f"{kinds[part[2]]}.{int(part[3]) + 3}"
            found[f"neck.{own}.{part[-1]}"] = tensor
            continue
        net = {"classification_head": "class_net", "regression_head": "box_net"}[part[1]]
        own = f"tower.{('conv', 'norm')[int(part[4])]}.{part[3]}" if part[2] == "conv" else "predict.conv"
        found[f"{net}.{own}.{part[-1]}"] = tensor
    return found


def transplanted(network: Any, **options: Any) -> RetinaNetHead:
    head = RetinaNetHead(SPEC, CLASSES, anchors="torchvision", channels=64, **options)
    head.load_state_dict(renamed(network.state_dict()))
    return head


VARIANTS = [("p5", "none"), ("c5", "group")]  # torchvision's first and second version


@pytest.mark.peer
@pytest.mark.parametrize(("extra_from", "norm"), VARIANTS)
def test_it_equals_torchvision(extra_from: str, norm: str) -> None:
    """Logits, deltas, anchors, detections."""
    maps, images = features(), list(torch.zeros(2, 3, *SIZE))
    network = reference(extra_from, norm, maps).eval()
    options = {
        "score_threshold": 0.05,
        "max_detections": 300,
        "pre_nms": 10**6,
    }  # torchvision's limit is one of each level
    head = transplanted(network, extra_from=extra_from, norm=norm, **options)
    sizes = ImageSizes.of(torch.stack(images))
    with torch.no_grad():
        batch, _ = network.transform(images)
        theirs = list(network.backbone(batch.tensors).values())
        said, anchors = network.head(theirs), network.anchor_generator(batch, theirs)[0]
        raw = head(maps, sizes)
    torch.testing.assert_close(raw.logits, said["cls_logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(raw.deltas, said["bbox_regression"], rtol=1e-4, atol=1e-4)
    assert torch.equal(raw.anchors, anchors)
    for found, expected in zip(head.predict(raw, sizes).unbatch(), network(images), strict=True):
        real = (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(1)  # it keeps boxes beside the image as lines
        expected = {name: values[real] for name, values in expected.items()}
        count = int(real.sum())
        boxes, scores, labels = found.boxes[:count], found.scores[:count], found.labels[:count]
        assert len(boxes) == len(expected["boxes"]) > 100
        torch.testing.assert_close(scores, expected["scores"], rtol=1e-4, atol=1e-5)
        near = (pairwise_iou(boxes, expected["boxes"]) > 0.999) & (labels[:, None] == expected["labels"])
        assert near.any(1).all()  # of equal scores the order is free
        assert near.any(0).all()


def scene(sizes: ImageSizes) -> BoxTargets:
    """Of two images the second has one object, smaller than any anchor would claim by overlap."""
    boxes = torch.tensor(
        [[[10.0, 20, 130, 200], [200, 40, 260, 110], [5, 5, 40, 36]], [[100, 100, 108, 106], [0] * 4, [0] * 4]]
    )
    labels = torch.tensor([[0, 2, 1], [1, -1, -1]])
    return BoxTargets(boxes, labels, torch.zeros(2, 3, dtype=torch.bool))


@pytest.mark.peer
@pytest.mark.parametrize(
    ("loss", "options"),
    [("l1", {}), ("smooth_l1", {"delta_loss": "smooth_l1"}), ("giou", {"delta_loss": None, "iou_loss": "giou"})],
)
def test_losses_equal_torchvision(loss: str, options: dict[str, Any]) -> None:
    """Image by image, for torchvision averages over images what it has divided by the positives of each; and gradients."""
    maps = features()
    network = reference("p5", "none", maps).train()
    network.head.regression_head._loss_type = loss
    for row in range(2):
        network.backbone.maps = own = [m[row : row + 1].clone().requires_grad_() for m in maps]
        ours = [m.detach().clone().requires_grad_() for m in own]
        sizes = ImageSizes.of(torch.zeros(1, 3, *SIZE))
        targets = BoxTargets(*(part[row : row + 1] for part in scene(sizes)))
        real = targets.labels[0] >= 0
        told = {"boxes": targets.boxes[0][real], "labels": targets.labels[0][real]}
        expected = network([torch.zeros(3, *SIZE)], [told])
        head = transplanted(network, **options)
        losses = head.loss(head(ours, sizes), targets, sizes)
        torch.testing.assert_close(losses["class"], expected["classification"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            losses["iou" if loss == "giou" else "box"], expected["bbox_regression"], rtol=1e-4, atol=1e-5
        )
        one, other = (
            torch.autograd.grad(torch.stack(list(given.values())).sum(), at)
            for given, at in ((losses, ours), (expected, own))
        )
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_anchors_are_the_papers() -> None:
    """Areas of 32 to 512 pixels squared with their octaves, three aspects, in the middle of the cells."""
    head = RetinaNetHead(SPEC, CLASSES, channels=8, repeats=0)
    anchors = head._anchors_for(ImageSizes.of(torch.zeros(1, 3, 256, 256)))
    sides = anchors[:, 2:] - anchors[:, :2]
    of_levels = torch.split(sides, [9 * (256 // s) ** 2 for s in (8, 16, 32, 64, 128)])
    for level, own in enumerate(of_levels):
        octaves = 32 * 2.0**level * 2 ** (torch.arange(3) / 3)
        torch.testing.assert_close(own[:9].prod(1).sqrt(), octaves.repeat(3))
        torch.testing.assert_close((own[:9, 1] / own[:9, 0]), torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(3))
    torch.testing.assert_close(anchors[:9].view(9, 2, 2).mean(1), torch.full((9, 2), 4.0))


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 64, "repeats": 1, "norm": "group", "levels": [4, 5, 6], "extra_from": "c5"},
        {
            "channels": 8,
            "levels": [3, 4, 5],
            "delta_loss": None,
            "iou_loss": "ciou",
            "nms": "gaussian",
            "max_detections": 5,
        },
        {
            "channels": 8,
            "repeats": 0,
            "num_scales": 1,
            "anchors": "torchvision",
            "crowd_ignore": True,
            "force": "claim",
        },
    ],
)
def test_every_promise_is_kept(options: dict[str, Any]) -> None:
    """Graphs are made in the tests of what all share."""
    enforce(check_head(RetinaNetHead, options=options, promises=[p for p in HEAD_PROMISES if p not in GRAPHS]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 48, "norm": "group"}, r"channels: expected a multiple of 32 above it"),
        ({"norm": "batch"}, "norm: unknown value 'batch'"),
        ({"levels": [3, 5]}, "levels: expected at least two consecutive"),
        ({"extra_from": "p6"}, "extra_from: unknown value 'p6'"),
        ({"aspect_ratios": [1.0]}, "aspect_ratios: expected pairs"),
        ({"anchors": "mine"}, "anchors: unknown value 'mine'"),
        ({"repeats": -1}, "repeats: expected an integer of at least 0"),
        ({"prior": 1.0}, "prior: expected a number above 0 and below 1"),
        ({"positive_iou": 0.3}, "negative_iou: expected at most positive_iou, 0.3"),
        ({"variant": "d0"}, ": RetinaNetHead has no such option"),
    ],
)
def test_wrong_options_are_named_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=r"head_options\.\S*" + says) as caught:
        RetinaNetHead(SPEC, CLASSES, **options)
    assert "\n" not in str(caught.value)


def test_the_backbone_must_fit_the_levels() -> None:
    with pytest.raises(UserError, match="head retinanet: reads the maps C4, C5, C6 as levels"):
        RetinaNetHead(SPEC, CLASSES, levels=[4, 5, 6])
    assert RetinaNetHead.requires(levels=[2, 3, 4]).levels == ("C2", "C3", "C4")


def test_it_has_all_options_of_the_losses_and_predictions() -> None:
    from heads.detection.efficientdet import EfficientDetHead

    own = {"variant", "cells", "fusion", "activation"}
    assert set(head_options(EfficientDetHead)) - own <= set(head_options(RetinaNetHead))
