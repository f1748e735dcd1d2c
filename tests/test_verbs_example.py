"""The example of a task of one's own: trained, evaluated and asked, by the command of any task."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests_support import ROOT

from effbackbones.registry import HEADS, TASKS
from tasks.data.dataset import DATASETS
from tasks.report.drawings import curves
from tasks.run import main

EXAMPLE = str(ROOT / "examples/counting.py")
SMALL = ("--data.limit_train", "16", "--data.limit_val", "8", "--data.batch_size", "8", "--run.progress", "false")


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lend: Any) -> Path:
    """A folder to work in, with registries as they were before the example."""
    monkeypatch.chdir(tmp_path)
    for registry in (HEADS, TASKS, DATASETS):
        lend(registry, {}, alone=True)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "counting", sys)  # so that what is imported is taken out at the end
    del sys.modules["counting"]
    return tmp_path


def run(*words: str) -> int:
    return main(["count", *words, "--plugins", EXAMPLE])


def test_a_task_of_ones_own_goes_all_the_way(counting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", str(ROOT / "examples/counting.yaml"), "--optim.epochs", "2", *SMALL) == 0
    folder = counting / "runs/count/counting"
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    reached = [row["val_mae"] for row in record["history"]]
    assert len(reached) == 2
    assert record["raw"]["mae"] == pytest.approx(min(reached), abs=1e-4)  # of the best weights: lower is better
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<dt>mae</dt><dd>{record['raw']['mae']:.4g}</dd>" in report
    assert ">Training</h2>" in report
    drawn = {line.get_label() for figure in curves(record["history"]) for line in figure.axes[0].lines}
    assert "mae" in drawn
    assert run("evaluate", "--checkpoint", str(folder), *SMALL) == 0
    told = capsys.readouterr()
    assert f"mae {record['raw']['mae']:.6g}\n" in told.out
    assert f"--plugins '[{EXAMPLE}]'" in told.err or "plug-in" in told.err
    Image.new("RGB", (64, 64)).save("black.png")
    assert run("predict", "--checkpoint", str(folder), "black.png", "--out", "found", *SMALL[-2:]) == 0
    rows = list(csv.DictReader((counting / "found/predictions.csv").open(encoding="utf-8")))
    assert rows[0]["file"] == "black.png"
    assert float(rows[0]["count"]) >= 0


def test_without_its_plug_in_the_way_is_told(counting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (counting / "run/checkpoints").mkdir(parents=True)
    (counting / "run/config.yaml").write_text(f"plugins: [{EXAMPLE}]\n", encoding="utf-8")
    assert main(["count", "evaluate", "--checkpoint", "run"]) == 2
    told = capsys.readouterr().err
    assert f"--plugins '[{EXAMPLE}]'" in told
    assert "error: task 'count': no such name" in told
