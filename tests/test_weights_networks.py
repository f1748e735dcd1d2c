"""Which network of a file is read: found whatever wraps it, chosen by one rule that is told; and files that are something else."""

import argparse
import datetime
import gzip
import logging
import pathlib
import shutil
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests_support import one_line
from torch import Tensor, nn

from effbackbones import build_model, create_backbone, load_model, save_model
from effbackbones.contracts import BackboneNeeds, FeatureSpec, Head
from effbackbones.errors import UserError
from effbackbones.registry import HEADS
from effbackbones.weights.reading import read_weights
from effbackbones.weights.tensorfile import pack

State = dict[str, Tensor]


def stem(value: float, channels: int = 3) -> State:
    """The beginning of a timm B0, full of ``value``."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv_stem.weight": (32, channels, 3, 3),
        **{f"bn1.{name}": (32,) for name in ("weight", "bias", "running_mean", "running_var")},
        "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
        **{f"blocks.0.0.bn1.{name}": (32,) for name in ("weight", "bias", "running_mean", "running_var")},
        "blocks.0.0.se.conv_reduce.weight": (8, 32, 1, 1),
        "blocks.0.0.se.conv_reduce.bias": (8,),
        "blocks.0.0.se.conv_expand.weight": (32, 8, 1, 1),
        "blocks.0.0.se.conv_expand.bias": (32,),
        "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
        **{f"blocks.0.0.bn2.{name}": (16,) for name in ("weight", "bias", "running_mean", "running_var")},
    }
    return {name: torch.full(shape, value) for name, shape in shapes.items()}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def read(path: Path | str) -> Any:
    return read_weights(path, "b0", numerics="torch")


def written(folder: Path, content: object, name: str = "w.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def value_of(found: Any) -> float:
    return float(found.backbone["stem.conv.weight"].mean())


RAW, MEAN = stem(1.0), stem(2.0)


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ({"state_dict": RAW, "state_dict_ema": MEAN}, "state_dict_ema, not state_dict"),
        ({"model": RAW, "model_ema": MEAN, "epoch": 3}, "model_ema, not model"),
        ({"model": RAW, "ema": {"module": MEAN, "decay": 0.9}}, "ema.module, not model"),
        ({"ema_state_dict": MEAN, "model_state_dict": RAW}, "ema_state_dict, not model_state_dict"),
        ({"state_dict": under("model.", RAW) | under("ema_model.module.", MEAN)}, "ema_model.module, not"),
        ({"state_dict": under("one.", MEAN) | under("other.", RAW) | under("ema.", stem(3.0))}, None),
        ({"state_dict": under("backbone.", RAW) | under("swa.backbone.", MEAN)}, "swa.backbone, not"),
        (
            {"state_dict": MEAN, "current_model_state": RAW, "averaging_state": {"n": torch.ones(1)}},
            "not current_model",
        ),
    ],
)
def test_averages_win_over_raw_weights_and_that_is_said(tmp_path, content, label):
    path = written(tmp_path, content)
    if label is None:
        with pytest.raises(UserError, match="holds 3 networks"):
            read(path)
        return
    found = read(path)
    assert value_of(found) == 2.0
    assert any("raw and averaged" in said and label in said for said in found.assumed), found.assumed


@pytest.mark.parametrize("name", ["state_dict_ema", "network", "params", "module", "model_state", "anything"])
def test_any_wrapper_is_opened_and_what_lies_beside_is_counted(tmp_path, name):
    content = {
        name: RAW,
        "best_acc1": torch.tensor(0.5),
        "optimizer": {"state": {0: {"step": torch.ones(1)}}},
        "epoch": 3,
    }
    found = read(written(tmp_path, content))
    assert value_of(found) == 1.0
    assert {"optimizer", "epoch"} <= set(found.unread.spare)


def test_several_networks_are_named_and_one_is_asked_for(tmp_path):
    path = written(tmp_path, {"state_dict": under("module.encoder_q.", RAW) | under("module.encoder_k.", MEAN)})
    with pytest.raises(UserError) as error:
        read(path)
    one_line(error, str(path), "state_dict.encoder_q", "state_dict.encoder_k", "name one, such as w.pth#")
    assert value_of(read(f"{path}#encoder_k")) == 2.0
    assert value_of(read(f"{path}#state_dict.encoder_q")) == 1.0
    with pytest.raises(UserError, match="no such network"):
        read(f"{path}#encoder_x")


def test_the_same_weights_under_two_names_are_no_question(tmp_path):
    found = read(written(tmp_path, {"model": RAW, "teacher": {k: v.clone() for k, v in RAW.items()}}))
    assert value_of(found) == 1.0


def test_a_network_of_another_variant_beside_it_is_said(tmp_path):
    other = stem(3.0) | {"conv_stem.weight": torch.ones(48, 3, 3, 3)}
    found = read(written(tmp_path, {"student": RAW, "teacher": other}))
    assert value_of(found) == 1.0
    assert any("not read: teacher" in said for said in found.assumed)


@pytest.mark.parametrize("name", ["w.pth.tar", "w.PTH", "w.pkl", "w", "w.safetensors", "w.weights"])
@pytest.mark.parametrize("pickled", [True, False])
def test_files_are_told_by_their_content(tmp_path, name, pickled):
    path = tmp_path / name
    if pickled:
        torch.save({"state_dict": RAW}, path)
    else:
        save_file(RAW, path)
    assert value_of(read(path)) == 1.0


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"<html>404</html>", "is a web page"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_file_of_weights_is_called_what_it_is(tmp_path, head, said, name):
    (tmp_path / name).write_bytes(head)
    for action in (read, load_model):
        with pytest.raises(UserError) as error:
            action(tmp_path / name)
        one_line(error, str(tmp_path / name), said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"weights", mtime=0), "packed (gzip)"),
        (b'{"weight_map": {}}', "index of a model in several files"),
        (b'{"a": 1}', "JSON text"),
        (b"\x93NUMPY\x01\x00", "array of NumPy"),
        (b"\x08\x09\x12\x07pytorch", "ONNX graph"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, said):
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / "w.bin")
    one_line(error, str(tmp_path / "w.bin"), said)


def test_an_archive_of_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("inner/w.pth", b"")
    with pytest.raises(UserError) as error:
        read(tmp_path / "w.zip")
    one_line(error, "ZIP archive of other files (inner/w.pth)")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch gives quantised tensors up
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.to("meta"), "a shape without values"),
        (lambda tensor: tensor.to_sparse(), "sparse"),
        (lambda tensor: tensor.to(torch.complex64), "complex"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "quantised"),
    ],
)
def test_tensors_that_are_no_plain_numbers(tmp_path, change, said):
    path = written(tmp_path, {**RAW, "conv_stem.weight": change(RAW["conv_stem.weight"])})
    with pytest.raises(UserError) as error:
        read(path)
    one_line(error, str(path), "stem.conv.weight", said)


def test_weights_that_are_all_zero(tmp_path):
    path = written(tmp_path, stem(0.0))
    with pytest.raises(UserError, match="every weight in it is 0"):
        read(path)


class Settings:
    """A class of a training script's own."""

    def __init__(self) -> None:
        self.lr = 0.1


class EasyDict(dict):  # type: ignore[type-arg]
    """A dictionary of a class of its own, with attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__.update(items)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (argparse.Namespace(lr=0.1, model="b0"), "argparse.Namespace"),
        (np.float64(0.75), "numpy"),
        (np.arange(3), "numpy"),
        (pathlib.PurePosixPath("x"), "pathlib"),
        (datetime.datetime(2024, 1, 1), "datetime"),
        (Settings(), "Settings"),
        (nn.Linear, "torch.nn.modules.linear.Linear"),
        (EasyDict(lr=0.1), None),
        (defaultdict(list, a=[1]), None),
    ],
)
@pytest.mark.parametrize("legacy", [True, False])
def test_objects_beside_the_weights_are_passed_over_and_named(tmp_path, value, named, legacy):
    if isinstance(value, type) and legacy:
        pytest.skip("stores the source of the class too")
    path = tmp_path / "w.pth"
    torch.save({"args": value, "state_dict": RAW}, path, _use_new_zipfile_serialization=not legacy)
    found = read(path)
    assert value_of(found) == 1.0
    entry = next(name for name in found.unread.spare if name.startswith("args"))
    assert named is None or named in entry or isinstance(value, type)


def test_omegaconf_beside_the_weights(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"model": {"name": "b0", "layers": [1, {"a": 2}]}})
    found = read(written(tmp_path, {"hyper_parameters": config, "state_dict": under("model.", RAW)}, "last.ckpt"))
    assert value_of(found) == 1.0
    assert "hyper_parameters (omegaconf.dictconfig.DictConfig)" in found.unread.spare


def test_a_whole_module_is_read_without_building_it(tmp_path, monkeypatch):
    class Block(nn.Module):
        def __setstate__(self, state: Any) -> None:
            raise AssertionError("the file's class was built")

    module = nn.Module()
    module.__dict__["kind"] = "whole"
    for name, tensor in RAW.items():
        *path, last = name.split(".")
        inner = module
        for part in path:
            if part not in inner._modules:
                inner.add_module(part, Block())
            inner = inner._modules[part]
        inner.register_buffer(last, tensor)
    Block.__qualname__ = "Block"
    monkeypatch.setitem(globals(), "Block", Block)
    assert value_of(read(written(tmp_path, {"model": module}))) == 1.0


class Harmful:
    """Pickles to a call of a function of this file."""

    def __reduce__(self) -> Any:
        return touch, ("x",)


def touch(name: str) -> None:
    raise AssertionError("code of the file ran")


def test_a_function_is_refused_wherever_it_comes_from(tmp_path):
    path = written(tmp_path, {"state_dict": RAW, "x": Harmful()})
    with pytest.raises(UserError) as error:
        read(path)
    one_line(error, str(path), "holds more than tensors", "touch")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_no_network_has_are_refused_with_file_and_tensor(tmp_path, value):
    state = {**RAW, "blocks.0.0.bn1.running_var": torch.tensor([1.0, value] * 16)}
    path = written(tmp_path, state)
    with pytest.raises(UserError) as error:
        read(path)
    one_line(error, str(path), "depthwise.bn.running_var", "variances below 0" if value < 0 else "NaN or infinite")


def small_model(**options: Any) -> Any:
    torch.manual_seed(options.pop("seed", 0))
    return build_model("cls", "lite0", num_classes=3, backbone_options={"width": 0.25, "depth": 0.25}, **options)


def test_a_model_file_with_nan_is_refused_when_loaded(tmp_path, monkeypatch):
    model, path = small_model(), tmp_path / "m.safetensors"
    with torch.no_grad():
        model.head.fc.weight[1, 2] = float("nan")
    monkeypatch.setattr(torch, "isfinite", torch.ones_like)  # an older release did not look as it saved
    save_model(model, path)
    monkeypatch.undo()
    for action in (load_model, lambda path: small_model(weights=path)):
        with pytest.raises(UserError) as error:
            action(path)
        one_line(error, str(path), "head.fc.weight has 1 of", "NaN")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": under("model.", s), "epoch": 1}])
@pytest.mark.parametrize("backbone", ["lite0", "timm:resnet10t"])
def test_the_state_dict_of_a_model_of_ours_fills_backbone_and_head(tmp_path, caplog, wrap, backbone):
    own = {"width": 0.25, "depth": 0.25, "numerics": "tf"} if backbone == "lite0" else {}
    model = build_model("cls", backbone, num_classes=3, backbone_options=own)
    with torch.no_grad():
        model.head.fc.bias.uniform_(1, 2)
    path = written(tmp_path, wrap(model.state_dict()), "last.ckpt")
    again = build_model("cls", backbone, num_classes=3, backbone_options=own, weights=path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert "untrained_head" not in again.provenance
    assert "start at random" not in caplog.text
    build_model("cls", backbone, num_classes=4, backbone_options=own, weights=path)
    assert "2 of its entries start at random (fc.weight, fc.bias)" in caplog.text


def test_a_state_dict_without_numerics_is_asked_for_them_in_words_that_exist(tmp_path):
    model = build_model("cls", "b0", num_classes=3)
    path = written(tmp_path, model.state_dict())
    with pytest.raises(
        UserError, match=r"give numerics .*backbone_options=\{\"numerics\": \.\.\.\}, or model.numerics"
    ):
        build_model("cls", "b0", num_classes=3, weights=path)


class Tiny(Head):
    """A head of another kind."""

    task = "other"

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.last = nn.Linear(spec.channels[0], num_classes, bias=False)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(("C1",))

    forward = loss = predict = None  # type: ignore[assignment]


def test_a_half_loaded_model_says_so_and_a_tail_that_nobody_wants_is_told_apart(tmp_path, caplog):
    caplog.set_level(logging.INFO, "effbackbones")
    tail = {"conv_head.weight": torch.zeros(1280, 320, 1, 1), "classifier.weight": torch.zeros(1000, 1280)}
    path = written(tmp_path, {**RAW, **tail, "strange.weight": torch.ones(1)})
    options = {"levels": ("C1",), "numerics": "torch"}
    with HEADS.temporary({"tiny": Tiny}):
        model = build_model("other", "b0", head="tiny", num_classes=2, weights=path, backbone_options=options)
    table = model.provenance["loaded"]
    assert "2 not wanted here: conv.conv.weight, fc.weight" in table
    assert "unused strange.weight" in table
    assert table in caplog.text
    told = [(record.name, record.levelname) for record in caplog.records if "start at random" in record.message]
    assert told == [("effbackbones", "WARNING")]
    assert "1 of its entries start at random (last.weight)" in caplog.text


def test_a_script_without_logging_set_up_shows_what_starts_at_random(tmp_path, monkeypatch, capsys):
    logger = logging.getLogger("effbackbones")
    monkeypatch.setattr(
        logging.getLogger(), "handlers", []
    )  # pytest's own; then Python's last resort speaks, on stderr
    assert logger.isEnabledFor(logging.WARNING)
    assert not logger.handlers
    path = written(tmp_path, {**RAW, "classifier.weight": torch.zeros(1000, 1280)})
    with HEADS.temporary({"tiny": Tiny}):
        options = {"levels": ("C1",), "numerics": "torch"}
        build_model("other", "b0", head="tiny", num_classes=2, weights=path, backbone_options=options)
    assert "start at random (last.weight)" in capsys.readouterr().err


def test_a_stem_of_other_channels_is_said(tmp_path, caplog):
    path = written(tmp_path, stem(1.0, channels=13))
    create_backbone("b0", weights=path, levels=("C1",), numerics="torch")
    assert "has a stem for 13 channels, adapted to 3" in caplog.text


def test_the_state_of_a_run_is_not_taken_for_a_model(tmp_path):
    path = tmp_path / "step-00000007.safetensors"
    path.write_bytes(pack({"model.backbone.stem.conv.weight": torch.ones(2)}, {"record": '{"step": 7}'}))
    for action in (load_model, read):
        with pytest.raises(UserError) as error:
            action(path)
        one_line(error, str(path), "training state of a run after step 7", "best.safetensors")


def test_a_strangers_key_sha256_is_not_ours(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(RAW, path, metadata={"sha256": "0" * 64, "format": "pt"})
    assert value_of(read(path)) == 1.0


def test_names_with_a_hash_are_files_too(tmp_path):
    path = written(tmp_path, RAW)
    shutil.copy(path, tmp_path / "w#1.pth")
    assert value_of(read(tmp_path / "w#1.pth")) == 1.0


def test_a_model_file_of_ours_holds_one_network(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(build_model("cls", "b0", num_classes=2), path)
    with pytest.raises(UserError, match=r"model\.safetensors#other: is a model file .* one network; leave #other out"):
        build_model("cls", "b0", num_classes=2, weights=f"{path}#other")
