"""The published EfficientDets as rows: D0-D7x and Lite0-Lite4, chosen by the backbone's name.

Source: Tan, Pang and Le, "EfficientDet", 2020, table 1, with the hand-rounded widths of the released configurations; the
anchor settings are those that the released weights were trained with (effdet ``config/model_config.py``).
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from effbackbones.backbones.convolution import Activation
from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError, nearest
from heads.detection.levels import STANDARD, consecutive
from heads.options import choice, number, require, whole

Fusion = Literal["fast", "sum", "softmax"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)


@dataclass(frozen=True)
class Variant:
    """One detector: the pyramid's width and number of ``cells``, ``repeats`` of the towers, how maps are fused, anchors.

    ``resolution``: side in pixels of the square images it was published with. ``levels``: level l has stride 2**l on a
    backbone of ordinary strides. ``anchor_scale``: side of the smallest square anchor, in strides.
    """

    name: str
    resolution: int
    channels: int
    cells: int
    repeats: int
    fusion: Fusion = "fast"
    anchor_scale: float = 4.0
    levels: tuple[int, ...] = STANDARD
    activation: Activation = "silu"
    num_scales: int = 3
    aspect_ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))

    def __post_init__(self) -> None:
        for option in ("channels", "cells", "repeats", "num_scales"):
            whole(option, getattr(self, option))
        number("anchor_scale", self.anchor_scale, above=0)
        check_aspects(self.aspect_ratios)
        consecutive(self.levels)
        choice("fusion", self.fusion, FUSIONS)
        choice("activation", self.activation, get_args(Activation))

    def customised(self, **options: Any) -> "Variant":
        """This row with the ``options`` that are not None; a wrong value raises :class:`UserError`."""
        given = {name: value for name, value in options.items() if value is not None}
        try:
            for name in given.keys() & {"levels", "aspect_ratios"}:  # lists where they come from a file
                given[name] = tuple(tuple(item) if isinstance(item, list) else item for item in given[name])
            return replace(self, **given)
        except TypeError as error:
            raise UserError("head_options", f"wrong type: {error}", "see the options of EfficientDetHead") from error

    @property
    def anchors(self) -> int:
        """Anchors of a cell."""
        return self.num_scales * len(self.aspect_ratios)


def check_aspects(ratios: Any) -> None:
    """The option ``aspect_ratios``: pairs of positive numbers, or :class:`UserError` says so."""
    pairs = isinstance(ratios, tuple | list) and bool(ratios) and all(map(_is_pair, ratios))
    require("aspect_ratios", ratios, pairs, "pairs [x, y] of positive numbers")


def _is_pair(value: Any) -> bool:
    pair = isinstance(value, tuple | list) and len(value) == 2
    return pair and all(isinstance(side, int | float) and 0 < side < math.inf for side in value)


def _lite(name: str, resolution: int, channels: int, cells: int, repeats: int, anchor_scale: float) -> Variant:
    return Variant(name, resolution, channels, cells, repeats, "sum", anchor_scale, activation="relu6")


_ROWS = (
    Variant("d0", 512, 64, 3, 3),
    Variant("d1", 640, 88, 4, 3),
    Variant("d2", 768, 112, 5, 3),
    Variant("d3", 896, 160, 6, 4),
    Variant("d4", 1024, 224, 7, 4),
    Variant("d5", 1280, 288, 7, 4),
    Variant("d6", 1280, 384, 8, 5, "sum"),
    Variant("d7", 1536, 384, 8, 5, "sum", 5.0),
    Variant("d7x", 1536, 384, 8, 5, "sum", levels=(3, 4, 5, 6, 7, 8)),
    _lite("lite0", 320, 64, 3, 3, 3.0),
    _lite("lite1", 384, 88, 4, 3, 3.0),
    _lite("lite2", 448, 112, 5, 3, 3.0),
    _lite("lite3", 512, 160, 6, 4, 4.0),
    _lite("lite4", 640, 224, 7, 4, 4.0),
)
VARIANTS = {row.name: row for row in _ROWS}

_BY_PHI = {
    "b": ("d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7x"),
    "lite": ("lite0", "lite1", "lite2", "lite3", "lite4"),
}
_EFFICIENTNET = re.compile(r"(?:^|efficientnet_)(b|lite)(-?\d+(?:\.\d+)?)(?!\d)")


def named_variant(name: str) -> Variant:
    """The row called ``name``; an unknown name raises :class:`UserError` with the nearest known ones."""
    if name not in VARIANTS:
        raise UserError("head_options.variant", f"unknown value {name!r}", nearest(str(name), VARIANTS))
    return VARIANTS[name]


def letterboxed(spec: ImageSpec, side: int) -> ImageSpec:
    """``spec``, of images letterboxed into a square of ``side`` pixels, bilinear."""
    return replace(spec, size=(side, side), interpolation="bilinear", crop_fraction=1.0, crop_mode="letterbox")


def variant_for(backbone: str) -> Variant:
    """The row published on ``backbone``: ``b3`` gives D3, ``lite1`` Lite1, ``b6`` D6 and ``b7`` D7x.

    Names in between (``b2.5``) take the nearer row, the larger at equal distance; ``timm:tf_efficientnet_b3`` counts as
    ``b3``. Other networks get D0.
    """
    match = _EFFICIENTNET.search(backbone)
    if match is None:
        return VARIANTS["d0"]
    rows = _BY_PHI[match[1]]
    return VARIANTS[rows[min(max(math.floor(float(match[2]) + 0.5), 0), len(rows) - 1)]]
