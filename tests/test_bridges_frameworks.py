"""Our backbones inside other frameworks: the features of the direct call, one step of training, and predictions."""

import copy
import sys

import numpy as np
import pytest
import torch
from tests_support import one_line
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import effbackbones.bridges as bridges
from effbackbones import ImageSpec, UserError, build_model, create_backbone, save_model

SMALL = {"width": 0.25, "depth": 0.3}
IMAGES = torch.rand(2, 3, 64, 96)


def direct(network: nn.Module, levels: tuple[str, ...], name: str = "b0", **options) -> list[torch.Tensor]:
    """The maps of IMAGES by a backbone of ours with the weights of ``network``, in eval mode."""
    backbone = create_backbone(name, levels=levels, **{**SMALL, **options})
    backbone.load_state_dict(network.state_dict())
    with torch.no_grad():
        return backbone.eval()(IMAGES)


def assert_same(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def learns(model: nn.Module, body: nn.Module, loss) -> None:
    """One step, in which every parameter of the backbone has a gradient, and changes it."""
    before = copy.deepcopy(body.state_dict())
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    loss.backward()
    learning = {name: value for name, value in body.named_parameters() if value.requires_grad}
    assert learning
    assert [name for name, value in learning.items() if value.grad is None or not value.grad.any()] == []
    optimiser.step()
    first, value = next(iter(learning.items()))
    assert not torch.equal(value, before[first])


@pytest.mark.parametrize("kind", [FasterRCNN, RetinaNet, FCOS])
def test_torchvision_detectors_train_and_predict(kind):
    torch.manual_seed(0)
    net = bridges.fpn_backbone("b0", top="pool" if kind is FasterRCNN else "p6p7", out_channels=32, **SMALL)
    assert_same(net.body.eval()(IMAGES), direct(net.body, net.body.feature_spec.names))
    options = {"image_mean": net.image_mean, "image_std": net.image_std, "min_size": 64, "max_size": 96}
    if kind is FasterRCNN:
        options |= {"box_detections_per_img": 5, "rpn_post_nms_top_n_train": 50}
    model = kind(net, num_classes=4, **options).train()
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 48]]), "labels": torch.tensor([2])}] * 2
    learns(model, net.body, sum(model(list(IMAGES), targets).values()))
    with torch.no_grad():
        found = model.eval()(list(IMAGES))
    assert [one["boxes"].shape[1] for one in found] == [4, 4]
    assert all(len(one["labels"]) == len(one["scores"]) for one in found)


def test_torchvision_pyramids_have_other_levels_and_are_asked_rightly():
    net = bridges.fpn_backbone("b0", levels=("C3", "C5"), out_channels=16, **SMALL)
    assert [tuple(m.shape[1:]) for m in net(IMAGES).values()] == [(16, 8, 12), (16, 2, 3), (16, 1, 2)]
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    model = FasterRCNN(net, 3, rpn_anchor_generator=anchors, min_size=64, max_size=96)
    assert len(model.eval()(list(IMAGES))) == 2
    with pytest.raises(UserError) as error:
        bridges.fpn_backbone("b0", top="p6")
    one_line(error, "top", "'p6'", "pool, p6p7")


def test_timm_features_are_ours_and_say_what_timm_s_say():
    import timm

    names = bridges.register_timm(**SMALL)
    assert {"effbackbones_b0", "effbackbones_lite4"} <= set(names) <= set(timm.list_models("effbackbones_*"))
    model = timm.create_model("effbackbones_b0", features_only=True, out_indices=(1, 2, -1), in_chans=3)
    whole = create_backbone("b0", **SMALL).feature_spec
    assert model.feature_info.channels() == [whole.channels[i] for i in (1, 2, 4)]
    assert model.feature_info.reduction() == [4, 8, 32]
    assert model.feature_info.module_name() == ["C2", "C3", "C5"]
    assert len(model.feature_info) == 5
    assert_same(model.eval()(IMAGES), direct(model.backbone, ("C2", "C3", "C5")))
    assert timm.data.resolve_model_data_config(model)["mean"] == model.backbone.image_spec.mean
    learns(model.train(), model.backbone, sum(m.square().mean() for m in model(IMAGES)))
    for wrong, words in (({}, "features_only=True"), ({"features_only": True, "out_indices": (5,)}, "0..4")):
        with pytest.raises(UserError) as error:
            timm.create_model("effbackbones_b0", **wrong)
        one_line(error, "effbackbones_b0", words)


@pytest.mark.parametrize("name", ["b0", "lite0"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Unet", {"encoder_depth": 4, "decoder_channels": (32, 16, 16, 8)}),
        ("FPN", {}),
        ("DeepLabV3Plus", {"encoder_output_stride": 16}),
    ],
)
def test_smp_builds_its_decoders_on_ours(kind, options, name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    names = bridges.register_smp(weights=None, **SMALL)
    assert set(names) <= set(smp.encoders.get_encoder_names())
    torch.manual_seed(0)
    model = getattr(smp, kind)(f"effbackbones-{name}", classes=3, **options)
    levels = ("C1", "C2", "C3", "C4", "C5")[: options.get("encoder_depth", 5)]
    stride = {"output_stride": 16} if "encoder_output_stride" in options else {}
    maps = model.encoder.eval()(IMAGES)
    assert maps[0] is IMAGES
    assert_same(maps[1:], direct(model.encoder.backbone, levels, name, **stride))
    assert model.encoder.out_channels == [3, *model.encoder.backbone.feature_spec.channels]
    loss = nn.functional.cross_entropy(model.train()(IMAGES), torch.zeros(2, 64, 96, dtype=torch.long))
    learns(model, model.encoder, loss)
    assert model.predict(IMAGES).shape == (2, 3, 64, 96)


def test_smp_s_own_encoders_are_as_they_were():
    smp = pytest.importorskip("segmentation_models_pytorch")
    bridges.register_smp(weights=None, **SMALL)
    wanted = smp.encoders.get_preprocessing_params("effbackbones-lite0")
    assert (wanted["mean"], wanted["input_range"]) == ([0.5] * 3, [0, 1])
    theirs = smp.Unet("efficientnet-b0", encoder_weights=None)  # its own are as they were
    assert type(theirs.encoder).__name__ == "EfficientNetEncoder"


def test_smp_takes_weights_and_other_channels(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    bridges.register_smp(weights=None, **SMALL)
    bridges.register_smp()  # again, without what was said before
    model = smp.Unet("effbackbones-lite0", in_channels=1)  # "imagenet": from an installed package
    published = create_backbone("lite0", weights="imagenet", in_channels=1)
    assert_same(list(model.encoder.backbone.state_dict().values()), list(published.state_dict().values()))
    assert model.eval()(IMAGES[:, :1]).shape == (2, 1, 64, 96)
    with pytest.raises(UserError) as error:
        bridges.register_smp(levels=("C1",))
    one_line(error, "levels", "said by smp's model")


def test_scikit_learn_has_a_step_of_ours(tmp_path):
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    spec = ImageSpec((32, 32))
    model = build_model("cls", "b0", num_classes=2, backbone_options={**SMALL, "image_spec": spec}).eval()
    save_model(model, tmp_path / "m.safetensors")
    images = (np.random.default_rng(0).uniform(0, 1, (8, 40, 40, 3)) * 40).astype(np.uint8)
    images[::2] += 180
    step = bridges.ImageFeatures(str(tmp_path / "m.safetensors"), batch_size=3)
    line = make_pipeline(step, StandardScaler(), LogisticRegression())
    line.fit(images, np.arange(8) % 2)
    assert (line.predict(images) == np.arange(8) % 2).all()
    assert step.transform(images).shape == (8, model.backbone.feature_spec.channels[-1])
    assert list(step.get_feature_names_out()[:2]) == ["C5_0", "C5_1"]
    assert clone(step).get_params() == step.get_params()
    named = bridges.ImageFeatures("lite0").fit(None)
    assert np.isfinite(named.transform(images[:1])).all()


def test_a_framework_that_is_missing_is_named(monkeypatch):
    for module in ("fiftyone", "effbackbones.bridges.fiftyone"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(UserError) as error:
        _ = bridges.to_fiftyone
    one_line(error, "bridges.to_fiftyone", "fiftyone is not installed", "pip install fiftyone")
    with pytest.raises(AttributeError):
        _ = bridges.nothing


# ---- Transformers takes seconds to import


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def config_of(**options):
    return bridges.EffBackbonesConfig(backbone="b0", backbone_options=SMALL, **options)


@pytest.mark.slow
def test_transformers_backbone(tmp_path, transformers):
    config = config_of(out_features=["C3", "C5"])
    model = transformers.AutoBackbone.from_config(config).eval()
    assert model.channels == list(model.network.feature_spec.channels)
    with torch.no_grad():
        maps = model(IMAGES).feature_maps
    assert_same(maps, direct(model.network, ("C3", "C5")))
    model.save_pretrained(tmp_path)
    again = bridges.EffBackbonesBackbone.from_pretrained(tmp_path).eval()
    assert (again.config.out_features, again.config.backbone_options) == (["C3", "C5"], SMALL)
    with torch.no_grad():
        assert_same(again(IMAGES).feature_maps, maps)
    learns(model.train(), model, sum(m.square().mean() for m in model(IMAGES).feature_maps))
    assert config_of(out_indices=[1, 4]).out_features == ["C2", "C5"]


DETR = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
DETR |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5, "num_labels": 3}


@pytest.mark.slow
def test_transformers_detr_trains_and_predicts(transformers):
    config = transformers.DetrConfig(backbone_config=config_of(), use_timm_backbone=False, **DETR)
    model = transformers.DetrForObjectDetection(config)
    body = model.model.backbone.model
    assert_same(body.eval()(IMAGES).feature_maps, direct_of_frozen(body))
    boxes = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4]])}
    learns(model.train(), body, model(IMAGES, labels=[boxes, boxes]).loss)
    with torch.no_grad():
        assert model.eval()(IMAGES).pred_boxes.shape == (2, 5, 4)


def direct_of_frozen(body, levels=("C5",)):
    """Our network with the weights of one whose batch norms another library replaced."""
    backbone = create_backbone("b0", levels=levels, **SMALL)
    missing = backbone.load_state_dict(body.network.state_dict(), strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)
    with torch.no_grad():
        return backbone.eval()(IMAGES)


@pytest.mark.slow
def test_transformers_batch_norms_of_another_eps_are_not_swallowed(transformers):
    """DETR's frozen ones have 1e-5, whatever those had that they replace."""
    options = {**SMALL, "numerics": {"padding": "same", "bn_eps": 1e-3, "bn_momentum": 0.1}}
    detr = {"use_timm_backbone": False, **DETR}
    told = bridges.EffBackbonesConfig(backbone="b0", backbone_options=options)
    model = transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=told, **detr)).eval()
    with pytest.raises(UserError) as error, torch.no_grad():
        model(IMAGES)
    one_line(error, "0.001", "1e-05", "freeze_batch_norm=True")
    told = bridges.EffBackbonesConfig(backbone="b0", backbone_options=options, freeze_batch_norm=True)
    model = transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=told, **detr)).eval()
    ours = create_backbone("b0", levels=("C5",), **SMALL, numerics="tf").eval()
    ours.load_state_dict(model.model.backbone.model.network.state_dict(), strict=False)
    with torch.no_grad():
        assert_same(model.model.backbone.model(IMAGES).feature_maps, ours(IMAGES))
        assert model(IMAGES).logits.shape == (2, 5, 4)


@pytest.mark.slow
def test_transformers_upernet_trains_and_predicts(transformers):
    backbone = config_of(out_features=["C2", "C3", "C4", "C5"])
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=3, use_auxiliary_head=False, pool_scales=[1, 2]
    )
    model = transformers.UperNetForSemanticSegmentation(config)
    labels = torch.zeros(2, 64, 96, dtype=torch.long)
    learns(model.train(), model.backbone, model(IMAGES, labels=labels).loss)
    assert model.eval()(IMAGES).logits.shape == (2, 3, 64, 96)


C25, C35 = ["C2", "C3", "C4", "C5"], ["C3", "C4", "C5"]
CHANNELS = [16, 32, 80]
"""Of C3-C5 of the narrow B0: RT-DETR and its like want to be told."""
PIXELS = {"hidden_dim": 32, "encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}
PIXELS |= {"feature_size": 32, "mask_feature_size": 32, "num_attention_heads": 2, "dim_feedforward": 32}
REAL_TIME = {**DETR, "decoder_layers": 2, "encoder_hidden_dim": 32, "num_denoising": 0, "decoder_n_points": 2}
REAL_TIME |= {"encoder_in_channels": CHANNELS, "decoder_in_channels": [32] * 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "levels", "options"),
    [
        ("Mask2Former", C25, {**PIXELS, "num_labels": 3, "train_num_points": 64}),
        ("MaskFormer", C25, {"fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 3}),
        ("RTDetr", C35, REAL_TIME),
        ("RTDetrV2", C35, REAL_TIME),
        ("DFine", C35, {**REAL_TIME, "decoder_n_points": [2, 2, 2]}),
        ("DeformableDetr", C35, {**DETR, "use_timm_backbone": False, "num_feature_levels": 3, "decoder_layers": 2}),
        ("ConditionalDetr", ["C5"], {**DETR, "use_timm_backbone": False}),
    ],
)
def test_other_models_of_transformers_train_and_predict(name, levels, options, transformers):
    torch.manual_seed(0)
    if name == "MaskFormer":
        decoder = transformers.DetrConfig(backbone_config=config_of(), use_timm_backbone=False, **DETR)
        options = {**options, "decoder_config": decoder}
    whole = {**SMALL, "drop_path": 0.0}  # a path that is dropped has no gradient
    backbone = bridges.EffBackbonesConfig(backbone="b0", backbone_options=whole, out_features=levels)
    config = getattr(transformers, f"{name}Config")(backbone_config=backbone, **options)
    masks = "Mask" in name
    kind = {"Mask2Former": "UniversalSegmentation", "MaskFormer": "InstanceSegmentation"}.get(name, "ObjectDetection")
    model = getattr(transformers, f"{name}For{kind}")(config)
    body = next(part for part in model.modules() if isinstance(part, bridges.EffBackbonesBackbone))
    with torch.no_grad():
        assert_same(body.eval()(IMAGES).feature_maps, direct_of_frozen(body, tuple(levels)))
    halves = torch.zeros(2, 64, 96)
    halves[0, :32], halves[1, 32:] = 1, 1
    box = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4]])}
    wanted = (
        {"mask_labels": [halves] * 2, "class_labels": [torch.tensor([0, 1])] * 2} if masks else {"labels": [box] * 2}
    )
    learns(model.train(), body, model(IMAGES, **wanted).loss)
    with torch.no_grad():
        found = model.eval()(IMAGES)
    assert found.masks_queries_logits.shape[:2] == (2, 5) if masks else found.pred_boxes.shape == (2, 5, 4)
