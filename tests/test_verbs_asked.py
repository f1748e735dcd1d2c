"""What a command line says of a model that is trained already: it applies, or is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_inference_predictor import narrow
from tests_support import QUIET, one_line

from effbackbones import UserError, save_model
from effbackbones.model import Model
from tasks.classify import main
from tasks.settings.commandline import parse
from tasks.verbs.models import as_asked, as_model

COMMANDS = {"det": "detect", "cls": "classify"}


def asked(model: Model, task: str, path: Path, *words: str, config: str = "shapes") -> tuple[Model, Any]:
    """The model as a line of ``evaluate`` asks for it, and the config of its scores."""
    save_model(model, path / "m.safetensors")
    request = parse(
        COMMANDS.get(task, "joint"),
        ["evaluate", "--config", config, "--checkpoint", str(path / "m.safetensors"), *words],
    )
    found = as_asked(request.config, request.extras, model)
    return found, as_model(request.config, found)


def test_prediction_options_apply(tmp_path: Path) -> None:
    model = narrow("det")
    words = ["--model.head_options.max_detections", "7", "--model.head_options", "{nms_iou: 0.3}"]
    words += ["--model.head_options.score_threshold", "0.2"]
    found, config = asked(model, "det", tmp_path, *words)
    selection: Any = found.head.selection  # type: ignore[union-attr]
    assert (selection.max_detections, selection.nms_iou, selection.score_threshold) == (7, 0.3, 0.2)
    assert config.model.head_options["max_detections"] == 7
    assert model.head.selection.max_detections == 100  # type: ignore[union-attr]
    for name, tensor in model.state_dict().items():
        assert (tensor == found.state_dict()[name]).all()
    assert found.image_spec == model.image_spec
    assert found.classes == model.classes


def test_a_config_limits_no_score_of_a_trained_model(tmp_path: Path) -> None:
    model = narrow("det")
    path = tmp_path / "own.yaml"
    path.write_text("base: shapes\nmodel: {head_options: {max_detections: 300}}\n")
    found, config = asked(model, "det", tmp_path, config=str(path))
    assert found is model
    assert config.model.head_options.get("max_detections", 100) == 100  # what it gives


REFUSED = [
    ("det", ["--model.backbone", "b3"], ["--model.backbone", "b0"]),
    ("det", ["--model.backbone", "b33"], ["--model.backbone", "b0"]),
    ("det", ["--model.head_options.channels", "88"], ["--model.head_options.channels", "trained model"]),
    ("det", ["--model.head_options.max_detection", "88"], ["--model.head_options.max_detection", "max_detections"]),
    ("det", ["--model.head_options", "{nms_iuo: 0.3}"], ["--model.head_options.nms_iuo", "nms_iou"]),
    ("det", ["--model.num_classes", "9"], ["--model.num_classes", "3"]),
    ("det", ["--model.backbone_options.width", "2"], ["--model.backbone_options.width"]),
    ("det", ["--model.weights", "imagenet"], ["--model.weights"]),
    ("det", ["--model.freeze", "C3"], ["--model.freeze"]),
    ("cls", ["--model.head_options.dropout", "0.5"], ["--model.head_options.dropout"]),
]


@pytest.mark.parametrize(("task", "words", "told"), REFUSED)
def test_what_would_make_another_model_is_refused(task: str, words: list[str], told: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        asked(narrow(task), task, tmp_path, *words)
    one_line(error, *told)


def test_what_the_model_is_may_be_said(tmp_path: Path) -> None:
    model = narrow("det")
    model.use_image_spec(replace(model.image_spec, size=(64, 64)))
    found, _ = asked(model, "det", tmp_path, "--model.backbone", "b0", "--model.mean", "[0.5, 0.5, 0.5]")
    assert found is model


def test_one_head_of_several(tmp_path: Path) -> None:
    model = narrow(("det", "seg"))
    found, config = asked(model, "joint", tmp_path, "--heads.det.options.max_detections", "5")
    assert found.head.heads["det"].selection.max_detections == 5  # type: ignore[union-attr, index, operator]
    assert config.heads["det"].options["max_detections"] == 5
    with pytest.raises(UserError) as error:
        asked(model, "joint", tmp_path, "--heads.det.weight", "5")
    one_line(error, "--heads.det.weight")


def test_a_limit_of_another_split_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", "--checkpoint", str(tmp_path), "--data.limit_val", "8", "--data.root", "x"]
    for split, told in (("test", True), ("val", False)):
        assert main([*line, "--split", split]) == 2
        assert ("the split test makes nothing of --data.limit_val" in capsys.readouterr().err) is told


def test_what_is_said_of_training_changes_nothing_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(narrow("cls"), tmp_path / "m.safetensors")
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(image)
    line = ["predict", str(image), "--checkpoint", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "out")]
    assert main([*line, *QUIET, "--optim.lr", "1", "--data.flip", "0.2", "--data.root", "x"]) == 0
    told = capsys.readouterr().err
    assert "predict of a trained model makes nothing of --optim.lr, --data.flip, --data.root: not used" in told
