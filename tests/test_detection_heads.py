"""Every dense detector through every verb by the same lines: from drawn shapes to a file of ONNX with its certificate, a pruned model, a
student, and a joint model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_engine_normalising import OPTIONS
from test_engine_training import After, PowerFailsError, digest
from tests_support import QUIET, STILL, shapes_line, small_line

from effbackbones import load_model
from tasks.detect import main
from tasks.engine.state import RunState
from tasks.engine.watching import watching
from tasks.run import main as run_any

HEADS = {
    "efficientdet": OPTIONS["efficientdet"],
    "retinanet": OPTIONS["retinanet"] | {"norm": "none", "nms": "gaussian", "max_detections": 20},
    "fcos": OPTIONS["fcos"],
    "ssd": OPTIONS["ssd"],
    "yolo": OPTIONS["yolo"],
    "nms_free": OPTIONS["yolo"] | {"nms_free": True, "dfl_bins": 4},
}
"""``nms_free`` is ``yolo`` with other options."""
pytestmark = pytest.mark.slow


def head_of(name: str) -> str:
    return "yolo" if name == "nms_free" else name


def line(name: str) -> list[str]:
    """Two epochs of three steps, in batches of four, each with its validation."""
    head = ["--model.head", head_of(name), "--model.head_options", json.dumps(HEADS[name])]
    return [*shapes_line(small_line(*head, backbone=STILL)), "--optim.epochs", "2", "--run.tensorboard", "false"]


@pytest.fixture(scope="module", params=HEADS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Its name, and a run that was never stopped."""
    run = tmp_path_factory.mktemp("run") / request.param
    assert main([*line(request.param), "--run.out", str(run)]) == 0
    return request.param, run


def test_data_and_model_are_checked(trained: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *line(trained[0])]) == 0
    assert "no fault found" in capsys.readouterr().err


def test_stopped_and_continued_equals_never_stopped(trained: tuple[str, Path], tmp_path: Path) -> None:
    def fail(state: RunState) -> None:
        if state.step == 5:
            raise PowerFailsError

    words = [*line(trained[0]), "--run.out", str(tmp_path / "run")]
    with watching(After(fail)):
        assert main([*words, "--run.save_minutes", "1e-9"]) == 1
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")), "or there is nothing to continue"
    assert main(words) == 0
    assert digest(tmp_path / "run") == digest(trained[1])


def test_scores_predictions_and_speed(
    trained: tuple[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Scores are those of the training's end; an image lower than a stride of the finest level has its answer too."""
    run = trained[1]
    record = json.loads((run / "metrics.json").read_text())
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(run), *QUIET, "--out", str(tmp_path / "scores")]) == 0
    assert f"AP {record[record['best']]['AP']:.6g}" in capsys.readouterr().out
    Image.fromarray(np.full((5, 90, 3), 120, np.uint8)).save(tmp_path / "low.png")
    words = ["predict", "--checkpoint", str(run), str(tmp_path / "low.png"), "--out", str(tmp_path / "out"), *QUIET]
    assert main(words) == 0
    for found in json.loads((tmp_path / "out" / "predictions.json").read_text()):
        x, y, width, height = found["bbox"]
        assert 0 <= x <= x + width <= 90 + 1e-3
        assert 0 <= y <= y + height <= 5 + 1e-3
    assert main(["bench", "--checkpoint", str(run), *QUIET]) == 0
    told, log = capsys.readouterr().out, caplog.text
    assert '"images_per_second"' in told
    assert "is not used" not in log, "the fused copy says what the model says"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_its_file_agrees_with_it(trained: tuple[str, Path], precision: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run, out = trained[1], tmp_path / "model.onnx"
    words = ["export", "--checkpoint", str(run), "--out", str(out), "--precision", precision, "--certify", "8", *QUIET]
    loose = ["--bound", "0,1"] if precision == "int8" else []  # three steps from random weights
    assert main([*words, "--split", "val", *loose]) == 0
    certificate = json.loads(out.with_name("model.onnx.json").read_text())["certificate"]
    assert set(certificate["scores"]["AP"]) >= {"model", "exported"}


def test_it_is_pruned_learns_from_the_whole_one_and_is_compared(trained: tuple[str, Path], tmp_path: Path) -> None:
    name, run = trained
    out, student = tmp_path / "small.safetensors", tmp_path / "student"
    words = ["--checkpoint", str(run), "--target", "0.97x", "--multiple", "2", "--out", str(out), *QUIET]
    assert main(["prune", *words, "--unscored"]) == 0
    taught = ["--optim.distill.teacher", str(run), "--optim.distill.features", "[C4]", "--optim.accumulate", "2"]
    assert main([*line(name), "--model.init_from", str(out), *taught, "--run.out", str(student)]) == 0
    widths = [load_model(path).config["backbone_options"]["middle"] for path in (out, student / "best.safetensors")]
    assert widths[0] == widths[1]
    assert run_any(["compare", str(run), str(student), "--out", str(tmp_path / "compared")]) == 0


@pytest.mark.parametrize("name", HEADS)
def test_it_is_trained_with_other_tasks(name: str, tmp_path: Path) -> None:
    """On one backbone, in pieces, with rounding to int8; and its boxes are scored."""
    heads: list[str] = ["--heads.det.name", head_of(name), "--heads.det.options", json.dumps(HEADS[name])]
    heads += ["--heads.seg.options", "{channels: [16, 16, 8, 8, 8]}", "--heads.cls.options", "{channels: 32}"]
    more = ["--optim.accumulate", "2", "--optim.quantise", "int8", "--run.tensorboard", "false"]
    words: list[Any] = ["joint", *shapes_line(small_line(*heads, backbone=STILL)), *more]
    assert run_any([*words, "--run.out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= record[record["best"]]["det/AP"] <= 1
