"""SSDLite: equal to torchvision's on the same weights, and every promise of a head."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effbackbones.conformance import check_head, enforce
from effbackbones.conformance.head import HEAD_PROMISES
from effbackbones.contracts import BoxTargets, FeatureSpec, ImageSizes, head_options
from effbackbones.errors import UserError
from heads.detection.anchors import pairwise_iou
from heads.detection.efficientdet import EfficientDetHead
from heads.detection.ssd import SSDHead

SPEC = FeatureSpec("lite0", ("C4", "C5"), (8, 12), (16, 32))
SIZE = (320, 320)
CLASSES = 3
GRAPHS = ("export", "compile")


class Features(nn.Module):
    """A backbone of torchvision's form that gives what it was given, and its extra blocks."""

    def __init__(self, extra: nn.Module, maps: Sequence[Tensor]) -> None:
        super().__init__()
        self.extra, self.maps = extra, maps

    def forward(self, images: Tensor) -> Any:
        maps = [m[: len(images)] for m in self.maps]
        for block in self.extra:  # type: ignore[attr-defined] # a list of modules
            maps.append(block(maps[-1]))
        return OrderedDict((str(i), m) for i, m in enumerate(maps))


def features(batch: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, c, SIZE[0] // s, SIZE[1] // s) for c, s in zip(SPEC.channels, SPEC.strides, strict=True)]


def reference(maps: Sequence[Tensor]) -> Any:
    """torchvision's with its numbers, logits and boxes spread so that there is something to compare."""
    lite = pytest.importorskip("torchvision.models.detection.ssdlite")
    ssd = pytest.importorskip("torchvision.models.detection.ssd")
    grid = pytest.importorskip("torchvision.models.detection.anchor_utils")
    torch.manual_seed(0)
    norm, widths = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03), [*SPEC.channels, 512, 256, 256, 128]
    extra = nn.ModuleList(lite._extra_block(*widths[i : i + 2], norm) for i in range(1, 5))
    generator = grid.DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    head = lite.SSDLiteHead(widths, generator.num_anchors_per_location(), CLASSES + 1, norm)
    limits = {"score_thresh": 0.1, "nms_thresh": 0.55, "detections_per_img": 300, "topk_candidates": 10**6}
    whole: Any = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, **limits}
    network = ssd.SSD(Features(extra, maps), generator, SIZE, CLASSES + 1, head=head, **whole)
    for last in (one for one in head.modules() if isinstance(one, nn.Conv2d) and one.bias is not None):
        nn.init.normal_(last.weight, std=0.5)
    return network


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's, without its backbone, under our names."""
    kinds, found = ("conv", "bn"), {}
    for name, tensor in state.items():
        part = name.split(".")
        if part[1] == "extra":
            own = f"extra.{int(part[2]) + 6}.{part[3]}.{kinds[int(part[4])]}"
        else:
            layer = f"depthwise.{kinds[int(part[5])]}" if part[4] == "0" else "conv"
            own = f"{'class_net' if 'class' in part[1] else 'box_net'}.{part[3]}.{layer}"
        found[f"{own}.{part[-1]}"] = tensor
    return found


def transplanted(network: Any, **options: Any) -> SSDHead:
    head = SSDHead(SPEC, CLASSES, **options)
    head.load_state_dict(renamed(network.state_dict()))
    return head


def scene(batch: int = 2) -> BoxTargets:
    """Boxes that default boxes overlap, and one so flat that only the best of them takes it; the last image has none."""
    boxes = torch.tensor([[[10.0, 20, 130, 200], [200, 40, 270, 110], [100, 253, 205, 271]]] * batch)
    labels = torch.tensor([[0, 2, 1]] * batch)
    labels[-1] = -1
    return BoxTargets(boxes, labels, torch.zeros(batch, 3, dtype=torch.bool))


@pytest.mark.peer
def test_it_equals_torchvision() -> None:
    """Logits, deltas, default boxes, detections."""
    maps, images = features(), list(torch.zeros(2, 3, *SIZE))
    network = reference(maps)
    network.train()(images, [{"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([1])}] * 2)  # statistics
    network.eval()
    head = transplanted(network, score_threshold=0.1, max_detections=300, pre_nms=10**6).eval()
    sizes = ImageSizes.of(torch.stack(images))
    with torch.no_grad():
        batch, _ = network.transform(images)
        theirs = list(network.backbone(batch.tensors).values())
        said, anchors = network.head(theirs), network.anchor_generator(batch, theirs)[0]
        raw = head(maps, sizes)
    torch.testing.assert_close(raw.logits, said["cls_logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(raw.deltas, said["bbox_regression"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(raw.anchors, anchors, rtol=1e-5, atol=1e-3)
    for found, expected in zip(head.predict(raw, sizes).unbatch(), network(images), strict=True):
        real = (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(1)  # it keeps boxes beside the image as lines
        expected = {name: values[real] for name, values in expected.items()}
        count = int(real.sum())
        boxes, scores, labels = found.boxes[:count], found.scores[:count], found.labels[:count]
        assert len(boxes) == len(expected["boxes"]) > 100
        torch.testing.assert_close(scores, expected["scores"], rtol=1e-4, atol=1e-5)
        own = labels[:, None] + 1 == expected["labels"]  # it counts the background
        near = (pairwise_iou(boxes, expected["boxes"]) > 0.99) & own
        assert near.any(1).all()
        assert near.any(0).all()


@pytest.mark.peer
def test_losses_equal_torchvision() -> None:
    """Of a batch, with gradients: hard negatives, and the best default box of each object."""
    maps = [m.requires_grad_() for m in features()]
    network = reference(maps).train()
    ours, targets, sizes = (
        [m.detach().clone().requires_grad_() for m in maps],
        scene(),
        ImageSizes.of(torch.zeros(2, 3, *SIZE)),
    )
    told = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1}
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    expected = network(list(torch.zeros(2, 3, *SIZE)), told)
    head = transplanted(network).train()
    raw = head(ours, sizes)
    losses = head.loss(raw, targets, sizes)
    torch.testing.assert_close(losses["class"], expected["classification"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["box"], expected["bbox_regression"], rtol=1e-4, atol=1e-5)
    one, other = (
        torch.autograd.grad(torch.stack(list(given.values())).sum(), at)
        for given, at in ((losses, ours), (expected, maps))
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    taken = head.matched(raw, targets).labels[0]
    assert set(taken.tolist()) == {-1, 0, 1, 2}, "the flat object has got a default box"
    matcher = pytest.importorskip("torchvision.models.detection._utils").SSDMatcher(0.5)
    match = matcher(pairwise_iou(targets.boxes[0], raw.anchors))
    assert torch.equal(torch.where(match >= 0, targets.labels[0][match.clamp(min=0)], -1), taken)


def test_default_boxes_keep_their_aspect_where_an_image_is_not_square() -> None:
    """A share of the side of the square of the same area, at most the image; in the middle of their cells."""
    head = SSDHead(SPEC, CLASSES, extra_channels=[8, 8, 8, 8])
    anchors = head._anchors_for(ImageSizes.of(torch.zeros(1, 3, 128, 512)))
    sides = anchors[:, 2:] - anchors[:, :2]
    side, first = 256.0, 0.2 * 256
    between = (0.2 * 0.35) ** 0.5 * side
    wide, high = first * 2**0.5, first / 2**0.5
    expected = [[first, first], [between, between], [wide, high], [high, wide]]
    torch.testing.assert_close(sides[:4], torch.tensor(expected))
    torch.testing.assert_close(anchors[:6].view(6, 2, 2).mean(1), torch.full((6, 2), 8.0))
    assert bool((sides <= torch.tensor([512.0, 128.0]) + 1e-3).all())


@pytest.mark.parametrize(
    "options",
    [
        {"levels": [3, 4, 5, 6], "extra_channels": [8], "aspect_ratios": [], "negatives": 1.0, "label_smoothing": 0.1},
        {
            "levels": [4, 5],
            "delta_loss": None,
            "iou_loss": "ciou",
            "nms": "gaussian",
            "max_detections": 5,
            "crowd_ignore": True,
        },
    ],
)
def test_every_promise_is_kept(options: dict[str, Any]) -> None:
    """Graphs are made in the tests of what all share."""
    enforce(check_head(SSDHead, options=options, promises=[p for p in HEAD_PROMISES if p not in GRAPHS]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": [4, 6]}, "levels: expected at least two consecutive"),
        ({"extra_channels": [64]}, "extra_channels: expected one for each level beyond C5, 4"),
        ({"extra_channels": 64}, "extra_channels: expected a list of integers"),
        ({"min_scale": 0.0}, "min_scale: expected a number above 0 and below 1"),
        ({"max_scale": 0.1}, "max_scale: expected a number of at least 0.2 and at most 1"),
        ({"aspect_ratios": [[1, 2]]}, "aspect_ratios: expected a number above 0"),
        ({"aspect_ratios": "2"}, "aspect_ratios: expected a list of numbers"),
        ({"negatives": 0}, "negatives: expected a number above 0"),
        ({"gamma": 2.0}, "gamma: SSDHead has no such option"),
    ],
)
def test_wrong_options_are_named_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=r"head_options\." + says) as caught:
        SSDHead(SPEC, CLASSES, **options)
    assert "\n" not in str(caught.value)


def test_the_backbone_must_fit_the_levels() -> None:
    with pytest.raises(UserError, match="head ssd: reads the maps C3, C4 as levels"):
        SSDHead(SPEC, CLASSES, levels=[3, 4])
    one = FeatureSpec("one", ("C4",), (8,), (16,))
    with pytest.raises(UserError, match=r"extra_channels: expected 5 for levels .*, got \[512, 256, 256, 128\]"):
        SSDHead(one, CLASSES)
    assert SSDHead.requires(levels=[3, 4, 5, 6]).levels == ("C3", "C4", "C5")


def test_it_has_all_options_of_boxes_and_predictions() -> None:
    focal = {"alpha", "gamma", "prior"}  # of a loss without a background class
    network = {"variant", "channels", "cells", "repeats", "fusion", "activation", "anchor_scale", "num_scales"}
    assert set(head_options(EfficientDetHead)) - focal - network <= set(head_options(SSDHead))


@pytest.mark.parametrize("size", [(256, 256), (192, 320)])
def test_default_boxes_are_fitted_to_small_and_slender_boxes(size: tuple[int, int]) -> None:
    """What is proposed is built, has as many default boxes, and they overlap the boxes more; where they do already, nothing is."""
    torch.manual_seed(0)
    spec = FeatureSpec("b0", ("C4", "C5"), (16, 24), (16, 32))
    head = SSDHead(spec, 3, extra_channels=[8, 8, 8, 8])
    sides = (torch.rand(200, 1) + 0.3) * size[0] * 0.05
    slender = torch.cat([sides, sides * 4], 1)[torch.arange(400) % 200]
    options = head.fit_to_data(slender, size)
    assert set(options) == {"min_scale", "max_scale", "aspect_ratios"}
    fitted = SSDHead(spec, 3, extra_channels=[8, 8, 8, 8], **options)
    assert fitted._counts == head._counts
    means = []
    for one in (head, fitted):
        anchors = one._anchors_for(ImageSizes.of(torch.zeros(1, 3, *size)))
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2  # each box in the middle of each anchor
        boxes = torch.cat([middles - slender[:1] / 2, middles + slender[:1] / 2], 1)
        paired = pairwise_iou(boxes[:, None], anchors[:, None])[:, 0, 0]
        means.append(float(paired.max()))
    assert means[1] > means[0] + 0.1
    assert fitted.fit_to_data(slender, size) == {}
    assert head.fit_to_data(torch.zeros(0, 2), size) == head.fit_to_data(torch.zeros(3, 2), size) == {}
