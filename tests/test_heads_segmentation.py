"""Segmentation heads: equal to segmentation-models-pytorch (smp) on the same weights, at any size, with honest refusals."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weight_files import SMP, smp_model

from effbackbones import build_model, list_heads
from effbackbones.build import create_backbone
from effbackbones.conformance import check_head, enforce
from effbackbones.conformance.head import HEAD_PROMISES
from effbackbones.contracts import Backbone, FeatureSpec, Head, ImageSizes
from effbackbones.errors import UserError
from effbackbones.model import Model
from effbackbones.registry import HEADS

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"channels": [16, 16, 8, 8, 8]},
    "unetplusplus": {"channels": [16, 16, 8, 8, 8]},
    "manet": {"channels": [16, 16, 8, 8, 8]},
    "linknet": {},
    "segformer": {"channels": 16},
    "fpn": {"pyramid_channels": 16, "segmentation_channels": 32},
    "upernet": {"channels": 16},
    "pspnet": {"channels": 16},
    "deeplabv3": {"channels": 16},
    "deeplabv3plus": {"channels": 16},
    "pan": {"channels": 16},
    "dpt": {"channels": 16, "intermediate_channels": [16, 16, 16, 16]},
}
TINY = {"width": 0.5, "depth": 0.3}  # a quick B0


def tiny(head: str, num_classes: int = 3, *, backbone_options: Mapping[str, Any] = {}, **options: Any) -> Model:
    return build_model(
        "seg",
        "b0",
        head=head,
        num_classes=num_classes,
        backbone_options={**TINY, **backbone_options},
        head_options={**SMALL[head], **options},
    )


def test_the_list_is_complete() -> None:
    assert set(SMALL) == {name for name in list_heads() if HEADS.get(name).task == "seg"}
    assert HEADS.get("unet++") is HEADS.get("unetplusplus")
    assert HEADS.get("deeplabv3+") is HEADS.get("deeplabv3plus")


# ---- the contract --------------------------------------------------------------------------------------------------

_SLOW_PROMISES = ("export", "compile", "no_sync")  # seconds each


@pytest.mark.parametrize("name", SMALL)
def test_promises(name: str) -> None:
    quick = [promise for promise in HEAD_PROMISES if promise not in _SLOW_PROMISES]
    promises = {"unet": None, "fpn": [*quick, "export"]}.get(name, quick)  # one that pads, one that does not
    enforce(check_head(HEADS.get(name), options=SMALL[name], promises=promises))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "options", [{}, {"loss": ["cross_entropy", "dice*0.5", "lovasz*0.1"]}, {"num_classes": 1}], ids=str
)
def test_all_promises(name: str, options: dict[str, Any]) -> None:
    options = {**options}
    classes = options.pop("num_classes", 5)
    enforce(
        check_head(
            HEADS.get(name),
            num_classes=classes,
            options=SMALL[name] | options,
            targets=None if classes > 1 else binary_masks,
        )
    )


def binary_masks(sizes: ImageSizes, num_classes: int, empty: bool) -> Tensor:
    masks = torch.randint(2, (len(sizes.valid), *sizes.batch))
    masks[..., : sizes.batch[1] if empty else 3] = 255
    return masks


@pytest.mark.parametrize("name", ["unet", "unetplusplus"])
def test_no_trainable_parameter_is_left_out_under_attention(name: str) -> None:
    """The last step of both has an attention that nothing runs: DDP would stop on it."""
    options = {"attention": "scse", "channels": [16] * 5}
    enforce(check_head(HEADS.get(name), options=options, promises=["gradient_reach", "state_dict"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet", {"attention": "scse", "channels": [32, 16, 16]}),
        ("unet", {"interpolation": "bilinear"}),
        ("unet", {"tap": "stem"}),
        ("unet", {"levels": [2, 3, 4, 5]}),
        ("unet", {"levels": [2, 3, 4], "channels": [16, 8, 8, 8]}),
        ("unetplusplus", {"levels": [2, 3, 4, 5]}),
        ("unetplusplus", {"attention": "scse", "channels": [16] * 5}),
        ("manet", {"levels": [2, 3, 4, 5]}),
        ("linknet", {"levels": [2, 3, 4]}),
        ("segformer", {"levels": [2, 3, 4, 5]}),
        ("pspnet", {"depth": 5}),
        ("deeplabv3", {"output_stride": 16}),
        ("deeplabv3plus", {"output_stride": 8}),
        ("pan", {"output_stride": 32}),
        ("fpn", {"merge": "cat"}),
    ],
)
def test_promises_under_options(name: str, options: dict[str, Any]) -> None:
    enforce(check_head(HEADS.get(name), options=SMALL[name] | options))


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_any_size(name: str) -> None:
    """Logits at exactly the size of the images, also of those smaller than the backbone's coarsest stride."""
    model = tiny(name).eval()
    with torch.no_grad():
        for size in ((32, 32), (33, 97), (100, 75), (31, 5)):
            images = torch.rand(2, 3, *size)
            assert model(images).shape == (2, 3, *size)
            assert model.predict(images).shape == (2, 3, *size)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(270, 480), (1080, 1920)])
def test_video_sizes(name: str, size: tuple[int, int]) -> None:
    if name == "manet" and size[0] > 1000:
        pytest.skip("attention between all cells of 34 x 60 takes 2 GB")
    with torch.no_grad():
        assert tiny(name).eval()(torch.rand(1, 3, *size)).shape[2:] == size


@pytest.mark.parametrize("name", SMALL)
def test_padding_by_hand_equals_padding_inside(name: str) -> None:
    model = tiny(name).eval()
    divisor, least = model.head.size_divisor, model.head.min_size
    height, width = least + least // 2 + 1, least - 3
    images = torch.rand(1, 3, height, width)
    fill = (torch.tensor(model.image_spec.mean) * 255).round()[:, None, None] / 255
    by_hand = fill.expand(1, 3, -(-height // divisor) * divisor, least).clone()
    by_hand[..., :height, :width] = images
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(by_hand)[..., :height, :width], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["unet", "fpn", "segformer"])
@pytest.mark.parametrize("size", [(64, 64), (33, 97)])
def test_beside_a_head_that_pads_further(name: str, size: tuple[int, int]) -> None:
    """Under a detector the images come padded to a multiple of 128: the logits are those of images padded so by hand."""
    options = {"seg": SMALL[name], "det": {"channels": 8, "cells": 1, "repeats": 1}}
    model = build_model(
        ("seg", "det"),
        "b0",
        head={"seg": name},
        num_classes={"seg": 3, "det": 2},
        backbone_options=TINY,
        head_options=options,
    ).eval()
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        padded = model._pad(model.normalize(images))
        by_hand = model(padded, normalized=True)["seg"][..., : size[0], : size[1]]
        found = model(images)["seg"]
    assert padded.shape[2:] == (128, 128)
    # Where the side is odd, the U-Net's last step ends one pixel earlier, which a few convolutions see.
    assert found.shape == (1, 3, *size)
    torch.testing.assert_close(found[..., :-4, :-4], by_hand[..., :-4, :-4], rtol=1e-4, atol=1e-5)


def test_images_are_letterboxed_for_them() -> None:
    backbone, model = create_backbone("b0"), tiny("unet")
    assert (backbone.image_spec.crop_mode, backbone.image_spec.crop_fraction) == ("center", 0.875)
    assert (model.image_spec.crop_mode, model.image_spec.crop_fraction) == ("letterbox", 1.0)


def test_strides_halved_for_small_images() -> None:
    """``stem_stride=1`` puts C1 at the images' own size. Decoders with fixed factors say that they cannot."""
    model = tiny("unet", backbone_options={"stem_stride": 1})
    assert model.head.spec.strides == (1, 2, 4, 8, 16)
    assert model(torch.rand(2, 3, 35, 50)).shape == (2, 3, 35, 50)


# ---- learning and reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_learns_a_split_image(name: str) -> None:
    """A dozen steps are enough to begin to tell a dark half from a bright one."""
    torch.manual_seed(0)
    model = tiny(name, 2, loss=["cross_entropy", "dice"]).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, masks = torch.full((4, 3, 32, 32), 0.2), torch.zeros(4, 32, 32, dtype=torch.long)
    images[:2, :, :, 16:], masks[:2, :, 16:] = 0.8, 1
    images[2:, :, 16:], masks[2:, 16:] = 0.8, 1
    course = []
    for _ in range(12):
        optimiser.zero_grad()
        parts = model.loss(images, masks)
        loss = torch.stack(list(parts.values())).sum()
        loss.backward()
        optimiser.step()
        course.append(loss.item())
    assert set(parts) == {"cross_entropy", "dice"}
    assert course[-1] < 0.75 * course[0]


@pytest.mark.parametrize(("mode", "classes"), [("multiclass", 4), ("multilabel", 4), ("multilabel", 1), ("binary", 1)])
def test_predictions_are_float32_probabilities(mode: str, classes: int) -> None:
    model = tiny("unet", classes, mode=mode).eval()
    images = torch.rand(2, 3, 40, 50)
    with torch.autocast("cpu", torch.bfloat16):
        raw, found = model(images), model.predict(images)
    assert raw.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert found.shape == (2, classes, 40, 50)
    torch.testing.assert_close(found, raw.float().softmax(1) if mode == "multiclass" else raw.float().sigmoid())
    if mode == "multiclass":
        torch.testing.assert_close(found.sum(1), torch.ones(2, 40, 50))


def test_a_head_of_sets_keeps_its_promises() -> None:
    """Without the slow ones, which differ from other modes in nothing but the expansion of the targets: that waits for nobody."""
    options = {**SMALL["unet"], "mode": "multilabel", "loss": ["cross_entropy", "focal"]}
    names = ["count", "loss_finite", "loss_pure", "loss_scalar", "select", "no_sync", "mode_independent"]
    enforce(check_head(HEADS.get("unet"), options=options, promises=names))


@pytest.mark.slow
def test_a_head_of_sets_keeps_all_promises() -> None:
    enforce(check_head(HEADS.get("unet"), options={**SMALL["unet"], "mode": "multilabel"}))


def test_sets_of_other_classes_are_refused_with_the_pixel() -> None:
    model, sets = tiny("unet", 3, mode="multilabel").eval(), torch.zeros(1, 32, 32, dtype=torch.int32)
    assert model.loss(torch.rand(1, 3, 32, 32), sets.index_fill(1, torch.tensor(0), -1))
    sets[0, 4, 5] = 0b1001
    with pytest.raises(UserError, match=r"targets\[0, 4, 5\]: expected a set of 3 classes, got 9"):
        model.loss(torch.rand(1, 3, 32, 32), sets)


def test_one_class_is_binary_by_default_and_wrong_masks_are_refused() -> None:
    model = tiny("unet", 1)
    images = torch.rand(2, 3, 32, 32)
    assert set(model.loss(images, torch.randint(2, (2, 32, 32)))) == {"cross_entropy"}
    with pytest.raises(UserError, match=r"expected masks \[2, 32, 32\], got torch.float32 \[2, 1, 32, 32\]"):
        model.loss(images, torch.rand(2, 1, 32, 32))


def test_options_reach_the_losses() -> None:
    images, masks = torch.rand(2, 3, 32, 32), torch.randint(3, (2, 32, 32))
    model = tiny("unet").eval()
    raw, sizes = model(images), ImageSizes.of(images)

    def value(**options: Any) -> float:
        head = tiny("unet", **options).head
        return float(torch.stack(list(head.loss(raw, masks, sizes).values())).sum().detach())

    plain = value()
    assert value(loss="cross_entropy*2") == pytest.approx(2 * plain)
    assert value(class_weights=[3, 3, 3]) == pytest.approx(plain)
    changed = [{"class_weights": [1, 2, 3]}, {"label_smoothing": 0.1}, {"ignore_index": 1}, {"loss": "dice"}]
    changed += [{"loss": "focal", **more} for more in ({}, {"focal_gamma": 1}, {"focal_alpha": 0.3})]
    changed += [{"loss": "tversky", **more} for more in ({"tversky_alpha": 0.1}, {"tversky_beta": 0.1})]
    values = [plain, *(value(**options) for options in changed)]
    assert len({round(v, 6) for v in values}) == len(values)


def test_class_weights_stay_out_of_the_state_dict_but_follow_the_device() -> None:
    head = tiny("unet", class_weights=[1, 2, 3]).head
    assert all(key.startswith(("decoder.", "segmentation_head.")) for key in head.state_dict())
    assert head.to("meta")._class_weights.device.type == "meta"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["upernet", "deeplabv3", "deeplabv3plus", "pan"])
def test_one_image_in_training(name: str) -> None:
    """Their batch norm after global pooling cannot take one: said in one line, and no matter in evaluation."""
    model = tiny(name)
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(UserError, match=r"batch of 1 image: .* at least 2 in training"):
        model(images)
    model.eval()(images)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"upernet", "deeplabv3", "deeplabv3plus", "pan"}))
def test_one_image_suffices_the_others(name: str) -> None:
    tiny(name)(torch.rand(1, 3, 64, 64))


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("unet", {"chanels": [8]}, r"head_options.chanels: .*did you mean channels"),
        ("unet", {"channels": 64}, "channels: expected a list of .*, got 64"),
        ("unet", {"channels": [64, 32.5, 8]}, "channels: expected a list of .*32.5"),
        ("unet", {"channels": [64, 32]}, "which must be 3, 4 or 5"),
        ("unet", {"channels": [8] * 6}, "which must be 3, 4 or 5"),
        ("unet", {"levels": [1, 3, 4, 5]}, r"levels: .*got \[1, 3, 4, 5\]"),
        ("unet", {"levels": [3, 4, 5]}, r"levels: .*got \[3, 4, 5\]"),
        ("unet", {"levels": [1, 2, 3, 4]}, "1 or 2 up to 5"),
        ("unet", {"tap": "top"}, "tap: unknown value 'top'"),
        ("unet", {"attention": "se"}, "attention: unknown value 'se'"),
        ("unet", {"attention": "scse", "channels": [8] * 5}, "scse divides every width by 16"),
        ("unet", {"interpolation": "linear"}, "interpolation: unknown value 'linear'; did you mean bilinear"),
        ("unet", {"loss": "dise"}, "did you mean dice"),
        ("unet", {"mode": "binary"}, "binary has exactly 1 class"),
        ("unet", {"mode": "multi"}, "mode: unknown value"),
        ("unet", {"class_weights": [1, 2]}, "class_weights: expected 3 numbers"),
        ("unet", {"class_weights": "median"}, "class_weights: expected a list of"),
        ("unet", {"class_weights": [1, 2, -1]}, "class_weights: expected a number of at least 0"),
        ("unet", {"class_weights": [0, 0, 0]}, "class_weights: all are 0"),
        ("unet", {"label_smoothing": 1}, "label_smoothing: expected a number of at least 0 and below 1"),
        ("unet", {"focal_gamma": -1}, "focal_gamma"),
        ("unet", {"focal_gamma": float("nan")}, "focal_gamma"),
        ("unet", {"threshold": 0.4}, "threshold: goes with mode multilabel, got multiclass"),
        ("unet", {"mode": "multilabel", "threshold": 1.5}, "threshold: expected a number of at least 0 and at most 1"),
        ("unet", {"mode": "multilabel", "threshold": [0.5, 0.5]}, "threshold: expected a number, or 3, one per class"),
        ("unet", {"ignore_index": "void"}, "ignore_index: expected a whole number"),
        ("manet", {"pab_channels": 0}, "pab_channels"),
        ("linknet", {"levels": [1, 2]}, "levels"),
        ("fpn", {"segmentation_channels": 48}, "32 groups, got 48"),
        ("fpn", {"merge": "sum"}, "merge"),
        ("fpn", {"dropout": 1.0}, "dropout"),
        ("fpn", {"tap": "stem"}, "no such option"),
        ("pspnet", {"depth": 2}, "depth: unknown value 2"),
        ("deeplabv3", {"output_stride": 32}, "output_stride: unknown value 32"),
        ("deeplabv3plus", {"atrous_rates": [6, 12]}, "atrous_rates: expected three"),
        ("deeplabv3plus", {"separable": "yes"}, "separable"),
        ("pan", {"output_stride": 8}, "output_stride: unknown value 8"),
        ("dpt", {"intermediate_channels": [8, 8]}, "intermediate_channels: expected four"),
    ],
)
def test_wrong_options_are_one_line(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        tiny(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "backbone_options", "said"),
    [
        (
            "unet",
            {"levels": ["C3", "C4", "C5"]},
            "UNetHead needs C1, C2, C3, C4, C5, got C3, C4, C5 at stride 8, 16, 32",
        ),
        (
            "fpn",
            {"stem_stride": 1},
            "FPNHead needs C2, C3, C4, C5 at stride 4, 8, 16, 32, got .* at stride 2, 4, 8, 16",
        ),
        ("unetplusplus", {"output_stride": 16}, "at stride 2, 4, 8, 16, 16"),
        ("deeplabv3", {"output_stride": 16}, "needs C5 at stride 8, got C5 at stride 16"),
    ],
)
def test_backbones_that_do_not_fit_are_one_line(name: str, backbone_options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        tiny(name, backbone_options=backbone_options)
    assert "\n" not in str(error.value)


def test_levels_that_a_backbone_lacks_are_one_line() -> None:
    """ConvNeXt has no C1, and a plain vision transformer only one level; both errors say so."""
    with pytest.raises(UserError, match=r"'C1'.*gives C2, C3, C4, C5"):
        build_model("seg", "timm:convnext_atto")
    with pytest.raises(UserError, match=r"'C2'.*gives C4"):
        build_model("seg", "timm:vit_tiny_patch16_224", head="dpt")


def test_pyramid_pooling_needs_channels_by_four() -> None:
    with pytest.raises(UserError, match="C3 has 42 channels, pyramid pooling needs a multiple of 4"):
        HEADS.get("pspnet")(FeatureSpec("own", ("C3",), (42,), (8,)), 3)


# ---- equal to smp --------------------------------------------------------------------------------------------------

NAMINGS = [
    ("tu-tf_efficientnet_", "tf", "stage"),
    ("timm-efficientnet-", "torch", "stem"),
    ("efficientnet-", "same_static", "stem"),
]


def transplant(reference: nn.Module, backbone: Backbone, head: str, **options: Any) -> Model:
    """Our model with smp's tensors: the head's by their names, the backbone's by their order, which is the same."""
    wanted = HEADS.get(head).requires(**options).levels
    ours = Model(backbone, HEADS.get(head)(backbone.feature_spec.select(wanted), 5, **options))
    state = reference.state_dict()
    ours.head.load_state_dict({key: value for key, value in state.items() if not key.startswith("encoder.")})
    tail = ("encoder._conv_head", "encoder._bn1", "encoder.conv_head", "encoder.bn2.")
    tensors = [value for key, value in state.items() if key.startswith("encoder.") and not key.startswith(tail)]
    own = backbone.state_dict()
    count = len(own)
    assert count <= len(tensors)  # smp's encoders hold stages that nobody reads
    backbone.load_state_dict(
        {key: value.reshape(own[key].shape) for key, value in zip(own, tensors[:count], strict=True)}
    )
    return ours.eval().requires_grad_(False)


def assert_same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert float((got - want).abs().max()) < 1e-4 * float(want.abs().max())


def images_of(size: tuple[int, int]) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))


@pytest.mark.peer
@pytest.mark.parametrize(("prefix", "numerics", "tap"), NAMINGS)
@pytest.mark.parametrize("name", ["b0", *(pytest.param(f"b{i}", marks=pytest.mark.slow) for i in range(1, 8))])
def test_unet_equals_smp(name: str, prefix: str, numerics: str, tap: str) -> None:
    """Encoder, decoder and last convolution, in all three of smp's namings, at even, odd and oblong sizes.

    smp's own B0 reads C4 elsewhere than everybody else; ours has a tap for that.
    """
    reference = smp_model(prefix + name, side=256)
    taken = "smp_b0" if prefix + name == "efficientnet-b0" else tap
    ours = transplant(reference, create_backbone(name, numerics=numerics, tap=taken), "unet", tap=tap)
    for size in ((64, 64), (65, 98), (33, 97)):
        images = images_of(size)
        assert_same(ours(images, normalized=True), reference(images))


@pytest.mark.peer
@pytest.mark.parametrize("head", [name for name in SMP if name != "unet"])
def test_siblings_equal_smp(head: str) -> None:
    """At the sizes that smp takes, and at others on images padded as we pad them."""
    needs = HEADS.get(head).requires()
    reference = smp_model("tu-tf_efficientnet_b0", head, side=256)
    backbone = create_backbone("b0", numerics="tf", levels=needs.levels, output_stride=needs.output_stride)
    ours = transplant(reference, backbone, head)
    side = ours.head.min_size
    for size in ((side, side), (side, 2 * side + 32)):
        images = images_of(size)
        assert_same(ours(images, normalized=True), reference(images))
    images = images_of((side + 1, side - 5))
    divisor = ours.head.size_divisor
    padded = ours._pad(images)
    assert padded.shape[2:] == (-(-(side + 1) // divisor) * divisor, side)
    assert_same(ours(images, normalized=True), reference(padded)[..., : side + 1, : side - 5])


@pytest.mark.peer
@pytest.mark.parametrize(
    ("head", "ours", "theirs"),
    [
        ("unet", {"attention": "scse"}, {"decoder_attention_type": "scse"}),
        (
            "unet",
            {"interpolation": "bilinear", "channels": [48, 32, 16]},
            {"decoder_interpolation": "bilinear", "decoder_channels": [48, 32, 16], "encoder_depth": 3},
        ),
        (
            "unetplusplus",
            {"attention": "scse", "channels": [64, 32, 16, 16]},
            {"decoder_attention_type": "scse", "decoder_channels": [64, 32, 16, 16], "encoder_depth": 4},
        ),
        (
            "manet",
            {"pab_channels": 16, "interpolation": "bicubic"},
            {"decoder_pab_channels": 16, "decoder_interpolation": "bicubic"},
        ),
        ("linknet", {"levels": [1, 2, 3]}, {"encoder_depth": 3}),
        ("segformer", {"channels": 64}, {"decoder_segmentation_channels": 64}),
        (
            "fpn",
            {"merge": "cat", "pyramid_channels": 64, "segmentation_channels": 32, "interpolation": "bilinear"},
            {
                "decoder_merge_policy": "cat",
                "decoder_pyramid_channels": 64,
                "decoder_segmentation_channels": 32,
                "decoder_interpolation": "bilinear",
            },
        ),
        ("pspnet", {"depth": 4, "channels": 64}, {"encoder_depth": 4, "psp_out_channels": 64, "upsampling": 16}),
        (
            "deeplabv3",
            {"output_stride": 16, "atrous_rates": [2, 4, 6], "separable": True},
            {"encoder_output_stride": 16, "decoder_atrous_rates": [2, 4, 6], "decoder_aspp_separable": True},
        ),
        ("deeplabv3plus", {"output_stride": 8, "channels": 64}, {"encoder_output_stride": 8, "decoder_channels": 64}),
        (
            "pan",
            {"output_stride": 32, "interpolation": "nearest"},
            {"encoder_output_stride": 32, "decoder_interpolation": "nearest"},
        ),
    ],
)
def test_options_equal_smps(head: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    needs = HEADS.get(head).requires(**ours)
    reference = smp_model("tu-tf_efficientnet_b0", head, side=256, **theirs)
    backbone = create_backbone("b0", numerics="tf", levels=needs.levels, output_stride=needs.output_stride)
    model = transplant(reference, backbone, head, **ours)
    images = images_of((model.head.min_size, model.head.min_size))
    assert_same(model(images, normalized=True), reference(images))


@pytest.mark.peer
@pytest.mark.parametrize("head", ["unet", "unetplusplus", "manet", "linknet", "segformer"])
def test_backbones_without_c1_equal_smp(head: str) -> None:
    reference = smp_model("tu-convnext_atto", head, side=256)
    levels = ("C2", "C3", "C4", "C5")
    model = transplant(reference, create_backbone("timm:convnext_atto", levels=levels), head, levels=[2, 3, 4, 5])
    images = images_of((64, 96))
    assert_same(model(images, normalized=True), reference(images))


def test_a_missing_c1_has_the_size_that_it_would_have() -> None:
    head = HEADS.get("unet")(
        FeatureSpec("own", ("C2", "C3", "C4", "C5"), (8,) * 4, (4, 8, 16, 32)), 3, levels=[2, 3, 4, 5]
    )
    features = [torch.rand(1, 8, -(-65 // stride), -(-98 // stride)) for stride in head.spec.strides]
    maps = head._smp_maps(features, (65, 98))
    assert [tuple(m.shape) for m in maps[:3]] == [(1, 0, 65, 98), (1, 0, 33, 49), (1, 8, 17, 25)]
    assert head(features, ImageSizes((65, 98), torch.tensor([[65, 98]]))).shape == (1, 3, 65, 98)


@pytest.mark.peer
def test_dpt_equals_smp_on_the_maps_of_a_vision_transformer() -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    reference = smp.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, classes=5, decoder_readout="ignore").eval()
    images = images_of((224, 224))
    with torch.no_grad():
        maps, _ = reference.encoder(images)
        head: Head = HEADS.get("dpt")(FeatureSpec("own", ("C2", "C3", "C4", "C5"), (192,) * 4, (16,) * 4), 5).eval()
        head.load_state_dict(
            {key: value for key, value in reference.state_dict().items() if not key.startswith("encoder.")}
        )
        assert_same(head(maps, ImageSizes.of(images)), reference(images))


@pytest.mark.peer
def test_parameter_counts_are_smps() -> None:
    """reference.md 3.3: decoders of B0, and 145 parameters per class."""
    for tap, decoder in (("stem", 2_243_776), ("stage", 2_239_168)):
        head = build_model("seg", "b0", num_classes=12, head_options={"tap": tap}).head
        assert sum(p.numel() for p in head.decoder.parameters()) == decoder  # type: ignore[union-attr]
        assert sum(p.numel() for p in head.segmentation_head.parameters()) == 145 * 12  # type: ignore[union-attr]
