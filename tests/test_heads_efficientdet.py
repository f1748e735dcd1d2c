"""EfficientDet as a whole: equal to the reference on the same weights, and every promise of a head."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from effbackbones import build_model
from effbackbones.backbones import passes
from effbackbones.conformance import check_head, enforce
from effbackbones.conformance.comparing import export_holds
from effbackbones.conformance.head import HEAD_PROMISES
from effbackbones.contracts import IMAGENET_MEAN, IMAGENET_STD, BoxTargets, Detections, FeatureSpec, ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan
from effbackbones.images.reading import read_image
from effbackbones.model import Model, MultiHead
from effbackbones.weights import dialects
from heads.detection.efficientdet import DetRaw, EfficientDetHead
from heads.detection.nms import top_pairs
from heads.detection.variants import VARIANTS, variant_for

TINY = {"channels": 16, "cells": 1, "repeats": 1}
NARROW = {"width": 0.25, "depth": 0.3}


def tiny(
    classes: int = 3, backbone: str = "b0", backbone_options: dict[str, Any] | None = None, **options: Any
) -> Model:
    torch.manual_seed(0)
    return build_model(
        "det",
        backbone,
        num_classes=classes,
        backbone_options=NARROW | (backbone_options or {}),
        head_options=TINY | options,
    )


def targets_of(*images: list[tuple[list[float], int]], rows: int = 6) -> BoxTargets:
    boxes, labels = torch.zeros(len(images), rows, 4), torch.full((len(images), rows), -1)
    for i, objects in enumerate(images):
        for j, (box, label) in enumerate(objects):
            boxes[i, j], labels[i, j] = torch.tensor(box), label
    return BoxTargets(boxes, labels, torch.zeros(len(images), rows, dtype=torch.bool))


# --- the reference ---------------------------------------------------------------------------------------------------

KEYS = (
    (
        r"fpn\.resample\.(\d+)\.conv\.(conv|bn)\.(.+)",
        lambda level, part, leaf: f"neck.resample.{int(level) + 3}.{part}.{leaf}",
    ),
    (
        r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.resample\.(\d+)\.conv\.(conv|bn)\.(.+)",
        "neck.cells.{}.nodes.{}.laterals.{}.{}.{}",
    ),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.edge_weights", "neck.cells.{}.nodes.{}.weights"),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.after_combine\.conv\.conv_dw\.(.+)", "neck.cells.{}.nodes.{}.conv.depthwise.{}"),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.after_combine\.conv\.conv_pw\.(.+)", "neck.cells.{}.nodes.{}.conv.pointwise.{}"),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.after_combine\.conv\.bn\.(.+)", "neck.cells.{}.nodes.{}.conv.bn.{}"),
    (r"(class|box)_net\.conv_rep\.(\d+)\.conv_dw\.(.+)", "{}_net.depthwise.{}.{}"),
    (r"(class|box)_net\.conv_rep\.(\d+)\.conv_pw\.(.+)", "{}_net.pointwise.{}.{}"),
    (r"(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.bn\.(.+)", "{}_net.bn.{}.{}.{}"),
    (r"(class|box)_net\.predict\.conv_dw\.(.+)", "{}_net.predict.depthwise.{}"),
    (r"(class|box)_net\.predict\.conv_pw\.(.+)", "{}_net.predict.pointwise.{}"),
)
"""effdet's names (reference sheet 2.11) and ours."""


def our_name(key: str) -> str:
    if key.startswith("backbone."):
        return f"backbone.{dialects.TIMM.translate(key.removeprefix('backbone.'))}"
    for pattern, ours in KEYS:
        if match := re.fullmatch(pattern, key):
            return "head." + (ours.format(*match.groups()) if isinstance(ours, str) else ours(*match.groups()))
    raise KeyError(key)


def pictures(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def reference(name: str, images: Tensor, classes: int = 7, **settings: Any) -> nn.Module:
    """effdet's network with random weights, logits that are spread, and values on ``images`` that do not blow up."""
    effdet = pytest.importorskip("effdet")
    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    config.update({"image_size": tuple(images.shape[-2:]), "num_classes": classes, **settings})
    torch.manual_seed(0)
    network = effdet.EfficientDet(config, pretrained_backbone=False)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0  # the statistics become those of this batch
            norm.weight.uniform_(0.8, 1.2)
            norm.bias.uniform_(-0.2, 0.2)
        for key, parameter in network.named_parameters():
            if key.endswith("edge_weights"):
                parameter.uniform_(-0.2, 1.5)
        network.class_net.predict.conv_pw.bias.uniform_(-4, 0)
        network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def transplanted(network: nn.Module, name: str, **options: Any) -> Model:
    """Ours with the same weights, strictly."""
    backbone = network.config.backbone_name.removeprefix("tf_efficientnet_")
    options = {"variant": name, **options}
    ours = build_model(
        "det",
        backbone,
        num_classes=network.config.num_classes,
        backbone_options={"numerics": "tf"},
        head_options=options,
    )
    state = {our_name(key): value for key, value in network.state_dict().items()}
    ours.load_state_dict(
        {key: value.flatten(1) if "squeeze_excite" in key and value.ndim > 1 else value for key, value in state.items()}
    )
    return ours.eval()


def flat(outputs: list[Tensor], width: int) -> Tensor:
    return torch.cat([o.permute(0, 2, 3, 1).reshape(len(o), -1, width) for o in outputs], 1)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("d1", "d2", "d3", "d4", "d6", "d7x", "lite2", "lite4")]


@pytest.mark.peer
@pytest.mark.parametrize("name", ["d0", "lite0", *SLOW])
def test_outputs_equal_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the published size Lite0's coarsest map has 3 cells made of 5, which no multiple of 128 shows. Layer by layer, in the order of
    the reference: its own rounding, against float64, is 3e-4; then as it is called."""
    side, coarsest = VARIANTS[name].resolution, 2 ** max(VARIANTS[name].levels)
    square = side if side % coarsest else 2 * coarsest
    close = 1e-3 if name in ("d6", "d7x") else 1e-4  # eight cells of sums: more rounding
    for size, tolerance in (((square, square), close), ((square, square + coarsest), 1e-3)):
        images = pictures(2, *size)
        network = reference(name, images)
        ours = transplanted(network, name)
        with torch.no_grad():
            classes, boxes = network(images)
            called = ours(images, normalized=True)
            with monkeypatch.context() as patch:
                patch.setattr(passes, "ENABLED", False)
                raw = ours(images, normalized=True)
        expected = torch.cat([flat(classes, 7), flat(boxes, 4)], 2)
        assert 0.1 < expected.std() < 10, "too tame or too wild to compare"
        assert (torch.cat([raw.logits, raw.deltas], 2) - expected).abs().max() < tolerance
        assert (torch.cat([called.logits, called.deltas], 2) - expected).abs().max() < 2e-3
        assert (raw.anchors - peer_anchors(network)).abs().max() < 1e-4


def peer_anchors(network: nn.Module) -> Tensor:
    effdet = pytest.importorskip("effdet.anchors")
    anchors: Tensor = effdet.Anchors.from_config(network.config).boxes[:, [1, 0, 3, 2]]
    return anchors


@pytest.mark.peer
def test_predictions_equal_the_reference_on_images(data_root: Path) -> None:
    """Same boxes, same order, on letterboxed COCO images, with hard and with soft suppression."""
    bench = pytest.importorskip("effdet.bench").DetBenchPredict
    files = sorted((data_root / "coco_mini" / "val2017").glob("*.jpg"))[:4]
    plans, pictures = [], []
    for file in files:
        pixels = read_image(file)
        plan = ResizePlan.letterbox(pixels.shape[:2], (256, 256))
        plans.append(plan)
        pictures.append(torch.from_numpy(plan.apply_image(pixels, "bilinear", (124, 116, 104))).permute(2, 0, 1))
    batch = torch.stack(pictures)
    valid = torch.tensor([plan.valid for plan in plans])
    sizes = ImageSizes((256, 256), valid)
    assert any(side < 256 for plan in plans for side in plan.valid)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (batch / 255 - mean) / std
    network = reference(
        "d0", normalised, 90
    ).double()  # in float32 two scores are equal up to rounding, and change places
    info = {"img_scale": torch.ones(len(files)), "img_size": valid.flip(1).float()}
    for nms in ("hard", "gaussian"):
        ours = transplanted(network, "d0", nms=nms, score_threshold=0.0 if nms == "hard" else 0.001).double()
        peer = bench(network)
        peer.soft_nms = nms == "gaussian"
        with torch.no_grad():
            expected = peer(normalised.double(), info)
        found = ours.predict(batch, sizes)
        assert found.count.tolist() == [100] * len(files)
        assert len(found.labels.unique()) > 10
        for rows, one in zip(expected, found.unbatch(), strict=True):
            # Boxes in the letterbox, which clipping leaves without extent, are reported there and not here.
            real = rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]
            assert len(real) > 20
            assert torch.equal(one.labels[: len(real)] + 1.0, real[:, 5])
            assert (one.scores[: len(real)] - real[:, 4]).abs().max() < 1e-4
            assert (one.boxes[: len(real)] - real[:, :4]).abs().max() < 0.1


@pytest.mark.peer
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_equal_the_reference(smoothing: float) -> None:
    effdet, anchors = pytest.importorskip("effdet"), pytest.importorskip("effdet.anchors")
    images = pictures(3, 256, 384)
    network = reference("d0", images, label_smoothing=smoothing)
    ours = transplanted(network, "d0", label_smoothing=smoothing)
    targets = targets_of(
        [([10.0, 20.0, 90.0, 200.0], 3), ([12.0, 20.0, 88.0, 190.0], 1), ([200.0, 30.0, 204.0, 250.0], 6)],
        [],
        [([0.0, 0.0, 384.0, 256.0], 0), ([300.5, 100.25, 330.0, 131.0], 2)],
    )
    raw = ours(images, normalized=True)
    losses = ours.head.loss(raw, targets, ImageSizes.of(images))
    labeler = anchors.AnchorLabeler(anchors.Anchors.from_config(network.config), 7)
    real = [labels >= 0 for labels in targets.labels]
    rows = [boxes[mask][:, [1, 0, 3, 2]] for boxes, mask in zip(targets.boxes, real, strict=True)]
    classes = [labels[mask] + 1.0 for labels, mask in zip(targets.labels, real, strict=True)]
    labelled = labeler.batch_label_anchors(rows, classes)
    outputs = network(images)
    total, class_loss, box_loss = effdet.loss.DetectionLoss(network.config)(*outputs, *labelled)
    assert labelled[2].tolist()[1] == 0
    assert labelled[2].sum() > 20
    losses = {name: value.detach() for name, value in losses.items()}
    assert float(losses["class"]) == pytest.approx(class_loss.item(), rel=1e-5)
    assert float(losses["box"]) == pytest.approx(50 * box_loss.item(), rel=1e-5)
    assert float(sum(losses.values())) == pytest.approx(total.item(), rel=1e-5)


PUBLISHED = {
    "d0": ("b0", 3_880_067, 784),
    "d1": ("b1", 6_625_898, 1004),
    "d2": ("b2", 8_097_039, 1076),
    "d3": ("b3", 12_032_296, 1270),
    "d4": ("b4", 20_723_675, 1474),
    "d5": ("b5", 33_653_315, 1622),
    "d6": ("b6", 51_871_782, 1818),
    "d7": ("b6", 51_871_782, 1818),
    "d7x": ("b7", 77_147_166, 2210),
}
"""Parameters with 90 classes, entries of the state dict (reference sheet 2.1)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_those_published(name: str) -> None:
    backbone, parameters, entries = PUBLISHED[name]
    with torch.device("meta"):
        model = build_model("det", backbone, num_classes=90, head_options={"variant": name})
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


@pytest.mark.peer
@pytest.mark.parametrize("name", VARIANTS)
def test_rows_equal_the_reference(name: str) -> None:
    effdet, row = pytest.importorskip("effdet"), VARIANTS[name]
    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    weighted = config.fpn_name is None and (
        config.fpn_config is None or config.fpn_config.nodes[0].weight_method == "fastattn"
    )
    assert (row.resolution, row.channels, row.cells) == (
        config.image_size[0],
        config.fpn_channels,
        config.fpn_cell_repeats,
    )
    assert (row.repeats, row.anchor_scale, row.num_scales) == (
        config.box_class_repeats,
        config.anchor_scale,
        config.num_scales,
    )
    assert row.aspect_ratios == tuple(map(tuple, config.aspect_ratios))
    assert (row.levels[0], row.levels[-1]) == (config.min_level, config.max_level)
    assert (row.fusion == "fast") == weighted
    assert row.activation == {"swish": "silu"}.get(config.act_type, config.act_type)
    backbone = config.backbone_name.removeprefix("tf_efficientnet_")
    assert variant_for(backbone).name == name or name == "d7"


# --- the contract ----------------------------------------------------------------------------------------------------


GRAPHS = ("export", "compile")
"""These take most of the time; one set of options, and the pyramids below, have them."""


def test_every_promise_is_kept() -> None:
    enforce(check_head(EfficientDetHead, options=TINY | {"levels": [4, 5, 6]}))


@pytest.mark.parametrize(
    "options",
    [
        {
            "fusion": "softmax",
            "levels": [2, 3, 4, 5],
            "iou_loss": "ciou",
            "nms": "gaussian",
            "crowd_ignore": True,
            "max_detections": 7,
        },
        {
            "variant": "lite1",
            "levels": [3, 4, 5, 6],
            "num_scales": 1,
            "aspect_ratios": [[1, 1], [3, 0.5]],
            "label_smoothing": 0.1,
        },
    ],
)
def test_every_promise_is_kept_with_other_options(options: dict[str, Any]) -> None:
    enforce(
        check_head(
            EfficientDetHead, options=TINY | options, promises=[name for name in HEAD_PROMISES if name not in GRAPHS]
        )
    )


@pytest.mark.slow
def test_every_promise_is_kept_at_full_size() -> None:
    enforce(check_head(EfficientDetHead, num_classes=80))


PYRAMIDS = [
    ("b0", {}, {}, (8, 16, 32, 64, 128), 128),
    ("b0", {"stem_stride": 1}, {}, (4, 8, 16, 32, 64), 64),
    ("b0", {"output_stride": 16}, {}, (8, 16, 16, 32, 64), 64),
    ("b0", {"output_stride": 8}, {"levels": [2, 3, 4, 5, 6]}, (4, 8, 8, 8, 16), 16),
    ("b0", {"levels": ("C3", "C4")}, {}, (8, 16, 32, 64, 128), 128),
    ("b0", {}, {"levels": [4, 5]}, (16, 32), 32),
    ("lite0", {}, {}, (8, 16, 32, 64, 128), 64),
    ("timm:resnet10t", None, {}, (8, 16, 32, 64, 128), 128),
]


@pytest.mark.parametrize(("backbone", "backbone_options", "options", "strides", "divisor"), PYRAMIDS)
def test_any_backbone_gives_a_working_pyramid(
    backbone: str,
    backbone_options: dict[str, Any] | None,
    options: dict[str, Any],
    strides: tuple[int, ...],
    divisor: int,
) -> None:
    narrow = {} if backbone_options is None else NARROW | backbone_options
    model = build_model("det", backbone, num_classes=3, backbone_options=narrow, head_options=TINY | options).eval()
    assert (model.head.neck.strides, model.head.size_divisor) == (strides, divisor)
    images = torch.rand(2, 3, 150, 200)
    with torch.no_grad():
        raw = model(images)
    height, width = (-(-side // divisor) * divisor for side in (150, 200))
    cells = sum(-(-height // s) * -(-width // s) for s in strides)
    assert raw.logits.shape == (2, 9 * cells, 3)
    assert raw.anchors.shape == raw.deltas.shape[1:] == (9 * cells, 4)
    assert torch.equal(
        raw.anchors[0], torch.tensor([-1.5, -1.5, 2.5, 2.5]) * strides[0] if backbone != "lite0" else raw.anchors[0]
    )
    middle = raw.anchors.view(-1, 2, 2).mean(1)
    assert (middle > 0).all()
    assert (middle < torch.tensor([width, height])).all()
    losses = model.train().loss(images, targets_of([([30.0, 20.0, 90.0, 140.0], 2)], []))
    assert all(bool(value.isfinite()) for value in losses.values())


@pytest.mark.parametrize("size", [(33, 97), (270, 480), (608, 608), (1080, 1920), (1, 1)])
def test_every_size_predicts(size: tuple[int, int]) -> None:
    model = tiny(score_threshold=0.0).eval()
    found = model.predict(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8))
    assert found.boxes.shape == (1, 100, 4)
    assert found.count.item() > 0
    (boxes, *_), (height, width) = found.unbatch()[0], size
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("size", [(33, 97), (270, 480), (256, 128)])
def test_padding_by_hand_equals_padding_inside(size: tuple[int, int]) -> None:
    model = tiny(score_threshold=0.0).eval()
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    fill = torch.tensor(IMAGENET_MEAN).mul(255).round().to(torch.uint8).view(3, 1, 1)
    by_hand = fill.repeat(2, 1, 384, 512)[..., : -(-size[0] // 128) * 128, : -(-size[1] // 128) * 128].clone()
    by_hand[..., : size[0], : size[1]] = images
    sizes = ImageSizes(tuple(by_hand.shape[-2:]), torch.tensor([size, size]))  # type: ignore[arg-type]
    for got, expected in zip(model.predict(by_hand, sizes), model.predict(images), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_heads_side_by_side_give_what_they_give_alone() -> None:
    """Another head's divisor pads more; the anchors follow the images that the backbone saw."""
    model = tiny().eval()
    pair = MultiHead(model.head.spec, {"det": model.head})
    pair.size_divisor = 512
    both = Model(model.backbone, pair).eval()
    images = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        alone, together = model(images), both(images)["det"]
    assert len(together.anchors) == 4 * len(alone.anchors)
    assert {tuple(box) for box in alone.anchors.tolist()} <= {tuple(box) for box in together.anchors.tolist()}


@pytest.mark.parametrize(
    ("backbone", "backbone_options", "levels"),
    [
        ("lite0", {}, [5, 6, 7]),
        pytest.param("lite0", {}, [3, 4, 5, 6, 7], marks=pytest.mark.slow),
        pytest.param("b0", {"output_stride": 16}, None, marks=pytest.mark.slow),
        pytest.param("b0", {"stem_stride": 1}, None, marks=pytest.mark.slow),
    ],
)
def test_unusual_pyramids_export(backbone: str, backbone_options: dict[str, Any], levels: list[int] | None) -> None:
    """Lite0's coarsest map may have 3 cells made of 5: the only one whose stride is no whole number."""
    model = tiny(backbone=backbone, backbone_options=backbone_options, levels=levels).eval()
    with torch.no_grad():
        others = [torch.rand(b, 3, h, w) for b, h, w in [(1, 320, 320), (3, 319, 200)]]
        assert list(export_holds(model, torch.rand(2, 3, 320, 448), others)) == []


def test_folding_changes_nothing() -> None:
    model = tiny(num_scales=2).train()
    for _ in range(3):
        model(torch.rand(2, 3, 128, 256))  # moves the statistics
    folded = model.eval().for_inference(backend="eager")
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    images = torch.rand(2, 3, 128, 256)
    with torch.no_grad():
        for got, expected in zip(folded(images), model(images), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_leaves_the_anchors_alone() -> None:
    model = tiny().eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        expected = model(images).anchors
        raw = model.bfloat16()(images)
    assert raw.anchors.dtype == torch.float32
    assert torch.equal(raw.anchors, expected)
    assert model.predict(images).scores.dtype == torch.float32


# --- the loss --------------------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Counts operators that wait for the device, or whose output's shape depends on values."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "item",
        "masked_select",
        "_to_copy_device",
        "unique",
        "is_nonzero",
        "equal",
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        boolean = any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)
        moves = name == "_to_copy" and "device" in (kwargs or {}) and (kwargs or {})["device"] is not None
        lifts = name in ("lift_fresh", "lift_fresh_copy")  # a constant made on the host
        if name in self.WAITING or boolean or moves or lifts:
            self.seen.append(name)
        self.operators += 1
        return func(*args, **(kwargs or {}))


def test_a_training_step_never_waits_for_the_device() -> None:
    model = tiny(iou_loss="ciou", crowd_ignore=True, label_smoothing=0.1).train()
    images, targets = torch.rand(2, 3, 128, 256), targets_of([([30.0, 20.0, 90.0, 140.0], 2)], [])
    sizes = ImageSizes.of(images)
    with Watch() as watch:
        raw = model(images, sizes)
        losses = model.head.loss(raw, targets, sizes)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert watch.operators > 500
    assert watch.seen == []
    with Watch() as watch:
        found = raw.logits[raw.logits > 0].sum().item()
        torch.tensor([found])
    assert len(watch.seen) >= 3


def test_a_step_has_as_many_operators_for_one_box_as_for_a_hundred() -> None:
    model = tiny().train()
    images = torch.rand(2, 3, 128, 128)
    counts = []
    for boxes in (1, 100):
        targets = targets_of([([1.0 + i, 5.0, 60.0 + i / 2, 90.0], i % 3) for i in range(boxes)], [], rows=boxes)
        with Watch() as watch:
            model.loss(images, targets)
        counts.append(watch.operators)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("rows", [0, 4])
def test_a_batch_without_boxes_trains(rows: int) -> None:
    model = tiny(iou_loss="giou").train()
    losses = model.loss(torch.rand(2, 3, 128, 128), targets_of([], [], rows=rows))
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert losses["box"].item() == losses["iou"].item() == 0
    assert losses["class"].item() > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("classes", [1, 80])
def test_the_first_loss_is_small(classes: int) -> None:
    """Without the prior bias, 49,104 anchors times 80 classes that say "perhaps" would make it 1e4."""
    torch.manual_seed(0)
    model = build_model("det", "b0", num_classes=classes).train()
    losses = model.loss(torch.rand(1, 3, 512, 512), targets_of([([100.0, 100.0, 300.0, 200.0], 0)]))
    assert 0 < losses["class"].item() + losses["box"].item() < 50


def test_crowds_are_never_positive() -> None:
    images = torch.rand(1, 3, 128, 128)
    here = targets_of([([10.0, 10.0, 60.0, 60.0], 0), ([50.0, 0.0, 128.0, 128.0], 1)])
    crowd = here._replace(crowd=torch.tensor([[False, True] + [False] * 4]))
    other_class = crowd._replace(labels=torch.tensor([[0, 2] + [-1] * 4]))
    alone = targets_of([([10.0, 10.0, 60.0, 60.0], 0)])
    for ignore in (False, True):
        model = tiny(crowd_ignore=ignore).eval()
        raw = model(images)
        values = {
            name: torch.stack(list(model.head.loss(raw, targets, ImageSizes.of(images)).values()))
            for name, targets in {"here": here, "crowd": crowd, "other": other_class, "alone": alone}.items()
        }
        assert torch.equal(values["crowd"], values["other"])
        assert torch.equal(values["crowd"][1], values["alone"][1])
        assert not torch.allclose(values["crowd"], values["here"])
        assert (values["crowd"][0] < values["alone"][0]) == ignore, (
            "the background inside the crowd counts, or does not"
        )


def test_losses_are_float32_under_autocast() -> None:
    model = tiny(iou_loss="diou").train()
    images, targets = torch.rand(2, 3, 128, 128), targets_of([([30.0, 20.0, 90.0, 120.0], 2)], [])
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(images)
        losses = model.head.loss(raw, targets, ImageSizes.of(images))
        found = model.head.predict(raw, ImageSizes.of(images))
    assert raw.anchors.dtype == found.boxes.dtype == found.scores.dtype == torch.float32
    assert {value.dtype for value in losses.values()} == {torch.float32}


# --- the detections --------------------------------------------------------------------------------------------------


def test_a_tall_thin_object_on_a_wide_image_is_found() -> None:
    """A few dozen steps on one image. x and y mixed up anywhere between targets and detections would find a flat box."""
    torch.manual_seed(0)
    image = torch.full((1, 3, 128, 384), 0.2)
    box = [250.0, 14.0, 266.0, 114.0]
    image[..., 14:114, 250:266] = 0.9
    model = build_model(
        "det", "b0", num_classes=1, backbone_options=NARROW | {"drop_path": 0.0}, head_options=TINY | {"channels": 32}
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    targets = targets_of([(box, 0)])
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.2
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(torch.stack(list(model.train().loss(image, targets).values())).sum())
        optimiser.step()
    found = model.eval().predict(image).unbatch()[0]
    assert float(box_iou(found.boxes[:1], torch.tensor([box]))) > 0.8
    assert found.scores[0] > 0.3


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    from torchvision.ops import box_iou

    iou: Tensor = box_iou(boxes, others)
    return iou


def raw_of(head: EfficientDetHead, logits: float = 0.0, seed: int = 0) -> DetRaw:
    """Random output for an image of 128 x 128 pixels."""
    torch.manual_seed(seed)
    features = [
        torch.randn(2, c, 128 // s, 128 // s) for c, s in zip(head.spec.channels, head.spec.strides, strict=True)
    ]
    with torch.no_grad():
        raw: DetRaw = head.eval()(features, ImageSizes((128, 128), torch.tensor([[128, 128]] * 2)))
    return raw._replace(logits=2 * torch.randn_like(raw.logits) + logits, deltas=0.3 * torch.randn_like(raw.deltas))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 5), st.integers(1, 70), st.sampled_from([1, 3, 1000]))
def test_top_pairs_are_those_of_all_pairs(seed: int, anchors: int, classes: int, count: int, steps: int) -> None:
    """Also where most logits tie."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(2, anchors, classes, generator=generator) * steps).round() / steps
    values, where, labels = top_pairs(logits, count)
    expected, order = logits.flatten(1).sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :count])
    assert torch.equal(where * classes + labels, order[:, :count])


@pytest.mark.parametrize("nms", ["hard", "gaussian"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_output_is_passed_over(nms: str, poison: float) -> None:
    head = tiny(nms=nms, pre_nms=200).head
    assert isinstance(head, EfficientDetHead)
    sizes = ImageSizes((128, 128), torch.tensor([[128, 128], [100, 60]]))
    raw = raw_of(head)
    generator = torch.Generator().manual_seed(1)
    for tensor in (raw.logits, raw.deltas):
        hit = torch.rand(tensor.shape[:2], generator=generator) < 0.3
        tensor[..., 0][hit] = poison
    all_logits, all_deltas = (
        raw._replace(logits=torch.full_like(raw.logits, poison)),
        raw._replace(deltas=raw.deltas * poison),
    )
    for i, output in enumerate((raw, all_logits, all_deltas)):
        found = head.predict(output, sizes)
        assert found.boxes.isfinite().all()
        assert found.scores.isfinite().all()
        assert (found.count > 0).all() if i == 0 else (found.count == 0).all()
        assert_well_formed(found, sizes)


def assert_well_formed(found: Detections, sizes: ImageSizes) -> None:
    for one, (height, width) in zip(found.unbatch(), sizes.valid.tolist(), strict=True):
        assert (one.boxes[:, :2] >= 0).all()
        assert (one.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert (one.scores.diff() <= 0).all()
    rest = torch.arange(found.scores.shape[1]) >= found.count[:, None]
    assert not found.scores[rest].any()
    assert not found.boxes[rest].any()


def test_detections_are_clipped_to_the_content_before_suppression() -> None:
    """Two boxes that overlap little become one where the letterbox cuts them, so only one may stay."""
    head = tiny(classes=1, score_threshold=0.5).head
    assert isinstance(head, EfficientDetHead)
    anchors = torch.tensor([[0.0, 0.0, 50.0, 50.0], [0.0, 0.0, 50.0, 120.0], [90.0, 90.0, 110.0, 110.0]])
    raw = DetRaw(torch.tensor([[[3.0], [2.0], [1.0]]]), torch.zeros(1, 3, 4), anchors)
    whole, cut = (head.predict(raw, ImageSizes((128, 128), torch.tensor([[side, side]]))) for side in (128, 50))
    assert whole.count.tolist() == [3]
    assert cut.count.tolist() == [1], "the third lies in the letterbox"
    assert cut.boxes[0, 0].tolist() == [0, 0, 50, 50]


@pytest.mark.parametrize("nms", ["hard", "gaussian"])
def test_classes_do_not_suppress_each_other(nms: str) -> None:
    head = tiny(classes=2, score_threshold=0.5, nms=nms).head
    assert isinstance(head, EfficientDetHead)
    anchors = torch.tensor([[0.0, 0.0, 50.0, 50.0], [1.0, 0.0, 51.0, 50.0]])
    raw = DetRaw(torch.tensor([[[3.0, 2.0], [1.0, 0.5]]]), torch.zeros(1, 2, 4), anchors)
    found = head.predict(raw, ImageSizes((128, 128), torch.tensor([[128, 128]])))
    assert found.count.tolist() == [2]
    assert found.labels[0, :2].tolist() == [0, 1]
    assert found.scores[0, :2].tolist() == pytest.approx([0.9526, 0.8808], abs=1e-4)


def test_limits_are_kept() -> None:
    for options in ({"max_detections": 5}, {"score_threshold": 0.6}, {"pre_nms": 9}):
        head = tiny(**options).head
        assert isinstance(head, EfficientDetHead)
        sizes = ImageSizes((128, 128), torch.tensor([[128, 128]] * 2))
        found = head.predict(raw_of(head), sizes)
        assert found.boxes.shape == (2, options.get("max_detections", 100), 4)
        assert (found.count > 0).all()
        assert (found.count <= options.get("pre_nms", 100)).all()
        assert all(bool((one.scores > options.get("score_threshold", 0.001)).all()) for one in found.unbatch())
        assert_well_formed(found, sizes)


# --- anchors and data ------------------------------------------------------------------------------------------------


def test_diagnosis_tells_boxes_that_no_anchor_fits() -> None:
    model = tiny().eval()
    wide = targets_of(
        [([-16.0, -16.0, 24.0, 24.0], 0), ([0.0, 10.0, 250.0, 12.0], 1), ([0.0, 0.0, 100.0, 100.0], 1)], []
    )
    wide.crowd[0, 2] = True
    images = torch.rand(2, 3, 100, 250)
    iou = model.head.diagnose(wide, ImageSizes.of(images))["best_anchor_iou"]
    assert iou.shape == (2, 6)
    assert (iou[0, 2:] == -1).all()
    assert (iou[1] == -1).all()
    assert float(iou[0, 0]) > 0.6
    assert 0 < float(iou[0, 1]) < 0.1
    with torch.no_grad():
        anchors = model(images).anchors
    expected = box_iou(wide.boxes[0, :2], anchors).amax(1)
    torch.testing.assert_close(iou[0, :2], expected)
    assert model.head.diagnose(targets_of([], rows=0), ImageSizes.of(images[:1]))["best_anchor_iou"].shape == (1, 0)


def centred_iou(boxes: Tensor, **options: Any) -> float:
    """Mean IoU of boxes of these sides with the best anchor of any level, both centred on one point."""
    head = tiny(**options).head
    assert isinstance(head, EfficientDetHead)
    row = head.row
    sides = [row.anchor_scale * 2 ** (level + octave / 3) for level in row.levels for octave in range(3)]
    shapes = torch.tensor([(side * x, side * y) for side, (x, y) in itertools.product(sides, row.aspect_ratios)])
    centred, anchors = (torch.cat([-s / 2, s / 2], 1) for s in (boxes, shapes))
    return float(box_iou(centred, anchors).amax(1).mean())


def test_anchors_are_fitted_to_the_data() -> None:
    torch.manual_seed(0)
    tall = torch.stack([torch.empty(400).uniform_(8, 24), torch.empty(400).uniform_(80, 160)], 1)
    before = centred_iou(tall)
    fitted = tiny().head.fit_to_data(tall, (512, 512))
    assert fitted == tiny().head.fit_to_data(tall, (512, 512)), "the same data, the same anchors"
    assert set(fitted) == {"aspect_ratios", "anchor_scale"}
    assert len(fitted["aspect_ratios"]) == 3
    assert centred_iou(tall, **fitted) > before + 0.2
    assert all(y > 2 * x for x, y in fitted["aspect_ratios"])
    json.dumps(fitted)
    assert tiny(**fitted).head.fit_to_data(tall, (512, 512)) == {}, "nothing left to gain"
    assert tiny(variant="lite0").head.fit_to_data(tall, (512, 512))["anchor_scale"] > 0, (
        "a row of another scale is fitted too"
    )


@pytest.mark.parametrize(
    "sides", [torch.zeros(0, 2), torch.tensor([[0.0, 5.0], [torch.nan, 3.0]]), torch.tensor([[32.0, 32.0]])]
)
def test_nothing_is_fitted_without_need(sides: Tensor) -> None:
    assert tiny().head.fit_to_data(sides, (512, 512)) == {}


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        *((f"b{i}", f"d{i}") for i in range(7)),
        ("b7", "d7x"),
        *((f"lite{i}", f"lite{i}") for i in range(5)),
        ("b0.4", "d0"),
        ("b2.5", "d3"),
        ("b-1.0", "d0"),
        ("b9.0", "d7x"),
        ("lite5.5", "lite4"),
        ("timm:tf_efficientnet_b3.ns_jft_in1k", "d3"),
        ("timm:efficientnet_lite0", "lite0"),
        ("timm:resnet50", "d0"),
        ("mine", "d0"),
    ],
)
def test_the_backbone_chooses_the_variant(backbone: str, name: str) -> None:
    assert variant_for(backbone).name == name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"variant": "d8"}, "variant: unknown value 'd8'; did you mean d7"),
        ({"fusion": "fastt"}, "did you mean fast"),
        ({"activation": "swish"}, "activation: unknown value"),
        ({"levels": [3, 5]}, "consecutive"),
        ({"levels": [6, 7]}, "consecutive"),
        ({"levels": [3]}, "consecutive"),
        ({"levels": []}, "consecutive"),
        ({"levels": 3}, "wrong type"),
        ({"aspect_ratios": [1.0, 2.0]}, "pairs"),
        ({"aspect_ratios": [[1.0, -2.0]]}, "pairs"),
        ({"aspect_ratios": []}, "pairs"),
        ({"channels": 0}, "channels: expected an integer of at least 1, got 0"),
        ({"cells": 1.5}, "cells"),
        ({"anchor_scale": 0}, "anchor_scale"),
        ({"prior": 1.0}, "prior"),
        ({"alpha": -1}, "alpha"),
        ({"gamma": -0.5}, "gamma"),
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"huber_delta": 0}, "huber_delta"),
        ({"box_weight": math.inf}, "box_weight"),
        ({"iou_loss": "iou"}, "did you mean"),
        ({"nms": "soft"}, "nms: unknown value"),
        ({"nms_iou": 1.5}, "nms_iou"),
        ({"sigma": 0}, "sigma"),
        ({"max_detections": 0}, "max_detections"),
        ({"score_threshold": -0.1}, "score_threshold"),
        ({"pre_nms": 0}, "pre_nms"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_wrong_options_are_named_in_one_line(options: dict[str, Any], says: str) -> None:
    spec = FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), (8, 16, 32))
    with pytest.raises(UserError, match=re.escape(says) if "(" in says else says) as caught:
        EfficientDetHead(spec, 3, **options)
    assert "\n" not in str(caught.value)


def test_the_backbone_must_fit_the_levels() -> None:
    spec = FeatureSpec("b0", ("C4", "C5"), (112, 320), (16, 32))
    with pytest.raises(UserError, match="C3, C4 as levels"):
        EfficientDetHead(spec, 3)
    odd = FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), (8, 12, 32))
    with pytest.raises(UserError, match="multiples of the next finer"):
        EfficientDetHead(odd, 3)
    assert EfficientDetHead.requires(levels=[2, 3, 4]).levels == ("C2", "C3", "C4")
    assert EfficientDetHead.requires(variant="d7x").levels == ("C3", "C4", "C5")


def test_scores_keep_their_digits_under_autocast() -> None:
    """In bfloat16 a hundred scores would share a few dozen values, and ties would decide the order."""
    model = tiny(8).train()  # statistics of the batch: an untrained network in eval mode says the same everywhere
    head = model.head
    assert isinstance(head, EfficientDetHead)
    torch.nn.init.normal_(head.class_net.predict.pointwise.weight, std=0.3)
    images = torch.rand(2, 3, 128, 128)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        raw = model(images)
    assert raw.logits.dtype == raw.deltas.dtype == torch.float32
    assert len(raw.logits.unique()) > 0.9 * raw.logits.numel()
