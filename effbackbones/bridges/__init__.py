"""Our backbones inside other people's frameworks, and our results in other people's words.

One file a framework, which imports that framework; nothing of it is loaded before its name is asked for. A bridge uses the public
names of ``effbackbones`` alone, as a user's own code would.
"""

import importlib
from typing import TYPE_CHECKING, Any

from effbackbones import UserError

if TYPE_CHECKING:
    from effbackbones.bridges.fiftyone import to_fiftyone
    from effbackbones.bridges.labelstudio import label_studio_config, to_label_studio
    from effbackbones.bridges.sklearn import ImageFeatures
    from effbackbones.bridges.smp import register_smp
    from effbackbones.bridges.supervision import to_supervision
    from effbackbones.bridges.timm import register_timm
    from effbackbones.bridges.torchvision import fpn_backbone
    from effbackbones.bridges.transformers import EffBackbonesBackbone, EffBackbonesConfig

_HOME = {
    "EffBackbonesBackbone": "transformers",
    "EffBackbonesConfig": "transformers",
    "ImageFeatures": "sklearn",
    "fpn_backbone": "torchvision",
    "label_studio_config": "labelstudio",
    "register_smp": "smp",
    "register_timm": "timm",
    "to_fiftyone": "fiftyone",
    "to_label_studio": "labelstudio",
    "to_supervision": "supervision",
}
__all__ = [
    "EffBackbonesBackbone",
    "EffBackbonesConfig",
    "ImageFeatures",
    "fpn_backbone",
    "label_studio_config",
    "register_smp",
    "register_timm",
    "to_fiftyone",
    "to_label_studio",
    "to_supervision",
]
_PACKAGES = {"sklearn": "scikit-learn", "segmentation_models_pytorch": "segmentation-models-pytorch"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        package = _PACKAGES.get(missing, missing)
        raise UserError(f"bridges.{name}", f"{missing} is not installed", f"pip install {package}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
