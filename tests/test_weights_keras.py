"""Weights of Keras: against Keras itself, and against files in each of its layouts."""

import json
import os
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import one_line
from torch import Tensor

from effbackbones import UserError, build_model, create_backbone, load_model
from effbackbones.contracts import IMAGENET_MEAN, IMAGENET_STD
from effbackbones.weights.dialects import KERAS
from effbackbones.weights.reading import read_weights

h5py = pytest.importorskip("h5py")
ENDS = {"C1": 1, "C2": 2, "C3": 3, "C4": 5, "C5": 7}


@pytest.fixture(scope="module")
def keras() -> Any:
    """Keras on PyTorch, on the CPU."""
    os.environ["KERAS_BACKEND"] = "torch"
    return pytest.importorskip("keras")


def keras_network(keras: Any, name: str, side: tuple[int | None, int | None], **options: Any) -> Any:
    """Keras's network whose weights, batch norms and normalisation of images are random."""
    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, f"EfficientNet{name.upper()}")
    network = make(weights=None, input_shape=(*side, 3), **{"include_top": False, **options})
    draw = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.momentum = 0.0
            gain = (
                0.2 if layer.name.endswith("project_bn") else 1.0
            )  # as trained branches are, or roundings grow with depth
            gamma = draw.uniform(0.8, 1.2, shape) * gain
            layer.set_weights([gamma, draw.normal(0, 0.2, shape), *layer.get_weights()[2:]])
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([np.array([0.4, 0.5, 0.6]), np.array([0.04, 0.05, 0.06]), np.array(0)])
    # Statistics of a batch, so that every layer matters: with others signals grow on the way down, and roundings with them.
    with torch.no_grad():
        network(torch.rand(4, side[0] or 64, side[1] or 64, 3) * 255, training=True)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # a channel that hardly varies would blow up roundings
            *others, variance = layer.get_weights()
            layer.set_weights([*others, np.maximum(variance, variance.mean())])
    return network


def maps_of(keras: Any, network: Any, images: Tensor) -> list[Tensor]:
    """The maps at the ends of the stages that our levels are, of images [B, 3, H, W] in 0..1."""
    names = [layer.name for layer in network.layers]
    last = [
        [n for n in names if n.startswith(f"block{s}") and n.endswith(("_project_bn", "_add"))][-1]
        for s in ENDS.values()
    ]
    model = keras.Model(network.inputs, [network.get_layer(name).output for name in last])
    with torch.no_grad():
        maps = model(images.permute(0, 2, 3, 1) * 255, training=False)
    return [torch.as_tensor(found).cpu().permute(0, 3, 1, 2) for found in maps]


def assert_equal_maps(path: Path, name: str, images: Tensor, expected: list[Tensor], bound: float = 1e-4) -> Any:
    backbone = create_backbone(name, weights=path).eval()
    with torch.no_grad():
        found = backbone(backbone.normalize(images))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) <= bound * float(theirs.abs().max())
    return backbone


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("name", [f"b{i}" for i in range(8)])
def test_features_are_those_of_keras(tmp_path, keras, name):
    side = (129, 107)  # odd at some strides and even at others: SAME differs from what is right at one nominal size
    network = keras_network(keras, name, side)
    images = torch.rand(2, 3, *side)
    expected = maps_of(keras, network, images)
    for file in ("x.weights.h5", "x.keras", "x.h5"):
        path = tmp_path / file
        network.save_weights(path) if "weights" in file else network.save(path)
        backbone = assert_equal_maps(path, name, images, expected)
        path.unlink()
        assert backbone.image_spec.size == ((129, 107) if file != "x.weights.h5" else backbone.image_spec.size)
        np.testing.assert_allclose(backbone.image_spec.std, np.sqrt([0.04, 0.05, 0.06]), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.peer
def test_logits_of_a_whole_model_are_those_of_keras(tmp_path, keras):
    network = keras_network(keras, "b0", (64, 64), include_top=True, classes=7, classifier_activation=None)
    network.save(tmp_path / "x.keras")
    model = build_model("cls", "b0", num_classes=7, weights=tmp_path / "x.keras").eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = torch.as_tensor(network(images.permute(0, 2, 3, 1) * 255, training=False)).cpu()
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("side", [96, 75])
def test_a_model_for_images_of_any_size(tmp_path, keras, side):
    """Keras then pads as for even maps everywhere, which is told, and is SAME where all maps have even sides."""
    network = keras_network(keras, "b0", (None, None))
    path, images = tmp_path / "x.keras", torch.rand(1, 3, side, side)
    network.save(path)
    if side == 96:
        assert_equal_maps(path, "b0", images, maps_of(keras, network, images))
        assert any("for images of any size" in said for said in read_weights(path, "b0").assumed)
        return
    with pytest.raises(AssertionError):
        assert_equal_maps(path, "b0", images, maps_of(keras, network, images))


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("file", ["x.weights.h5", "x.keras", "x.h5"])
def test_a_network_inside_of_a_model_for_something_else(tmp_path, keras, file):
    base, path, images = keras_network(keras, "b0", (64, 64)), tmp_path / file, torch.rand(1, 3, 64, 64)
    expected, pixels = maps_of(keras, base, images), keras.Input((64, 64, 3))
    pooled = keras.layers.BatchNormalization()(keras.layers.GlobalAveragePooling2D()(base(pixels)))
    whole = keras.Model(pixels, keras.layers.Dense(4, name="mine")(pooled))
    whole.compile("adam", "mse")
    whole.save_weights(path) if "weights" in file else whole.save(path)
    backbone = assert_equal_maps(path, "b0", images, expected)
    np.testing.assert_allclose(backbone.image_spec.mean, [0.4, 0.5, 0.6], rtol=1e-5)
    found = read_weights(path, "b0")
    assert any(key.startswith("mine.") for key in found.unread.unused)


# ---- files in each layout, written here from a network of ours


@pytest.fixture(scope="module")
def network() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters of a B0 of ours, and of the tail behind it, random."""
    model = build_model("cls", "b0", num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.1, 1)
    kept = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    return tuple(  # type: ignore[return-value]
        {key.removeprefix(part): value for key, value in kept.items() if key.startswith(part)}
        for part in ("backbone.", "head.")
    )


def as_keras(network: tuple[dict[str, Tensor], dict[str, Tensor]]) -> dict[str, tuple[str, list[np.ndarray]]]:
    """Kind and arrays of each layer by its name in Keras, in the order of the network."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    outer = {ours: theirs for theirs, ours in KERAS.outer.items()}
    for key, tensor in {**network[0], **network[1]}.items():
        part, _, leaf = key.rpartition(".")
        if part in outer:
            name = outer[part]
        else:
            _, stage, layer, place = part.split(".", 3)
            parts = {ours: theirs for theirs, ours in (KERAS.first if stage == "0" else KERAS.later).items()}
            name = f"block{int(stage) + 1}{chr(97 + int(layer))}_{parts[place]}"
        array = tensor.numpy()
        if "_se_" in name and array.ndim == 2:
            array = array[:, :, None, None]
        if array.ndim == 4:
            array = array.transpose((2, 3, 0, 1) if "dwconv" in name else (2, 3, 1, 0))
        layers.setdefault(name, {})[leaf] = array.T if array.ndim == 2 else array
    kinds = {"dwconv": "depthwise_conv2d", "bn": "batch_normalization", "predictions": "dense"}
    order = ("weight", "bias", "running_mean", "running_var")
    found = {}
    for name, leaves in layers.items():
        kind = next((kind for end, kind in kinds.items() if name.endswith(end)), "conv2d")
        found[name] = (kind, [leaves[leaf] for leaf in order if leaf in leaves])
    return found


CONFIG = {
    "class_name": "Functional",
    "config": {
        "name": "efficientnetb0",
        "layers": [
            {"class_name": "InputLayer", "config": {"name": "pixels", "batch_shape": [None, 96, 128, 3]}},
            {"class_name": "Rescaling", "config": {"name": "rescaling", "scale": 1 / 127.5, "offset": -1.0}},
            {"class_name": "Normalization", "config": {"name": "normalization"}},
            {"class_name": "Conv2D", "config": {"name": "stem_conv"}},
        ],
    },
}


def written(path: Path, layers: dict[str, Any], *, named: bool = True, inside: str = "", twice: bool = False) -> Path:
    """The file of Keras that the ending of ``path`` names; ``.h5`` alone is the older layout."""
    stream = BytesIO()
    with h5py.File(stream, "w") as file:
        if not path.name.endswith((".weights.h5", ".keras")):
            group = file.create_group("model_weights")
            for name, (kind, arrays) in layers.items():
                leaves = ["gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"]
                leaves = (
                    ["depthwise_kernel:0" if kind.startswith("depth") else "kernel:0", "bias:0"]
                    if "bat" not in kind
                    else leaves
                )
                leaves = ["mean:0", "variance:0", "count:0"] if kind == "normalization" else leaves
                for leaf, array in zip(leaves, arrays, strict=False):
                    group[f"{inside or name}/{name}/{leaf}"] = array
        else:
            counts: dict[str, int] = {}
            root = "layers/functional/layers/" if inside else "layers/"
            for name, (kind, arrays) in layers.items():
                number = counts[kind] = counts.get(kind, -1) + 1
                group = file.create_group(f"{root}{kind}_{number}/vars" if number else f"{root}{kind}/vars")
                if named:
                    group.attrs["name"] = name
                for index, array in enumerate(arrays):
                    group[str(index)] = array
            for name in ("rescaling", "rescaling_1")[: 1 + twice]:
                file.create_group(f"{root}{name}")
            file["optimizer/vars/0"] = np.zeros(3)
            if inside and named:
                file.create_group("layers/functional/vars").attrs["name"] = inside
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(CONFIG))
            archive.writestr("model.weights.h5", stream.getvalue())
    else:
        path.write_bytes(stream.getvalue())
    return path


def normalization(variance: Any = (0.04, 0.05, 0.06)) -> dict[str, Any]:
    arrays = [np.array([0.4, 0.5, 0.6], np.float32), np.array(variance, np.float32), np.array(0)]
    return {"normalization": ("normalization", arrays)}


@pytest.mark.parametrize(
    ("file", "named", "inside"),
    [
        ("x.weights.h5", True, ""),
        ("x.weights.h5", False, "efficientnetb0"),
        ("x.keras", True, "efficientnetb0"),
        ("x.keras", False, ""),
        ("x.h5", True, ""),
        ("x.h5", True, "efficientnetb0"),
    ],
)
def test_every_layout_gives_the_same_network(tmp_path, network, file, named, inside):
    """Files of the first releases of Keras 3 do not name layers."""
    path = written(tmp_path / file, normalization() | as_keras(network), named=named, inside=inside)
    found = read_weights(path, "b0")
    kept = {key: value for key, value in found.backbone.items() if not key.endswith("tracked")}
    assert kept.keys() == network[0].keys()
    assert all(torch.equal(value, network[0][key]) for key, value in kept.items())
    assert all(torch.equal(found.tail[key], value) for key, value in network[1].items())
    assert (found.dialect, found.numerics.padding, found.numerics.bn_eps) == ("keras", "same", 1e-3)
    if file == "x.keras":  # scaled to -1..1 first, as its config says
        np.testing.assert_allclose(found.image_spec.mean, (np.array([0.4, 0.5, 0.6]) + 1) / 2, rtol=1e-6)
        np.testing.assert_allclose(found.image_spec.std, np.sqrt([0.04, 0.05, 0.06]) / 2, rtol=1e-6)
        assert found.image_spec.size == (96, 128)
    else:
        np.testing.assert_allclose(found.image_spec.mean, [0.4, 0.5, 0.6], rtol=1e-6)
        np.testing.assert_allclose(found.image_spec.std, np.sqrt([0.04, 0.05, 0.06]), rtol=1e-6)


@pytest.mark.parametrize("twice", [True, False])
def test_published_files_keep_the_deviation_where_keras_has_the_variance(tmp_path, network, twice):
    """Keras's network divides by its root twice, in two layers; the second has a name only in files of today."""
    path = written(tmp_path / "x.weights.h5", normalization(IMAGENET_STD) | as_keras(network), twice=twice)
    np.testing.assert_allclose(read_weights(path, "b0").image_spec.std, IMAGENET_STD, rtol=1e-6)


def test_a_file_without_normalisation_gets_the_family_s(tmp_path, network):
    found = read_weights(written(tmp_path / "x.h5", as_keras(network)), "b0")
    assert found.image_spec.mean == IMAGENET_MEAN
    assert any("does not say its mean and std" in said for said in found.assumed)


def test_what_does_not_fit_is_one_line(tmp_path, network, monkeypatch):
    layers = as_keras(network)
    path = written(tmp_path / "x.weights.h5", layers)
    with pytest.raises(UserError) as error:
        read_weights(path, "b3")
    one_line(error, str(path), "holds weights of b0", "not of b3")
    other = {"conv1_conv": ("conv2d", [np.zeros((7, 7, 3, 8), np.float32)])}
    for file in ("y.weights.h5", "y.keras", "y.h5"):
        with pytest.raises(UserError) as error:
            read_weights(written(tmp_path / file, other, named=False), "b0")
        one_line(error, file, "no EfficientNet's", "keras")
    with pytest.raises(UserError) as error:
        load_model(path)
    one_line(error, str(path), "not a model file of effbackbones", "weights=")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError) as error:
        read_weights(path, "b0")
    one_line(error, str(path), "damaged", "again")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError) as error:
        read_weights(path, "b0")
    one_line(error, str(path), "h5py is not installed", "effbackbones[keras]")


@pytest.mark.parametrize("link", ["soft", "external", "dataset"])
def test_links_out_of_a_file_are_refused(tmp_path, link):
    """They would read any file of this machine into a network."""
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv2d/vars")
        if link == "soft":
            group["0"] = h5py.SoftLink("/elsewhere")
        elif link == "external":
            group["0"] = h5py.ExternalLink("other.h5", "/x")
        else:
            group.create_dataset("0", (4,), "f4", external=[("/etc/hostname", 0, 16)])
    with pytest.raises(UserError) as error:
        read_weights(path, "b0")
    one_line(error, str(path), "lies outside of it", "do not trust")
