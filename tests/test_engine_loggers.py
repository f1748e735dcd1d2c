"""Loggers of a run: what is written, offline; what fails ends no training."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effbackbones.errors import UserError
from tasks.engine.loggers import Loggers, check_loggers

PICTURE = np.full((8, 8, 3), 100, np.uint8)


def logged(folder: Path, name: str) -> list[str]:
    """What was told while the logger got a config, two steps and a picture."""
    told: list[str] = []
    loggers = Loggers(folder, [name], {"optim.lr": 0.1, "data.augment": "[]", "model.head": None}, told.append)
    loggers.write(1, {"train/loss": 2.0, "val_AP@50": 1, "weights": "raw"})
    loggers.write(2, {"train/loss": 1.5})
    loggers.picture(2, "samples", PICTURE)
    loggers.close()
    return told


def test_csv_is_a_table_of_each_start(tmp_path: Path) -> None:
    assert logged(tmp_path, "csv") == logged(tmp_path, "csv") == []
    for version in ("version_0", "version_1"):
        rows = list(csv.DictReader((tmp_path / "csv" / version / "metrics.csv").open(encoding="utf-8")))
        assert [(row["step"], row["train/loss"]) for row in rows] == [("1", "2.0"), ("2", "1.5")]
        assert rows[0]["val_AP_50"] == "1.0"


def test_tensorboard_gets_config_curves_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert logged(tmp_path, "tensorboard") == []
    events = EventAccumulator(str(tmp_path)).Reload()  # type: ignore[no-untyped-call]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.5)]  # type: ignore[no-untyped-call]
    assert events.Tags()["images"] == ["samples"]  # type: ignore[no-untyped-call]
    assert "hp_metric" not in events.Tags()["scalars"]  # type: ignore[no-untyped-call]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()  # type: ignore[no-untyped-call]
    assert "    optim.lr: 0.1\n" in text


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
def test_wandb_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert logged(tmp_path, "wandb") == []
    first = json.loads((tmp_path / "loggers.json").read_text(encoding="utf-8"))["wandb"]
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{first}"))
    assert len(runs) == 1
    assert (runs[0] / f"run-{first}.wandb").stat().st_size > 500
    assert len(list(runs[0].rglob("*.png"))) == 1
    assert logged(tmp_path, "wandb") == []
    assert json.loads((tmp_path / "loggers.json").read_text(encoding="utf-8"))["wandb"] == first


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
def test_mlflow_writes_into_the_run_folder_and_continues_there(tmp_path: Path) -> None:
    assert logged(tmp_path, "mlflow") == []
    word = json.loads((tmp_path / "loggers.json").read_text(encoding="utf-8"))["mlflow"]
    (run,) = (path for path in (tmp_path / "mlruns").glob(f"*/{word}") if path.is_dir())
    assert (run / "params/optim.lr").read_text(encoding="utf-8") == "0.1"
    assert len((run / "metrics/train/loss").read_text(encoding="utf-8").splitlines()) == 2
    assert list((run / "artifacts").glob("*.png"))
    assert logged(tmp_path, "mlflow") == []
    assert len((run / "metrics/train/loss").read_text(encoding="utf-8").splitlines()) == 4


def test_unknown_and_missing_loggers_are_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    check_loggers(["csv"])
    with pytest.raises(UserError, match=r"run.loggers: there is no logger 'wanbd'; did you mean wandb"):
        check_loggers(["wanbd"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"run.loggers: mlflow is not installed; pip install mlflow, or leave it out"):
        check_loggers(["csv", "mlflow"])


def test_a_logger_that_fails_is_told_once_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def log_hyperparams(self, params: Any) -> None: ...

        def log_metrics(self, figures: Any, step: int) -> None:
            raise ConnectionError("no route\nto host")

    made = Loggers._made
    monkeypatch.setattr(Loggers, "_made", lambda self, name: Broken() if name == "wandb" else made(self, name))
    told: list[str] = []
    loggers = Loggers(tmp_path, ["wandb", "csv"], {}, told.append)
    loggers.write(1, {"loss": 1.0})
    loggers.write(2, {"loss": 0.5})
    loggers.close()
    assert told == ["warning: logger wandb fails and is left out from here: no route to host"]
    assert len((tmp_path / "csv/version_0/metrics.csv").read_text(encoding="utf-8").splitlines()) == 3
    monkeypatch.setattr(Loggers, "_made", lambda self, name: 1 / 0)
    assert not Loggers(tmp_path, ["tensorboard"], {}, told.append).show_pictures
    assert told[1:] == ["warning: logger tensorboard fails and is left out from here: division by zero"]
