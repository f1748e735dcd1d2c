"""Detectors of effdet and zylo117 under the names of our EfficientDet head.

Facts: effdet ``efficientdet.py``; zylo117 ``backbone.py`` and ``efficientdet/model.py``. Both read C3 to C5 (effdet any maps up to
C5), and order channels as we do: anchor by anchor, in an anchor class by class, boxes as (ty, tx, th, tw).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.weights.dialects import TIMM, ZYLO117
from effbackbones.weights.pretrained import ForeignHead, Remainder

CLASS_PREDICTOR = ("class_net.predict.pointwise.weight", "class_net.predict.pointwise.bias")
BOX_PREDICTOR = "box_net.predict.pointwise.weight"
_PREDICTORS = ("class_net.predict.pointwise.", "box_net.predict.pointwise.")


@dataclass(frozen=True)
class Detector(ForeignHead):
    """The head of a detector's file.

    ``head`` has our names, ``unused`` theirs. ``options`` of our head give it these shapes. ``anchors`` of a cell,
    ``num_classes`` of each. ``biased``: whether convolutions before a batch norm had biases, as TensorFlow's have; where they
    had not, ``head`` has zeros. ``ambiguous``: D6 and D7 differ in nothing that a file shows.
    """

    layout: str
    head: Mapping[str, Tensor]
    options: Mapping[str, Any]
    anchors: int
    num_classes: int
    biased: bool
    ambiguous: bool
    unused: tuple[str, ...]
    task: str = "det"

    @property
    def numerics(self) -> str:
        return "tf" if self.biased else "torch"

    @property
    def numerics_remark(self) -> str:
        models, have = ("tf_efficientdet", "have") if self.biased else ("efficientdet", "have no")
        return f"numerics taken to be those of effdet's {models}_*, whose necks {have} biases; backbone_options numerics says otherwise"

    @property
    def remarks(self) -> tuple[str, ...]:
        if self.layout == "zylo117":
            return (
                "zylo117 pads its max-pooling with zeros, this head as TensorFlow does: outputs differ where features are negative",
            )
        if self.biased:
            return ()
        return (
            "convolutions before a batch norm have no bias in the file: zeros instead, which changes nothing",
            "the file's max-pooling was padded on all sides, this head's as TensorFlow does: outputs differ",
        )

    def fits(self, shapes: Mapping[str, Tensor]) -> bool:
        """Whether a head's state dict has these entries and shapes, whatever it predicts with them."""
        mine = {name: tensor.shape for name, tensor in self.head.items() if _matters(name)}
        return mine == {name: tensor.shape for name, tensor in shapes.items() if _matters(name)}


def _matters(name: str) -> bool:
    return not name.startswith(_PREDICTORS) and not name.endswith("num_batches_tracked")


class _Layout(NamedTuple):
    """One library: its name, the prefix of its backbone, and the map of a key of the head, given the coarsest level."""

    name: str
    backbone: str
    translate: Callable[[str, int], str | None]


def read_detector(rest: Remainder) -> Detector | None:
    """The detector around the backbone of a file, None if there is none.

    Raises :class:`UserError` for a pyramid that is no BiFPN and for a head without predictors.
    """
    state, _, prefix, backbone, path = rest
    layout = _LAYOUTS.get(rest.dialect)
    if layout is None or not prefix.endswith(layout.backbone):
        return None
    root = prefix.removesuffix(layout.backbone)
    top = 8 if any("conv8_down" in key for key in state) else 7
    names = {key: layout.translate(key.removeprefix(root), top) for key in state if key.startswith(root)}
    # Where maps are added up, zylo117 keeps weights that it never reads.
    idle = layout.name == "zylo117" and backbone in ("b6", "b7")
    names = {key: None if idle and ours and ours.endswith(".weights") else ours for key, ours in names.items()}
    head = {ours: state[key] for key, ours in names.items() if ours}
    if not head:
        return None
    for name in (*CLASS_PREDICTOR, BOX_PREDICTOR, "class_net.bn.0.0.weight"):
        if name not in head:
            raise UserError(
                str(path), f"holds only parts of a detector ({name} is missing)", "give the whole state dict"
            )
    head, first = _number_levels(head)
    options = _options(head, first, path)
    anchors = head[BOX_PREDICTOR].shape[0] // 4
    biased = "neck.cells.0.nodes.0.conv.pointwise.bias" in head
    if not biased and backbone.startswith("lite"):
        options["anchor_scale"] = 4.0  # effdet's own lite models, other than those from TensorFlow
    if backbone == "lite3" and options["channels"] == 200:
        options["anchor_scale"] = 3.0  # Lite3x
    return Detector(
        layout.name,
        _with_biases(head),
        options,
        anchors,
        head[CLASS_PREDICTOR[0]].shape[0] // max(anchors, 1),
        biased,
        backbone == "b6",
        tuple(key for key in state if not names.get(key)),
    )


_EFFDET: tuple[tuple[str, str], ...] = (
    (r"fpn\.resample\.(\d+)\.conv\.(conv|bn)\.(\w+)", r"neck.resample.\1.\2.\3"),
    (
        r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.resample\.(\d+)\.conv\.(conv|bn)\.(\w+)",
        r"neck.cells.\1.nodes.\2.laterals.\3.\4.\5",
    ),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.edge_weights", r"neck.cells.\1.nodes.\2.weights"),
    (
        r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.after_combine\.conv\.(depthwise|pointwise|bn)\.(\w+)",
        r"neck.cells.\1.nodes.\2.conv.\3.\4",
    ),
    (r"(class|box)_net\.conv_rep\.(\d+)\.(depthwise|pointwise)\.(\w+)", r"\1_net.\3.\2.\4"),
    (r"(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.bn\.(\w+)", r"\1_net.bn.\2.\3.\4"),
    (r"(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.(\w+)", r"\1_net.bn.\3.\2.\4"),  # `head_bn_level_first`
    (r"(class|box)_net\.predict\.(depthwise|pointwise)\.(\w+)", r"\1_net.predict.\2.\3"),
)
_ZYLO117: tuple[tuple[str, str], ...] = (
    (r"conv_list\.(\d+)\.(depthwise|pointwise)\.(\w+)", r"\2.\1.\3"),
    (r"bn_list\.(\d+)\.(\d+)\.(\w+)", r"bn.\2.\1.\3"),
    (r"header\.(depthwise|pointwise)\.(\w+)", r"predict.\1.\2"),
)
_NETS = {"classifier": "class_net", "regressor": "box_net"}


def _effdet_name(key: str, top: int) -> str | None:
    return _first_match(_EFFDET, key.replace(".conv_dw.", ".depthwise.").replace(".conv_pw.", ".pointwise."))


def _zylo117_name(key: str, top: int) -> str | None:
    """Levels are counted from 3. The nodes of a cell go from level ``top`` - 1 down to 3, then from 4 up to ``top``."""
    key = key.replace("_conv.conv.", ".")
    net, _, rest = key.partition(".")
    if net in _NETS:
        part = _first_match(_ZYLO117, rest)
        return part and f"{_NETS[net]}.{part}"

    def node(level: str, down: bool) -> int:
        return top - 7 + int(level) if down else top - 1 - int(level)

    if m := re.fullmatch(r"bifpn\.(\d+)\.conv(\d)_(up|down)\.(.+)", key):
        return f"neck.cells.{m[1]}.nodes.{node(m[2], m[3] == 'down')}.conv.{m[4]}"
    if m := re.fullmatch(r"bifpn\.(\d+)\.p(\d)_w([12])", key):
        return f"neck.cells.{m[1]}.nodes.{node(m[2], m[3] == '2')}.weights"
    if m := re.fullmatch(r"bifpn\.0\.p(\d)_down_channel(_2)?\.(0\.conv|1)\.(\w+)", key):
        part = "bn" if m[3] == "1" else "conv"
        return f"neck.cells.0.nodes.{node(m[1], bool(m[2]))}.laterals.{int(m[1]) - 3}.{part}.{m[4]}"
    if m := re.fullmatch(r"bifpn\.0\.p5_to_p6\.(0\.conv|1)\.(\w+)", key):
        return f"neck.resample.3.{'bn' if m[1] == '1' else 'conv'}.{m[2]}"
    return None


_LAYOUTS = {
    TIMM.name: _Layout("effdet", "backbone.", _effdet_name),
    ZYLO117.name: _Layout("zylo117", "backbone_net.model.", _zylo117_name),
}


def _first_match(table: Iterable[tuple[str, str]], key: str) -> str | None:
    return next((match.expand(ours) for pattern, ours in table if (match := re.fullmatch(pattern, key))), None)


def _number_levels(head: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """``head`` with the map behind C5, which they count from the finest level, called 6; and the number of the finest level."""
    pattern = r"neck\.resample\.(\d+)\."
    index = next((int(match[1]) for name in head if (match := re.match(pattern, name))), 3)
    return {re.sub(pattern, "neck.resample.6.", name): tensor for name, tensor in head.items()}, 6 - index


def _options(head: Mapping[str, Tensor], first: int, path: Path) -> dict[str, Any]:
    """Options of our head that give it these shapes."""
    levels, cells = (
        _count(head, r"class_net\.bn\.0\.(\d+)\.weight"),
        _count(head, r"neck\.cells\.(\d+)\.nodes\.0\.conv\.bn\.weight"),
    )
    weights = [
        _length(head.get(f"neck.cells.{cell}.nodes.{node}.weights"))
        for cell in range(cells)
        for node in range(2 * levels - 2)
    ]
    expected = ([2] * (levels - 1) + [3] * (levels - 2) + [2]) * cells
    if _count(head, r"neck\.cells\.0\.nodes\.(\d+)\.conv\.bn\.weight") != 2 * levels - 2 or weights not in (
        expected,
        [0] * len(weights),
    ):
        raise UserError(
            str(path),
            "its pyramid is not EfficientDet's (BiFPN): the nodes of its cells are others",
            "give other weights",
        )
    return {
        "channels": head["class_net.bn.0.0.weight"].shape[0],
        "cells": cells,
        "repeats": _count(head, r"class_net\.bn\.(\d+)\.0\.weight"),
        "levels": list(range(first, first + levels)),
        "fusion": "fast" if any(weights) else "sum",
    }


def _count(names: Iterable[str], pattern: str) -> int:
    return len({match[1] for name in names if (match := re.fullmatch(pattern, name))})


def _length(tensor: Tensor | None) -> int:
    return 0 if tensor is None else len(tensor)


def _with_biases(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for the biases that a 1x1 convolution of ours has and the file has not."""
    dense = [
        name.removesuffix("weight") for name, tensor in head.items() if tensor.ndim == 4 and ".depthwise." not in name
    ]
    return {f"{name}bias": head[f"{name}weight"].new_zeros(len(head[f"{name}weight"])) for name in dense} | dict(head)
