"""Where networks lie in memory is their own business: channels last, from the first call on, whatever layout images have."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from effbackbones import BoxTargets, build_model, create_backbone, load_model, save_model
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


class Watch(TorchDispatchMode):
    """Notes operators that make a map [3, C, H, W] of several channels and pixels whose channels lie one behind the other. Views, and
    what is written in place, are of somebody else's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (
            not func.is_view
            and not func._schema.is_mutable
            and any(_is_contiguous(leaf) for leaf in pytree.tree_leaves(out))
        ):
            self.found.add(str(func))
        return out


def _is_contiguous(leaf: Any) -> bool:
    if not isinstance(leaf, Tensor) or leaf.ndim != 4 or not leaf.is_floating_point():
        return False
    batch, channels, *sides = leaf.shape
    return batch == 3 and channels >= 4 and min(sides) > 1 and leaf.stride(1) != 1


@pytest.mark.parametrize("backbone", ["b0", "lite0"])
@pytest.mark.parametrize("task", ["cls", "det", "seg"])
def test_no_map_of_a_step_has_its_channels_one_behind_the_other(task: str, backbone: str) -> None:
    """But for what the loss of segmentation makes, whose rows are classes."""
    torch.manual_seed(0)
    model = build_model(task, backbone, num_classes=5, backbone_options=SMALL)
    boxes = torch.tensor([[[4.0, 4.0, 40.0, 30.0]]]).expand(3, 1, 4)
    targets: dict[str, Any] = {
        "cls": torch.tensor([0, 1, 2]),
        "det": BoxTargets(boxes, torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.bool)),
        "seg": torch.randint(5, (3, 256, 256)),
    }
    images = torch.randint(0, 256, (3, 3, 256, 256), dtype=torch.uint8)
    with Watch() as watch:
        losses = model.train().loss(images, targets[task])
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        with torch.no_grad():
            model.eval()(images)
    assert watch.found <= ({"aten.nll_loss2d_backward.default"} if task == "seg" else set())
