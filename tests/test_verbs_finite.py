"""Answers that are not finite reach no file, and no exit code 0."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import QUIET, error_of

from effbackbones import build_model, load_predictor, save_model
from effbackbones.inference.finite import finite_watch
from effbackbones.weights.kinds import file_kind
from tasks import classify, detect, segment

COMMANDS = {"cls": classify, "det": detect, "seg": segment}
HEADS: dict[str, dict[str, Any]] = {
    "cls": {},
    "det": {"head_options": {"variant": "d0"}},
    "seg": {"head": "fpn"},
}


def model_of(task: str) -> Any:
    backbone = {"width": 0.25, "depth": 0.3}
    torch.manual_seed(0)
    return build_model(task=task, backbone="b0", num_classes=2, backbone_options=backbone, **HEADS[task])


@pytest.mark.parametrize("task", COMMANDS)
def test_predict(task: str, tmp_path: Path, capsys: Any) -> None:
    model = model_of(task)
    with torch.no_grad():  # finite weights, which overflow
        for parameter in model.head.parameters():
            parameter.fill_(3e38)
    save_model(model, tmp_path / "model.safetensors", classes=("a", "b"))
    Image.fromarray(np.full((40, 50, 3), 99, np.uint8)).save(tmp_path / "a.png")
    line = ["predict", "--checkpoint", str(tmp_path / "model.safetensors"), *QUIET, "--data.image_size", "64"]
    assert COMMANDS[task].main([*line, "--out", str(tmp_path / "out"), str(tmp_path / "a.png")]) == 2
    assert f"{tmp_path / 'a.png'}: the network answers with what is not finite" in error_of(capsys)
    for file in (tmp_path / "out").rglob("*.json"):
        assert "a.png" not in json.dumps(json.loads(file.read_text()))


@pytest.mark.parametrize("task", COMMANDS)
def test_predictor(task: str) -> None:
    predictor = load_predictor(model_of(task), on_error="return", precision="fp32", device="cpu")
    image = np.full((128, 128, 3), 99, np.uint8)
    assert not hasattr(predictor(image), "error")
    with torch.no_grad():
        next(predictor.model.head.parameters()).fill_(torch.nan)
    assert "the network answers with what is not finite" in predictor([image])[0].error


def test_which_image_it_is() -> None:
    model = model_of("cls").eval()
    images = torch.zeros(3, 3, 32, 32)
    with finite_watch(model) as watch, torch.no_grad():
        model(images)
        assert watch.note(["a", "b", "c"]) == []
        images[1] = torch.nan
        model(images, normalized=True)
        assert watch.note(["a", "b", "c"]) == [1]
        model(images, normalized=True)
        model(images, normalized=True)
        assert watch.note(["d"]) == [0]  # of an image in tiles
    assert watch.images == ["b", "d"]
    model(images, normalized=True)
    assert watch.note(["e"]) == []


def test_evaluate(tmp_path: Path, capsys: Any) -> None:
    model = model_of("cls")
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.fill_(3e38)
    save_model(model, tmp_path / "model.safetensors", classes=("a", "b"))
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(np.full((40, 50, 3), 99, np.uint8)).save(tmp_path / "data" / name / "1.png")
    line = ["evaluate", "--config", "folder", "--data.root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    more = ["--checkpoint", str(tmp_path / "model.safetensors"), *QUIET, "--data.image_size", "32"]
    assert classify.main([*line, *more]) == 2
    assert "not finite (NaN or infinity), for 2 images, such as " in error_of(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("length", [0x80, 0x10080, 0x100])
def test_a_file_whose_length_begins_like_a_pickle(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * length)
    assert file_kind(path) == "safetensors"
