"""EfficientNet backbones with pluggable heads: the public names. Loaded on first use, so that importing this is free."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effbackbones.backbones.convolution import Numerics
    from effbackbones.build import build_model, create_backbone
    from effbackbones.checkpoint import load_model, save_model
    from effbackbones.contracts import (
        Backbone,
        BackboneNeeds,
        BoxTargets,
        Detections,
        FeatureSpec,
        Head,
        ImageSizes,
        ImageSpec,
        Labelled,
    )
    from effbackbones.errors import UserError
    from effbackbones.images.spec import ReadingSpec
    from effbackbones.inference.embedding import Embedder
    from effbackbones.inference.predictor import Predictor, load_predictor
    from effbackbones.inference.results import register_result
    from effbackbones.model import Model
    from effbackbones.multihead import MultiHead
    from effbackbones.publishing import push_to_hub
    from effbackbones.registry import list_backbones, list_heads, register_backbone, register_head

__version__ = "0.1.0"

_HOME = {
    "build": ("build_model", "create_backbone"),
    "checkpoint": ("load_model", "save_model"),
    "contracts": (
        "Backbone",
        "BackboneNeeds",
        "BoxTargets",
        "Detections",
        "FeatureSpec",
        "Head",
        "ImageSizes",
        "ImageSpec",
        "Labelled",
    ),
    "backbones.convolution": ("Numerics",),
    "errors": ("UserError",),
    "images.spec": ("ReadingSpec",),
    "inference.embedding": ("Embedder",),
    "inference.predictor": ("Predictor", "load_predictor"),
    "inference.results": ("register_result",),
    "model": ("Model",),
    "multihead": ("MultiHead",),
    "publishing": ("push_to_hub",),
    "registry": ("list_backbones", "list_heads", "register_backbone", "register_head"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = [
    "Backbone",
    "BackboneNeeds",
    "BoxTargets",
    "Detections",
    "Embedder",
    "FeatureSpec",
    "Head",
    "ImageSizes",
    "ImageSpec",
    "Labelled",
    "Model",
    "MultiHead",
    "Numerics",
    "Predictor",
    "ReadingSpec",
    "UserError",
    "build_model",
    "create_backbone",
    "list_backbones",
    "list_heads",
    "load_model",
    "load_predictor",
    "push_to_hub",
    "register_backbone",
    "register_head",
    "register_result",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"effbackbones.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
