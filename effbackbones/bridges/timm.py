"""Our backbones as models of timm: ``timm.create_model("effbackbones_b3", features_only=True)``, and with it whatever builds on timm's
features."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import register_model
from timm.models._features import FeatureInfo
from torch import Tensor, nn

from effbackbones import Backbone, UserError, create_backbone, list_backbones

_PREFIX = "effbackbones_"


class TimmFeatures(nn.Module):
    """Normalised images [B, C, H, W] to a list of maps, with what timm's ``features_only`` models say of theirs: ``feature_info``
    (``channels()``, ``reduction()``, ``module_name()``) and ``pretrained_cfg``. ``backbone`` is ours."""

    def __init__(self, backbone: Backbone, levels: Sequence[dict[str, Any]], out_indices: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_info = FeatureInfo([dict(level) for level in levels], out_indices)
        spec = backbone.image_spec
        self.pretrained_cfg = self.default_cfg = {
            "architecture": f"{_PREFIX}{backbone.name}",
            "input_size": (len(spec.mean), *spec.size),
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_fraction,
            "crop_mode": spec.crop_mode,
            "mean": spec.mean,
            "std": spec.std,
            "num_classes": 0,
        }

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.backbone(images)
        return maps


def register_timm(**options: Any) -> list[str]:
    """Make ``timm.create_model("effbackbones_b3", features_only=True)`` work; gives the names that timm now knows.

    ``pretrained=True`` means ``weights="imagenet"``. ``out_indices`` chooses among C1-C5, ``in_chans``, ``output_stride`` and
    ``drop_path_rate`` mean what they mean in timm; what ``create_backbone`` knows besides is passed on, and ``options`` hold for all.
    """
    return [_register(name, options) for name in list_backbones()]


def _register(name: str, options: dict[str, Any]) -> str:
    def build(pretrained: bool = False, **kwargs: Any) -> TimmFeatures:
        return _features(name, pretrained, {**options, **kwargs})

    build.__name__ = build.__qualname__ = f"{_PREFIX}{name.replace('.', '_').replace('-', '_')}"
    build.__module__ = __name__
    register_model(build)
    return build.__name__


def _features(name: str, pretrained: bool, options: dict[str, Any]) -> TimmFeatures:
    for silent in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(silent, None)
    if not options.pop("features_only", False):
        raise UserError(f"timm {_PREFIX}{name}", "is a network of features", "say features_only=True")
    weights = options.pop("weights", "imagenet" if pretrained else None)
    for theirs, ours in (("in_chans", "in_channels"), ("drop_path_rate", "drop_path")):
        if theirs in options:
            options[ours] = options.pop(theirs)
    asked = options.pop("out_indices", None)
    with torch.device("meta"):  # what there is, before it is known what is wanted of it
        whole = create_backbone(name, **options).feature_spec
    count = len(whole.names)
    indices = tuple(range(count)) if asked is None else tuple(i + count if i < 0 else i for i in _tuple(asked, count))
    if any(not 0 <= i < count for i in indices) or sorted(set(indices)) != list(indices):
        what = f"expected rising numbers in 0..{count - 1}, got {asked}"
        raise UserError(f"timm {_PREFIX}{name} out_indices", what, "correct them")
    levels = [
        {"module": level, "num_chs": channels, "reduction": stride}
        for level, channels, stride in zip(whole.names, whole.channels, whole.strides, strict=True)
    ]
    backbone = create_backbone(name, weights=weights, levels=tuple(whole.names[i] for i in indices), **options)
    return TimmFeatures(backbone, levels, indices)


def _tuple(asked: Any, count: int) -> tuple[int, ...]:
    """timm takes a number for the last so many."""
    return tuple(range(count - asked, count)) if isinstance(asked, int) else tuple(asked)
