"""What dense detectors share: matching, coders, losses by name, and heads of four families written on top of it in a few lines."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from effbackbones import build_model, create_backbone
from effbackbones.conformance import check_head, enforce
from effbackbones.conformance.head import HEAD_PROMISES
from effbackbones.contracts import BackboneNeeds, BoxTargets, FeatureSpec, Head, ImageSizes, head_options
from effbackbones.errors import UserError
from effbackbones.model import Model
from heads.detection.anchors import Assignment, Deltas, IouMatching, pairwise_iou
from heads.detection.criteria import BoxLosses, Coder, Focal, Matched, MinedSoftmax
from heads.detection.dense import DenseHead, DetRaw, RatedRaw, joint_evidence
from heads.detection.efficientdet import EfficientDetHead
from heads.detection.fcos import FCOSHead
from heads.detection.losses import quality_sum
from heads.detection.nms import Selection, top_pairs
from heads.detection.points import POINT, CenterMatching, Distances, centerness
from heads.detection.retinanet import RetinaNetHead
from heads.detection.ssd import SSDHead
from heads.detection.yolo import YoloHead

# --- four heads ------------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """Every map to one width, the coarser ones added to the finer."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(maps) - 1)):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=list(maps[i].shape[-2:]))
        return maps


class Net(nn.Module):
    """A convolution, an activation, and ``outputs`` values of each of the anchors of a cell: [B, A, outputs]."""

    def __init__(self, width: int, anchors: int, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.outputs = outputs
        self.hidden, self.last = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, anchors * outputs, 3, 1, 1)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.constant_(self.last.bias, bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        said = [self.last(F.relu(self.hidden(m))).permute(0, 2, 3, 1) for m in maps]
        return torch.cat([m.reshape(m.shape[0], -1, self.outputs) for m in said], 1)


class Toy(DenseHead):
    """On C3-C5. What is left to a head: its network and its numbers."""

    shapes: ClassVar[Sequence[Sequence[tuple[float, float]]]] = [POINT] * 3

    def __init__(self, spec: FeatureSpec, num_classes: int, *, width: int = 32, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.place(spec.strides, self.shapes)
        self.neck = Pyramid(spec.channels, width)
        outputs, anchors = self.class_loss.outputs(num_classes), len(self.shapes[0])
        self.class_net = Net(width, anchors, outputs, Focal.bias(0.01) if outputs == num_classes else 0.0)
        self.box_net = Net(width, anchors, 4)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(("C3", "C4", "C5"))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Any:
        maps = self.neck(features)
        return DetRaw(self.class_net(maps), self.box_net(maps), self.anchors(features, maps))


class ToyFCOS(Toy):
    matching = CenterMatching(1.5)
    coder: Coder = Distances()
    box_losses = BoxLosses(None, iou_loss="giou")
    selection = Selection(nms_iou=0.6)

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        if self.counted:
            self.counted += ("centerness",)
        self.quality_net = Net(self.box_net.hidden.in_channels, 1, 1)

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> RatedRaw:
        maps = self.neck(features)
        quality = self.quality_net(maps)[..., 0]
        return RatedRaw(self.class_net(maps), self.box_net(maps).exp(), quality, self.anchors(features, maps))

    def counts(self, matched: Matched, anchors: Tensor) -> dict[str, Tensor]:
        central = centerness(matched.boxes, anchors)
        return super().counts(matched, anchors) | {"iou": torch.where(matched.positive, central, 0.0).sum()}

    def losses(self, raw: RatedRaw, matched: Matched, share: Tensor | None = None) -> dict[str, Tensor]:
        central = centerness(matched.boxes, raw.anchors)
        rated = quality_sum(raw.quality.float(), central, matched.positive) / self.normaliser(matched)
        return super().losses(raw, matched, central) | {"centerness": rated}

    def evidence(self, raw: RatedRaw) -> Tensor:
        return joint_evidence(raw.logits, raw.quality)

    def probability(self, evidence: Tensor) -> Tensor:
        return (evidence / 2).exp()  # the geometric mean


class ToyYOLO(ToyFCOS):
    """Objectness on all points, and a matching that looks at what is predicted: of the points that suit a box, the three whose
    boxes overlap it most."""

    matching = CenterMatching(2.5, least=0.0, most=100.0)
    coder = Deltas("xy")

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> RatedRaw:
        raw = super().forward(features, sizes)
        return raw._replace(deltas=raw.deltas.log())

    def assignment(self, raw: RatedRaw, targets: BoxTargets) -> Assignment:
        match, ignored = super().assignment(raw, targets)
        with torch.no_grad():
            boxes = self.coder.decode(raw.deltas.float(), raw.anchors)
            own = match[:, None] == torch.arange(targets.labels.shape[1], device=match.device)[:, None]
            overlap = torch.where(own, pairwise_iou(targets.boxes, boxes), -1.0)
            kept = own & (overlap >= overlap.topk(3, 2).values[..., -1:])
            return Assignment(torch.where(kept.any(1), match, -1), ignored)

    def losses(self, raw: RatedRaw, matched: Matched, share: Tensor | None = None) -> dict[str, Tensor]:
        counted = torch.ones_like(matched.positive)
        found = quality_sum(raw.quality.float(), matched.positive, counted) / self.normaliser(matched)
        return Toy.losses(self, raw, matched) | {"objectness": found}


FAMILIES: list[tuple[type[Head], dict[str, Any], dict[str, Any]]] = [
    (
        RetinaNetHead,
        {"channels": 8, "repeats": 1, "levels": [3, 4, 5], "num_scales": 1},
        {"channels": 32, "repeats": 1, "levels": [3, 4, 5]},
    ),
    (SSDHead, {"levels": [3, 4, 5, 6], "extra_channels": [8], "aspect_ratios": []}, {"levels": [3, 4, 5]}),
    (ToyFCOS, {"width": 8}, {}),
    (ToyYOLO, {"width": 8}, {}),
]
"""Each with options that make it tiny, and with others that let it learn."""


@pytest.mark.parametrize(("head", "tiny"), [case[:2] for case in FAMILIES])
def test_every_promise_is_kept(head: type[Head], tiny: dict[str, Any]) -> None:
    """Graphs take most of the time: they are made in slow tests of their own, and here of EfficientDet."""
    graphs = ("export", "compile")
    enforce(check_head(head, options=tiny, promises=[name for name in HEAD_PROMISES if name not in graphs]))


@pytest.mark.slow
@pytest.mark.parametrize("head", [RetinaNetHead, SSDHead])
def test_every_promise_is_kept_with_the_defaults(head: type[Head]) -> None:
    enforce(check_head(head, num_classes=80))


@pytest.mark.parametrize(("head", "options"), [case[::2] for case in FAMILIES])
def test_objects_are_learnt(head: type[Head], options: dict[str, Any]) -> None:
    """Two objects of two classes, one tall and one wide: x and y, or classes and background, mixed up would not be found."""
    torch.manual_seed(0)
    boxes, labels = [[40.0, 24.0, 72.0, 112.0], [96.0, 80.0, 176.0, 120.0]], [0, 1]
    image = torch.full((1, 3, 128, 192), 0.2)
    image[:, 0, 24:112, 40:72], image[:, 2, 80:120, 96:176] = 0.9, 0.9
    targets = BoxTargets(torch.tensor([boxes]), torch.tensor([labels]), torch.zeros(1, 2, dtype=torch.bool))
    backbone = create_backbone("b0", levels=("C3", "C4", "C5"), width=0.25, depth=0.3, drop_path=0.0)
    model = Model(backbone, head(backbone.feature_spec, 2, **options))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.3
    optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
    values = []
    for _ in range(80):
        optimiser.zero_grad()
        value = torch.stack(list(model.train().loss(image, targets).values())).sum()
        torch.autograd.backward(value)
        optimiser.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.3 * values[0], values
    found = model.eval().predict(image).unbatch()[0]
    for box, label in zip(boxes, labels, strict=True):
        iou = pairwise_iou(torch.tensor([box]), found.boxes[found.labels == label][:1])
        assert float(iou.max()) > 0.5, (found.boxes[:4], found.scores[:4], found.labels[:4])  # turned over: 0.2


# --- matching --------------------------------------------------------------------------------------------------------


def scene(seed: int, count: int = 12, size: float = 128.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, side = (torch.rand(count, 2, generator=generator) for _ in range(2))
    return torch.cat([corner, corner + 0.05 + side.square() * 0.6], 1) * size


def grid(levels: Sequence[int] = (8, 16, 32), shape: tuple[float, float] = (4.0, 4.0), size: int = 128) -> Tensor:
    """Anchors of one shape on every level."""
    parts = []
    for stride in levels:
        at = (torch.arange(size // stride) + 0.5) * stride
        middle = torch.cartesian_prod(at, at).flip(1)
        half = torch.tensor(shape) * stride / 2
        parts.append(torch.cat([middle - half, middle + half], 1))
    return torch.cat(parts)


ALL = torch.ones(1, 12, dtype=torch.bool)


@pytest.mark.peer
@pytest.mark.parametrize("lift", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_and_band_equal_torchvision(lift: bool, seed: int) -> None:
    utils = pytest.importorskip("torchvision.models.detection._utils")
    anchors, boxes = grid(), scene(seed)
    expected = utils.Matcher(0.5, 0.4, allow_low_quality_matches=lift)(pairwise_iou(boxes, anchors))
    found = IouMatching(0.5, 0.4, "lift" if lift else "none")(anchors, boxes[None], ALL)
    assert found.ignored is not None
    assert torch.equal(torch.where(found.ignored, -2, found.match)[0], expected)
    assert (expected == -2).any()
    assert (expected >= 0).any()


def test_a_band_and_crowds_are_ignored_together_and_boxes_win() -> None:
    anchors, boxes = grid(), scene(1)
    usable, crowd = ALL.clone(), torch.zeros_like(ALL)
    usable[0, 3], crowd[0, 3] = False, True
    claimed = IouMatching(0.5, 0.4)(anchors, boxes[None], usable, crowd)
    apart = (
        IouMatching(0.5, 0.4)(anchors, boxes[None], usable).ignored,
        IouMatching()(anchors, boxes[None], usable, crowd).ignored,
    )
    assert claimed.ignored is not None
    assert apart[0] is not None
    assert apart[1] is not None
    assert torch.equal(claimed.ignored, apart[0] | apart[1])
    assert not (claimed.ignored & (claimed.match >= 0)).any()
    assert set(range(12)) - set(claimed.match.flatten().tolist()) <= {3}, "each box has got an anchor"
    assert IouMatching(0.5, 0.5, "none")(anchors, boxes[None], usable).ignored is None


@pytest.mark.parametrize("seed", range(3))
def test_points_get_the_boxes_around_them(seed: int) -> None:
    """The definition, point by point."""
    rule, points, boxes = CenterMatching(1.5, 1.0, 2.0), grid(shape=(1.0, 1.0)), scene(seed)
    usable = ALL.clone()
    usable[0, 5] = False
    expected = []
    for left, top, right, bottom in points.tolist():
        (x, y), stride = ((left + right) / 2, (top + bottom) / 2), right - left
        least, most = {8: (0.0, 16.0), 16: (16.0, 32.0), 32: (32.0, math.inf)}[round(stride)]
        suiting = []
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * stride
            if i != 5 and near and min(sides) > 0 and least < max(sides) < most:
                suiting.append(((x2 - x1) * (y2 - y1), i))
        expected.append(min(suiting)[1] if suiting else -1)
    match = rule(points, boxes[None], usable).match[0]
    assert match.tolist() == expected
    assert len(set(expected)) > 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"positive_iou": 0.0}, "positive_iou: expected a number above 0 and at most 1, got 0.0"),
        ({"negative_iou": 0.6}, "negative_iou: expected at most positive_iou, 0.5, got 0.6"),
        ({"force": "yes"}, "force: unknown value"),
    ],
)
def test_wrong_thresholds_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        IouMatching(**options)


# --- coders ----------------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_coders_equal_torchvision() -> None:
    utils = pytest.importorskip("torchvision.models.detection._utils")
    boxes, anchors = scene(1), scene(2)
    for center, size in ((1.0, 1.0), (0.1, 0.2)):
        peer, ours = utils.BoxCoder((1 / center, 1 / center, 1 / size, 1 / size)), Deltas("xy", center, size)
        torch.testing.assert_close(
            ours.encode(boxes, anchors), peer.encode_single(boxes, anchors), rtol=1e-4, atol=1e-5
        )
    points = grid((8,), (1.0, 1.0))[:12]
    expected = utils.BoxLinearCoder(normalize_by_size=True).encode(points, boxes)  # it names them so
    torch.testing.assert_close(Distances().encode(boxes, points), expected)


@pytest.mark.parametrize("coder", [Deltas(), Deltas("yx"), Deltas("xy", 0.1, 0.2), Distances()])
def test_decoding_undoes_encoding(coder: Coder) -> None:
    boxes, anchors = scene(1), scene(2)
    torch.testing.assert_close(coder.decode(coder.encode(boxes, anchors), anchors), boxes, rtol=1e-4, atol=1e-3)


def test_centerness_by_hand() -> None:
    points = torch.tensor([[4.0, 4.0, 6.0, 6.0], [1.0, 4.0, 3.0, 6.0], [-1.0, 4.0, 1.0, 6.0], [20.0, 4.0, 22.0, 6.0]])
    rated = centerness(torch.tensor([0.0, 0.0, 10.0, 10.0]).expand(4, 4), points)
    assert rated.tolist() == pytest.approx([1.0, math.sqrt(2 / 8), 0.0, 0.0])


# --- losses ----------------------------------------------------------------------------------------------------------


def test_softmax_takes_the_hardest_negatives_of_each_image() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 40, 4), torch.full((2, 40), -1)
    labels[0, :3], ignored = torch.tensor([0, 2, 1]), torch.zeros(2, 40, dtype=torch.bool)
    ignored[0, 10:20] = True
    expected = 0.0
    costs = F.cross_entropy(logits[0], labels[0] + 1, reduction="none")
    negatives = sorted((float(c) for i, c in enumerate(costs) if i >= 3 and not 10 <= i < 20), reverse=True)
    expected = float(costs[:3].sum()) + sum(negatives[:9])  # the second image has no positive, and so no negative
    assert float(MinedSoftmax().sum(logits, labels, ignored)) == pytest.approx(expected, rel=1e-5)
    loss = MinedSoftmax(negatives=1000.0)
    whole = float(costs.sum())
    assert float(loss.sum(logits[:1], labels[:1], None)) == pytest.approx(whole, rel=1e-5)
    scores = loss.probability(loss.evidence(logits))
    torch.testing.assert_close(scores, logits.softmax(2)[..., 1:])


@pytest.mark.parametrize(("name", "limit"), [("smooth_l1", 0.5), ("l1", 0.5), ("huber", 0.5)])
def test_losses_of_deltas_by_hand(name: str, limit: float) -> None:
    anchors, boxes = scene(2), scene(3)[None]
    positive = (torch.arange(12) < 5)[None]
    matched = Matched(positive, torch.where(positive[..., None], boxes, anchors), positive.long() - 1, None)
    deltas = torch.randn(1, 12, 4, requires_grad=True)
    error = (deltas - Deltas().encode(matched.boxes, anchors))[positive].abs()
    linear = error - limit / 2
    by_hand = {
        "smooth_l1": torch.where(error < limit, error.square() / (2 * limit), linear),
        "l1": error,
        "huber": torch.where(error < limit, error.square() / 2, limit * linear),
    }[name]
    losses = BoxLosses(name, huber_delta=limit, box_weight=3.0)  # type: ignore[arg-type]
    terms = losses.terms(deltas, anchors, matched, Deltas(), torch.tensor(5.0))
    assert set(terms) == {"box"}
    torch.testing.assert_close(terms["box"], 3 * by_hand.sum() / 20)
    (gradient,) = torch.autograd.grad(terms["box"], deltas)
    assert not gradient[~positive].any()
    assert gradient[positive].all()


def test_boxes_are_weighed_by_their_share() -> None:
    anchors, boxes = scene(2), scene(3)[None]
    positive = (torch.arange(12) < 5)[None]
    matched = Matched(positive, torch.where(positive[..., None], boxes, anchors), positive.long() - 1, None)
    deltas, share = torch.zeros(1, 12, 4), torch.zeros(1, 12)
    share[0, 2], share[0, 9] = 0.5, 7.0  # the second is no positive
    losses, count = BoxLosses(None, iou_loss="giou", iou_weight=2.0), torch.tensor(5.0)
    alone = replace(matched, positive=positive & (torch.arange(12) == 2))
    expected = losses.terms(deltas, anchors, alone, Deltas(), torch.tensor(1.0))
    weighed = losses.terms(deltas, anchors, matched, Deltas(), count, share)
    torch.testing.assert_close(weighed, expected)
    assert losses.terms(deltas, anchors, matched, Deltas(), count, share * 0)["iou"] == 0


# --- options and the rest --------------------------------------------------------------------------------------------


def test_records_are_options_with_the_defaults_of_the_head() -> None:
    spec = FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), (8, 16, 32))
    named = head_options(EfficientDetHead)
    assert (named["gamma"], named["huber_delta"], named["box_weight"], named["score_threshold"]) == (
        1.5,
        0.1,
        50.0,
        0.001,
    )
    assert {"variant", "levels", "prior", "alpha", "iou_loss", "crowd_ignore", "nms", "pre_nms"} <= set(named)
    assert (head_options(RetinaNetHead)["gamma"], head_options(SSDHead)["negatives"]) == (2.0, 3.0)
    head = SSDHead(spec, 3, levels=[3, 4, 5], negatives=5.0, nms_iou=0.3)
    assert (head.class_loss, head.selection.nms_iou, head.selection.max_detections) == (MinedSoftmax(5.0), 0.3, 100)
    assert SSDHead.class_loss == MinedSoftmax()
    with pytest.raises(UserError, match=r"head_options\.gama: RetinaNetHead has no such option; did you mean gamma"):
        RetinaNetHead(spec, 3, gama=2.0)
    with pytest.raises(UserError, match=r"head_options\.negatives: expected a number above 0, got 'many'"):
        SSDHead(spec, 3, levels=[3, 4, 5], negatives="many")


def test_boxes_that_nothing_would_train_are_refused() -> None:
    with pytest.raises(UserError, match=r"head_options\.delta_loss: .*nothing would train the boxes"):
        BoxLosses(None)
    assert BoxLosses(None, iou_loss="ciou").iou_loss == "ciou"


def test_overlap_is_diagnosed_where_it_decides() -> None:
    spec, sizes = (
        FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), (8, 16, 32)),
        ImageSizes.of(torch.rand(1, 3, 128, 128)),
    )
    targets = BoxTargets(
        torch.tensor([[[-12.0, -12.0, 20.0, 20.0]]]), torch.zeros(1, 1).long(), torch.zeros(1, 1).bool()
    )
    head = SSDHead(spec, 3, levels=[3, 4, 5], min_scale=0.25, aspect_ratios=[])
    assert head.diagnose(targets, sizes)["best_anchor_iou"].tolist() == [[1.0]]
    assert set(ToyFCOS(spec, 3).diagnose(targets, sizes)) == {"anchors"}
    assert ToyYOLO(spec, 3).diagnose(targets, sizes) == {}, "which points it gets depends on what is predicted"


@pytest.mark.parametrize("head", [RetinaNetHead, SSDHead, ToyFCOS])
def test_anchors_of_each_box_are_counted_as_the_loss_has_them(head: type[Head]) -> None:
    """A box between the points of FCOS has none; padding and crowds are not asked for any."""
    spec = FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), (8, 16, 32))
    built: Any = head(spec, 3, **({} if head is ToyFCOS else {"levels": [3, 4, 5]}))
    boxes = torch.tensor([[[5.0, 5, 11, 11], [10.0, 10, 90, 70], [10.0, 10, 90, 70]], [[0.0, 0, 60, 60]] * 3])
    targets = BoxTargets(
        boxes, torch.tensor([[0, 1, 2], [1, -1, 0]]), torch.tensor([[False] * 3, [False, False, True]])
    )
    sizes = ImageSizes.of(torch.rand(2, 3, 128, 128))
    found = built.diagnose(targets, sizes)["anchors"]
    match = built._matching(built._anchors_for(sizes), targets).match
    expected = [[int((match[row] == box).sum()) for box in range(3)] for row in range(2)]
    expected[1][1:] = [-1, -1]
    assert found.tolist() == expected
    assert (found[0, 0] == 0) == (head is ToyFCOS)
    nothing = BoxTargets(torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), torch.zeros(2, 0).bool())
    assert built.diagnose(nothing, sizes)["anchors"].shape == (2, 0)


@pytest.mark.parametrize("name", ["ssd", "retinanet", "efficientdet"])
@pytest.mark.parametrize("least", [0.04, 0.15])
def test_proposed_anchors_overlap_boxes_wherever_they_lie(name: str, least: float) -> None:
    """By the figures of ``check``: anchors of the sides of the boxes are of no use where their cells are far apart."""
    draw = torch.Generator().manual_seed(0)
    sides = 96 * (least + 0.1 * torch.rand(300, 2, generator=draw))
    corners = torch.rand(300, 2, generator=draw) * (96 - sides)
    boxes = torch.cat([corners, corners + sides], 1)[None]
    targets = BoxTargets(boxes, torch.zeros(1, 300).long(), torch.zeros(1, 300).bool())
    small: dict[str, Any] = {"channels": 8} if name == "efficientdet" else {"channels": 32, "repeats": 1}
    small = {"extra_channels": [8, 8, 8, 8]} if name == "ssd" else small | ({"cells": 1} if "eff" in name else {})

    def overlap(options: dict[str, Any]) -> tuple[Head, float]:
        head = build_model("det", "lite0", head=name, num_classes=2, head_options={**small, **options}).head
        sizes = ImageSizes((96, 96), torch.tensor([[96, 96]]))
        return head, float(head.diagnose(targets, sizes)["best_anchor_iou"].mean())

    head, before = overlap({})
    _, after = overlap(head.fit_to_data(sides, (96, 96)))
    assert after > before + 0.01


def test_finding_the_largest_pairs_waits_for_nothing() -> None:
    """Shapes known beforehand, so that it exports and the host need not wait: fake tensors have no values to look at."""
    logits = torch.randn(2, 50, 3)
    with FakeTensorMode() as mode:
        found = top_pairs(mode.from_tensor(logits), 40)
    assert [tuple(f.shape) for f in found] == [(2, 40)] * 3


def test_anchors_may_differ_from_level_to_level() -> None:
    spec = FeatureSpec("b0", ("C4", "C5"), (112, 320), (16, 32))
    head = DenseHead.__new__(Toy)
    Head.__init__(head, spec, 2)
    head.place((16, 32), [[(1.0, 1.0), (2.0, 1.0)], [(1.0, 3.0)]])
    maps = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    sides = head.anchors(maps, maps).view(-1, 2, 2).diff(dim=1)[:, 0]
    expected = list(itertools.chain([[16, 16], [32, 16]] * 16, [[32, 96]] * 4))
    assert sides.tolist() == expected


RESTING: list[tuple[type[Head], dict[str, Any], dict[str, Any]]] = [
    (
        RetinaNetHead,
        {"levels": [3, 4, 5], "channels": 8},
        {"extra_from": "c5", "huber_delta": 0.3, "iou_weight": 9.0, "sigma": 0.1},
    ),
    (
        RetinaNetHead,
        {"levels": [3, 4, 5], "channels": 8, "delta_loss": None, "iou_loss": "giou"},
        {"box_weight": 9.0, "huber_delta": 0.3},
    ),
    (SSDHead, {"levels": [3, 4, 5, 6], "extra_channels": [8]}, {"extra_channels": [8, 32]}),
    (FCOSHead, {"levels": [3, 4, 5], "channels": 64, "repeats": 1}, {"box_weight": 9.0, "extra_from": "c5"}),
    (FCOSHead, {"levels": [3, 4], "channels": 64, "delta_loss": "l1", "iou_loss": None}, {"weigh_boxes": True}),
    (YoloHead, {"channels": 8}, {"dfl_weight": 9.0, "radius": 1.0}),
    (YoloHead, {"channels": 8, "assigner": "simota"}, {"topk": 1, "score_power": 3.0, "iou_power": 1.0}),
    (EfficientDetHead, {"channels": 8, "cells": 1, "nms": "none"}, {"sigma": 0.1, "iou_weight": 9.0}),
]


@pytest.mark.parametrize(("head", "options", "idle"), RESTING)
def test_options_that_rest_change_nothing_and_the_others_do(
    head: type[Head], options: dict[str, Any], idle: dict[str, Any]
) -> None:
    names = head.requires(**options).levels
    places = [("C3", "C4", "C5").index(name) for name in names]
    spec = FeatureSpec("b0", names, tuple((8, 16, 24)[i] for i in places), tuple((8, 16, 32)[i] for i in places))
    features = [torch.randn(1, c, 128 // s, 128 // s) for c, s in zip(spec.channels, spec.strides, strict=True)]
    sizes = ImageSizes.of(torch.zeros(1, 3, 128, 128))
    targets = BoxTargets(scene(1)[None, :4], torch.tensor([[0, 1, 1, 0]]), torch.zeros(1, 4).bool())

    def said(**more: Any) -> tuple[dict[str, Tensor], Any]:
        torch.manual_seed(0)
        built = head(spec, 2, **{**options, **more}).eval()
        assert set(idle) <= set(built.resting()) or not more
        with torch.no_grad():
            raw = built(features, sizes)
            return built.loss(raw, targets, sizes), built.predict(raw, sizes)

    losses, found = said()
    for name, value in idle.items():
        others, same = said(**{name: value})
        assert losses.keys() == others.keys()
        for one, other in zip((*losses.values(), *found), (*others.values(), *same), strict=True):
            assert torch.equal(one, other), name
    assert not set(head(spec, 2, **options).resting()) & set(options) - {"extra_channels"}, "these are at work"
