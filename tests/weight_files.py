"""Networks of others, and files of their weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from effbackbones.backbones.scaling import scaling
from effbackbones.weights import foreign
from effbackbones.weights.content import Content
from effbackbones.weights.networks import find_network

SMP = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "segformer": "Segformer",
    "fpn": "FPN",
    "upernet": "UPerNet",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pan": "PAN",
}
"""Classes of segmentation-models-pytorch (smp), by the names of our heads."""


def smp_model(encoder: str, head: str = "unet", *, side: int = 128, **options: Any) -> nn.Module:
    """smp's network in eval mode, its random batch norms with the statistics of a batch of images of ``side``, so that every layer
    matters to the logits: with others signals die away on the way down, where nothing wrong would show, or roundings grow to the
    size of the logits."""
    import segmentation_models_pytorch as smp  # heavy, and not everywhere installed

    torch.manual_seed(0)
    model: nn.Module = getattr(smp, SMP[head])(encoder, encoder_weights=None, **{"classes": 5, **options})
    model.requires_grad_(False)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.8, 1.2)
        norm.bias.normal_(0, 0.2)
        norm.momentum = 1.0
    model.train()(torch.randn(4, 3, side, side))
    return model.eval()


def numbered(network: nn.Module) -> dict[str, Tensor]:
    """A state dict whose n-th entry is filled with n, without taking memory."""
    return {
        key: torch.full((), float(n)).expand(tensor.shape)
        for n, (key, tensor) in enumerate(network.state_dict().items())
    }


def parts_of(state: Mapping[str, Tensor], backbone: str) -> Any:
    """A foreign state dict, sorted for ``backbone`` under our names."""
    path, row = Path("x.pth"), scaling(backbone)
    network, _ = find_network(Content({"": dict(state)}), None, path, row)
    return foreign._translate(network, path, row)


def write_weights(path: Path, state: object) -> Path:
    """The file that the ending of ``path`` names; gives its path."""
    if path.suffix == ".safetensors":
        assert isinstance(state, dict)
        save_file({key: tensor.clone() for key, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path
