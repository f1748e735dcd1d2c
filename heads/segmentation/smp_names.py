"""Whole models of segmentation-models-pytorch (smp): decoder and last convolution, and where their encoder takes its maps.

Facts: smp ``encoders/efficientnet.py``, ``timm_efficientnet.py``, ``timm_universal.py`` and ``decoders/*/decoder.py``. Our
segmentation heads have smp's names, so that nothing but the prefix of a wrapped model has to go.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from effbackbones.weights.dialects import LUKEMELAS, TIMM
from effbackbones.weights.pretrained import ForeignHead, Remainder

DECODER, LAST = "decoder.", "segmentation_head."
_LAST_WEIGHT = f"{LAST}0.weight"
_KINDS = {
    "blocks.x_0_0.": "unetplusplus",
    "center.top_conv.": "manet",
    "blocks.0.block.": "linknet",
    "blocks.0.conv1.": "unet",
    "mlp_stage.": "segformer",
    "p5.": "fpn",
    "fpn_lateral_blocks.": "upernet",
    "psp.": "pspnet",
    "aspp.0.": "deeplabv3plus",
    "aspp.convs.": "deeplabv3",
    "fpa.": "pan",
}
"""How keys of a decoder begin, and our head of that name; the first match counts."""


@dataclass(frozen=True)
class Segmenter(ForeignHead):
    """What a file of smp holds behind its encoder.

    ``head`` has the entries of decoder and last convolution under our names, ``unused`` the file's names of the rest. ``kind`` is
    the head that they are of, ``tap`` the option of our EfficientNet under which it gives the maps of this encoder.
    """

    kind: str
    tap: str
    head: Mapping[str, Tensor]
    unused: tuple[str, ...]
    layout: str = "smp"
    task: str = "seg"

    @property
    def maps(self) -> Mapping[str, Any]:
        return {"tap": self.tap}

    def entries_for(self, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
        """The entries to load into a head whose state dict is ``own``, and what does not fit, in a sentence, or "".

        None where no entry of the decoder fits: the last convolution means nothing on another decoder.
        """
        misfits = [
            name for name in {**own, **self.head} if _counts(name) and _shape(own, name) != _shape(self.head, name)
        ]
        if not misfits:
            return dict(self.head), ""
        known = [name for name in self.head if name.startswith(DECODER) and _counts(name)]
        if not set(known) - set(misfits):
            return (
                {},
                f"its decoder is of {self.kind} and does not fit this head: not loaded; head={self.kind!r} takes it",
            )
        astray = [name for name in misfits if name.startswith(DECODER)]
        if astray:
            there, here = (_shape(state, astray[0]) or "absent" for state in (self.head, own))
            return dict(
                self.head
            ), f"{len(astray)} entries of its decoder do not fit this head: {astray[0]} is {there}, here {here}"
        classes, wanted = (len(state.get(_LAST_WEIGHT, ())) for state in (self.head, own))
        return dict(self.head), f"it has {classes} classes, this head {wanted}: the last convolution starts anew"


def read_segmenter(rest: Remainder) -> Segmenter | None:
    """The decoder around the encoder of a file, None if there is none that smp makes."""
    tap, state = _tap(rest.dialect, rest.prefix, rest.backbone), rest.tensors
    if tap is None:
        return None
    root = rest.prefix.removesuffix("model.").removesuffix("encoder.")
    head = {key.removeprefix(root): key for key in state if key.startswith((f"{root}{DECODER}", f"{root}{LAST}"))}
    kind = next(
        (kind for start, kind in _KINDS.items() if any(name.startswith(DECODER + start) for name in head)), None
    )
    if kind is None:
        return None
    return Segmenter(
        kind,
        tap,
        {name: state[key] for name, key in head.items()},
        tuple(key for key in state if key not in head.values()),
    )


def _tap(dialect: str, prefix: str, backbone: str) -> str | None:
    """Where the encoder of that naming takes its maps: ``tu-`` as timm does, ``timm-`` and smp's own with C1 from the stem."""
    if dialect == TIMM.name and prefix.endswith("encoder.model."):
        return "stage"
    if dialect not in (TIMM.name, LUKEMELAS.name) or not prefix.endswith("encoder."):
        return None
    return "smp_b0" if dialect == LUKEMELAS.name and backbone == "b0" else "stem"


def _counts(name: str) -> bool:
    return name.startswith((DECODER, LAST)) and not name.endswith("num_batches_tracked")


def _shape(state: Mapping[str, Tensor], name: str) -> list[int] | None:
    return list(state[name].shape) if name in state else None
