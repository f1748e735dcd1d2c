"""Our backbones as encoders of segmentation-models-pytorch (smp): any of its decoders on them, by name."""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.encoders import _base as encoders_base
from torch import Tensor, nn

from effbackbones import Backbone, UserError, create_backbone, list_backbones

_LEVELS = ("C1", "C2", "C3", "C4", "C5")
_PREFIX = "effbackbones-"


class SmpEncoder(nn.Module, encoders_base.EncoderMixin):  # type: ignore[misc]  # smp is not typed
    """Normalised images [B, C, H, W] to [images, one map per level down to ``depth``], as smp's decoders want them. ``backbone`` is
    ours."""

    _is_torch_scriptable = False

    def __init__(self, backbone: Backbone, in_channels: int, output_stride: int) -> None:
        nn.Module.__init__(self)
        encoders_base.EncoderMixin.__init__(self)
        self.backbone = backbone
        self._depth, self._in_channels, self._output_stride = (
            len(backbone.feature_spec.names),
            in_channels,
            output_stride,
        )
        self._out_channels = [in_channels, *backbone.feature_spec.channels]

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, *self.backbone(images)]


def register_smp(*, weights: Any = "imagenet", **options: Any) -> list[str]:
    """Make ``smp.Unet("effbackbones-b3")`` work, and all its siblings; gives the names that smp now knows.

    ``encoder_weights`` (smp's default: ``"imagenet"``) is passed on to ``create_backbone``: None, ``"imagenet"``, a named source or a
    file. Where smp's default stands, ``weights`` of this call take its place. ``options`` are those of ``create_backbone``
    (``tap="stem"``: the maps that smp's own EfficientNets have). ``get_preprocessing_params(name)`` says what the weights want.
    Calling it again replaces what was said before.
    """
    if reserved := {"levels", "in_channels", "output_stride"} & options.keys():
        raise UserError(f"register_smp {min(reserved)}", "is said by smp's model", "leave it out")
    names = [f"{_PREFIX}{name}" for name in list_backbones()]
    smp.encoders.encoders.update({name: _entry(weights) for name in names})
    _wrap("get_encoder", functools.partial(_encoder, weights, options))
    _wrap("get_preprocessing_params", functools.partial(_preprocessing, weights, options))
    return names


def _entry(weights: Any) -> dict[str, Any]:
    """What smp lists of an encoder."""
    return {"encoder": SmpEncoder, "pretrained_settings": {"imagenet": {"weights": weights}}, "params": {}}


def _wrap(name: str, ours: Any) -> None:
    """Put ``ours`` in front of a function of smp wherever its decoders have imported it: smp would fetch weights from its own hub."""
    current = getattr(smp.encoders, name)
    original = getattr(current, "original", current)

    @functools.wraps(original)
    def chosen(encoder_name: str, *args: Any, **kwargs: Any) -> Any:
        if encoder_name.startswith(_PREFIX):
            return ours(encoder_name.removeprefix(_PREFIX), *args, **kwargs)
        return original(encoder_name, *args, **kwargs)

    chosen.original = original  # type: ignore[attr-defined]
    for module in [module for key, module in sys.modules.items() if key.partition(".")[0] == smp.__name__]:
        if getattr(module, name, None) is current:
            setattr(module, name, chosen)


def _encoder(
    default: Any,
    options: dict[str, Any],
    name: str,
    in_channels: int = 3,
    depth: int = 5,
    weights: Any = None,
    output_stride: int = 32,
    **more: Any,
) -> SmpEncoder:
    """As ``smp.encoders.get_encoder``."""
    levels: Sequence[str] = _LEVELS[:depth]
    backbone = create_backbone(
        name,
        weights=default if weights == "imagenet" else weights,
        levels=levels,
        in_channels=in_channels,
        output_stride=output_stride,
        **{**options, **more},
    )
    return SmpEncoder(backbone, in_channels, output_stride)


def _preprocessing(
    default: Any, options: dict[str, Any], name: str, pretrained: Any = "imagenet", **_: Any
) -> dict[str, Any]:
    """As ``smp.encoders.get_preprocessing_params``."""
    weights = default if pretrained == "imagenet" else pretrained
    spec = create_backbone(name, weights=weights, **options).image_spec
    return {"input_space": "RGB", "input_range": [0, 1], "mean": list(spec.mean), "std": list(spec.std)}
