"""RetinaNet: a feature pyramid, a class net and a box net of plain convolutions on every level, and its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from effbackbones.contracts import BackboneNeeds, FeatureSpec, ImageSizes
from heads.detection.anchor_fit import fitted_options
from heads.detection.anchors import IouMatching
from heads.detection.criteria import BoxLosses, Focal
from heads.detection.dense import DenseHead, DetRaw
from heads.detection.fpn import FPN, ExtraFrom
from heads.detection.levels import DEEPEST, STANDARD, check_names, consecutive, names_of, sources
from heads.detection.nms import Selection
from heads.detection.towers import ConvTower, Norm, Prediction, check_norm
from heads.detection.variants import check_aspects
from heads.options import choice, number, whole

AnchorManner = Literal["exact", "torchvision"]


@dataclass(frozen=True)
class Network:
    """Options of the network."""

    channels: int = 256
    repeats: int = 4
    norm: Norm = "none"
    levels: Sequence[int] = STANDARD
    extra_from: ExtraFrom = "p5"
    anchor_scale: float = 4.0
    num_scales: int = 3
    aspect_ratios: Sequence[Sequence[float]] = ((2**0.5, 0.5**0.5), (1.0, 1.0), (0.5**0.5, 2**0.5))
    anchors: AnchorManner = "exact"
    prior: float = 0.01

    def __post_init__(self) -> None:
        for name in ("channels", "num_scales"):
            whole(name, getattr(self, name))
        whole("repeats", self.repeats, 0)
        check_norm(self.norm, self.channels)
        consecutive(self.levels)
        number("anchor_scale", self.anchor_scale, above=0)
        check_aspects(self.aspect_ratios)
        choice("anchors", self.anchors, get_args(AnchorManner))
        number("prior", self.prior, above=0, below=1)

    def resting(self) -> dict[str, str]:
        """Fields that change nothing, and why."""
        return {} if max(self.levels) > DEEPEST else {"extra_from": "no level is coarser than C5"}

    def shapes(self, stride: int) -> list[tuple[float, float]]:
        """(width, height) in strides of the anchors of a cell, aspect by aspect, in an aspect octave by octave."""
        sides = [self.anchor_scale * stride * 2 ** (octave / self.num_scales) for octave in range(self.num_scales)]
        if self.anchors == "exact":
            return [(side * x / stride, side * y / stride) for x, y in self.aspect_ratios for side in sides]
        whole_sides = [int(side) for side in sides]  # torchvision ``retinanet.py``, ``anchor_utils.py``
        halves = [(round(side * x / 2), round(side * y / 2)) for x, y in self.aspect_ratios for side in whole_sides]
        return [(2 * x / stride, 2 * y / stride) for x, y in halves]


class RetinaNetHead(DenseHead):
    """FPN, class net and box net (Lin et al., "Focal loss for dense object detection", 2017). Raw output:
    :class:`~heads.detection.dense.DetRaw`, deltas (tx, ty, tw, th).

    Options of the network:

    * ``channels`` of the pyramid and the nets, ``repeats`` of 3x3 convolutions in each net; ``norm`` between them, ``none`` or
      ``group`` (which trains steadier; torchvision's second version has it).
    * ``levels``: consecutive numbers, the first 1 to 5; those that the backbone does not give are made by strided convolutions,
      of which the first reads ``extra_from``: ``p5``, the pyramid's last map, or ``c5``, the backbone's, as in the paper.
    * ``anchor_scale``, ``num_scales`` per octave, ``aspect_ratios`` as pairs [x, y]: the anchors of a cell. ``anchors``: ``exact``,
      in its middle, or ``torchvision``, of rounded sides around its corner, as that library's files were trained.
    * ``prior``: probability that every class starts with.

    Options of matching: ``positive_iou``, ``negative_iou``, ``force`` (:class:`~heads.detection.anchors.IouMatching`).

    Options of the loss:

    * ``alpha``, ``gamma``, ``label_smoothing``: focal loss. ``delta_loss`` (``l1``), ``huber_delta``, ``box_weight``: the loss of
      the deltas.
    * ``iou_loss``: None, ``giou``, ``diou`` or ``ciou``, with ``iou_weight``, on top of it, or alone where ``delta_loss`` is None.
    * ``crowd_ignore``: whether anchors inside crowds are left out of the class loss. Crowds are never positives.
    * ``local_normaliser``: whether each piece of a batch is divided by its own positives.

    Options of the predictions:

    * ``max_detections`` per image, ``score_threshold``, ``pre_nms``: anchor-class pairs that are looked at.
    * ``nms``: ``hard``, with ``nms_iou``, or ``gaussian``, with ``sigma``.
    """

    option_records: ClassVar[tuple[str, ...]] = ("network", "matching", *DenseHead.option_records)
    network = Network()
    matching = IouMatching(0.5, 0.4, "lift")
    class_loss = Focal()
    box_losses = BoxLosses("l1", box_weight=4.0)  # the sum over the four deltas
    selection = Selection(score_threshold=0.001)

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        network, levels = self.network, tuple(self.network.levels)
        check_names("retinanet", spec, levels)
        self.neck = FPN(sources(spec), levels, network.channels, extra_from=network.extra_from, head="retinanet")
        anchors, outputs = network.num_scales * len(network.aspect_ratios), self.class_loss.outputs(num_classes)
        self.class_net = _Net(network, anchors, outputs, Focal.bias(network.prior))
        self.box_net = _Net(network, anchors, 4, 0.0)
        center = 0.5 if network.anchors == "exact" else 0.0
        self.place(self.neck.strides, [network.shapes(stride) for stride in self.neck.strides], center)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """The maps of the pyramid's levels up to C5."""
        return BackboneNeeds(names_of(consecutive(options.get("levels", STANDARD))))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> DetRaw:
        """Maps of images padded to ``size_divisor`` to logits, deltas and anchors."""
        maps = self.neck(features)
        return DetRaw(self.class_net(maps), self.box_net(maps), self.anchors(features, maps))

    def fit_to_data(self, box_sides: Tensor, image_size: tuple[int, int]) -> dict[str, Any]:
        """As :func:`~heads.detection.anchor_fit.fitted_options`."""
        own, strides = self.network, self.cell_sides(image_size)
        return fitted_options(box_sides, strides, own.anchor_scale, own.num_scales, own.aspect_ratios, image_size)


class _Net(nn.Module):
    """A tower and what it says, the same on all levels: maps to [B, A, outputs], which starts at ``start``."""

    def __init__(self, network: Network, anchors: int, outputs: int, start: float) -> None:
        super().__init__()
        self.tower = ConvTower(network.channels, network.repeats, network.norm, bias=network.norm == "none")
        self.predict = Prediction(network.channels, anchors, outputs, start)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.cat([self.predict(self.tower(x)) for x in maps], 1)
