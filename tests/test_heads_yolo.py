"""The detector in the manner of YOLO: which point gets which box, distances as distributions, and answers without suppression."""

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones import build_model
from effbackbones.backbones.folding import shed
from effbackbones.conformance import check_head, enforce
from effbackbones.conformance.head import HEAD_PROMISES
from effbackbones.contracts import BoxTargets, FeatureSpec, ImageSizes
from effbackbones.errors import UserError
from effbackbones.export.following import follow
from heads.detection.alignment import Alignment
from heads.detection.anchors import pairwise_iou
from heads.detection.criteria import Focal, QualityFocal
from heads.detection.losses import distribution_sum
from heads.detection.nms import Candidates, Selection
from heads.detection.yolo import Pair, YoloHead, YoloRaw

SMALL: dict[str, Any] = {"channels": 16, "depth": 1, "repeats": 1}
SIDE, LEVELS, CLASSES = 64, (8, 16, 32), 3


def points() -> Tensor:
    """A square of one stride around each point of an image of 64 pixels: [84, 4]."""
    parts = []
    for stride in LEVELS:
        at = (torch.arange(SIDE // stride) + 0.5) * stride
        middle = torch.cartesian_prod(at, at).flip(1)
        parts.append(torch.cat([middle - stride / 2, middle + stride / 2], 1))
    return torch.cat(parts).double()


def scene(seed: int, count: int, images: int = 2) -> tuple[Tensor, Tensor, BoxTargets]:
    """Logits, predicted boxes and targets, some of them padding, crowds, and smaller than a cell."""
    draw = torch.Generator().manual_seed(seed)
    corner, side = (torch.rand(images, count, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    side = 0.02 + side.square() * 0.7
    boxes = torch.cat([corner * (1 - side), corner * (1 - side) + side], 2) * SIDE
    labels = torch.randint(-1, CLASSES, (images, count), generator=draw)
    crowd = torch.rand(images, count, generator=draw) < 0.15
    anchors = points()
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    reach = torch.rand(images, len(anchors), 4, generator=draw, dtype=torch.float64) * 30
    predicted = torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], 2)
    logits = torch.randn(images, len(anchors), CLASSES, generator=draw, dtype=torch.float64) * 2
    return logits, predicted, BoxTargets(boxes, labels, crowd & (labels >= 0))


def iou(one: list[float], two: list[float]) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(width, 0.0) * max(height, 0.0)
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, two))
    return shared / (area - shared)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plain(rule: Alignment, logits: Tensor, predicted: Tensor, targets: BoxTargets, one: bool) -> tuple[Any, Any]:
    """The definition for one image, in loops: match and quality of each point."""
    anchors, said, found = points().tolist(), logits.tolist(), predicted.tolist()
    wishes: dict[int, list[tuple[float, int, float]]] = {}  # point: what decides, box, value
    for m, (box, label, crowd) in enumerate(
        zip(targets.boxes.tolist(), targets.labels.tolist(), targets.crowd.tolist(), strict=True)
    ):
        if label < 0 or crowd:
            continue
        rated = []
        middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        reach = [max(box[2] - box[0], LEVELS[0]) / 2, max(box[3] - box[1], LEVELS[0]) / 2]
        for a, anchor in enumerate(anchors):
            at, stride = [(anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2], anchor[2] - anchor[0]
            away = [abs(at[axis] - middle[axis]) for axis in range(2)]
            inside = all(away[axis] <= reach[axis] for axis in range(2))
            near = all(away[axis] < rule.radius * stride for axis in range(2))
            overlap = iou(box, found[a])
            if rule.assigner == "aligned":
                value = sigmoid(said[a][label]) ** rule.score_power * overlap**rule.iou_power
                if inside and value > 0:
                    rated.append((value, a, overlap))
            elif inside or near:
                terms = [-math.log(sigmoid(x)) if k == label else -math.log(sigmoid(-x)) for k, x in enumerate(said[a])]
                cost = sum(terms) - 3 * math.log(overlap + 1e-8) + (0 if inside and near else 1e5)
                rated.append((-cost, a, overlap))
        most = rule.topk
        if rule.assigner == "simota":
            most = max(1, int(sum(sorted((overlap for *_, overlap in rated), reverse=True)[:10])))
        for value, a, overlap in sorted(rated, reverse=True)[: 1 if one else most]:
            wishes.setdefault(a, []).append((overlap if rule.assigner == "aligned" else value, m, value))
    match = {a: max(asking)[1:] for a, asking in wishes.items()}
    quality = {}
    for a, (m, value) in match.items():
        mine = {b: v for b, (box, v) in match.items() if box == m}
        boxes = targets.boxes[m].tolist()
        if rule.assigner == "aligned":
            quality[a] = value / max(mine.values()) * max(iou(boxes, found[b]) for b in mine)
        else:
            quality[a] = iou(boxes, found[a])
    count = range(len(anchors))
    return [match[a][0] if a in match else -1 for a in count], [quality.get(a, 0.0) for a in count]


@given(
    st.integers(0, 2**31),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(
        [
            Alignment(),
            Alignment(topk=3, score_power=0.5, iou_power=2.0),
            Alignment(score_power=4.0, iou_power=0.5),  # what a box wants and who gets a point are in another order
            Alignment(iou_power=0.0),
            Alignment("simota"),
            Alignment("simota", radius=1.0),
        ]
    ),
)
@example(seed=1534631318, count=2, one=False, rule=Alignment(iou_power=0.0))  # a prediction that does not meet its box
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_points_get_the_boxes_of_the_definition(seed: int, count: int, one: bool, rule: Alignment) -> None:
    logits, predicted, targets = scene(seed, count)
    found = rule(points(), logits, predicted, targets, one=one)
    for image in range(len(logits)):
        own = BoxTargets(targets.boxes[image], targets.labels[image], targets.crowd[image])
        match, quality = plain(rule, logits[image], predicted[image], own, one)
        assert found.match[image].tolist() == match
        assert found.quality[image].tolist() == pytest.approx(quality, rel=1e-6, abs=1e-9)
        if one:
            mine = [m for m in match if m >= 0]
            assert len(mine) == len(set(mine)), "one point for each box"


def test_every_box_alone_gets_a_point_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no middle of a cell lies in it, and images one after the other where memory is short."""
    boxes = torch.tensor(
        [[[9.0, 9.0, 10.0, 10.0], [30.9, 1.0, 33.0, 2.0]], [[0.0, 0.0, 64.0, 64.0], [0.0, 62.5, 1.0, 64.0]]]
    )
    targets = BoxTargets(boxes, torch.zeros(2, 2).long(), torch.tensor([[False, False], [False, True]]))
    logits, predicted, _ = scene(0, 1)
    whole = Alignment()(points(), logits, predicted, targets, crowds=True)
    assert [sorted({*match.tolist()}) for match in whole.match] == [[-1, 0, 1], [-1, 0]]
    monkeypatch.setattr("heads.detection.anchors._MOST_PAIRS", 2 * 84)
    for one, two in zip(Alignment()(points(), logits, predicted, targets, crowds=True), whole, strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)


def test_predictions_that_are_not_finite_get_no_box() -> None:
    logits, predicted, targets = scene(3, 4)
    logits[:, ::2], predicted[:, 1::4] = math.nan, math.inf
    for rule in (Alignment(), Alignment("simota")):
        match = rule(points(), logits, predicted, targets).match
        assert (match[:, ::2] < 0).all()
        assert (match >= 0).any()


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "alpha", "smoothing"), [(2.0, None, 0.0), (1.5, 0.25, 0.1), (0.0, None, 0.0)])
def test_quality_focal_loss_is_its_formula(gamma: float, alpha: float | None, smoothing: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 30, 3, generator=draw, dtype=torch.float64).requires_grad_()
    labels, quality = torch.randint(-1, 3, (2, 30), generator=draw), torch.rand(2, 30, generator=draw).double()
    ignored = (torch.rand(2, 30, generator=draw) < 0.3) & (labels < 0)
    own = F.one_hot(labels.clamp(min=0), 3).bool() & (labels >= 0)[..., None]
    wanted = torch.where(own, quality[..., None], 0.0)
    smooth = wanted * (1 - smoothing) + smoothing / 2
    weight = torch.ones_like(wanted) if alpha is None else torch.where(own, alpha, 1 - alpha)
    entropy = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    by_hand = (weight * (wanted - logits.sigmoid()).abs() ** gamma * entropy)[~ignored].sum()
    value = QualityFocal(gamma, alpha, smoothing).rated_sum(logits, labels, ignored, quality)
    torch.testing.assert_close(value, by_hand)
    for ours, theirs in zip(*(torch.autograd.grad(v, logits) for v in (value, by_hand)), strict=True):
        torch.testing.assert_close(ours, theirs)
    if alpha:  # of qualities of 1 it is the focal loss
        alike = Focal(alpha, gamma, smoothing).sum(logits, labels, ignored)
        torch.testing.assert_close(QualityFocal(gamma, alpha, smoothing).sum(logits, labels, ignored), alike)


def test_distributions_are_pulled_to_the_two_values_around() -> None:
    sides = torch.zeros(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    distances = torch.tensor([[[0.0, 1.25, 4.0, 9.0]]]).double()
    value = distribution_sum(sides, distances, torch.tensor([[2.0]]).double())
    assert value.item() == pytest.approx(2 * math.log(5))
    (gradient,) = torch.autograd.grad(value, sides)
    wanted = torch.tensor([[1, 0, 0, 0, 0], [0, 0.75, 0.25, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]).double()
    torch.testing.assert_close(gradient[0, 0], (0.2 - wanted) * 2 / 4)


# --- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        pytest.param({}, True, marks=pytest.mark.slow),
        pytest.param({"nms_free": True, "dfl_bins": 4}, True, marks=pytest.mark.slow),
        ({"nms_free": True, "dfl_bins": 4}, False),
        ({"assigner": "simota", "crowd_ignore": True, "iou_loss": "ciou", "alpha": 0.25, "delta_loss": "l1"}, False),
    ],
)
def test_every_promise_is_kept(options: dict[str, Any], graphs: bool) -> None:
    left_out = () if graphs else ("export", "compile")
    kept = [name for name in HEAD_PROMISES if name not in left_out]
    enforce(check_head(YoloHead, options=SMALL | options, promises=kept))


@pytest.mark.parametrize(
    "options",
    [
        {"nms_free": True},
        *(pytest.param(options, marks=pytest.mark.slow) for options in ({}, {"dfl_bins": 8}, {"assigner": "simota"})),
    ],
)
def test_objects_are_learnt(options: dict[str, Any]) -> None:
    """Two objects of two classes, one tall and one wide; without suppression each of them is found once."""
    torch.manual_seed(0)
    boxes, labels = [[40.0, 24.0, 72.0, 112.0], [96.0, 80.0, 176.0, 120.0]], [0, 1]
    image = torch.full((1, 3, 128, 192), 0.2)
    image[:, 0, 24:112, 40:72], image[:, 2, 80:120, 96:176] = 0.9, 0.9
    targets = BoxTargets(torch.tensor([boxes]), torch.tensor([labels]), torch.zeros(1, 2, dtype=torch.bool))
    smaller = {"width": 0.25, "depth": 0.3, "drop_path": 0.0}
    model = build_model("det", "b0", head="yolo", num_classes=2, backbone_options=smaller, head_options=SMALL | options)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.3
    optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(torch.stack(list(model.train().loss(image, targets).values())).sum())
        optimiser.step()
    found = model.eval().predict(image).unbatch()[0]
    for box, label in zip(boxes, labels, strict=True):
        mine = found.boxes[(found.labels == label) & (found.scores > 0.3 * found.scores.max())]
        overlaps = pairwise_iou(torch.tensor([box]), mine)[0]
        assert len(overlaps), (found.boxes[:4], found.scores[:4])
        assert float(overlaps[0]) > 0.5, (found.boxes[:4], found.scores[:4], found.labels[:4])
        if "nms_free" in options:
            assert (overlaps > 0.5).sum() == 1, "found once"


def test_selection_without_suppression_takes_the_best() -> None:
    scores = torch.tensor([[0.9, -1.0, 0.7, 0.6, 0.1]])  # the second is no box
    boxes = torch.tensor([0.0, 0.0, 8.0, 8.0]).expand(1, 5, 4)
    found = Candidates(boxes, scores, torch.zeros(1, 5).long())
    for most, kept in ((2, [0.9, 0.7]), (8, [0.9, 0.7, 0.6])):
        best = Selection(most, score_threshold=0.3, nms="none")(found, 1)
        assert best.count.tolist() == [len(kept)]
        assert best.scores[0].tolist() == pytest.approx(kept + [0.0] * (most - len(kept)))


def test_a_network_without_suppression_exports_none_and_half_of_its_nets() -> None:
    """The graph of predictions has no operator of suppression, and nothing of the nets that only train."""
    model = build_model("det", "b0", head="yolo", num_classes=2, head_options=SMALL | {"nms_free": True}).eval()
    images = torch.rand(1, 3, 64, 64)

    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.folded_copy()

        def forward(self, x: Tensor) -> Any:
            return self.model.predict(x)

    program = torch.export.export(Answer(), (images,))
    used = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in used if "nms" in name or "max_pool" in name]
    assert not [name for name in program.state_dict if ".many." in name]
    assert [name for name in program.state_dict if ".one." in name]
    for got, expected in zip(program.module()(images), model.predict(images), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_a_network_without_suppression_answers_fast_and_in_int8_without_what_only_trains(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build_model("det", "lite0", head="yolo", num_classes=2, head_options=SMALL | {"nms_free": True}).eval()
    images = torch.rand(1, 3, 64, 64)
    fast = model.for_inference(backend="eager")
    for got, expected in zip(fast.predict(images), model.predict(images), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    assert fast.runner.original is None, "compared, and found the same"
    assert not caplog.text
    assert not [name for name in follow(model).weights if ".many." in name], "as in the graph"
    assert follow(model).int8.count(True) == follow(model.folded_copy()).int8.count(True)


def test_both_pairs_of_nets_learn_and_the_one_leaves_the_neck_alone() -> None:
    spec = FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), (8, 16, 32))
    head = YoloHead(spec, 2, nms_free=True, dfl_bins=4, **SMALL)
    features = [torch.rand(1, c, 64 // s, 64 // s) for c, s in zip(spec.channels, spec.strides, strict=True)]
    sizes = ImageSizes.of(torch.rand(1, 3, 64, 64))
    targets = BoxTargets(torch.tensor([[[8.0, 8.0, 40.0, 48.0]]]), torch.zeros(1, 1).long(), torch.zeros(1, 1).bool())
    raw = head(features, sizes)
    assert isinstance(raw, YoloRaw)
    losses = head.loss(raw, targets, sizes)
    assert set(losses) == {"class", "iou", "dfl", "many_class", "many_iou", "many_dfl"} == set(head.counted)
    one = torch.stack([value for name, value in losses.items() if not name.startswith("many")]).sum()
    reached = torch.autograd.grad(one, list(head.parameters()), allow_unused=True)
    names = {
        name.split(".")[0:2][-1] for (name, _), g in zip(head.named_parameters(), reached, strict=True) if g is not None
    }
    assert names == {"one"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dfl_bins": 1}, "dfl_bins: expected 0 .none. or at least 2, got 1"),
        ({"assigner": "best"}, "assigner: unknown value 'best'"),
        ({"topk": 0}, "topk: expected an integer of at least 1, got 0"),
        ({"nms": "soft"}, "nms: unknown value 'soft'"),
        ({"delta_loss": None, "iou_loss": None}, "nothing would train the boxes"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], says: str) -> None:
    spec = FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), (8, 16, 32))
    with pytest.raises(UserError, match=says):
        YoloHead(spec, 2, **SMALL, **options)


def test_boxes_that_share_their_only_point_are_diagnosed() -> None:
    """As the assignment has it: the second of them gets no point, whatever is predicted. SimOTA has points around it to give."""
    spec = FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), LEVELS)
    boxes = torch.tensor([[[2.0, 2, 5, 5], [1.0, 1, 5, 5], [26.0, 2, 29, 5], [3.0, 2, 4, 5], [0.0, 0, 60, 60]]] * 2)
    labels, crowd = torch.tensor([[0, 1, 0, 0, 0], [0, -1, 0, 0, 0]]), torch.tensor([[False] * 5, [True] + [False] * 4])
    targets, sizes = BoxTargets(boxes, labels, crowd), ImageSizes((SIDE, SIDE), torch.tensor([[SIDE, SIDE]] * 2))
    head = YoloHead(spec, 2, **SMALL)
    found = head.diagnose(targets, sizes)
    assert found["contested"].tolist() == [[False, True, False, True, False], [False] * 5]
    raw = head([torch.randn(2, c, SIDE // s, SIDE // s) for c, s in zip(spec.channels, LEVELS, strict=True)], sizes)
    match = head.matched(raw, targets)
    assert [bool((match.boxes[0][match.positive[0]] == box).all(1).any()) for box in boxes[0]].count(False) == 2
    assert not YoloHead(spec, 2, assigner="simota", **SMALL).diagnose(targets, sizes)["contested"].any()
    assert set(found) == {"contested"}, "without bins all distances can be said"


def test_boxes_larger_than_distributions_can_say_are_diagnosed() -> None:
    spec = FeatureSpec("b0", ("C3", "C4", "C5"), (40, 112, 320), LEVELS)
    boxes = torch.tensor([[[0.0, 0, 96, 96], [0.0, 0, 96.5, 96], [0.0, 0, 128, 20], [0.0, 0, 128, 128]]])
    targets = BoxTargets(boxes, torch.tensor([[0, 0, 0, -1]]), torch.zeros(1, 4).bool())
    sizes = ImageSizes((128, 128), torch.tensor([[128, 128]]))
    # Points of the coarsest level lie at 16, 48, 80 and 112 pixels: 48 to each side, 48.5, and 80 and 48.
    for bins, large in ((2, [True, True, True]), (3, [False, False, True]), (4, [False, False, False])):
        head = YoloHead(spec, 2, dfl_bins=bins, **SMALL)
        assert head.diagnose(targets, sizes)["too_large"][0].tolist() == [*large, False], bins
        more = head.fit_to_data(boxes[0, :3, 2:] - boxes[0, :3, :2], (128, 128))
        assert more == ({"dfl_bins": 4} if bins < 4 else {})
    assert not YoloHead(spec, 2, **SMALL).fit_to_data(boxes[0, :, 2:], (128, 128))


def test_other_maps_are_refused() -> None:
    with pytest.raises(UserError, match=r"head yolo: reads C3, C4, C5.*got C4 \(stride 16\), C5 \(stride 16\)"):
        YoloHead(FeatureSpec("b0", ("C4", "C5"), (112, 320), (16, 16)), 2)


# --- teachers --------------------------------------------------------------------------------------------------------


def taught(student: YoloHead, teacher: YoloHead) -> tuple[YoloRaw, YoloRaw, list[Tensor], BoxTargets, ImageSizes]:
    """What both say of the same maps, those of the student, and two objects."""
    torch.manual_seed(3)
    student.check_teacher(teacher)
    maps = [
        torch.randn(1, c, SIDE // s, SIDE // s, requires_grad=True) for c, s in zip((24, 40, 80), LEVELS, strict=True)
    ]
    targets = BoxTargets(
        torch.tensor([[[4.0, 4.0, 30.0, 50.0], [30.0, 20.0, 60.0, 60.0]]]),
        torch.tensor([[0, 2]]),
        torch.zeros(1, 2).bool(),
    )
    sizes = ImageSizes.of(torch.zeros(1, 3, SIDE, SIDE))
    with torch.no_grad():
        theirs = teacher(maps, sizes)
    return student(maps, sizes), theirs, maps, targets, sizes


def head_for_maps(nms_free: bool) -> YoloHead:
    spec = FeatureSpec("b0", ("C3", "C4", "C5"), (24, 40, 80), LEVELS)
    return YoloHead(spec, CLASSES, nms_free=nms_free, **SMALL).eval()


def test_nets_learn_from_nets_of_their_kind() -> None:
    """Those that find each object once from such alone; the teacher's answer reaches the maps all the same."""
    torch.manual_seed(0)
    once, plain, other = head_for_maps(True), head_for_maps(False), head_for_maps(True)
    raw, theirs, maps, targets, sizes = taught(once, other)
    losses = once.distill(raw, theirs, targets, sizes)
    assert set(losses) == set(once.distilled) == {"distill", "distill_box", "distill_many", "distill_many_box"}
    for name in losses:
        found = torch.autograd.grad(losses[name], maps, retain_graph=True, allow_unused=True)
        assert all((g is not None) == ("many" in name) for g in found), name

    raw, theirs, _, targets, sizes = taught(once, plain)
    losses = once.distill(raw, theirs, targets, sizes)
    assert set(losses) == {"distill_many", "distill_many_box"}, (
        "a teacher that says things twice teaches no net that is to say them once"
    )
    assert isinstance(once.nets, Pair)
    for name, parameter in once.nets.one.named_parameters():
        (found,) = torch.autograd.grad(sum(losses.values()), [parameter], retain_graph=True, allow_unused=True)
        assert found is None, name

    raw, theirs, _, targets, sizes = taught(plain, other)
    several = YoloRaw(*theirs.many[0], (), theirs.anchors)
    assert plain.distill(raw, theirs, targets, sizes) == plain.distill(raw, several, targets, sizes)


def test_a_teacher_without_the_nets_that_teach_the_maps_is_refused() -> None:
    student, teacher = head_for_maps(True), head_for_maps(True)
    shed(teacher)
    with pytest.raises(
        UserError, match=r"optim\.distill\.teacher: has lost the nets .*give the model as it was trained"
    ):
        student.check_teacher(teacher)
