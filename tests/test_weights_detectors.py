"""Weights of detectors: records against effdet's configurations, key maps against its networks, and what is said and refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import one_line
from torch import Tensor, nn
from weight_files import numbered, parts_of

from effbackbones import build_model, create_backbone, save_model
from effbackbones.backbones.convolution import Numerics
from effbackbones.backbones.scaling import SCALINGS
from effbackbones.contracts import IMAGENET_MEAN
from effbackbones.errors import UserError
from effbackbones.weights import foreign, hub, reading
from effbackbones.weights.classifiers import SOURCES, find_source
from effbackbones.weights.coco_names import COCO_NAMES, RAW_NAMES
from effbackbones.weights.source import HALF, WeightSource

pytestmark = pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
DETECTORS = {s.name: s for s in SOURCES if s.ap is not None}
ENTRIES = {
    "d0": 784,
    "d1": 1004,
    "d2": 1076,
    "d3": 1270,
    "d4": 1474,
    "d5": 1622,
    "d6": 1818,
    "d7": 1818,
    "d7x": 2210,
}  # reference 2.1
BACKBONES = {"d7": "b6", "d7x": "b7", "lite3x": "lite3"}
TINY = {"width": 0.25, "depth": 0.3}
SMALL = {"channels": 16, "cells": 1, "repeats": 1}


def backbone_of(name: str) -> str:
    variant = name.rpartition("_")[2]
    return BACKBONES.get(variant, variant.replace("d", "b") if variant.startswith("d") else variant)


def effdet_network(name: str, size: int = 256, device: str = "cpu", **settings: Any) -> nn.Module:
    """effdet's network with random weights."""
    effdet = pytest.importorskip("effdet")
    config = effdet.get_efficientdet_config(name)
    config.update({"image_size": (size, size), **settings})
    torch.manual_seed(0)
    with torch.device(device):
        return effdet.EfficientDet(config, pretrained_backbone=False)


def calmed(network: nn.Module, images: Tensor) -> nn.Module:
    """With statistics of these images and spread logits, so that outputs are neither all alike nor huge."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.8, 1.2)
            norm.bias.uniform_(-0.2, 0.2)
        for key, parameter in network.named_parameters():
            if key.endswith("edge_weights"):
                parameter.uniform_(0.2, 1.5)
            elif key.endswith("bias") and "bn" not in key:
                parameter.uniform_(-0.5, 0.5)
        network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def effdet_state(name: str, **settings: Any) -> dict[str, Tensor]:
    return numbered(effdet_network(name, device="meta", **settings))


def sorted_out(state: dict[str, Tensor], backbone: str) -> tuple[Any, Any]:
    """Backbone and detector of a file, under our names."""
    parts = parts_of(state, backbone)
    return parts, foreign._foreign_head(parts, state, Path("x.pth"), backbone)


def written(folder: Path, state: object) -> Path:
    torch.save(state, folder / "w.pth")
    return folder / "w.pth"


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def on_meta(*arguments: Any, **options: Any) -> Any:
    """``build_model`` without values: shapes, reports and options are what counts."""
    with torch.device("meta"):
        return build_model("det", *arguments, **options)


def said(model: nn.Module) -> str:
    return "\n".join(model.provenance["assumed"])  # type: ignore[arg-type, index]


def counts(model: nn.Module) -> list[list[int]]:
    """Loaded, re-initialised, unused: by part."""
    rows = model.provenance["loaded"].splitlines()[1:]  # type: ignore[union-attr, operator]
    return [[int(word) for word in re.search(r"  +(\d+)  +(\d+)  +(\d+)", row).groups()] for row in rows]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Makes a file the download of any named source."""

    def use(state: dict[str, Tensor]) -> None:
        monkeypatch.setattr(hub, "fetch", lambda source, cache=None: written(tmp_path, state))

    return use


# --- the records -----------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_effdet_records_equal_the_installed_configurations():
    configs = pytest.importorskip("effdet.config.model_config").efficientdet_model_param_dict
    known = {name.removeprefix("effdet:"): source for name, source in DETECTORS.items() if name.startswith("effdet:")}
    ours = {
        name
        for name, row in configs.items()
        if row["url"] and row["backbone_name"].rpartition("efficientnet_")[2] in SCALINGS
    }
    assert set(known) == {name for name in ours if configs[name].get("fpn_name") in (None, "bifpn_sum")}
    assert len(known) == 23
    for name, source in known.items():
        row = configs[name]
        options = dict(source.head_options)
        assert source.url == row["url"]
        assert source.url.endswith(f"{source.hash_prefix}.pth")
        assert source.file == source.url.rpartition("/")[2]
        assert row["backbone_name"] == ("tf_" if source.numerics == "tf" else "") + f"efficientnet_{source.backbone}"
        assert source.image_spec.size == tuple(row["image_size"])
        assert source.image_spec.mean == row.get("mean", IMAGENET_MEAN)
        assert options["anchor_scale"] == row.get("anchor_scale", 4.0)
        assert options.get("channels", row["fpn_channels"]) == row["fpn_channels"]
        assert (source.image_spec.crop_mode, source.licence) == ("letterbox", "Apache-2.0")


def test_zylo117_records():
    known = [source for name, source in DETECTORS.items() if name.startswith("zylo117:")]
    assert [source.ap for source in known] == [33.1, 38.8, 42.1, 45.6, 48.8, 50.2, 50.7, 52.7, 53.9]
    assert [source.backbone for source in known] == ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b6", "b7"]
    assert not any(source.verifiable for source in known)
    assert all(source.image_spec.mean == IMAGENET_MEAN for source in known)


def test_default_detectors_and_what_they_need():
    names = {name: find_source("coco", name).name for name in SCALINGS}
    assert names == {name: f"effdet:tf_efficientdet_{name.replace('b7', 'd7x').replace('b', 'd')}" for name in SCALINGS}
    assert find_source("coco", "b0").image_spec.mean == IMAGENET_MEAN
    assert (
        find_source("coco", "lite0").image_spec.mean
        == DETECTORS["effdet:tf_efficientdet_d0_ap"].image_spec.mean
        == HALF
    )
    assert dict(DETECTORS["effdet:tf_efficientdet_d7"].head_options) == {"variant": "d7", "anchor_scale": 5.0}
    with pytest.raises(UserError) as error:
        find_source("effdet:tf_efficientdet_d3", "b0")
    assert "are for b3, not b0" in str(error.value)
    with pytest.raises(UserError, match=r"neither a file nor a source for b2\.5"):
        find_source("coco", "b2.5")


def test_command_lists_detectors(capsys):
    assert hub.main(["list", "b6"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "AP " in line]
    assert [line.split()[1] for line in lines] == [
        "effdet:tf_efficientdet_d6",
        "effdet:tf_efficientdet_d7",
        "zylo117:efficientdet-d6",
        "zylo117:efficientdet-d7",
    ]
    assert "53.100" in lines[1]
    assert "1536x1536" in lines[1]


def test_names_of_coco(data_root):
    found = json.loads((data_root / "coco_mini" / "annotations" / "instances_val2017.json").read_text())["categories"]
    assert {category["id"]: category["name"] for category in found} == COCO_NAMES


def test_placeholders_stand_for_the_ids_that_coco_left_out():
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert set(COCO_NAMES) == set(range(1, 91)) - unused
    assert {name for name in RAW_NAMES if name.startswith("coco id")} == {f"coco id {i}" for i in unused}
    assert RAW_NAMES[89] == "toothbrush"
    assert len(set(RAW_NAMES)) == 90


# --- the key maps ----------------------------------------------------------------------------------------------------

NAMES = [f"tf_efficientdet_{v}" for v in (*ENTRIES, "lite0", "lite1", "lite2", "lite3", "lite3x", "lite4")]


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_every_entry_of_a_published_detector_has_a_place(name, tmp_path):
    state, variant = effdet_state(name), name.rpartition("_")[2]
    assert len(state) == ENTRIES.get(variant, len(state))
    parts, detector = sorted_out(state, backbone_of(name))
    assert detector.layout == "effdet"
    assert detector.unused == ()
    options = {} if variant == "lite3x" else {"variant": variant}
    model = on_meta(backbone_of(name), num_classes=90, weights=written(tmp_path, state), head_options=options)
    assert shapes(parts.backbone) == shapes(model.backbone.state_dict())
    assert shapes(dict(detector.head)) == shapes(model.head.state_dict())
    numbers = [int(tensor.flatten()[0]) for part in (parts.backbone, detector.head) for tensor in part.values()]
    assert sorted(numbers) == list(range(len(state)))
    assert counts(model) == [[len(parts.backbone), 0, 0], [len(detector.head), 0, 0]]


def assert_equal_outputs(network: nn.Module, model: nn.Module, images: Tensor, tolerance: float = 1e-5) -> None:
    """On the maps as they are: no padding to the head's divisor. In float64: untrained networks magnify the rounding of float32, whose
    order differs, to 4e-4 (as far as either is from these). BiFPN's weights are float32 all the same."""
    assert isinstance(model.backbone, nn.Module)
    network, model, images = network.double(), model.double(), images.double()
    with torch.no_grad():
        expected = [[m.permute(0, 2, 3, 1).flatten(1) for m in maps] for maps in network(images)]
        raw = model.head(model.backbone(images), None)  # type: ignore[operator]
    for got, reference in ((raw.logits, torch.cat(expected[0], 1)), (raw.deltas, torch.cat(expected[1], 1))):
        assert 0.1 < reference.std() < 10, "too tame or too wild to compare"
        assert (got.flatten(1) - reference).abs().max() < tolerance


@pytest.mark.peer
@pytest.mark.parametrize("name", ["d0", "lite0", *(pytest.param(f"d{i}", marks=pytest.mark.slow) for i in range(1, 5))])
def test_outputs_of_a_file_equal_effdets(name, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 256, 256)  # enough that no variance is tiny
    network = calmed(effdet_network(f"tf_efficientdet_{name}"), images)
    model = build_model(
        "det", backbone_of(name), num_classes=90, weights=written(tmp_path, network.state_dict())
    ).eval()
    assert model.backbone.numerics == Numerics.named("tf")
    assert_equal_outputs(network, model, images)
    assert model.classes == RAW_NAMES
    assert "numerics taken to be those of effdet's tf_efficientdet" in said(model)
    assert "does not say its mean and std" in said(model)
    assert model.image_spec.crop_mode == "letterbox"


@pytest.mark.peer
def test_native_weights_without_biases_are_the_same_function(tmp_path):
    """Where all maps that are pooled have odd sides, the two ways to pad the pooling are one."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 129, 129)
    network = calmed(effdet_network("efficientdet_d0", 129), images)
    state = network.state_dict()
    assert len(state) == 748
    model = build_model("det", "b0", num_classes=90, weights=written(tmp_path, state)).eval()
    assert model.backbone.numerics == Numerics.named("torch")
    assert_equal_outputs(network, model, images)
    assert "numerics taken to be those of effdet's efficientdet_*" in said(model)
    assert "have no bias in the file: zeros instead" in said(model)
    assert "max-pooling was padded on all sides" in said(model)


@pytest.fixture(scope="module")
def d0() -> dict[str, Tensor]:
    return effdet_state("tf_efficientdet_d0")


@pytest.mark.peer
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {f"module.model.{k}": v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
)
def test_wrappers_and_the_prefix_of_a_bench_are_opened(d0, wrap, tmp_path):
    model = build_model("det", "b0", num_classes=90, weights=written(tmp_path, wrap(d0)))
    for ours, theirs in (
        ("neck.cells.2.nodes.7.conv.pointwise.bias", "fpn.cell.2.fnode.7.after_combine.conv.conv_pw.bias"),
        ("class_net.bn.2.4.running_var", "class_net.bn_rep.2.4.bn.running_var"),
    ):
        assert torch.equal(model.head.state_dict()[ours], d0[theirs])
    assert not any(any(row[1:]) for row in counts(model))


@pytest.mark.peer
def test_batch_norms_by_level_first_are_understood(tmp_path):
    network = effdet_network("tf_efficientdet_d0", device="meta")
    before = sorted_out(numbered(network), "b0")[1].head
    swapped = {}
    for key, tensor in numbered(network).items():
        net, *rest = key.split(".")
        if rest[0] == "bn_rep":  # effdet's toggle_head_bn_level_first drops the name `bn`
            key = ".".join([net, "bn_rep", rest[2], rest[1], rest[4]])
        swapped[key] = tensor
    network.toggle_head_bn_level_first()
    assert set(swapped) == set(network.state_dict())
    after = sorted_out(swapped, "b0")[1].head
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


# zylo117's names of the nodes of a cell, finest level 3, as its forward pass uses them (efficientdet/model.py).
NODES = {
    7: (
        "conv6_up p6_w1",
        "conv5_up p5_w1",
        "conv4_up p4_w1",
        "conv3_up p3_w1",
        "conv4_down p4_w2",
        "conv5_down p5_w2",
        "conv6_down p6_w2",
        "conv7_down p7_w2",
    ),
    8: (
        "conv7_up -",
        "conv6_up p6_w1",
        "conv5_up p5_w1",
        "conv4_up p4_w1",
        "conv3_up p3_w1",
        "conv4_down p4_w2",
        "conv5_down p5_w2",
        "conv6_down p6_w2",
        "conv7_down p7_w2",
        "conv8_down -",
    ),
}
LATERALS = {
    7: {"1.2": "p5", "2.1": "p4", "3.0": "p3", "4.1": "p4_2", "5.2": "p5_2"},
    8: {"2.2": "p5", "3.1": "p4", "4.0": "p3", "5.1": "p4_2", "6.2": "p5_2"},
}  # node and input to the projection's name


def in_zylo117(state: dict[str, Tensor], top: int = 7) -> dict[str, Tensor]:
    """effdet's state dict under zylo117's names, word by word."""
    blocks = sorted({tuple(map(int, key.split(".")[2:4])) for key in state if key.startswith("backbone.blocks.")})
    parts = {"conv_dw": "depthwise_conv.conv", "conv_pw": "pointwise_conv.conv", "bn": "bn"}
    found = {}
    for key, tensor in state.items():
        words, leaf = key.split("."), key.rpartition(".")[2]
        match words:
            case ["backbone", "conv_stem", _]:
                name = f"backbone_net.model._conv_stem.conv.{leaf}"
            case ["backbone", "bn1", _]:
                name = f"backbone_net.model._bn0.{leaf}"
            case ["backbone", "blocks", stage, layer, *part, _]:
                first = stage == "0"
                table = {
                    "conv_pw": "_project_conv.conv" if first else "_expand_conv.conv",
                    "conv_pwl": "_project_conv.conv",
                    "conv_dw": "_depthwise_conv.conv",
                    "se.conv_reduce": "_se_reduce.conv",
                    "se.conv_expand": "_se_expand.conv",
                    "bn1": "_bn1" if first else "_bn0",
                    "bn2": "_bn2" if first else "_bn1",
                    "bn3": "_bn2",
                }
                name = f"backbone_net.model._blocks.{blocks.index((int(stage), int(layer)))}.{table['.'.join(part)]}.{leaf}"
            case ["fpn", "resample", "3", "conv", part, _]:
                name = f"bifpn.0.p5_to_p6.{'0.conv' if part == 'conv' else '1'}.{leaf}"
            case ["fpn", "cell", cell, "fnode", node, "combine", "edge_weights"]:
                name = f"bifpn.{cell}.{NODES[top][int(node)].split()[1]}"
            case ["fpn", "cell", cell, "fnode", node, "combine", "resample", source, "conv", part, _]:
                level, *second = LATERALS[top][f"{node}.{source}"].split("_")
                lateral = "_".join([level, "down_channel", *second])
                name = f"bifpn.{cell}.{lateral}.{'0.conv' if part == 'conv' else '1'}.{leaf}"
            case ["fpn", "cell", cell, "fnode", node, "after_combine", "conv", part, _]:
                name = f"bifpn.{cell}.{NODES[top][int(node)].split()[0]}.{parts[part]}.{leaf}"
            case [net, "conv_rep", repeat, part, _]:
                name = f"{net}.conv_list.{repeat}.{parts[part]}.{leaf}"
            case [net, "bn_rep", repeat, level, "bn", _]:
                name = f"{net}.bn_list.{level}.{repeat}.{leaf}"
            case [net, "predict", part, _]:
                name = f"{net}.header.{parts[part]}.{leaf}"
            case _:
                raise KeyError(key)
        found[name.replace("class_net", "classifier").replace("box_net", "regressor")] = tensor
    assert len(found) == len(state)
    return found


@pytest.mark.peer
@pytest.mark.parametrize("variant", ["d0", "d3", "d7", "d7x"])
def test_zylo117_names_mean_what_effdets_mean(variant):
    state = effdet_state(f"tf_efficientdet_{variant}")
    theirs = in_zylo117(state, 8 if variant == "d7x" else 7)
    # It keeps weights of the fusion in every cell, and reads them up to D5 alone.
    idle = (
        {f"bifpn.{cell}.p{p}": torch.ones(2) for cell in range(8) for p in ("6_w1", "4_w2")}
        if variant in ("d7", "d7x")
        else {}
    )
    backbone = backbone_of(variant)
    (ours, our_head), (expected, head) = (sorted_out(s, backbone) for s in (theirs | idle, state))
    assert our_head.layout == "zylo117"
    assert set(our_head.unused) == set(idle)
    assert our_head.options == head.options
    for got, wanted in ((ours.backbone, expected.backbone), (our_head.head, head.head)):
        assert set(got) == set(wanted)
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.peer
def test_zylo117_files_say_what_differs(d0, tmp_path):
    model = on_meta("b0", num_classes=90, weights=written(tmp_path, in_zylo117(d0)))
    assert model.provenance["dialect"] == "zylo117"
    assert model.backbone.numerics == Numerics("same", 1e-3, 0.01)
    assert "pads its max-pooling with zeros" in said(model)
    assert "numerics" not in said(model)


@pytest.mark.peer
def test_a_download_that_nobody_can_verify_is_told(d0, published):
    published(in_zylo117(d0))
    model = on_meta("b0", num_classes=90, weights="zylo117:efficientdet-d0")
    assert "no hash of zylo117-efficientdet-d0.pth is published" in said(model)
    assert model.provenance["licence"] == "LGPL-3.0"
    published(d0)
    assert "no hash" not in said(on_meta("b0", num_classes=90, weights="effdet:tf_efficientdet_d0"))


# --- which variant it is ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def d7() -> dict[str, Tensor]:
    return effdet_state("tf_efficientdet_d7")


@pytest.mark.peer
def test_d6_and_d7_are_never_confused_silently(d7, tmp_path):
    path = written(tmp_path, d7)
    bare = on_meta("b6", num_classes=90, weights=path)
    assert bare.head.row.anchor_scale == 4.0
    told = [sentence for sentence in bare.provenance["assumed"] if "D6 or of D7" in sentence]
    assert len(told) == 1
    assert 'head_options={"variant": "d7"}' in told[0]
    for options, scale in (({"variant": "d7"}, 5.0), ({"variant": "d6"}, 4.0), ({"anchor_scale": 5}, 5.0)):
        model = on_meta("b6", num_classes=90, weights=path, head_options=options)
        assert model.head.row.anchor_scale == scale
        assert "D6 or of D7" not in said(model)
    assert model.config["head_options"] == {"anchor_scale": 5}


@pytest.mark.peer
def test_a_named_d7_sets_its_variant_or_is_refused(d7, published, monkeypatch):
    published(d7)
    for name in ("effdet:tf_efficientdet_d7", "zylo117:efficientdet-d7"):
        model = on_meta("b6", num_classes=90, weights=name)
        assert model.config["head_options"] == {"variant": "d7", "anchor_scale": 5.0}
        assert model.head.row.anchor_scale == 5.0
        assert "D6 or of D7" not in said(model)
        with pytest.raises(UserError) as error:
            on_meta("b6", num_classes=90, weights=name, head_options={"variant": "d6"})
        one_line(error, name, "are of d7", "'d6'")
    model = on_meta("b6", num_classes=90, weights="effdet:tf_efficientdet_d7", head_options={"anchor_scale": 4.0})
    assert "was trained with anchor_scale 5.0, here it is 4.0" in said(model)
    assert model.head.row.anchor_scale == 4.0
    # The same file under any name is known by its hash.
    monkeypatch.setattr(reading, "recognise", lambda sha256: DETECTORS["effdet:tf_efficientdet_d7"])
    renamed = on_meta("b6", num_classes=90, weights=hub.fetch(DETECTORS["effdet:tf_efficientdet_d7"]))
    assert renamed.head.row.anchor_scale == 5.0


@pytest.mark.peer
def test_coco_means_the_detector_of_the_variant(d7, tmp_path, monkeypatch):
    asked: list[WeightSource] = []

    def fetch(source: WeightSource, cache: object = None) -> Path:
        asked.append(source)
        return written(tmp_path, d7)

    monkeypatch.setattr(hub, "fetch", fetch)
    assert on_meta("b6", num_classes=90, weights="coco").head.row.name == "d6"
    assert on_meta("b6", num_classes=90, weights="coco", head_options={"variant": "d7"}).head.row.name == "d7"
    assert [source.name for source in asked] == ["effdet:tf_efficientdet_d6", "effdet:tf_efficientdet_d7"]
    assert create_backbone("b6", weights="coco", levels=("C3",)).image_spec.size == (1280, 1280)


@pytest.mark.peer
def test_shapes_of_no_published_variant_decide_the_head(tmp_path):
    made = {"fpn_channels": 32, "fpn_cell_repeats": 2, "box_class_repeats": 1, "max_level": 8, "num_levels": 6}
    for name, backbone, own, expected in (
        ("tf_efficientdet_lite3x", "lite3", {}, {"channels": 200, "anchor_scale": 3.0, "fusion": "sum"}),
        ("efficientdet_lite0", "lite0", {}, {"channels": 64, "anchor_scale": 4.0, "fusion": "fast"}),
        (
            "tf_efficientdet_d0",
            "b0",
            made,
            {"channels": 32, "cells": 2, "repeats": 1, "levels": [3, 4, 5, 6, 7, 8], "fusion": "fast"},
        ),
    ):
        model = on_meta(backbone, num_classes=90, weights=written(tmp_path, effdet_state(name, **own)))
        assert expected.items() <= model.config["head_options"].items()
        assert "head_options as" in said(model)
        assert [row[1:] for row in counts(model)] == [[0, 0], [0, 0]]


@pytest.mark.peer
def test_a_pyramid_on_other_maps_is_told(tmp_path):
    """Its taps lie inside the blocks, where there are more channels."""
    model = on_meta("b0", num_classes=90, weights=written(tmp_path, effdet_state("efficientdet_w0")))
    assert "reads maps of other channels: only what fits is loaded" in said(model)
    assert counts(model)[-1][1:] == [6, 6], "the five laterals and the projection of C5"


@pytest.mark.peer
def test_options_given_win_over_the_file_and_the_difference_is_said(d0, tmp_path):
    for options in ({"channels": 32}, {"variant": "d1"}):
        model = on_meta("b0", num_classes=90, weights=written(tmp_path, d0), head_options=options)
        assert model.config["head_options"] == options
        assert "head_options ask for another head: only what fits is loaded" in said(model)
        head = model.provenance["loaded"].splitlines()[-1]
        assert "re-initialised neck.resample.6.conv.weight" in head


@pytest.mark.peer
def test_other_anchors_start_the_predictors_anew(d0, tmp_path):
    model = on_meta("b0", num_classes=90, weights=written(tmp_path, d0), head_options={"num_scales": 1})
    assert "the file has 9 anchors in a cell, this head 3" in said(model)
    assert counts(model)[-1] == [428, 4, 4]


@pytest.mark.peer
def test_wrong_variant_and_other_pyramids_are_one_line(d0, tmp_path):
    path = written(tmp_path, effdet_state("tf_efficientdet_d1"))
    with pytest.raises(UserError) as error:
        build_model("det", "b0", weights=path)
    one_line(error, str(path), "holds weights of b1, not of b0")
    with pytest.raises(UserError) as error:
        build_model("det", "b0", weights=written(tmp_path, effdet_state("efficientdet_q0")))
    one_line(error, str(path), "is not EfficientDet's (BiFPN)")
    cut = {key: tensor for key, tensor in d0.items() if not key.startswith("class_net.predict")}
    with pytest.raises(UserError) as error:
        build_model("det", "b0", weights=written(tmp_path, cut))
    one_line(error, str(path), "holds only parts of a detector")


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_the_80_classes_of_coco_are_picked_by_their_ids(d0, tmp_path):
    torch.manual_seed(0)
    key = "class_net.predict.conv_pw"
    state = d0 | {f"{key}.weight": torch.randn(810, 64, 1, 1), f"{key}.bias": torch.randn(810)}
    model = build_model("det", "b0", weights=written(tmp_path, state))
    assert model.head.num_classes == 80
    assert model.classes == tuple(COCO_NAMES.values())
    predictor = model.head.class_net.predict.pointwise
    for anchor in (0, 4, 8):
        for label, (number, name) in enumerate(COCO_NAMES.items()):
            assert model.classes[label] == name
            channel = anchor * 90 + number - 1
            assert torch.equal(predictor.weight[anchor * 80 + label], state[f"{key}.weight"][channel])
            assert torch.equal(predictor.bias[anchor * 80 + label], state[f"{key}.bias"][channel])
    assert "the 80 of COCO are taken, in the order of their ids" in said(model)
    assert counts(model)[-1] == [432, 0, 0]


@pytest.mark.peer
def test_another_number_of_classes_starts_one_layer_anew(d0, tmp_path):
    model = build_model("det", "b0", num_classes=3, weights=written(tmp_path, d0))
    assert model.classes is None
    predict = model.head.class_net.predict
    assert torch.equal(predict.depthwise.weight, d0["class_net.predict.conv_dw.weight"])
    assert torch.allclose(predict.pointwise.bias, torch.tensor(-4.59512))
    assert predict.pointwise.weight.std() > 0.05
    assert counts(model)[-1] == [430, 2, 2]
    assert (
        "re-initialised class_net.predict.pointwise.weight, class_net.predict.pointwise.bias"
        in model.provenance["loaded"]
    )
    assert "the file has 90 classes, this head 3: the last layer of the class net starts anew" in said(model)


@pytest.mark.peer
def test_equal_numbers_of_classes_load_as_they_are(tmp_path):
    state = effdet_state("tf_efficientdet_d0", num_classes=80)
    model = build_model("det", "b0", weights=written(tmp_path, state))
    assert torch.equal(model.head.class_net.predict.pointwise.bias, state["class_net.predict.conv_pw.bias"])
    assert model.classes is None, "80 classes of a bare file may be any"
    assert "80" not in said(model).replace(str(tmp_path), "")


# --- other tasks, several tasks, files of our own --------------------------------------------------------------------


@pytest.mark.peer
def test_other_tasks_take_the_backbone_alone(d0, tmp_path):
    path = written(tmp_path, d0)
    model = build_model("cls", "b0", num_classes=3, weights=path)
    assert torch.equal(model.backbone.stem.conv.weight, d0["backbone.conv_stem.weight"])
    assert counts(model) == [[352, 0, 0], [0, 7, 432]]  # the head's own start at random, and it is said
    assert model.config["head_options"] == {}


@pytest.mark.peer
def test_a_detector_among_several_tasks_is_loaded(d0, tmp_path):
    model = build_model(("det", "cls"), "b0", num_classes={"det": 90, "cls": 2}, weights=written(tmp_path, d0))
    found = model.head.heads["det"].state_dict()["class_net.predict.pointwise.bias"]
    assert torch.equal(found, d0["class_net.predict.conv_pw.bias"])
    assert model.classes is None


def test_own_detector_into_more_classes_loses_its_last_layer_alone(tmp_path):
    torch.manual_seed(0)
    old = build_model("det", "b0", num_classes=3, backbone_options=TINY, head_options=SMALL)
    save_model(old, tmp_path / "old.safetensors")
    new = build_model(
        "det", "b0", num_classes=5, weights=tmp_path / "old.safetensors", backbone_options=TINY, head_options=SMALL
    )
    before, after = old.state_dict(), new.state_dict()
    changed = {
        name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    assert changed == {f"head.class_net.predict.pointwise.{leaf}" for leaf in ("weight", "bias")}
    assert torch.allclose(after["head.class_net.predict.pointwise.bias"], torch.tensor(-4.59512))
    assert "re-initialised class_net.predict.pointwise.weight" in new.provenance["loaded"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ({"stem_stride": 1}, {}, "stem_stride 1, here it is 2"),
        ({}, {"stem_stride": 1}, "stem_stride 2, here it is 1"),
        ({"output_stride": 16}, {}, "output_stride 16, here it is 32"),
        ({"tap": "stem"}, {"tap": "stage"}, "tap stem, here it is stage"),
        ({"output_stride": 16}, {"output_stride": 16}, ""),
        ({"stem_stride": None}, {"stem_stride": 2}, ""),
        (
            {"numerics": "tf"},
            {"numerics": "torch"},
            "numerics as given, though these weights were trained with Numerics(padding='same'",
        ),
    ],
)
def test_own_weights_for_other_maps_are_told(old, new, sentence, tmp_path):
    save_model(build_model("cls", "b0", num_classes=2, backbone_options=TINY | old), tmp_path / "m.safetensors")
    options = TINY | new
    model = build_model("cls", "b0", num_classes=2, weights=tmp_path / "m.safetensors", backbone_options=options)
    backbone = create_backbone("b0", weights=tmp_path / "m.safetensors", **options)
    for assumed in (said(model), said(backbone)):
        assert sentence in assumed
        assert bool(assumed) == bool(sentence)


def test_what_a_head_asked_of_its_backbone_is_told_too(tmp_path):
    model = build_model("seg", "b0", head="deeplabv3plus", num_classes=2, backbone_options=TINY)
    stride = model.head.requires().output_stride
    assert stride == 16, "choose a head that asks for another stride"
    save_model(model, tmp_path / "m.safetensors")
    other = build_model("cls", "b0", num_classes=2, weights=tmp_path / "m.safetensors", backbone_options=TINY)
    assert "output_stride 16, here it is 32" in said(other)
