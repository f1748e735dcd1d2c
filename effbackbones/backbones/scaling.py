"""Compound scaling: one stage table, and the rows that stretch it to B0-B7 and Lite0-Lite4.

Source: Tan and Le, "EfficientNet", 2019, table 1 and section 3.3; the released code rounds as :func:`round_width` and
:func:`round_depth` do. The released rows were set by hand, not by the compound law, so the rows are the truth here.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from effbackbones.errors import UserError, nearest
from effbackbones.images.spec import IMAGENET_MEAN, IMAGENET_STD, ImageSpec

Family = Literal["b", "lite"]


class Stage(NamedTuple):
    """One row of B0's table: ``layers`` MBConv blocks of ``channels`` outputs; only the first block has the stride."""

    kernel: int
    stride: int
    expand: int
    channels: int
    layers: int


STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
LEVEL_STAGES = {"C1": 1, "C2": 2, "C3": 3, "C4": 5, "C5": 7}
"""How many stages lie below each level: a level is the output of the last block before the next stride (section 5.2 of
the EfficientDet code's endpoints; stages 4 and 6 are not the last at their stride)."""

DEPTH_BASE, WIDTH_BASE, RESOLUTION_BASE = 1.2, 1.1, 1.15
"""The compound law (alpha, beta, gamma of the paper), used only beyond the ends of the rows."""


@dataclass(frozen=True)
class Scaling:
    """A member of a family: multipliers for width and depth, native resolution in pixels, dropout before the classifier.

    Lite differs from b in five ways: no squeeze-excite, ReLU6, stem and head not widened, first and last stage not
    deepened, and images in -1..1.
    """

    name: str
    width: float
    depth: float
    resolution: int
    dropout: float
    family: Family = "b"

    def __post_init__(self) -> None:
        if not (
            0 < self.width < math.inf and 0 < self.depth < math.inf and self.resolution > 0 and 0 <= self.dropout < 1
        ):
            what = f"width, depth and resolution must be positive, dropout in [0, 1); got {self}"
            raise UserError(f"backbone {self.name!r}", what, "correct the scaling")


def stem_channels(config: Scaling) -> int:
    """Channels of the stem's output."""
    return STEM_CHANNELS if config.family == "lite" else round_width(STEM_CHANNELS, config.width)


def head_channels(config: Scaling) -> int:
    """Channels of the 1x1 convolution in front of the published classifier."""
    return HEAD_CHANNELS if config.family == "lite" else round_width(HEAD_CHANNELS, config.width)


def stage_channels(config: Scaling) -> tuple[int, ...]:
    """Output channels of the seven stages."""
    return tuple(round_width(stage.channels, config.width) for stage in STAGES)


def stage_layers(config: Scaling) -> tuple[int, ...]:
    """Blocks in each of the seven stages."""
    layers = [round_depth(stage.layers, config.depth) for stage in STAGES]
    if config.family == "lite":
        layers[0], layers[-1] = STAGES[0].layers, STAGES[-1].layers
    return tuple(layers)


def round_width(channels: int, width: float) -> int:
    """``channels * width`` to the nearest multiple of 8, never more than 10 % below it."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def round_depth(layers: int, depth: float) -> int:
    """``layers * depth``, rounded up."""
    return math.ceil(layers * depth)


_ROWS = (
    Scaling("b0", 1.0, 1.0, 224, 0.2),
    Scaling("b1", 1.0, 1.1, 240, 0.2),
    Scaling("b2", 1.1, 1.2, 260, 0.3),
    Scaling("b3", 1.2, 1.4, 300, 0.3),
    Scaling("b4", 1.4, 1.8, 380, 0.4),
    Scaling("b5", 1.6, 2.2, 456, 0.4),
    Scaling("b6", 1.8, 2.6, 528, 0.5),
    Scaling("b7", 2.0, 3.1, 600, 0.5),
    Scaling("lite0", 1.0, 1.0, 224, 0.2, "lite"),
    Scaling("lite1", 1.0, 1.1, 240, 0.2, "lite"),
    Scaling("lite2", 1.1, 1.2, 260, 0.3, "lite"),
    Scaling("lite3", 1.2, 1.4, 280, 0.3, "lite"),
    Scaling("lite4", 1.4, 1.8, 300, 0.3, "lite"),
)
SCALINGS = {row.name: row for row in _ROWS}
_BETWEEN = re.compile(r"(b|lite)(-?\d+\.\d+)")


def scaling(name: str) -> Scaling:
    """The row called ``name`` (``b0``...``b7``, ``lite0``...``lite4``), or :func:`scaled` of a name such as ``b2.5``.

    ``efficientnet_b0`` is understood too. An unknown name raises :class:`UserError` with the nearest known ones.
    """
    short = name.removeprefix("efficientnet_")
    if short in SCALINGS:
        return SCALINGS[short]
    if match := _BETWEEN.fullmatch(short):
        return scaled(float(match[2]), "lite" if match[1] == "lite" else "b")
    raise UserError(f"backbone {name!r}", "no such EfficientNet", nearest(short, SCALINGS))


def row_of(backbone: str) -> Scaling | None:
    """The row of an EfficientNet, also of one behind a spectrogram (``sound:b0``); None for a backbone of another family."""
    try:
        return scaling(backbone.removeprefix("sound:"))
    except UserError:
        return None


_FURTHEST = 20
"""Compound coefficients beyond which no network can be built."""


def scaled(phi: float, family: Family = "b") -> Scaling:
    """The member of a family at compound coefficient ``phi``.

    The rows sit at 0, 1, ... (7 for b, 4 for lite) and are returned as they are. In between, width, depth and resolution
    are interpolated geometrically, dropout linearly. Beyond the ends the compound law continues from the last row: each
    unit of ``phi`` multiplies depth by 1.2, width by 1.1, resolution by 1.15, about twice the operations; dropout stays.
    Resolution is rounded to a multiple of 4, as all rows are; width and depth are rounded where they are applied.
    """
    rows = [row for row in _ROWS if row.family == family]
    if not rows or not abs(phi) <= _FURTHEST:
        raise UserError(
            "scaled",
            f"expected a phi of -{_FURTHEST} to {_FURTHEST} and family b or lite, got {phi!r} and {family!r}",
            "correct them",
        )
    low = rows[min(max(math.floor(phi), 0), len(rows) - 1)]
    offset = phi - rows.index(low)
    if offset == 0:
        return low
    name = f"{family}{float(phi)!r}"
    if low is rows[-1] or offset < 0:
        resolution = low.resolution * RESOLUTION_BASE**offset
        low = replace(low, name=name, width=low.width * WIDTH_BASE**offset, depth=low.depth * DEPTH_BASE**offset)
    else:
        high = rows[rows.index(low) + 1]
        resolution = _geometric(low.resolution, high.resolution, offset)
        low = replace(
            low,
            name=name,
            width=_geometric(low.width, high.width, offset),
            depth=_geometric(low.depth, high.depth, offset),
            dropout=low.dropout + (high.dropout - low.dropout) * offset,
        )
    return replace(low, resolution=max(4, round(resolution / 4) * 4))


def _geometric(low: float, high: float, weight: float) -> float:
    return float(low * (high / low) ** weight)


def default_image_spec(config: Scaling, in_channels: int = 3) -> ImageSpec:
    """Native size, bicubic, centre crop of size / (size + 32); ImageNet's mean and std for b, 0.5 for lite.

    With other than three channels, each gets the average of the three.
    """
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config.family == "b" else ((0.5,) * 3, (0.5,) * 3)
    side = config.resolution
    return ImageSpec((side, side), mean, std, "bicubic", side / (side + 32), "center").for_channels(in_channels)
