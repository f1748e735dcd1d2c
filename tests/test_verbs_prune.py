"""The verb ``prune`` on runs: an ordinary file that is evaluated and trained on, and lines that ask for what cannot be."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import TINY, error_of, shapes_line, small_line

from effbackbones import load_model
from tasks.classify import main
from tasks.run import main as run_any


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert main([*TINY, "--optim.epochs", "1", "--run.tensorboard", "false", "--run.out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("by", ["magnitude", "taylor"])
def test_a_run_is_pruned_scored_and_trained_on(by: str, trained: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "small" / "small.safetensors"
    capsys.readouterr()
    line = ["prune", "--checkpoint", str(trained), "--target", "0.8x", "--out", str(out), "--by", by, "--batches", "2"]
    assert main([*line, "--multiple", "4"]) == 0
    told, said = capsys.readouterr()
    assert ("--batches changes nothing" in said) == (by == "magnitude")
    before, after = told.strip().splitlines()
    assert before.startswith("before: ")
    assert re.search("val top1 [01]\\.[0-9]{4}$", after)
    costs = [float(re.search(r"([0-9.e-]+) G multiply-adds", text)[1]) for text in (before, after)]  # type: ignore[index]
    assert costs[1] <= 0.8 * costs[0] * 1.01
    model = load_model(out)
    assert model.classes == load_model(trained / "best.safetensors").classes
    assert "small" not in str(model.config)
    whole, taken = (dict(one.named_buffers()) for one in (load_model(trained / "best.safetensors"), model))
    last = next(name for name in reversed(taken) if name.endswith("project.bn.running_mean"))
    assert torch.equal(taken[last], whole[last]) == (by == "magnitude"), "taken anew where images are looked at"
    if by == "taylor":
        return
    more = ["--model.init_from", str(out), "--run.out", str(tmp_path / "again"), "--run.tensorboard", "false"]
    assert main([*TINY, "--optim.epochs", "1", *more]) == 0
    again = load_model(tmp_path / "again" / "best.safetensors")
    assert again.config["backbone_options"]["middle"] == model.config["backbone_options"]["middle"]
    assert main(["evaluate", "--checkpoint", str(out), "--out", str(tmp_path / "scores")]) in (0, 2)


def test_batch_norms_are_taken_anew_where_batches_are_single_images(trained: Path, tmp_path: Path) -> None:
    line = ["prune", "--checkpoint", str(trained), "--target", "0.8x", "--out", str(tmp_path / "s.safetensors")]
    assert main([*line, "--unscored", "--multiple", "4", "--batches", "1", "--data.batch_size", "1"]) == 0


def test_an_exported_graph_is_not_pruned(trained: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("onnxruntime")
    graph = tmp_path / "model.onnx"
    assert main(["export", "--checkpoint", str(trained), "--out", str(graph)]) == 0
    line = ["prune", "--checkpoint", str(graph), "--target", "0.5x", "--out", str(tmp_path / "s.safetensors")]
    assert main([*line, "--unscored"]) == 2
    said = error_of(capsys)
    assert "an exported graph stays as it is; prune the model that it was exported from, and export that" in said


def test_lines_that_ask_for_what_cannot_be(trained: Path, tmp_path: Path, capsys: Any) -> None:
    base = ["prune", "--checkpoint", str(trained), "--out", str(tmp_path / "s.safetensors"), "--unscored"]
    below = tmp_path / "taken" / "s.safetensors"  # a file stands where its folder would
    below.parent.write_text("")
    for words, expected in (
        ([*base], "--target: expected 0.5x"),
        ([*base, "--target", "half"], "--target: expected 0.5x"),
        ([*base, "--target", "1.5x"], "less than 1x"),
        ([*base, "--target", "0.01x"], "save at most"),
        ([*base, "--target", "0.5x", "--multiple", "0"], "--multiple"),
        (["prune", "--target", "0.5x", "--out", "a.safetensors"], "--checkpoint"),
        ([*base[:3], "--target", "0.5x", "--out", "a.onnx"], "--out"),
        (
            [*base[:3], "--target", "0.5x", "--out", str(trained / "best.safetensors")],
            "is the model that is to be pruned",
        ),
        ([*base[:3], "--target", "0.8x", "--out", str(below), "--multiple", "4", "--unscored"], "taken: "),
    ):
        assert main(words) == 2
        assert expected in error_of(capsys)
    assert not (tmp_path / "s.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("detect", ["--model.head_options", "{variant: d0, channels: 16, cells: 1, repeats: 1}"]),
        ("segment", ["--model.head", "fpn"]),
    ],
)
def test_each_task_is_pruned(task: str, head: list[str], tmp_path: Path, capsys: Any) -> None:
    line = [task, *shapes_line(small_line(*head)), "--run.tensorboard", "false", "--run.out", str(tmp_path / "run")]
    assert run_any(line) == 0
    out = tmp_path / "small.safetensors"
    words = ["--checkpoint", str(tmp_path / "run"), "--target", "0.99x", "--out", str(out), "--by", "taylor"]
    assert run_any(["prune", task, *words, "--multiple", "4", "--batches", "1"]) == 0
    assert run_any(["evaluate", task, "--checkpoint", str(out), "--config", str(tmp_path / "run" / "config.yaml")]) in (
        0,
        2,
    )
