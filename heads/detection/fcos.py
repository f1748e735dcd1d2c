"""FCOS: a feature pyramid and two nets of plain convolutions on every level, points instead of anchors, and how central they are.

Sources: Tian et al., "FCOS: fully convolutional one-stage object detection", 2019, and "FCOS: a simple and strong anchor-free object
detector", 2020; numbers as in torchvision ``models/detection/fcos.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from effbackbones.contracts import BackboneNeeds, FeatureSpec, ImageSizes
from heads.detection.criteria import BoxLosses, Coder, Focal, Matched
from heads.detection.dense import DenseHead, RatedRaw, joint_evidence
from heads.detection.fpn import FPN, ExtraFrom
from heads.detection.levels import DEEPEST, STANDARD, check_names, consecutive, names_of, sources
from heads.detection.losses import quality_sum
from heads.detection.nms import Selection
from heads.detection.points import POINT, CenterMatching, Distances, centerness
from heads.detection.towers import ConvTower, Norm, Prediction, check_norm
from heads.options import number, whole


@dataclass(frozen=True)
class Network:
    """Options of the network."""

    channels: int = 256
    repeats: int = 4
    norm: Norm = "group"
    levels: Sequence[int] = STANDARD
    extra_from: ExtraFrom = "p5"
    prior: float = 0.01

    def __post_init__(self) -> None:
        whole("channels", self.channels)
        whole("repeats", self.repeats, 0)
        check_norm(self.norm, self.channels)
        consecutive(self.levels)
        number("prior", self.prior, above=0, below=1)

    def resting(self) -> dict[str, str]:
        """Fields that change nothing, and why."""
        return {} if max(self.levels) > DEEPEST else {"extra_from": "no level is coarser than C5"}


class FCOSHead(DenseHead):
    """FPN, class net, and a net of boxes and centerness. Raw output: :class:`~heads.detection.dense.RatedRaw`, deltas the distances
    from a point to the sides of its box, in strides.

    Options of the network:

    * ``channels`` of the pyramid and the nets, ``repeats`` of 3x3 convolutions in each net, ``norm`` between them: ``group`` or ``none``.
    * ``levels``: consecutive numbers, the first 1 to 5; those that the backbone does not give are made by strided convolutions,
      of which the first reads ``extra_from``: ``p5``, the pyramid's last map, or ``c5``, the backbone's.
    * ``prior``: probability that every class starts with.

    Options of matching (:class:`~heads.detection.points.CenterMatching`): ``radius``, ``least``, ``most``.

    Options of the loss:

    * ``alpha``, ``gamma``, ``label_smoothing``: focal loss. ``iou_loss`` (``giou``, ``diou``, ``ciou``) with ``iou_weight``;
      ``weigh_boxes``: whether each box weighs as much in it as its point is central, as in the paper; ``delta_loss``, ``huber_delta``,
      ``box_weight``: a loss of the distances on top of it; ``centerness_weight``.
    * ``crowd_ignore``: whether points inside crowds are left out of the class loss. Crowds are never positives.
    * ``local_normaliser``: whether each piece of a batch is divided by its own positives.

    Options of the predictions: ``max_detections``, ``score_threshold``, ``pre_nms``; ``nms``: ``hard`` with ``nms_iou``, ``gaussian``
    with ``sigma``, or ``none``. A score is the geometric mean of the class's and of centerness.
    """

    option_records: ClassVar[tuple[str, ...]] = ("network", "matching", *DenseHead.option_records)
    network = Network()
    matching = CenterMatching()
    coder: Coder = Distances()
    class_loss = Focal()
    box_losses = BoxLosses(None, iou_loss="giou")
    selection = Selection(score_threshold=0.001, nms_iou=0.6)

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        weigh_boxes: bool = False,
        centerness_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        self.weigh_boxes, self.centerness_weight = weigh_boxes, number("centerness_weight", centerness_weight, 0)
        self.counted += ("centerness",) if self.counted else ()
        network, levels = self.network, tuple(self.network.levels)
        check_names("fcos", spec, levels)
        self.neck = FPN(sources(spec), levels, network.channels, extra_from=network.extra_from, head="fcos")
        tower = (network.channels, network.repeats, network.norm)
        self.class_net, self.box_net = ConvTower(*tower), ConvTower(*tower)
        self.classes = Prediction(network.channels, 1, num_classes, Focal.bias(network.prior))
        self.sides, self.central = Prediction(network.channels, 1, 4), Prediction(network.channels, 1, 1)
        self.place(self.neck.strides, [POINT] * len(levels))

    def resting(self) -> dict[str, str]:
        """As :meth:`DenseHead.resting`; the weights of boxes are those of their ``iou_loss``."""
        own = {"weigh_boxes": "there is no iou_loss"} if self.box_losses.iou_loss is None else {}
        return super().resting() | own

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """The maps of the pyramid's levels up to C5."""
        return BackboneNeeds(names_of(consecutive(options.get("levels", STANDARD))))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> RatedRaw:
        """Maps of images padded to ``size_divisor`` to logits, distances, centerness and points."""
        maps = self.neck(features)
        boxes = [self.box_net(x) for x in maps]
        logits = torch.cat([self.classes(self.class_net(x)) for x in maps], 1)
        deltas = torch.cat([self.sides(x) for x in boxes], 1).relu()
        central = torch.cat([self.central(x) for x in boxes], 1)[..., 0]
        return RatedRaw(logits, deltas, central, self.anchors(features, maps))

    def counts(self, matched: Matched, anchors: Tensor) -> dict[str, Tensor]:
        """The number of positive points; of boxes that are weighed the sum of their weights."""
        found = super().counts(matched, anchors)
        if self.weigh_boxes and "iou" in found:
            found["iou"] = torch.where(matched.positive, centerness(matched.boxes, anchors), 0.0).sum()
        return found

    def losses(self, raw: RatedRaw, matched: Matched, share: Tensor | None = None) -> dict[str, Tensor]:
        """Beside those of all ``centerness``: binary cross-entropy at positive points."""
        central = centerness(matched.boxes, raw.anchors)
        rated = quality_sum(raw.quality.float(), central, matched.positive) / self.normaliser(matched)
        losses = super().losses(raw, matched, central if self.weigh_boxes else share)
        return losses | {"centerness": self.centerness_weight * rated}

    def evidence(self, raw: RatedRaw) -> Tensor:
        return joint_evidence(raw.logits, raw.quality)

    def probability(self, evidence: Tensor) -> Tensor:
        return (evidence / 2).exp()
