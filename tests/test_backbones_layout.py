"""Where networks lie in memory is their own business: channels last, from the first call on, whatever layout images have."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from effbackbones import build_model, create_backbone, load_model, save_model
from effbackbones.backbones.layout import lies_channels_last

LAST = torch.channels_last
SMALL = {"width": 0.25, "depth": 0.5}


def lie_last(network: nn.Module) -> bool:
    kernels = [part.weight for part in network.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    return bool(kernels) and all(kernel.is_contiguous(memory_format=LAST) for kernel in kernels)


def test_weights_lie_channels_last_and_stay_so(tmp_path: Path) -> None:
    model = build_model("seg", "b0", num_classes=3, backbone_options=SMALL)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    copies = [copy.deepcopy(model), loaded, copy.deepcopy(model).half().float()]
    model.load_state_dict({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    for network in (model, *copies, create_backbone("lite0"), create_backbone("timm:mobilenetv3_small_050")):
        assert lie_last(network)
    save_model(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet10t", True),
        ("convnext_atto", True),
        ("vit_tiny_patch16_224", False),
        ("swin_tiny_patch4_window7_224", False),
    ],
)
def test_transformers_keep_theirs(name: str, expected: bool) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model(name)
    assert lies_channels_last(network) == expected


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_layout_give_maps_channels_last(channels: int) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("b0", in_channels=channels).eval()
    images = torch.rand(2, channels, 64, 48)
    with torch.no_grad():
        maps, others = (backbone(given) for given in (images, images.contiguous(memory_format=LAST)))
    assert all(m.is_contiguous(memory_format=LAST) and not m.is_contiguous() for m in maps)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, others, strict=True))
