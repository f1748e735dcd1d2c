"""A detector in the manner of YOLO, without anchors: a path aggregation network, class and box nets apart, no objectness.

Sources: Redmon et al., "You only look once", 2016, for the idea; Ge et al., "YOLOX", 2021, for decoupled nets on points; Feng et al.,
"TOOD", 2021, for what is matched and what scores say; Xu et al., "PP-YOLOE", 2022, section 2, for the weights of the losses; Li et
al., "Generalized focal loss", 2020, for distances as distributions; Wang et al., "YOLOv10", 2024, section 3.1, for the nets that need
no suppression.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from effbackbones.backbones.convolution import Activation
from effbackbones.backbones.folding import Shedding
from effbackbones.contracts import BackboneNeeds, BoxTargets, FeatureSpec, Head, ImageSizes
from effbackbones.errors import UserError
from heads.detection.alignment import Alignment
from heads.detection.criteria import BoxLosses, Coder, Focal, Matched, QualityFocal
from heads.detection.dense import DISTILLED, DenseHead, at_least_one, map_sizes, matched_to
from heads.detection.losses import distribution_sum
from heads.detection.nms import Selection
from heads.detection.pan import PAN, doubling
from heads.detection.points import POINT, Distances
from heads.detection.towers import Tower
from heads.detection.variants import variant_for
from heads.options import choice, number, require, whole

LEVELS = ("C3", "C4", "C5")
_WIDER = 1.5  # than the pyramid of EfficientDet on the same backbone, which is passed through more often
_FIRST_DISTANCE = 2.0  # strides from a point to each side of its box before training


class Said(NamedTuple):
    """What a pair of nets says: ``logits`` [B, A, K]; ``deltas`` [B, A, 4], distances from points to the sides of boxes in strides;
    ``sides``: with ``dfl_bins`` n one tensor [B, A, 4, n], the logits of the distances 0 to n - 1, otherwise none."""

    logits: Tensor
    deltas: Tensor
    sides: tuple[Tensor, ...]


class YoloRaw(NamedTuple):
    """Raw output: :class:`Said` of the nets that predict; with ``nms_free`` that of the others, which only train, in ``many``;
    ``anchors`` float32 [A, 4], a square of one stride around each point."""

    logits: Tensor
    deltas: Tensor
    sides: tuple[Tensor, ...]
    many: tuple[Said, ...]
    anchors: Tensor


pytree._register_namedtuple(Said, serialized_type_name="heads.Said")
pytree._register_namedtuple(YoloRaw, serialized_type_name="heads.YoloRaw")


@dataclass(frozen=True)
class Aligned(Matched):
    """What each point is to say, with the ``quality`` [B, A] of its box, 0..1, by what the losses are divided, and the same of the nets
    that only train in ``many``."""

    quality: Tensor
    count: Tensor
    many: tuple["Aligned", ...]


@dataclass(frozen=True)
class Network:
    """Options of the network; ``channels`` None: one and a half times those of EfficientDet's pyramid on the same backbone."""

    channels: int | None = None
    depth: int = 2
    repeats: int = 2
    activation: Activation = "silu"
    prior: float = 0.01
    dfl_bins: int = 0

    def __post_init__(self) -> None:
        if self.channels is not None:
            whole("channels", self.channels)
        whole("depth", self.depth, 0)
        whole("repeats", self.repeats)
        choice("activation", self.activation, get_args(Activation))
        number("prior", self.prior, above=0, below=1)
        whole("dfl_bins", self.dfl_bins, 0)
        require("dfl_bins", self.dfl_bins, self.dfl_bins != 1, "0 (none) or at least 2")


class Nets(nn.Module):
    """A class net and a box net that read the same maps."""

    def __init__(self, network: Network, channels: int, levels: int, num_classes: int) -> None:
        super().__init__()
        self.bins = network.dfl_bins
        tower = (channels, network.repeats, levels, 1)
        self.class_net = Tower(*tower, num_classes, network.activation)
        self.box_net = Tower(*tower, 4 * max(1, self.bins), network.activation)
        nn.init.constant_(_bias(self.class_net), Focal.bias(network.prior))
        with torch.no_grad():
            _bias(self.box_net).copy_(_first_distances(self.bins))

    def forward(self, maps: Sequence[Tensor]) -> Said:
        logits, sides = self.class_net(maps), self.box_net(maps)
        if not self.bins:
            return Said(logits, F.softplus(sides), ())
        sides = sides.unflatten(2, (4, self.bins))
        values = torch.arange(self.bins, dtype=sides.dtype, device=sides.device)
        return Said(logits, (sides.softmax(3) * values).sum(3), (sides,))


class Pair(Shedding):
    """Nets that find each object once, and others, for training alone, that find it several times and shape the maps."""

    def __init__(self, one: Nets, many: Nets) -> None:
        super().__init__()
        self.one = one
        self.many: Nets | None = many

    def forward(self, maps: Sequence[Tensor]) -> tuple[Said, tuple[Said, ...]]:
        many = () if self.many is None else (self.many(maps),)
        return self.one([x.detach() for x in maps]), many

    def shed(self) -> None:
        self.many = None


class YoloHead(DenseHead):
    """A path aggregation network on C3 to C5, class and box nets that share their convolutions over the levels, and boxes matched
    by what is predicted. Raw output: :class:`YoloRaw`.

    Options of the network:

    * ``channels``, ``depth`` (separable convolutions where maps are joined), ``repeats`` of the two nets, ``activation``, ``prior``.
    * ``dfl_bins``: 0, or of so many values in strides each side of a box is a distribution; a side further than the last one from
      its point, in the coarsest level ``32 * (dfl_bins - 1)`` pixels, cannot be said.
    * ``nms_free``: a second pair of nets learns to find each object once; it alone predicts, and nothing is suppressed (``nms`` is
      ``none`` unless given). Its gradient does not reach the neck.

    Options of matching (:class:`Alignment`): ``assigner`` (``aligned``, ``simota``), ``topk``, ``score_power``, ``iou_power``, ``radius``.

    Options of the loss:

    * ``gamma``, ``alpha``, ``label_smoothing``: quality focal loss. ``iou_loss`` (``giou``, ``diou``, ``ciou``) with ``iou_weight``, each
      box weighed by its quality; ``delta_loss``, ``huber_delta``, ``box_weight``: a loss of the distances on top of it;
      ``dfl_weight``: of the loss of the distributions.
    * ``crowd_ignore``: whether points inside crowds are left out of the class loss. Crowds are never positives.
    * ``local_normaliser``: losses are divided by the sum of the qualities in each piece of a batch, as published. Otherwise by the number
      of boxes in the whole batch, which is known before anything is predicted: so pieces and processes add up to one batch.

    Options of the predictions: ``max_detections``, ``score_threshold``, ``pre_nms``; ``nms``: ``hard`` with ``nms_iou``, ``gaussian``
    with ``sigma``, or ``none``.
    """

    option_records: ClassVar[tuple[str, ...]] = ("network", "alignment", *DenseHead.option_records)
    network = Network()
    alignment = Alignment()
    coder: Coder = Distances()
    class_loss = QualityFocal()
    box_losses = BoxLosses(None, iou_loss="giou", iou_weight=2.5)
    selection = Selection(score_threshold=0.001, nms_iou=0.6)

    def __init__(
        self, spec: FeatureSpec, num_classes: int, *, nms_free: bool = False, dfl_weight: float = 0.5, **options: Any
    ) -> None:
        if nms_free:
            options.setdefault("nms", "none")
        super().__init__(spec, num_classes, **options)
        self.dfl_weight = number("dfl_weight", dfl_weight, 0)
        _check(spec)
        channels = self.network.channels or 8 * math.ceil(_WIDER * variant_for(spec.backbone).channels / 8)
        self.neck = PAN(spec.channels, channels, self.network.depth, self.network.activation)
        pairs = [Nets(self.network, channels, len(spec.strides), num_classes) for _ in range(1 + nms_free)]
        self.nets: Nets | Pair = Pair(*pairs) if nms_free else pairs[0]
        self.place(spec.strides, [POINT] * len(spec.strides))
        own = ("class", *self.box_losses.names, *(("dfl",) if self.network.dfl_bins else ()))
        many = tuple(f"many_{name}" for name in own) if nms_free else ()
        self.counted = () if options.get("local_normaliser") else (*own, *many)
        taught = (*DISTILLED, *map(_many, DISTILLED)) if nms_free else DISTILLED
        self.distilled = taught if self.counted else ()

    def resting(self) -> dict[str, str]:
        """As :meth:`DenseHead.resting`; the loss of distributions is of such alone."""
        return super().resting() | ({} if self.network.dfl_bins else {"dfl_weight": "dfl_bins is 0"})

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """C3 to C5."""
        return BackboneNeeds(LEVELS)

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> YoloRaw:
        """Maps of images padded to ``size_divisor`` to what nets say of each point."""
        maps = self.neck(features)
        said, many = self.nets(maps) if isinstance(self.nets, Pair) else (self.nets(maps), ())
        return YoloRaw(said.logits, said.deltas, said.sides, many, self.anchors(features, maps))

    def matched(self, raw: YoloRaw, targets: BoxTargets) -> Aligned:
        """What each point is to say, by the nets that predict; with those that only train in ``many``."""
        targets = at_least_one(targets)
        many = tuple(self._matched(said, raw.anchors, targets, one=False) for said in raw.many)
        return self._matched(Said(*raw[:3]), raw.anchors, targets, one=isinstance(self.nets, Pair), many=many)

    def _matched(
        self, said: Said, anchors: Tensor, targets: BoxTargets, *, one: bool, many: tuple["Aligned", ...] = ()
    ) -> Aligned:
        logits, predicted = said.logits.detach().float(), self.coder.decode(said.deltas.detach().float(), anchors)
        found = self.alignment(anchors, logits, predicted, targets, crowds=self.crowd_ignore, one=one)
        matched = matched_to(anchors, targets, *found.assignment)
        count = self.divisor("class", _boxes(targets)) if self.counted else found.quality.sum().clamp(min=1.0)
        return Aligned(**vars(matched), quality=found.quality, count=count, many=many)

    def normaliser(self, matched: Matched) -> Tensor:
        """The number of boxes in the batch, or the sum of qualities (``local_normaliser``)."""
        return cast(Aligned, matched).count

    def losses(self, raw: YoloRaw, matched: Matched, share: Tensor | None = None) -> dict[str, Tensor]:
        """``class``, ``iou``, ``box`` and ``dfl``, those asked for; with ``nms_free`` also ``many_class`` and so on, of the nets that train
        alone. Computed in float32."""
        aligned = cast(Aligned, matched)
        losses = self._losses(Said(*raw[:3]), raw.anchors, aligned)
        for said, own in zip(raw.many, aligned.many, strict=True):
            losses |= {f"many_{name}": value for name, value in self._losses(said, raw.anchors, own).items()}
        return losses

    def _losses(self, said: Said, anchors: Tensor, matched: Aligned) -> dict[str, Tensor]:
        logits, deltas, quality, count = said.logits.float(), said.deltas.float(), matched.quality, matched.count
        losses = {"class": self.class_loss.rated_sum(logits, matched.labels, matched.ignored, quality) / count}
        losses |= self.box_losses.terms(deltas, anchors, matched, self.coder, count, quality, count)
        for sides in said.sides:
            distances = self.coder.encode(matched.boxes, anchors)
            losses["dfl"] = self.dfl_weight * distribution_sum(sides.float(), distances, quality) / count
        return losses

    def check_teacher(self, teacher: Head) -> None:
        """As :meth:`DenseHead.check_teacher`; a teacher with ``nms_free`` still has the nets that only train."""
        super().check_teacher(teacher)
        nets = getattr(teacher, "nets", None)
        if isinstance(nets, Pair) and nets.many is None:
            what = "has lost the nets that find each object several times, which teach the maps"
            raise UserError("optim.distill.teacher", what, "give the model as it was trained")

    def distill(
        self, raw: YoloRaw, teacher: YoloRaw, targets: Any, sizes: ImageSizes, temperature: float | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`DenseHead.distill`, nets from nets of their kind. With ``nms_free`` ``distill_many`` and ``distill_many_box`` are of
        the nets that only train, whose gradient reaches the maps; those that find each object once learn from a teacher with
        ``nms_free`` alone: another's would have them find it several times."""
        aligned = cast(Aligned, self.prepare(raw, targets, sizes))
        several = teacher.many[0] if teacher.many else Said(*teacher[:3])
        if not raw.many:
            return super().distill(raw, _raw(several, raw.anchors), aligned, sizes, temperature)
        losses = super().distill(raw, teacher, aligned, sizes, temperature) if teacher.many else {}
        for said, own in zip(raw.many, aligned.many, strict=True):
            ours, theirs = (_raw(each, raw.anchors) for each in (said, several))
            found = super().distill(ours, theirs, own, sizes, temperature)
            losses |= {_many(name): value for name, value in found.items()}
        return losses

    @torch.no_grad()
    def count(self, targets: BoxTargets, sizes: ImageSizes) -> dict[str, Tensor]:
        """The number of boxes, for each loss in ``counted`` and ``distilled``."""
        return dict.fromkeys((*self.counted, *self.distilled), _boxes(targets))

    @torch.no_grad()
    def diagnose(self, targets: BoxTargets, sizes: ImageSizes) -> dict[str, Tensor]:
        """``contested`` bool [B, M]: boxes whose only point is the only one of another box too, which of several learns one at most. With
        ``dfl_bins`` ``too_large`` bool [B, M]: boxes of which no point can say all sides. False for padding and crowds."""
        rows, targets = targets.labels.shape[1], at_least_one(targets)
        boxes, usable = targets.boxes, (targets.labels >= 0) & ~targets.crowd
        anchors = self._anchors_for(sizes).to(boxes)
        figures = {"contested": self.alignment.contested(anchors, boxes, usable)[:, :rows]}
        if self.network.dfl_bins:
            height, width = map_sizes([self.padded(side) for side in sizes.batch], self.strides)[-1]
            away = self.coder.encode(boxes[:, :, None], anchors[-height * width :]).amax(3).amin(2)
            figures["too_large"] = ((away > self.network.dfl_bins - 1) & usable)[:, :rows]
        return figures

    def fit_to_data(self, box_sides: Tensor, image_size: tuple[int, int]) -> dict[str, Any]:
        """More ``dfl_bins``, where those that there are cannot say boxes as large as these."""
        if not self.network.dfl_bins or not len(box_sides):
            return {}
        # Half a box and, at most, half a stride lie between a side and the point that is nearest to the middle.
        bins = math.ceil(float(box_sides.max()) / (2 * self.strides[-1]) + 0.5) + 1
        return {"dfl_bins": bins} if bins > self.network.dfl_bins else {}


def _many(name: str) -> str:
    """A loss of :data:`DISTILLED`, of the nets that only train."""
    return name.replace("distill", "distill_many", 1)


def _raw(said: Said, anchors: Tensor) -> YoloRaw:
    """What one pair of nets says, as if there were no other."""
    return YoloRaw(*said, (), anchors)


def _boxes(targets: BoxTargets) -> Tensor:
    return ((targets.labels >= 0) & ~targets.crowd).sum()


def _bias(net: Tower) -> Tensor:
    return cast(Tensor, net.predict.pointwise.bias)


def _first_distances(bins: int) -> Tensor:
    """A box net's last bias, [4] or [4 * bins], so that distances start near :data:`_FIRST_DISTANCE`."""
    if not bins:
        return torch.full((4,), math.log(math.expm1(_FIRST_DISTANCE)))
    falling = math.log(_FIRST_DISTANCE / (1 + _FIRST_DISTANCE))  # of a geometric distribution with that mean
    return (falling * torch.arange(bins, dtype=torch.float32)).repeat(4)


def _check(spec: FeatureSpec) -> None:
    """C3 to C5, each half as large as the one before."""
    if spec.names != LEVELS or not doubling(spec.strides):
        got = ", ".join(f"{name} (stride {stride})" for name, stride in zip(spec.names, spec.strides, strict=True))
        what = f"reads {', '.join(LEVELS)}, each of twice the stride of the one before, got {got}"
        raise UserError("head yolo", what, "leave backbone_options.levels and output_stride out")
