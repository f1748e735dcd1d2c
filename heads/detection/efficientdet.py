"""EfficientDet: the pyramid, a class net and a box net on every level, and its numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from effbackbones.backbones.convolution import Activation
from effbackbones.contracts import BackboneNeeds, FeatureSpec, ImageSizes, ImageSpec
from effbackbones.weights.classifiers import coco_name
from effbackbones.weights.loading import load_state
from effbackbones.weights.pretrained import Adopted, Decided, Pretrained
from heads.detection.anchor_fit import fitted_options
from heads.detection.anchors import Deltas, anchor_shapes
from heads.detection.bifpn import BiFPN
from heads.detection.criteria import BoxLosses, Focal
from heads.detection.dense import DenseHead, DetRaw
from heads.detection.efficientdet_names import CLASS_PREDICTOR, Detector
from heads.detection.efficientdet_weights import fit_classes, options_of
from heads.detection.levels import check_names, names_of, sources
from heads.detection.nms import Selection
from heads.detection.towers import Tower
from heads.detection.variants import Fusion, Variant, letterboxed, named_variant, variant_for
from heads.options import number


@dataclass(frozen=True)
class Network:
    """Options of the network; None means the variant's."""

    variant: str | None = None
    channels: int | None = None
    cells: int | None = None
    repeats: int | None = None
    fusion: Fusion | None = None
    levels: Sequence[int] | None = None
    anchor_scale: float | None = None
    num_scales: int | None = None
    aspect_ratios: Sequence[Sequence[float]] | None = None
    activation: Activation | None = None
    prior: float = 0.01

    def __post_init__(self) -> None:
        number("prior", self.prior, above=0, below=1)

    def row(self, backbone: str) -> Variant:
        """The variant named, or that of the backbone, with what was asked for instead."""
        row = variant_for(backbone) if self.variant is None else named_variant(self.variant)
        asked = {name: value for name, value in vars(self).items() if name not in ("variant", "prior")}
        return row.customised(**asked)


class EfficientDetHead(DenseHead):
    """BiFPN, class net and box net (Tan, Pang and Le, "EfficientDet", 2020). Raw output: :class:`DetRaw`.

    Options of the network; None means the variant's:

    * ``variant``: ``d0``-``d7``, ``d7x``, ``lite0``-``lite4``. Default: the one published on the backbone; D0 on other networks.
    * ``channels`` of the pyramid, its number of ``cells``, ``repeats`` of the two nets, ``activation``.
    * ``fusion``: ``fast`` (normalised weights), ``softmax``, or ``sum`` (no weights).
    * ``levels``: consecutive numbers, the first 1 to 5; those that the backbone does not give are pooled from its last map.
    * ``anchor_scale``, ``num_scales`` per octave, ``aspect_ratios`` as pairs [x, y]: the anchors of a cell.
    * ``prior``: probability that every class starts with.

    Options of the loss:

    * ``alpha``, ``gamma``, ``label_smoothing``: focal loss. ``delta_loss`` (``huber``), ``huber_delta``, ``box_weight``: the loss
      of the deltas.
    * ``iou_loss``: None, ``giou``, ``diou`` or ``ciou``, on top of it with ``iou_weight``.
    * ``crowd_ignore``: whether anchors inside crowds are left out of the class loss. Crowds are never positives.
    * ``local_normaliser``: whether each piece of a batch is divided by its own positives plus 1, as released.

    Options of the predictions:

    * ``max_detections`` per image, ``score_threshold``, ``pre_nms``: anchor-class pairs that are looked at.
    * ``nms``: ``hard``, with ``nms_iou``, or ``gaussian``, with ``sigma``.
    """

    option_records: ClassVar[tuple[str, ...]] = ("network", *DenseHead.option_records)
    network = Network()
    coder = Deltas("yx")
    class_loss = Focal(gamma=1.5)
    box_losses = BoxLosses("huber", huber_delta=0.1, box_weight=50.0)
    selection = Selection(score_threshold=0.001)

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.row = row = self.network.row(spec.backbone)
        check_names("efficientdet", spec, row.levels)
        self.neck = BiFPN(sources(spec), row.levels, row.channels, row.cells, row.fusion, row.activation)
        tower = (row.channels, row.repeats, len(row.levels), row.anchors)
        self.class_net = Tower(*tower, self.class_loss.outputs(num_classes), row.activation)
        self.box_net = Tower(*tower, 4, row.activation)
        bias = self.class_net.predict.pointwise.bias
        assert bias is not None
        nn.init.constant_(bias, Focal.bias(self.network.prior))
        shapes = anchor_shapes(row.anchor_scale, row.num_scales, row.aspect_ratios)
        self.place(self.neck.strides, [shapes] * len(row.levels))
        # The published size is never padded: Lite0's 320 and Lite2's 448 are no multiples of the coarsest stride.
        self.size_divisor = math.gcd(self.neck.strides[-1], row.resolution)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """The maps of the pyramid's levels up to C5."""
        row = Network(variant=options.get("variant"), levels=options.get("levels")).row("")
        return BackboneNeeds(names_of(row.levels))

    @classmethod
    def named_weights(cls, weights: Any, options: Mapping[str, Any]) -> Any:
        """``"coco"`` means the published detector of the ``variant``, if that is given."""
        variant = options.get("variant")
        return coco_name(str(variant)) if weights == "coco" and variant else weights

    @classmethod
    def options_with(
        cls, weights: Pretrained, options: Mapping[str, Any], spec: FeatureSpec, num_classes: int
    ) -> Decided:
        """As :meth:`Head.options_with`: the file of a detector decides the variant, or the sizes of pyramid and nets."""
        if not isinstance(weights.foreign, Detector):
            return super().options_with(weights, options, spec, num_classes)

        def shapes(wanted: Mapping[str, Any]) -> Mapping[str, Tensor]:
            with torch.device("meta"):
                return cls(spec, num_classes, **wanted).state_dict()

        return options_of(weights.foreign, weights, options, shapes)

    def adopt(self, weights: Pretrained) -> Adopted:
        """As :meth:`Head.adopt`; of a detector's class predictor what serves the classes of this head."""
        if not isinstance(weights.foreign, Detector):
            return super().adopt(weights)
        classes = fit_classes(weights.foreign, self.num_classes, self.row.anchors)
        others = {name: tensor for name, tensor in weights.for_heads.items() if name not in CLASS_PREDICTOR}
        left = () if classes.predictor else CLASS_PREDICTOR
        what = f"head from {weights.origin}"
        report = load_state(self, others | classes.predictor, what=what, allow_missing=True, unused=left)
        return Adopted(report, (classes.remark,) if classes.remark else (), classes.names)

    def image_spec(self, spec: ImageSpec) -> ImageSpec:
        """The variant's published size, letterboxed, bilinear; mean and std of the backbone's weights."""
        return letterboxed(spec, self.row.resolution)

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> DetRaw:
        """Maps of images padded to ``size_divisor`` to logits, deltas and anchors."""
        maps = self.neck(features)
        return DetRaw(self.class_net(maps), self.box_net(maps), self.anchors(features, maps))

    def divisor(self, name: str, count: Tensor) -> Tensor:
        """The number of positive anchors plus 1, as released."""
        return count + 1.0

    def fit_to_data(self, box_sides: Tensor, image_size: tuple[int, int]) -> dict[str, Any]:
        """As :func:`~heads.detection.anchor_fit.fitted_options`."""
        row, strides = self.row, self.cell_sides(image_size)
        return fitted_options(box_sides, strides, row.anchor_scale, row.num_scales, row.aspect_ratios, image_size)
