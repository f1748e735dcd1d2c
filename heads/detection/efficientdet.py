"""EfficientDet: the pyramid, a class net and a box net on every level, their loss and their detections."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from effbackbones.backbones.convolution import Activation
from effbackbones.contracts import BackboneNeeds, BoxTargets, Detections, FeatureSpec, Head, ImageSizes, ImageSpec
from effbackbones.errors import UserError
from effbackbones.weights.classifiers import coco_name
from effbackbones.weights.loading import load_state
from effbackbones.weights.pretrained import Adopted, Decided, Pretrained
from heads.detection.anchor_fit import as_options, fit_ratios
from heads.detection.anchors import anchor_grid, anchor_shapes, assign, decode, encode, pairwise_iou
from heads.detection.bifpn import BiFPN, Source
from heads.detection.efficientdet_names import CLASS_PREDICTOR, Detector
from heads.detection.efficientdet_weights import fit_classes, options_of
from heads.detection.losses import IOU_LOSSES, IouLoss, focal_sum, huber_sum, iou_loss
from heads.detection.nms import candidates, gaussian_nms, hard_nms
from heads.detection.towers import Tower
from heads.detection.variants import Fusion, Variant, named_variant, variant_for
from heads.options import choose, require

_FIXED_POINT = 2.0**32  # units of the anchor shapes, so that `.half()` cannot round them
_WORTHWHILE = 0.01  # gain in mean best IoU below which fitted anchors are not worth leaving the published ones


class DetRaw(NamedTuple):
    """Raw output: ``logits`` [B, A, K], ``deltas`` [B, A, 4] as (ty, tx, th, tw), ``anchors`` float32 [A, 4] xyxy pixels."""

    logits: Tensor
    deltas: Tensor
    anchors: Tensor


pytree._register_namedtuple(DetRaw, serialized_type_name="heads.DetRaw")


class EfficientDetHead(Head):
    """BiFPN, class net and box net (Tan, Pang and Le, "EfficientDet", 2020). Raw output: :class:`DetRaw`.

    Options of the network; None means the variant's:

    * ``variant``: ``d0``-``d7``, ``d7x``, ``lite0``-``lite4``. Default: the one published on the backbone; D0 on other networks.
    * ``channels`` of the pyramid, its number of ``cells``, ``repeats`` of the two nets, ``activation``.
    * ``fusion``: ``fast`` (normalised weights), ``softmax``, or ``sum`` (no weights).
    * ``levels``: consecutive numbers, the first 1 to 5; those that the backbone does not give are pooled from its last map.
    * ``anchor_scale``, ``num_scales`` per octave, ``aspect_ratios`` as pairs [x, y]: the anchors of a cell.
    * ``prior``: probability that every class starts with.

    Options of the loss:

    * ``alpha``, ``gamma``, ``label_smoothing``: focal loss. ``huber_delta``, ``box_weight``: Huber's loss on the deltas.
    * ``iou_loss``: None, ``giou``, ``diou`` or ``ciou``, on top of it with ``iou_weight``.
    * ``crowd_ignore``: whether anchors inside crowds are left out of the class loss. Crowds are never positives.

    Options of the predictions:

    * ``max_detections`` per image, ``score_threshold``, ``pre_nms``: anchor-class pairs that are looked at.
    * ``nms``: ``hard``, with ``nms_iou``, or ``gaussian``, with ``sigma``.
    """

    task: ClassVar[str] = "det"

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        variant: str | None = None,
        channels: int | None = None,
        cells: int | None = None,
        repeats: int | None = None,
        fusion: Fusion | None = None,
        levels: Sequence[int] | None = None,
        anchor_scale: float | None = None,
        num_scales: int | None = None,
        aspect_ratios: Sequence[Sequence[float]] | None = None,
        activation: Activation | None = None,
        prior: float = 0.01,
        alpha: float = 0.25,
        gamma: float = 1.5,
        label_smoothing: float = 0.0,
        huber_delta: float = 0.1,
        box_weight: float = 50.0,
        iou_loss: IouLoss | None = None,
        iou_weight: float = 1.0,
        crowd_ignore: bool = False,
        max_detections: int = 100,
        score_threshold: float = 0.001,
        nms: str = "hard",
        nms_iou: float = 0.5,
        sigma: float = 0.5,
        pre_nms: int = 5000,
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        row = _customised(
            spec.backbone,
            variant=variant,
            channels=channels,
            cells=cells,
            repeats=repeats,
            fusion=fusion,
            levels=levels,
            anchor_scale=anchor_scale,
            num_scales=num_scales,
            aspect_ratios=aspect_ratios,
            activation=activation,
        )
        for name, value in (("prior", prior), ("alpha", alpha)):
            require(name, value, 0 < value < 1, "a number in (0, 1)")
        for name, value in (("label_smoothing", label_smoothing), ("score_threshold", score_threshold)):
            require(name, value, 0 <= value < 1, "a number in [0, 1)")
        for name, value in (("gamma", gamma), ("box_weight", box_weight), ("iou_weight", iou_weight)):
            require(name, value, 0 <= value < math.inf, "a number from 0 up")
        for name, value in (("huber_delta", huber_delta), ("sigma", sigma)):
            require(name, value, 0 < value < math.inf, "a positive number")
        for name, value in (("max_detections", max_detections), ("pre_nms", pre_nms)):
            require(name, value, value >= 1, "a whole number from 1 up")
        require("nms_iou", nms_iou, 0 <= nms_iou <= 1, "a number in [0, 1]")
        choose("nms", nms, ("hard", "gaussian"))
        if iou_loss is not None:
            choose("iou_loss", iou_loss, IOU_LOSSES)
        self.row = row
        self.alpha, self.gamma, self.label_smoothing = alpha, gamma, label_smoothing
        self.huber_delta, self.box_weight, self.iou_loss, self.iou_weight = (
            huber_delta,
            box_weight,
            iou_loss,
            iou_weight,
        )
        self.crowd_ignore = crowd_ignore
        self.max_detections, self.score_threshold, self.pre_nms = max_detections, score_threshold, pre_nms
        self.nms, self.nms_iou, self.sigma = nms, nms_iou, sigma

        inputs = [Source(width, stride) for width, stride in zip(spec.channels, spec.strides, strict=True)]
        _check_names(spec, row.levels)
        self.neck = BiFPN(inputs, row.levels, row.channels, row.cells, row.fusion, row.activation)
        tower = (row.channels, row.repeats, len(row.levels), row.anchors)
        self.class_net = Tower(*tower, num_classes, row.activation)
        self.box_net = Tower(*tower, 4, row.activation)
        bias = self.class_net.predict.pointwise.bias
        assert bias is not None
        nn.init.constant_(bias, -math.log((1 - prior) / prior))
        # The published size is never padded: Lite0's 320 and Lite2's 448 are no multiples of the coarsest stride.
        self.size_divisor = math.gcd(self.neck.strides[-1], row.resolution)
        shapes = torch.tensor(anchor_shapes(row.anchor_scale, row.num_scales, row.aspect_ratios), dtype=torch.float64)
        self.register_buffer("_shapes", (shapes * _FIXED_POINT).round().long(), persistent=False)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """The maps of the pyramid's levels up to C5."""
        row = _customised("", variant=options.get("variant"), levels=options.get("levels"))
        return BackboneNeeds(levels=tuple(f"C{level}" for level in row.levels if level <= 5))

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
        size = (self.row.resolution, self.row.resolution)
        return replace(spec, size=size, interpolation="bilinear", crop_fraction=1.0, crop_mode="letterbox")

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> DetRaw:
        """Maps of images padded to ``size_divisor`` to logits, deltas and anchors."""
        maps = self.neck(features)
        image = tuple(cells * self.spec.strides[0] for cells in features[0].shape[-2:])
        anchors = self._anchors((image[0], image[1]), [m.shape[-2:] for m in maps])
        return DetRaw(self.class_net(maps), self.box_net(maps), anchors)

    def _anchors(self, image: tuple[int, int], maps: Sequence[Sequence[int]]) -> Tensor:
        shapes = self._shapes
        assert isinstance(shapes, Tensor)
        precise = torch.float32 if shapes.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        return anchor_grid(image, maps, shapes.to(precise) / _FIXED_POINT)

    def loss(self, raw: DetRaw, targets: BoxTargets, sizes: ImageSizes) -> dict[str, Tensor]:
        """``class``: focal loss over all anchors and classes, divided by N; ``box``: ``box_weight`` times Huber's loss on the
        deltas of positive anchors, divided by 4 N; ``iou``, if asked for: ``iou_weight`` times the loss of their boxes, divided
        by N. N is the number of positive anchors in this batch plus 1. Computed in float32."""
        boxes, labels, crowd = _at_least_one(targets)
        logits, deltas, anchors = raw.logits.float(), raw.deltas.float(), raw.anchors
        match, ignored = assign(anchors, boxes, (labels >= 0) & ~crowd, crowd if self.crowd_ignore else None)
        positive, index = match >= 0, match.clamp(min=0)
        normaliser = positive.sum() + 1.0
        own = torch.where(positive[..., None], boxes.gather(1, index[..., None].expand(-1, -1, 4)), anchors)
        anchor_labels = torch.where(positive, labels.gather(1, index), -1)
        focal = focal_sum(
            logits, anchor_labels, alpha=self.alpha, gamma=self.gamma, smoothing=self.label_smoothing, ignored=ignored
        )
        box_targets = torch.where(positive[..., None], encode(own, anchors), 0.0)
        huber = huber_sum(deltas, box_targets, self.huber_delta)
        losses = {"class": focal / normaliser, "box": self.box_weight * huber / (4 * normaliser)}
        if self.iou_loss is not None:
            decoded = decode(torch.where(positive[..., None], deltas, 0.0), anchors)
            overlap = torch.where(positive, iou_loss(decoded, own, self.iou_loss), 0.0)
            losses["iou"] = self.iou_weight * overlap.sum() / normaliser
        return losses

    def select(self, raw: DetRaw, rows: Tensor) -> DetRaw:
        """Rows of logits and deltas; the anchors are those of every image."""
        return DetRaw(raw.logits.index_select(0, rows), raw.deltas.index_select(0, rows), raw.anchors)

    @torch.no_grad()
    def predict(self, raw: DetRaw, sizes: ImageSizes) -> Detections:
        """``max_detections`` rows per image, clipped to its valid extent before suppression. Anchors whose output is not finite
        are passed over. Computed in float32."""
        found = candidates(raw.logits.float(), raw.deltas.float(), raw.anchors, sizes.valid, self.pre_nms)
        if self.nms == "hard":
            return hard_nms(found, iou=self.nms_iou, threshold=self.score_threshold, most=self.max_detections)
        return gaussian_nms(found, sigma=self.sigma, threshold=self.score_threshold, most=self.max_detections)

    @torch.no_grad()
    def diagnose(self, targets: BoxTargets, sizes: ImageSizes) -> dict[str, Tensor]:
        """``best_anchor_iou`` float32 [B, M]: each box's IoU with the anchor that fits it best, -1 for padding and crowds."""
        boxes, labels, crowd = _at_least_one(targets)
        image = (self.padded(sizes.batch[0]), self.padded(sizes.batch[1]))
        anchors = self._anchors(image, _map_sizes(image, self.neck.strides)).to(boxes)
        best = pairwise_iou(boxes, anchors).amax(2)
        return {"best_anchor_iou": torch.where((labels >= 0) & ~crowd, best, -1.0)[:, : targets.labels.shape[1]]}

    def fit_to_data(self, box_sides: Tensor, image_size: tuple[int, int]) -> dict[str, Any]:
        """``aspect_ratios`` and ``anchor_scale`` that raise the boxes' mean IoU with their best anchor, centred on them, by
        at least 0.01; empty if none are found. As many anchors as before. Deterministic. Sides that are not positive are
        passed over."""
        row = self.row
        sides = box_sides[(box_sides > 0).all(1) & box_sides.isfinite().all(1)]
        if not len(sides):
            return {}
        maps = _map_sizes(image_size, self.neck.strides)
        strides = torch.tensor([[image_size[1] / w, image_size[0] / h] for h, w in maps], dtype=torch.float64)
        octaves = row.anchor_scale * 2 ** (torch.arange(row.num_scales, dtype=torch.float64) / row.num_scales)
        bases = (strides[:, None] * octaves[:, None]).flatten(0, 1)
        before, fit = fit_ratios(sides, bases, torch.tensor(row.aspect_ratios))
        return as_options(fit, row.anchor_scale) if fit.quality - before.quality >= _WORTHWHILE else {}


def _customised(backbone: str, variant: str | None = None, **options: Any) -> Variant:
    """The row named, or that of the backbone, with what was asked for instead."""
    row = variant_for(backbone) if variant is None else named_variant(variant)
    return row.customised(**options)


def _check_names(spec: FeatureSpec, levels: Sequence[int]) -> None:
    """The backbone's maps must be the first levels of the pyramid."""
    expected = tuple(f"C{level}" for level in levels)[: len(spec.names)]
    if spec.names != expected:
        what = f"reads the maps {', '.join(expected)} as levels {list(levels)}, got {', '.join(spec.names)}"
        raise UserError("head efficientdet", what, "set head_options.levels or backbone_options.levels")


def _at_least_one(targets: BoxTargets) -> BoxTargets:
    """The same targets with a row of padding if they have no row at all."""
    if targets.labels.shape[1]:
        return targets
    boxes, labels, crowd = targets
    return BoxTargets(F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1), F.pad(crowd, (0, 1)))


def _map_sizes(image: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Cells (h, w) of each level of an image of (H, W) pixels."""
    return [(-(-image[0] // stride), -(-image[1] // stride)) for stride in strides]
