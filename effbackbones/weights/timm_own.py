"""Weights that timm fetched itself, for a backbone of its own."""

from effbackbones.backbones.timm_backbone import TimmBackbone
from effbackbones.weights.loading import LoadReport
from effbackbones.weights.pretrained import Pretrained


def own_weights(backbone: TimmBackbone) -> Pretrained:
    """Origin and licence of timm's weights, for one that was built with ``pretrained``; a record without tensors."""
    stated = backbone.net.pretrained_cfg
    name = ".".join(filter(None, (stated.get("architecture"), stated.get("tag"))))
    report = LoadReport(f"backbone {backbone.name} from timm", loaded=tuple(backbone.state_dict()))
    licence = stated.get("license") or "unknown"
    return Pretrained({}, {}, {}, None, backbone.image_spec, f"timm {name}", "timm", licence, reports=[report])
