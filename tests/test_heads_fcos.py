"""FCOS beside torchvision's: the same answers and losses with the same weights; options; boxes are weighed as the paper does."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effbackbones.conformance import check_head, enforce
from effbackbones.conformance.head import HEAD_PROMISES
from effbackbones.contracts import BoxTargets, FeatureSpec, ImageSizes
from effbackbones.errors import UserError
from heads.detection.fcos import FCOSHead
from heads.detection.losses import iou_loss
from heads.detection.points import centerness

SPEC = FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), (8, 16, 32))
SMALL: dict[str, Any] = {"channels": 64, "repeats": 1}
SIZE, CLASSES = (256, 384), 5


def features() -> list[Tensor]:
    return [
        torch.randn(2, width, SIZE[0] // stride, SIZE[1] // stride)
        for width, stride in zip(SPEC.channels, SPEC.strides, strict=True)
    ]


def targets() -> BoxTargets:
    """Of two images, with padding; boxes of all levels."""
    boxes = torch.tensor(
        [
            [[10.0, 20.0, 60.0, 55.0], [100.0, 30.0, 230.0, 200.0], [5.0, 5.0, 380.0, 250.0], [0.0, 0.0, 0.0, 0.0]],
            [[200.0, 100.0, 224.0, 140.0], [20.0, 40.0, 110.0, 250.0], [30.0, 60.0, 90.0, 130.0], [300.0, 8.0, 370.0, 90.0]],
        ]
    )  # fmt: skip
    labels = torch.tensor([[0, 3, 2, -1], [4, 1, 1, 0]])
    return BoxTargets(boxes, labels, torch.zeros(2, 4, dtype=torch.bool))


def peer_of(channels: int, repeats: int) -> Any:
    """torchvision's, on maps instead of images, with its points in the middle of cells, as in the paper: it puts them into corners."""
    anchor_utils = pytest.importorskip("torchvision.models.detection.anchor_utils")
    from torchvision.models.detection.fcos import FCOS, FCOSHead as PeerHead  # the test is skipped without it
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

    class Maps(nn.Module):
        """Feature maps for images."""

        out_channels = channels

        def __init__(self) -> None:
            super().__init__()
            extra = LastLevelP6P7(channels, channels)
            self.fpn = FeaturePyramidNetwork(list(SPEC.channels), channels, extra)
            self.given: list[Tensor] = []

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            made: dict[str, Tensor] = self.fpn(OrderedDict(zip("345", self.given, strict=True)))
            return made

    strides = (8, 16, 32, 64, 128)
    generator = anchor_utils.AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * 5)
    generator.cell_anchors = [torch.tensor([[0.0, 0.0, s, s]]) for s in strides]
    head = PeerHead(channels, 1, CLASSES, repeats)
    peer = FCOS(
        Maps(), CLASSES, anchor_generator=generator, head=head, score_thresh=0.05, topk_candidates=10**6, image_mean=[0.0] * 3,
        image_std=[1.0] * 3, min_size=SIZE[0], max_size=SIZE[1], detections_per_img=60,
    )  # fmt: skip
    for parameter in peer.head.parameters():  # so that scores differ and norms do something
        nn.init.normal_(parameter, std=0.05)
    nn.init.normal_(peer.head.regression_head.bbox_reg.weight, std=1.0)  # so that some distances are cut off at 0
    nn.init.constant_(peer.head.regression_head.bbox_reg.bias, 2.0)
    return peer


def transplant(peer: Any, head: FCOSHead) -> None:
    """Every weight of ``peer`` into ``head``; none is left over on either side."""
    names = {
        **{f"backbone.fpn.inner_blocks.{i}.0": f"neck.lateral.{i + 3}" for i in range(3)},
        **{f"backbone.fpn.layer_blocks.{i}.0": f"neck.smooth.{i + 3}" for i in range(3)},
        **{f"backbone.fpn.extra_blocks.p{level}": f"neck.extra.{level}" for level in (6, 7)},
        "head.classification_head.cls_logits": "classes.conv",
        "head.regression_head.bbox_reg": "sides.conv",
        "head.regression_head.bbox_ctrness": "central.conv",
    }
    for theirs, ours in (("classification_head", "class_net"), ("regression_head", "box_net")):
        for i in range(head.network.repeats):
            names |= {
                f"head.{theirs}.conv.{3 * i}": f"{ours}.conv.{i}",
                f"head.{theirs}.conv.{3 * i + 1}": f"{ours}.norm.{i}",
            }
    state = {}
    for key, value in peer.state_dict().items():
        module, _, leaf = key.rpartition(".")
        state[f"{names[module]}.{leaf}"] = value
    head.load_state_dict(state)


@pytest.mark.peer
def test_the_same_weights_say_what_torchvision_says() -> None:
    """Logits, distances, centerness, detections and losses."""
    torch.manual_seed(0)
    head = FCOSHead(SPEC, CLASSES, score_threshold=0.05, pre_nms=10**6, max_detections=60, **SMALL).eval()
    peer = peer_of(**SMALL).eval()
    transplant(peer, head)
    peer.backbone.given, sizes = features(), ImageSizes.of(torch.zeros(2, 3, *SIZE))
    images = list(torch.zeros(2, 3, *SIZE))
    with torch.no_grad():
        raw = head(peer.backbone.given, sizes)
        said = peer.head(list(peer.backbone(torch.empty(0)).values()))
        torch.testing.assert_close(raw.logits, said["cls_logits"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(raw.deltas, said["bbox_regression"], rtol=1e-4, atol=1e-5)
        assert 0 < (raw.deltas == 0).float().mean() < 0.5
        torch.testing.assert_close(raw.quality, said["bbox_ctrness"][..., 0], rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(head.predict(raw, sizes).unbatch(), peer(images), strict=True):
            assert len(ours.scores) == 60
            torch.testing.assert_close(ours.scores, theirs["scores"], rtol=1e-4, atol=1e-5)
            assert torch.equal(ours.labels, theirs["labels"])
            torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=1e-4, atol=1e-2)
        wanted, kept = targets(), [slice(0, 3), slice(0, 4)]
        given = [{"boxes": wanted.boxes[i, kept[i]], "labels": wanted.labels[i, kept[i]]} for i in range(2)]
        losses, theirs = head.loss(raw, wanted, sizes), peer.train()(images, given)
    pairs = {"class": "classification", "iou": "bbox_regression", "centerness": "bbox_ctrness"}
    assert set(losses) == set(pairs) == set(head.counted)
    for name, other in pairs.items():
        torch.testing.assert_close(losses[name], theirs[other], rtol=1e-4, atol=1e-5)
    assert float(losses["iou"]) > 0.1


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        pytest.param({}, True, marks=pytest.mark.slow),
        ({"weigh_boxes": True, "crowd_ignore": True, "iou_loss": "ciou", "delta_loss": "l1", "norm": "none"}, False),
    ],
)
def test_every_promise_is_kept(options: dict[str, Any], graphs: bool) -> None:
    left_out = () if graphs else ("export", "compile")
    kept = [name for name in HEAD_PROMISES if name not in left_out]
    enforce(check_head(FCOSHead, options=SMALL | options, promises=kept))


def test_boxes_weigh_as_much_as_their_points_are_central() -> None:
    torch.manual_seed(0)
    head, wanted, sizes = (
        FCOSHead(SPEC, CLASSES, weigh_boxes=True, **SMALL),
        targets(),
        ImageSizes.of(torch.zeros(2, 3, *SIZE)),
    )
    raw = head(features(), sizes)
    matched = head.matched(raw, wanted)
    assert matched.positive.sum() > 20
    central = centerness(matched.boxes, raw.anchors)[matched.positive]
    assert head.count(wanted, sizes)["iou"] == pytest.approx(float(central.sum()), rel=1e-4)
    boxes = head.coder.decode(raw.deltas, raw.anchors)[matched.positive]
    costs = iou_loss(boxes, matched.boxes[matched.positive], "giou")
    by_hand = (costs * central).sum() / central.sum()
    torch.testing.assert_close(head.loss(raw, wanted, sizes)["iou"], by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 48}, "channels: expected a multiple of 32 above it, for the groups of norm: group, got 48"),
        ({"norm": "batch"}, "norm: unknown value 'batch'"),
        ({"radius": 0}, "radius: expected a number above 0"),
        ({"least": 9}, r"most: expected a number above 9, got 8\.0"),
        ({"centerness_weight": -1}, "centerness_weight: expected a number of at least 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        FCOSHead(SPEC, 2, **options)
