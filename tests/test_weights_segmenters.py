"""Files of whole smp models: the same logits through the file, in all namings, and nothing that differs goes unsaid."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from weight_files import SMP, parts_of, smp_model, write_weights

from effbackbones import build_model, load_model, save_model
from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.backbones.scaling import SCALINGS, scaling
from effbackbones.build import create_backbone
from effbackbones.conformance import check_backbone, enforce
from effbackbones.conformance.backbone import BACKBONE_PROMISES
from effbackbones.errors import UserError
from effbackbones.model import Model
from heads.segmentation.smp_names import Segmenter

NATIVE, TIMM, UNIVERSAL = "efficientnet-", "timm-efficientnet-", "tu-tf_efficientnet_"
NAMINGS = (NATIVE, TIMM, UNIVERSAL)
B = [f"b{i}" for i in range(8)]


def build(path: Path, encoder: str, head: str = "unet", classes: int = 5, **backbone_options: Any) -> Model:
    """Our model from the file, as a user asks for it: of the namings, only ``tu-`` cannot say its numerics."""
    if encoder.startswith("tu-tf_efficientnet_b"):
        backbone_options.setdefault("numerics", "tf")
    name = encoder.replace("_", "-").rpartition("-")[2]
    model = build_model("seg", name, head=head, num_classes=classes, weights=path, backbone_options=backbone_options)
    return model.eval().requires_grad_(False)


def distance(ours: Model, theirs: nn.Module, size: tuple[int, int]) -> float:
    """Largest difference of the logits, in shares of the largest logit."""
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    got, want = ours(images, normalized=True), theirs(images)
    assert got.shape == want.shape
    assert want.std() > 0.1, "logits that hardly vary prove nothing"
    return float((got - want).abs().max() / want.abs().max())


def table(model: Model) -> list[list[str]]:
    """Loaded, re-initialised, unused and examples, for each part of the report."""
    lines = str(model.provenance["loaded"]).splitlines()[1:]
    return [
        line.split(" from ")[-1].split(maxsplit=4)[1:] if " from " in line else line.split(maxsplit=5)[2:]
        for line in lines
    ]


def remarks(model: Model) -> list[str]:
    """What was assumed, apart from mean and std and Lite's numerics, which no state dict tells."""
    return [said for said in model.provenance["assumed"] if "mean and std" not in said and "as in timm's" not in said]


# --- the same logits -------------------------------------------------------------------------------------------------


@pytest.mark.peer
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("name", ["b0", *(pytest.param(name, marks=pytest.mark.slow) for name in B[1:])])
def test_a_unet_file_gives_smps_logits(name: str, naming: str, tmp_path: Path) -> None:
    """At even, odd and oblong sizes, and smp's own encoders at the nominal one, for which their padding is fixed."""
    reference = smp_model(naming + name)
    model = build(write_weights(tmp_path / "w.pth", reference.state_dict()), naming + name)
    assert [row[1] for row in table(model)] == ["0", "0"]  # nothing starts anew
    assert remarks(model) == []
    sizes = [(64, 64), (65, 98), (33, 97)]
    for size in [*sizes, (scaling(name).resolution,) * 2] if naming == NATIVE else sizes:
        assert distance(model, reference, size) < 1e-4


@pytest.mark.peer
@pytest.mark.parametrize("naming", ["timm-tf_efficientnet_", "tu-tf_efficientnet_"])
@pytest.mark.parametrize("name", ["lite0", *(pytest.param(f"lite{i}", marks=pytest.mark.slow) for i in range(1, 5))])
def test_a_lite_file_gives_smps_logits(name: str, naming: str, tmp_path: Path) -> None:
    reference = smp_model(naming + name)
    model = build(write_weights(tmp_path / "w.pth", reference.state_dict()), naming + name)
    assert remarks(model) == []
    for size in ((64, 64), (65, 98)):
        assert distance(model, reference, size) < 1e-4


@pytest.mark.peer
@pytest.mark.parametrize(
    "naming", [NATIVE, *(pytest.param(naming, marks=pytest.mark.slow) for naming in (TIMM, UNIVERSAL))]
)
@pytest.mark.parametrize("head", [name for name in SMP if name != "unet"])
def test_files_of_the_siblings_give_smps_logits(head: str, naming: str, tmp_path: Path) -> None:
    """Those that dilate the encoder included, which smp does otherwise than timm, and from block 9 on in its own B0."""
    reference = smp_model(naming + "b0", head)
    model = build(write_weights(tmp_path / "w.pth", reference.state_dict()), naming + "b0", head)
    assert table(model)[-1][1] == "0"
    assert remarks(model) == []
    side = max(64, model.head.min_size)
    assert distance(model, reference, (side, side + 32)) < 1e-4


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("name", ["b0", "b3"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_output_stride_8_equals_smp(name: str, naming: str, tmp_path: Path) -> None:
    reference = smp_model(naming + name, "deeplabv3plus", encoder_output_stride=8)
    path = write_weights(tmp_path / "w.pth", reference.state_dict())
    options = {"numerics": "tf"} if naming == UNIVERSAL else {}
    head_options = {"output_stride": 8}
    model = build_model(
        "seg",
        name,
        head="deeplabv3plus",
        num_classes=5,
        weights=path,
        backbone_options=options,
        head_options=head_options,
    )
    assert distance(model.eval().requires_grad_(False), reference, (96, 64)) < 1e-4


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native() -> nn.Module:
    return smp_model(NATIVE + "b0")


def entries(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


@pytest.mark.parametrize("wrapped", ["safetensors", "state_dict", "lightning", "parallel"])
def test_files_may_be_wrapped(wrapped: str, native: nn.Module, tmp_path: Path) -> None:
    state: dict[str, Any] = entries(native)
    if wrapped == "state_dict":
        state = {"state_dict": state, "epoch": 3}
    elif wrapped in ("lightning", "parallel"):
        prefix = "model." if wrapped == "lightning" else "module."
        state = {prefix + key: tensor for key, tensor in state.items()}
    path = write_weights(tmp_path / ("w.safetensors" if wrapped == "safetensors" else "w.pth"), state)
    assert distance(build(path, NATIVE + "b0"), native, (64, 64)) < 1e-4


@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_b0", "tu-tf_efficientnet_lite0"])
def test_a_universal_encoder_may_be_wrapped_and_must_be_told_its_numerics(encoder: str, tmp_path: Path) -> None:
    reference = smp_model(encoder)
    path = write_weights(tmp_path / "w.pth", {f"model.{key}": tensor for key, tensor in reference.state_dict().items()})
    assert distance(build(path, encoder), reference, (64, 64)) < 1e-4
    if encoder.endswith("b0"):
        with pytest.raises(UserError, match="give numerics"):
            build_model("seg", "b0", num_classes=5, weights=path)


def test_unused_layers_of_the_encoder_are_reported_and_no_cause_for_alarm(native: nn.Module, tmp_path: Path) -> None:
    model = build(write_weights(tmp_path / "w.pth", entries(native)), NATIVE + "b0")
    backbone, head = table(model)
    assert backbone[:3] == ["352", "0", "0"]
    assert head[:3] == ["62", "0", "0"]
    assert "6 not wanted here: " in head[3]
    assert model.provenance["dialect"] == "smp"
    assert remarks(model) == []


def test_other_classes_renew_the_last_convolution_alone(native: nn.Module, tmp_path: Path) -> None:
    model = build(write_weights(tmp_path / "w.pth", entries(native)), NATIVE + "b0", classes=3)
    head = table(model)[-1]
    assert head[:2] == ["60", "2"]
    assert "re-initialised segmentation_head.0.weight, segmentation_head.0.bias" in head[3]
    assert len(remarks(model)) == 1
    assert "it has 5 classes, this head 3: the last convolution starts anew" in remarks(model)[0]
    last = entries(native)["decoder.blocks.4.conv2.0.weight"]
    assert torch.equal(model.head.state_dict()["decoder.blocks.4.conv2.0.weight"], last)


def test_what_the_file_decided_is_saved(native: nn.Module, tmp_path: Path) -> None:
    save_model(build(write_weights(tmp_path / "w.pth", entries(native)), NATIVE + "b0"), tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.config["backbone_options"]["tap"] == "smp_b0"
    assert distance(again.requires_grad_(False), native, (65, 98)) < 1e-4


def test_a_second_task_does_not_take_the_decoders_place(native: nn.Module, tmp_path: Path) -> None:
    """The encoder's unused convolution fits a classifier, the decoder the segmentation head: that knows more of the file."""
    path = write_weights(tmp_path / "w.pth", entries(native))
    model = build_model(("cls", "seg"), "b0", num_classes={"cls": 2, "seg": 5}, weights=path).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        got, want = model(images, normalized=True)["seg"], native(images)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-4


# --- what differs is said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["stage", "stem"])
@pytest.mark.parametrize("said_of", ["backbone", "head"])
def test_a_given_tap_wins_and_is_told(tap: str, said_of: str, native: nn.Module, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.pth", entries(native))
    options: dict[str, Any] = {f"{said_of}_options": {"tap": tap}}
    model = build_model("seg", "b0", num_classes=5, weights=path, **options).eval().requires_grad_(False)
    assert model.backbone.tap == tap
    assert any(f"was trained with tap smp_b0, here it is {tap}" in said for said in remarks(model))
    assert distance(model, native, (64, 64)) > 1e-3
    misfit = [
        said
        for said in remarks(model)
        if "1 entries of its decoder do not fit" in said and "blocks.3.conv1.0.weight" in said
    ]
    assert len(misfit) == (tap == "stage")  # C1 has other channels there


def test_the_tap_of_smps_b0_may_be_asked_of_the_head(native: nn.Module, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.pth", entries(native))
    model = (
        build_model("seg", "b0", num_classes=5, weights=path, head_options={"tap": "smp_b0"})
        .eval()
        .requires_grad_(False)
    )
    assert model.backbone.tap == "smp_b0"
    assert not any("was trained with tap" in said for said in remarks(model))
    assert distance(model, native, (65, 98)) < 1e-4


def test_other_numerics_are_told_and_differ(native: nn.Module, tmp_path: Path) -> None:
    model = build(write_weights(tmp_path / "w.pth", entries(native)), NATIVE + "b0", numerics="torch")
    assert any("these weights go with same_static" in said for said in remarks(model))
    assert distance(model, native, (64, 64)) > 1e-3


def test_a_missing_tensor_is_told(native: nn.Module, tmp_path: Path) -> None:
    state = entries(native)
    del state["decoder.blocks.2.conv1.0.weight"]
    model = build(write_weights(tmp_path / "w.pth", state), NATIVE + "b0")
    assert table(model)[-1][:2] == ["61", "1"]
    assert (
        "1 entries of its decoder do not fit this head: decoder.blocks.2.conv1.0.weight is absent, here [64, "
        in remarks(model)[0]
    )


def test_a_tensor_that_the_head_has_no_place_for_is_told(tmp_path: Path) -> None:
    """All that this head has is in the file, and still the outputs would differ."""
    path = write_weights(tmp_path / "w.pth", smp_model(NATIVE + "b0", decoder_attention_type="scse").state_dict())
    model = build(path, NATIVE + "b0")
    assert table(model)[-1][1] == "0"
    assert any("attention1" in said and "here absent" in said for said in remarks(model))


@pytest.mark.parametrize("head", ["fpn", "manet", "unetplusplus"])
def test_the_decoder_of_another_head_is_left_out(head: str, native: nn.Module, tmp_path: Path) -> None:
    """Encoder yes; nothing else, where no entry fits: not even a last convolution that happens to have the same shape."""
    model = build(write_weights(tmp_path / "w.pth", entries(native)), NATIVE + "b0", head)
    assert table(model)[0][0] == "352"
    assert all(said.startswith(str(tmp_path)) for said in remarks(model))
    if head == "manet":  # a few layers are alike
        assert any("entries of its decoder do not fit this head" in said for said in remarks(model))
    else:
        assert table(model)[1][0] == "0"
        assert any(
            "its decoder is of unet and does not fit this head: not loaded; head='unet' takes it" in said
            for said in remarks(model)
        )


def test_a_backbone_alone_keeps_its_own_maps_and_says_so(native: nn.Module, tmp_path: Path) -> None:
    backbone = create_backbone("b0", weights=write_weights(tmp_path / "w.pth", entries(native)))
    assert backbone.feature_spec.channels == (16, 24, 40, 112, 320)
    assert any("was trained with tap smp_b0, here it is stage" in said for said in backbone.provenance["assumed"])


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("head", SMP)
def test_every_decoder_is_known_by_its_head(head: str, naming: str) -> None:
    """The whole head of ours, by name and shape, on no more than shapes."""
    import segmentation_models_pytorch as smp

    from effbackbones.weights import foreign

    with torch.device("meta"):
        state = getattr(smp, SMP[head])(naming + "b0", encoder_weights=None, classes=5).state_dict()
        parts = parts_of(state, "b0")
        found = foreign._foreign_head(parts, state, Path("x.pth"), "b0")
        assert isinstance(found, Segmenter)
        assert (found.kind, found.unused) == (head, ())
        own = build_model("seg", "b0", head=head, num_classes=5, backbone_options={"tap": found.tap}).head.state_dict()
    assert found.entries_for(own) == (dict(found.head), "")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_one_difference_is_said(data: st.DataObject) -> None:
    """Whatever entry is missing, added or of another shape on one side."""
    names = [
        "decoder.a.weight",
        "decoder.a.bias",
        "decoder.b.weight",
        "segmentation_head.0.weight",
        "segmentation_head.0.bias",
    ]
    own = {name: torch.zeros(2, 3) for name in names}
    file = dict(own)
    assert Segmenter("unet", "stem", file, ()).entries_for(own)[1] == ""
    name = data.draw(st.sampled_from(names))
    change = data.draw(st.sampled_from(["missing", "shape", "more"]))
    if change == "missing":
        del file[name]
    else:
        file[name if change == "shape" else name + "x"] = torch.zeros(4, 3)
    taken, said = Segmenter("unet", "stem", file, ()).entries_for(own)
    assert said
    assert taken == file


# --- the tap ---------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"width": 0.5, "depth": 0.7}  # three blocks in stage 5


def test_smp_b0_takes_c4_from_the_first_block_of_stage_5() -> None:
    backbone = EfficientNet("b0", tap="smp_b0", drop_path=0.0, **SMALL).eval()
    images = torch.randn(1, 3, 64, 64)
    x = backbone.stem(images)
    for stage in (*list(backbone.stages)[:4], backbone.stages[4][0]):  # type: ignore[index]
        x = stage(x)
    stem = EfficientNet("b0", tap="stem", **SMALL).eval()
    stem.load_state_dict(backbone.state_dict())
    ours, theirs = backbone(images), stem(images)
    assert torch.equal(ours[3], x)
    assert [torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)] == [True, True, True, False, True]
    assert (backbone.feature_spec.channels, backbone.feature_spec.strides) == (
        stem.feature_spec.channels,
        stem.feature_spec.strides,
    )


@pytest.mark.parametrize("tap", ["stem", "smp_b0"])
def test_promises_of_the_tap(tap: str) -> None:
    quick = [name for name in BACKBONE_PROMISES if name not in ("export", "compile")]
    enforce(
        check_backbone(
            lambda: EfficientNet("b0", tap=tap, output_stride=8, checkpointing=True, **SMALL), promises=quick
        )
    )


@pytest.mark.slow
def test_all_promises_of_the_tap() -> None:
    enforce(check_backbone(lambda: EfficientNet("b0", tap="smp_b0", output_stride=16, checkpointing=True, **SMALL)))


def test_blocks_behind_c4_are_not_built_for_it() -> None:
    backbone = EfficientNet("b0", tap="smp_b0", levels=["C2", "C4"], **SMALL)
    assert [len(stage) for stage in backbone.stages] == [1, 2, 2, 3, 1]  # type: ignore[arg-type]
    enforce(check_backbone(backbone, promises=["gradient_reach", "level_modules", "shapes"]))


def test_freezing_up_to_c4_leaves_the_rest_of_stage_5() -> None:
    backbone = EfficientNet("b0", tap="smp_b0", **SMALL).freeze("C4")
    free = {name.split(".")[1] + "." + name.split(".")[2] for name, p in backbone.named_parameters() if p.requires_grad}
    assert "4.0" not in free
    assert {"4.1", "4.2", "5.0", "6.0"} <= free


@pytest.mark.parametrize("name", SCALINGS)
def test_taps_agree_with_the_stage_table(name: str) -> None:
    """Where smp says of its own encoders how many blocks lie below each map (B0: 3, 5, 9, 16)."""
    with torch.device("meta"):
        backbone = EfficientNet(name, tap="smp_b0" if name == "b0" else "stem")
    smp_says = {
        "b0": [2, 4, 8, 15],
        "b1": [4, 7, 15, 22],
        "b2": [4, 7, 15, 22],
        "b3": [4, 7, 17, 25],
        "b4": [5, 9, 21, 31],
        "b5": [7, 12, 26, 38],
        "b6": [8, 14, 30, 44],
        "b7": [10, 17, 37, 54],
    }
    below = list(backbone._blocks_below.values())
    assert below == [0, *(last + 1 for last in smp_says[name])] if name in smp_says else below[0] == 0
