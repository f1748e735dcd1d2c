"""Any timm network as a backbone: levels by stride, real channels, no dead weight, honest refusals."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from effbackbones import build_model, create_backbone, load_model, save_model
from effbackbones.backbones.timm_backbone import TimmBackbone
from effbackbones.conformance import check_backbone
from effbackbones.errors import UserError

pytestmark = pytest.mark.peer


def images(size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "names", "channels"),
    [
        ("resnet50", {}, ("C1", "C2", "C3", "C4", "C5"), (64, 256, 512, 1024, 2048)),
        ("convnext_tiny", {}, ("C2", "C3", "C4", "C5"), (96, 192, 384, 768)),
        ("resnet18", {"levels": ["C4", "C2"], "in_channels": 5}, ("C2", "C4"), (64, 256)),
        ("mobilenetv3_small_100", {"levels": ["C3"]}, ("C3",), (24,)),
        ("vgg11_bn", {"levels": ["C2"]}, ("C2",), (256,)),
        ("hrnet_w18_small", {"levels": ["C3"]}, ("C3",), (256,)),
    ],
)
def test_maps_are_as_declared_and_no_parameter_is_dead(
    name: str, options: dict[str, Any], names: tuple[str, ...], channels: tuple[int, ...]
) -> None:
    backbone = TimmBackbone(name, **options).eval()
    spec = backbone.feature_spec
    assert (spec.backbone, spec.names, spec.channels) == (f"timm:{name}", names, channels)
    assert spec.strides == tuple(2 ** int(level[1]) for level in names)
    for height, width in ((64, 96), (65, 77)):
        maps = backbone(images((height, width), options.get("in_channels", 3)))
        expected = [(2, c, -(-height // s), -(-width // s)) for c, s in zip(channels, spec.strides, strict=True)]
        assert [tuple(m.shape) for m in maps] == expected
    torch.autograd.backward(torch.stack([m.sum() for m in maps]).sum())
    assert [key for key, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    assert len(backbone.image_spec.mean) == options.get("in_channels", 3)


def test_values_are_timms() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("timm:resnet18", levels=["C3", "C5"]).eval()
    reference = timm.create_model("resnet18", features_only=True, out_indices=(2, 4)).eval()
    reference.load_state_dict(backbone.net.state_dict())
    for got, want in zip(backbone(images((65, 97))), reference(images((65, 97))), strict=True):
        assert torch.equal(got, want)


def test_unread_stages_are_gone() -> None:
    def count(**options: Any) -> int:
        return sum(p.numel() for p in TimmBackbone("mobilenetv3_small_100", **options).parameters())

    assert count(levels=["C2"]) < count(levels=["C4"]) < count() / 4


def test_channels_behind_are_brought_forward() -> None:
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", levels=["C2", "C3"]).eval()
    assert [tuple(m.shape) for m in backbone(images((96, 70)))] == [(2, 96, 24, 18), (2, 192, 12, 9)]


def test_output_stride() -> None:
    backbone = TimmBackbone("resnet18", output_stride=8).eval()
    assert backbone.feature_spec.names == ("C1", "C2", "C3", "C4", "C5")
    assert backbone.feature_spec.strides == (2, 4, 8, 8, 8)
    assert [m.shape[-1] for m in backbone(images((64, 64)))] == [32, 16, 8, 8, 8]


def test_single_scale_network_says_so() -> None:
    with pytest.raises(
        UserError, match=r"all its maps lie at stride 16: it is no multi-scale backbone; ask for levels \[C4\]"
    ):
        TimmBackbone("vit_tiny_patch16_224")
    backbone = TimmBackbone("vit_tiny_patch16_224", levels=["C4"]).eval()
    assert backbone.feature_spec.strides == (16,)
    assert backbone.image_spec.mean == (0.5, 0.5, 0.5)
    assert [tuple(m.shape) for m in backbone(images((64, 50)))] == [(2, 192, 4, 4)]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet5", {}, "timm has no such model; did you mean resnet50"),
        ("convnext_atto", {"levels": ["C1", "C2"]}, "level 'C1': .*gives C2, C3, C4, C5"),
        ("resnet18", {"levels": []}, "no level"),
        ("vgg11", {"drop_path": 0.1}, "drop_path_rate=0.1.*leave out"),
        ("eva02_tiny_patch14_224", {}, "stride 14"),
    ],
)
def test_wrong_request_is_one_line(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        TimmBackbone(name, **options)
    assert "\n" not in str(caught.value)


def test_pretrained_without_a_source_is_one_line() -> None:
    with pytest.raises(UserError, match=r"could not load its weights.*weights=None"):
        TimmBackbone("mobilenetv3_large_075", levels=["C1"], pretrained=True)  # timm has no weights for it


def test_freeze_by_level_where_the_network_is_a_chain() -> None:
    backbone = TimmBackbone("resnet18").freeze("C3").train()
    trainable = {key.split(".")[1] for key, p in backbone.named_parameters() if p.requires_grad}
    assert trainable == {"layer3", "layer4"}
    assert not backbone.net.bn1.training
    assert backbone.net.layer3.training
    whole = TimmBackbone("mobilenetv3_small_100", levels=["C2"])
    with pytest.raises(UserError, match="in one piece; freeze all of it, or nothing"):
        whole.freeze("C1")
    assert not any(p.requires_grad for p in whole.freeze().parameters())


def test_what_cannot_be_removed_stays_frozen() -> None:
    """HRNet fuses branches that no map asked for needs; its code cannot run without them."""
    backbone = TimmBackbone("hrnet_w18_small", levels=["C3"])
    frozen = {key for key, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen
    backbone.freeze().unfreeze()
    assert {key for key, p in backbone.named_parameters() if not p.requires_grad} == frozen


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_contract(name: str) -> None:
    backbone = TimmBackbone(name, levels=["C2"])
    assert check_backbone(backbone) == []


def test_timms_own_weights_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    create = timm.create_model

    def offline(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    backbone = create_backbone("timm:resnet18.a1_in1k", weights="imagenet", levels=["C5"])
    assert backbone.provenance["weights"] == "timm resnet18.a1_in1k"
    assert backbone.provenance["licence"] == "apache-2.0"
    model = build_model("cls", "timm:resnet18.a1_in1k", num_classes=3, weights="imagenet")
    assert model.provenance["weights"] == "timm resnet18.a1_in1k"
    assert model.provenance["untrained_head"]
    save_model(model, tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").provenance["licence"] == "apache-2.0"
    assert create_backbone("timm:resnet18", levels=["C5"]).provenance == {}


def test_a_name_of_timms_and_integers_are_told() -> None:
    with pytest.raises(UserError, match=r"timm has it; write timm:resnet18"):
        create_backbone("resnet18")
    backbone = create_backbone("timm:resnet18", levels=["C5"]).eval()
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"backbone\.normalize"):
        backbone(pixels)
    assert backbone(backbone.normalize(pixels))[0].shape == (1, 512, 1, 1)
