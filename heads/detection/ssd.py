"""SSDLite: maps of the backbone and of extra blocks, each with small separable predictors of its own, and SSD's numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, product
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from effbackbones.backbones.convolution import ConvNorm, Numerics
from effbackbones.contracts import BackboneNeeds, FeatureSpec, ImageSizes
from effbackbones.errors import UserError
from heads.detection.anchor_fit import chosen_options
from heads.detection.anchors import Deltas, IouMatching, anchor_grid
from heads.detection.criteria import BoxLosses, MinedSoftmax
from heads.detection.dense import DenseHead, DetRaw
from heads.detection.levels import DEEPEST, check_names, consecutive, level_strides, names_of
from heads.detection.nms import Selection
from heads.detection.towers import flattened, in_full_precision
from heads.options import number, require, wholes

LEVELS = (4, 5, 6, 7, 8, 9)
NUMERICS = Numerics("symmetric", 1e-3, 0.03)
"""Of extra blocks and predictors, whatever the backbone's are (torchvision ``ssdlite.py``)."""
_DEVIATION = 0.03  # of the normal weights that all convolutions start with, there


@dataclass(frozen=True)
class Network:
    """Options of the network."""

    levels: Sequence[int] = LEVELS
    extra_channels: Sequence[int] = (512, 256, 256, 128)
    min_scale: float = 0.2
    max_scale: float = 0.95
    aspect_ratios: Sequence[float] = (2.0, 3.0)

    def __post_init__(self) -> None:
        added = self.added(consecutive(self.levels))
        widths = wholes("extra_channels", self.extra_channels, 2) if self.extra_channels or added else []
        require("extra_channels", self.extra_channels, len(widths) >= added, f"one for each level beyond C5, {added}")
        number("min_scale", self.min_scale, above=0, below=1)
        number("max_scale", self.max_scale, self.min_scale, most=1)
        ratios = self.aspect_ratios
        known = isinstance(ratios, Sequence) and not isinstance(ratios, str)
        require("aspect_ratios", ratios, known, "a list of numbers, such as [2.0, 3.0]")
        for ratio in ratios:
            number("aspect_ratios", ratio, above=0)

    @staticmethod
    def added(levels: Sequence[int]) -> int:
        """How many of ``levels`` no backbone gives."""
        return sum(level > DEEPEST for level in levels)

    def resting(self) -> dict[str, str]:
        """Fields that change nothing, and why."""
        many = self.added(self.levels)
        why = f"all but the first {many} of it, for so many levels are coarser than C5"
        return {"extra_channels": why} if len(self.extra_channels) > many else {}

    def shapes(self) -> list[list[tuple[float, float]]]:
        """(width, height) of the default boxes of a cell of each level, in sides of a square image (Liu et al., "SSD", 2016,
        section 2.2): the scales lie evenly between the two; of each a square, one between it and the next scale, and each aspect lying
        and standing."""
        count, span = len(self.levels), self.max_scale - self.min_scale
        scales = [self.min_scale + span * level / (count - 1) for level in range(count)] + [1.0]
        levels = []
        for scale, following in pairwise(scales):
            between = math.sqrt(scale * following)
            shapes = [(scale, scale), (between, between)]
            for ratio in self.aspect_ratios:
                long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
                shapes += [(long, short), (short, long)]
            levels.append(shapes)
        return levels


class SSDHead(DenseHead):
    """SSDLite: Liu et al., "SSD", 2016, with the separable layers of Sandler et al., "MobileNetV2", 2018, section 6.2, and torchvision's
    numbers. Raw output: :class:`~heads.detection.dense.DetRaw`, whose logits have the background first, deltas (tx, ty, tw, th).

    Options of the network:

    * ``levels``: consecutive numbers, the first 1 to 5; each that the backbone does not give is made of the one before by a block
      (1x1, 3x3 depthwise of stride 2, 1x1) of ``extra_channels``, in this order.
    * ``min_scale`` and ``max_scale``, in sides of the image: the default boxes of the finest and the coarsest level.
      ``aspect_ratios``: numbers, of each a lying and a standing box beside the squares. Of an image that is not square the side is
      that of the square of its area.

    Options of matching: ``positive_iou``, ``negative_iou``, ``force`` (:class:`~heads.detection.anchors.IouMatching`).

    Options of the loss:

    * ``negatives``: hardest background boxes for each positive of an image; ``label_smoothing``. ``delta_loss`` (``smooth_l1``),
      ``huber_delta``, ``box_weight``: the loss of the deltas.
    * ``iou_loss``: None, ``giou``, ``diou`` or ``ciou``, with ``iou_weight``, on top of it, or alone where ``delta_loss`` is None.
    * ``crowd_ignore``: whether default boxes inside crowds are left out of the class loss. Crowds are never positives.
    * ``local_normaliser``: whether each piece of a batch is divided by its own positives.

    Options of the predictions:

    * ``max_detections`` per image, ``score_threshold``, ``pre_nms``: anchor-class pairs that are looked at.
    * ``nms``: ``hard``, with ``nms_iou``, or ``gaussian``, with ``sigma``.
    """

    option_records: ClassVar[tuple[str, ...]] = ("network", "matching", *DenseHead.option_records)
    network = Network()
    matching = IouMatching(0.5, 0.5, "claim")
    coder = Deltas("xy", center=0.1, size=0.2)
    class_loss = MinedSoftmax()
    box_losses = BoxLosses("smooth_l1", box_weight=4.0)  # the sum over the four deltas
    selection = Selection(score_threshold=0.001, nms_iou=0.55)

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        network, levels = self.network, tuple(self.network.levels)
        check_names("ssd", spec, levels)
        widths = list(spec.channels)
        self.extra = nn.ModuleDict()
        for level, width in zip(levels[len(widths) :], network.extra_channels, strict=False):
            self.extra[str(level)] = _extra_block(widths[-1], width)
            widths.append(width)
        if len(widths) < len(levels):
            what = f"expected {len(levels) - len(spec.channels)} for levels {list(levels)}, got {list(network.extra_channels)}"
            raise UserError("head_options.extra_channels", what, "name one for each level beyond the backbone's")
        shapes, outputs = network.shapes(), self.class_loss.outputs(num_classes)
        self.class_net = nn.ModuleList(_Predictor(w, len(s), outputs) for w, s in zip(widths, shapes, strict=True))
        self.box_net = nn.ModuleList(_Predictor(w, len(s), 4) for w, s in zip(widths, shapes, strict=True))
        self.place(level_strides(spec.strides, len(levels), "ssd"), shapes)
        for module in (self.extra, self.class_net, self.box_net):
            module.apply(_init_small)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """The maps of the levels up to C5."""
        return BackboneNeeds(names_of(consecutive(options.get("levels", LEVELS))))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> DetRaw:
        """Maps of images padded to ``size_divisor`` to logits, deltas and anchors."""
        maps = list(features)
        for block in self.extra.values():
            maps.append(block(maps[-1]))
        logits, deltas = (
            torch.cat([net(x) for net, x in zip(nets, maps, strict=True)], 1) for nets in (self.class_net, self.box_net)
        )
        return DetRaw(logits, deltas, self.anchors(features, maps))

    def _grid(self, image: tuple[int, int], maps: Sequence[Sequence[int]]) -> Tensor:
        """Sizes are shares of the image's, so shapes in strides depend on it."""
        in_cells = []
        for shares, (height, width) in zip(self.shapes_of_levels(), maps, strict=True):
            one = shares.new_ones(())
            whole = torch.stack([one * image[1], one * image[0]])
            sides = torch.minimum(shares * whole.prod().sqrt(), whole)
            in_cells.append(sides / whole * torch.stack([one * width, one * height]))
        return anchor_grid(image, maps, in_cells)

    def fit_to_data(self, box_sides: Tensor, image_size: tuple[int, int]) -> dict[str, Any]:
        """``min_scale``, ``max_scale`` and ``aspect_ratios`` at quantiles of the boxes' own, where these overlap them more
        (:func:`~heads.detection.anchor_fit.chosen_options`); as many default boxes as before."""
        whole = torch.tensor(image_size[::-1], dtype=torch.float64)
        side, sides = whole.prod().sqrt(), box_sides[(box_sides > 0).all(1) & box_sides.isfinite().all(1)].double()
        if not len(sides):
            return {}
        scales, aspects = sides.prod(1).sqrt() / side, (sides[:, 0] / sides[:, 1]).log().abs().exp()
        least, most = (
            sorted({min(0.99, max(0.005, round(float(scales.quantile(q)), 3))) for q in quantiles})
            for quantiles in ((0.01, 0.05, 0.15, 0.3), (0.7, 0.85, 0.95, 1.0))
        )
        many = len(self.network.aspect_ratios)
        ratios = [round(float(aspects.quantile((place + 0.5) / many)), 2) for place in range(many)]
        found: list[dict[str, object]] = [{}]
        for low, high in product([self.network.min_scale, *least], [self.network.max_scale, *most]):
            ends: dict[str, object] = {"min_scale": low, "max_scale": high}
            found += [ends, {**ends, "aspect_ratios": ratios}] if low < high else []
        shapes = [[*chain(*replace(self.network, **cast(Any, options)).shapes())] for options in found]
        anchors = [torch.minimum(torch.tensor(own, dtype=torch.float64) * side, whole) for own in shapes]
        counts = torch.tensor(self._counts)
        cells = torch.tensor(self.cell_sides(image_size), dtype=torch.float64).repeat_interleave(counts, 0)
        return chosen_options(sides, zip(found, anchors, strict=True), cells, image_size)


class _Predictor(nn.Module):
    """3x3 depthwise convolution, then a 1x1 one that says ``outputs`` values of each of the ``anchors`` of a cell: [B, c, h, w] to
    [B, A, outputs]."""

    def __init__(self, channels: int, anchors: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.depthwise = ConvNorm(channels, channels, 3, numerics=NUMERICS, activation="relu6", groups=channels)
        self.conv = nn.Conv2d(channels, anchors * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return flattened(in_full_precision(self.conv, self.depthwise(x)), self.outputs)


def _extra_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """[B, in_channels, h, w] to [B, out_channels, ceil(h / 2), ceil(w / 2)]."""
    middle = out_channels // 2
    return nn.Sequential(
        ConvNorm(in_channels, middle, 1, numerics=NUMERICS, activation="relu6"),
        ConvNorm(middle, middle, 3, numerics=NUMERICS, activation="relu6", stride=2, groups=middle),
        ConvNorm(middle, out_channels, 1, numerics=NUMERICS, activation="relu6"),
    )


def _init_small(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=_DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
