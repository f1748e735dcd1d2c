"""Our model file: round trips, what is refused, and what is written how."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from tests_support import one_line
from torch import nn

from effbackbones import build_model, load_model, save_model
from effbackbones.contracts import Head, ImageSpec
from effbackbones.errors import UserError
from effbackbones.images.spec import ReadingSpec
from effbackbones.model import Model
from effbackbones.registry import HEADS
from effbackbones.weights.reading import read_weights
from effbackbones.weights.record import FORMAT_VERSION, plain, read_metadata
from effbackbones.weights.tensorfile import pack, parse_safetensors, read_tensors, write_atomically


def small(**options) -> Model:
    torch.manual_seed(0)
    spec = ImageSpec((64, 64), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bilinear", 0.9, "squash")
    backbone = {"numerics": "same_static", "image_spec": spec, "width": 0.25, "depth": 0.25, **options}
    model = build_model(
        "cls", "b0", num_classes=3, backbone_options=backbone, head_options={"dropout": 0.1, "label_smoothing": 0.05}
    )
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.uniform_(0.5, 1.5)
    return model


def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 65, 50), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def fails(path: Path, *words: str, action=load_model, longest: int = 300) -> None:
    with pytest.raises(UserError) as error:
        action(path)
    one_line(error, str(path), *words, longest=longest)


def test_round_trip_is_exact_and_says_everything(tmp_path):
    model, path = small().eval(), tmp_path / "m.safetensors"
    save_model(
        model,
        path,
        classes=["cat", "dog", "naïve 🐟"],
        metrics={"top1": 0.5, "per_class": np.float32([1, np.nan]), "n": torch.tensor(7)},
        provenance={"weights": "torchvision:IMAGENET1K_V1 (b0)", "licence": "BSD-3-Clause"},
    )
    found = load_model(path)
    assert not found.training
    assert found.classes == ("cat", "dog", "naïve 🐟")
    assert found.image_spec == model.image_spec
    assert found.backbone.numerics == model.backbone.numerics
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(found.predict(images()), model.predict(images()))

    record = read_metadata(path)
    assert record["version"] == FORMAT_VERSION
    assert record["metrics"] == {"top1": 0.5, "per_class": [1.0, None], "n": 7}
    assert record["provenance"]["licence"] == "BSD-3-Clause"
    assert record["provenance"]["torch"] == torch.__version__.partition("+")[0]
    assert record["numerics"] == asdict(model.backbone.numerics)
    assert record["config"]["head_options"] == {"dropout": 0.1, "label_smoothing": 0.05}
    save_model(found, tmp_path / "again.safetensors", metrics=record["metrics"])
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes(), (
        "loading and saving again must change nothing"
    )


def test_needs_no_network_and_no_config(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(small(), path)

    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    load_model("m.safetensors")


def test_no_environment_value_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-secret-value")
    save_model(small(), tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    for name, value in os.environ.items():
        if len(value) > 12:
            assert value.encode() not in data, name


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_model_loads_uncompiled(tmp_path, whole):
    model = small().eval()
    expected = model.predict(images())
    if whole:
        compiled: nn.Module = torch.compile(model, backend="eager")
    else:
        compiled = model
        model.backbone = torch.compile(model.backbone, backend="eager")
    assert any("_orig_mod." in name for name in compiled.state_dict())
    save_model(compiled, tmp_path / "m.safetensors")
    tensors, _ = read_tensors(tmp_path / "m.safetensors")
    assert not any("_orig_mod" in name for name in tensors)
    found = load_model(tmp_path / "m.safetensors")
    assert torch.equal(found.predict(images()), expected)
    assert found.backbone.numerics.padding == "same_static"


def test_trained_in_place_compiled_model(tmp_path):
    model = small()
    model.compile(backend="eager")
    save_model(model, tmp_path / "m.safetensors")
    load_model(tmp_path / "m.safetensors")


def test_our_file_serves_as_weights(tmp_path):
    model = small(width=None, depth=None)
    model.provenance = {"licence": "BSD-3-Clause"}
    save_model(model, tmp_path / "m.safetensors")
    found = read_weights(tmp_path / "m.safetensors", "b0")
    assert set(found.backbone) == set(model.backbone.state_dict())
    assert set(found.head) == set(model.head.state_dict())
    assert (found.dialect, found.licence, found.assumed) == ("effbackbones", "BSD-3-Clause", ())
    assert (found.numerics, found.image_spec) == (model.backbone.numerics, model.image_spec)
    again = build_model("cls", "b0", num_classes=5, weights=tmp_path / "m.safetensors")
    assert torch.equal(again.backbone.stem.conv.weight, model.backbone.stem.conv.weight)
    assert again.image_spec == model.image_spec
    assert torch.equal(again.head.conv.conv.weight, model.head.conv.conv.weight)
    with pytest.raises(UserError, match="holds weights of b0, not"):
        read_weights(tmp_path / "m.safetensors", "b2")


def test_half_precision_and_other_channels(tmp_path):
    model = build_model(
        "cls", "lite0", num_classes=2, backbone_options={"in_channels": 4, "levels": ("C5",), "width": 0.25}
    ).bfloat16()
    save_model(model, tmp_path / "m.safetensors")
    found = load_model(tmp_path / "m.safetensors")
    assert found.image_spec == model.image_spec
    assert len(found.image_spec.mean) == 4
    assert all(
        torch.equal(a.float(), b.float())
        for a, b in zip(model.state_dict().values(), found.state_dict().values(), strict=True)
    )


def test_model_that_diverged_is_not_written(tmp_path):
    path, model = tmp_path / "m.safetensors", small()
    save_model(model, path)
    before = path.read_bytes()
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.head.fc.bias[1] = value
        fails(path, "head.fc.bias is not finite", action=lambda p: save_model(model, p))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_values_that_json_lacks_are_refused_with_their_place(tmp_path):
    for value in (Path("x"), {1, 2}, object()):
        with pytest.raises(UserError, match=r"record\.provenance\.where\[0\]: is a"):
            save_model(small(), tmp_path / "m.safetensors", provenance={"where": [value]})
    assert os.listdir(tmp_path) == []


def test_suffix_is_checked(tmp_path):
    fails(tmp_path / "m.pth", "name it .safetensors", action=lambda p: save_model(small(), p))


class Toy(Head):
    """A head that a plug-in would register."""

    task: ClassVar[str] = "cls"

    def __init__(self, spec, num_classes, *, gain: float = 1.0, **options):
        super().__init__(spec, num_classes, **options)
        self.fc, self.gain = nn.Linear(spec.channels[-1], num_classes), gain

    def forward(self, features, sizes):
        return self.fc(features[-1].mean((2, 3))) * self.gain

    def loss(self, raw, targets, sizes):
        return {"ce": nn.functional.cross_entropy(raw, targets)}

    def predict(self, raw, sizes):
        return raw.softmax(1)


def test_plug_in_head_loads_when_registered_and_is_named_when_not(tmp_path, lend):
    lend(HEADS, {"toy": Toy})
    path = tmp_path / "m.safetensors"
    save_model(build_model("cls", "b0", head="toy", num_classes=3, head_options={"gain": 2.0}), path)
    assert load_model(path).head.gain == 2.0
    lend(HEADS, {}, alone=True)
    fails_with = pytest.raises(UserError, match="head 'toy': no such name")
    with fails_with as error:
        load_model(path)
    assert "plugins" in str(error.value)
    assert str(path) in str(error.value)


def test_several_heads_round_trip(tmp_path, lend):
    class Other(Toy):
        task: ClassVar[str] = "other"

    lend(HEADS, {"toy": Toy, "other": Other})
    model = build_model(
        ("cls", "other"),
        "lite0",
        head={"cls": "toy", "other": "other"},
        num_classes={"cls": 3, "other": 2},
        head_options={"other": {"gain": 3.0}},
        backbone_options={"width": 0.25, "depth": 0.25},
    ).eval()
    save_model(model, tmp_path / "m.safetensors")
    found, expected = load_model(tmp_path / "m.safetensors").predict(images()), model.predict(images())
    assert set(found) == {"cls", "other"}
    assert all(torch.equal(found[task], expected[task]) for task in found)


def test_files_from_before_losses_had_weights_load_as_they_did(tmp_path):
    options = {"cls": {"dropout": 0.0}, "det": {"channels": 16, "cells": 1, "repeats": 1}}
    model = build_model(
        ("cls", "det"),
        "lite0",
        num_classes={"cls": 3, "det": 2},
        head_options=options,
        backbone_options={"width": 0.25, "depth": 0.25},
    ).eval()
    save_model(model, tmp_path / "m.safetensors")
    old = rewrite(
        tmp_path / "m.safetensors",
        config=lambda c: {key: value for key, value in c.items() if key != "loss_weights"},
        classes=lambda _: ["flat", "names"],
    )
    found = load_model(old)
    assert found.head.weights == {"cls": 1.0, "det": 1.0}
    assert found.classes == ("flat", "names")
    assert torch.equal(found.predict(images())["cls"], model.predict(images())["cls"])


def test_foreign_backbone_round_trips_with_its_image_spec(tmp_path):
    model = build_model("cls", "timm:resnet10t", num_classes=3)
    model = Model(
        model.backbone, model.head, image_spec=ImageSpec((48, 48), (0.1,) * 3, (0.9,) * 3), config=model.config
    ).eval()
    save_model(model, tmp_path / "m.safetensors")
    found = load_model(tmp_path / "m.safetensors")
    assert found.image_spec == model.image_spec
    assert read_metadata(tmp_path / "m.safetensors")["numerics"] is None
    assert torch.equal(found.predict(images()), model.predict(images()))
    pretrained = read_weights(tmp_path / "m.safetensors", "timm:resnet10t")
    assert set(pretrained.backbone) == set(model.backbone.state_dict())


def test_a_model_is_made_once(tmp_path, monkeypatch):
    """Also where its images are prepared in another way than its backbone's, and its classes have names."""
    model = small()
    model.use_image_spec(ImageSpec((48, 48), (0.1,) * 3, (0.9,) * 3))
    save_model(model, tmp_path / "m.safetensors", classes=["a", "b", "c"])
    made, honest = [], Model.__init__
    monkeypatch.setattr(Model, "__init__", lambda self, *a, **k: made.append(self) or honest(self, *a, **k))
    found = load_model(tmp_path / "m.safetensors")
    assert made == [found]
    assert (found.image_spec, found.classes) == (model.image_spec, ("a", "b", "c"))
    assert torch.equal(found.predict(images()), model.eval().predict(images()))


def test_model_without_a_config_is_not_written(tmp_path):
    model = small()
    fails(tmp_path / "m.safetensors", "build_model", action=lambda p: save_model(Model(model.backbone, model.head), p))


def test_config_that_asks_for_terabytes_is_refused_before_it_gets_them(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(small(), path)
    for change in ({"num_classes": 10**9}, {"backbone_options": {"width": 1000.0, "depth": 0.25}}):
        fails(rewrite(path, config=lambda c, change=change: c | change), "far more memory")


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), json_like, max_size=4))
def test_any_json_like_record_round_trips(record):
    path = Path("x.safetensors")
    text = json.dumps(plain(record, "record"), allow_nan=False, ensure_ascii=True)
    _, metadata = parse_safetensors(pack({"a": torch.ones(1)}, {"format": "effbackbones", "record": text}), path)
    assert json.loads(metadata["record"]) == record


def rewrite(path: Path, **changes) -> Path:
    """The file at ``path`` with its record changed, signed anew: what a stranger's file may say."""
    tensors, metadata = read_tensors(path)
    record = json.loads(metadata["record"])
    for key, value in changes.items():
        record[key] = value(record[key]) if callable(value) else value
    other = path.with_name("changed.safetensors")
    write_atomically(other, pack(tensors, {"format": "effbackbones", "record": json.dumps(record)}))
    return other


def test_descriptions_that_do_not_fit_are_one_line(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(small(), path)
    fails(rewrite(path, version=99), "format 99", "reads up to format 2", "update")
    fails(rewrite(path, version="1"), "is of format 1")
    fails(rewrite(path, config=lambda c: c | {"num_classes": 4}), "such as head.fc.weight")
    fails(rewrite(path, config=lambda c: c | {"weights": "/etc/passwd"}), "its config has keys")
    fails(
        rewrite(path, config=lambda c: c | {"backbone": "os.system"}), "os.system", longest=700
    )  # lists what is known
    fails(rewrite(path, config=lambda c: c | {"head": "os:system"}), "os:system", longest=700)
    fails(rewrite(path, config=lambda c: c | {"task": "nonsense"}), "nonsense", longest=700)
    fails(rewrite(path, config=lambda c: c | {"num_classes": "many"}), "num_classes", "'many'")
    fails(rewrite(path, config=lambda c: c | {"backbone_options": ["x"]}), "config")
    fails(rewrite(path, config=lambda c: c | {"head_options": {"dropout": 7}}), "dropout")
    fails(rewrite(path, config=[]), "backbone")
    fails(rewrite(path, image_spec=None), "description is broken")
    fails(rewrite(path, image_spec=lambda s: s | {"std": [0, 0, 0]}), "std")
    fails(rewrite(path, classes=7), "description is broken")


def test_foreign_files_are_sent_elsewhere(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "foreign.pth")
    for name in ("foreign.safetensors", "foreign.pth"):
        fails(tmp_path / name, "not a model file of effbackbones")
        fails(tmp_path / name, "not a model file of effbackbones", action=read_metadata)


def test_tied_and_strided_tensors_are_saved_whole(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    write_atomically(
        tmp_path / "t.safetensors", pack({"a": base, "b": base, "c": base.t(), "d": base[1:], "e": torch.zeros(0)}, {})
    )
    found, _ = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(found["b"], base)
    assert torch.equal(found["c"], base.t())
    assert torch.equal(found["d"], base[1:])
    assert found["e"].shape == (0,)


def test_write_syncs_the_file_before_its_name_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        calls.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{handle}'))}")
        fsync(handle)

    def noted_replace(source, target) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_atomically(tmp_path / "m.bin", b"x")
    assert calls == ["sync .m.bin.tmp", "replace", f"sync {tmp_path.name}"]


def test_what_a_file_says_of_itself_is_read_without_its_tensors(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(small(), path)
    expected, whole = read_metadata(path), path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda self: pytest.fail("the whole file is read"))
        assert read_metadata(path) == expected
    for cut in (1, 7, 8, 100):
        path.write_bytes(whole[:cut])
        fails(path, "safetensors", action=read_metadata)


def test_import_reads_nothing_heavy():
    script = "import sys, effbackbones.checkpoint\nassert not {'timm', 'torchvision', 'lightning', 'albumentations'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_how_images_are_read_is_part_of_the_file(tmp_path, caplog):
    model, path = small(), tmp_path / "m.safetensors"
    save_model(model, path)
    assert load_model(path).reading is None, "nobody said it"
    model.reading = ReadingSpec("native", "ignore", (64, 96), 16, "aspect")
    save_model(model, path)
    found = load_model(path)
    assert found.reading == model.reading
    save_model(found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert not caplog.records
    assert load_model(rewrite(path, version=1)).reading is None
    assert "format 1 does not say how images are read" in caplog.text


@pytest.mark.parametrize(
    ("reading", "named"),
    [
        ({"depth": "16"}, "reading.depth"),
        ({"exif": None}, "reading.exif"),
        ({"tile": [60000, 64]}, "reading.tile"),
        ({"tile": [64]}, "reading.tile"),
        ({"tile": [64, 64], "tile_overlap": 64}, "reading.tile_overlap"),
        ({"tile_overlap": True}, "reading.tile_overlap"),
        ({"gamma": 2}, "reading.gamma"),
        ("8", "description is broken"),
    ],
)
def test_a_reading_that_nobody_can_follow_is_refused(tmp_path, reading, named):
    save_model(small(), tmp_path / "m.safetensors")
    fails(rewrite(tmp_path / "m.safetensors", reading=reading), named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": ["a", "b"]}, "names 2 classes, and its head has 3"),
        ({"image_spec": lambda s: s | {"mean": [float("nan"), 0.5, 0.5]}}, "finite"),
        ({"image_spec": lambda s: s | {"size": [60000, 60000]}}, "image_spec.size"),
        ({"image_spec": lambda s: s | {"size": [64]}}, "image_spec.size"),
        ({"config": lambda c: c | {"backbone_options": {"depth": 1e6}}}, "expected a multiplier"),
        ({"config": lambda c: c | {"backbone_options": {"depth": 900, "width": 0.1}}}, "far more"),
        ({"config": lambda c: c | {"backbone": "b900.5"}}, "phi"),
        ({"config": lambda c: c | {"backbone_options": {"drop_path": 1e300}}}, "drop_path is 1e+300"),
        ({"config": lambda c: c | {"backbone_options": {"levels": ["C5"] * 200_000}}}, "has 200,000 values"),
        ({"config": lambda c: c | {"head_options": {"multilabel": "no"}}}, "expected true or false, got 'no'"),
        ({"config": lambda c: c | {"num_classes": 2.5}}, "num_classes: expected a whole number, got 2.5"),
    ],
)
def test_a_record_that_no_model_has_is_refused_before_anything_is_built(tmp_path, change, named):
    path = tmp_path / "m.safetensors"
    save_model(small(), path, classes=("a", "b", "c"))
    fails(rewrite(path, **change), named, longest=400)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ],
)
def test_a_wrapped_model_is_saved_as_itself(tmp_path, wrap):
    model = small()
    save_model(model, tmp_path / "plain.safetensors")
    save_model(wrap(model), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


def test_fewer_names_than_classes_are_not_written(tmp_path):
    fails(tmp_path / "m.safetensors", "names 2 classes", action=lambda p: save_model(small(), p, classes=["a", "b"]))


def test_one_list_of_classes_is_not_written_for_several_tasks(tmp_path):
    model = build_model(("cls", "seg"), "lite0", num_classes={"cls": 2, "seg": 2}, head={"seg": "fpn"})
    fails(
        tmp_path / "m.safetensors",
        "one list of classes for a model of the tasks cls, seg",
        action=lambda p: save_model(model, p, classes=["a", "b"]),
    )


def test_layers_that_the_config_does_not_know_are_told_when_saved_not_when_loaded(tmp_path):
    model = small()
    model.head.fc = nn.Linear(model.head.fc.in_features, 7)
    fails(
        tmp_path / "m.safetensors", "not written: 2 of its tensors", longest=400, action=lambda p: save_model(model, p)
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_what_is_told(tmp_path):
    fails(tmp_path / "none" / "m.safetensors", "there is no folder", action=lambda p: write_atomically(p, b"x"))
