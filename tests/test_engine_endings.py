"""How runs end that do not go as planned, and what is said of those that do."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests_support import TINY, error_of, one_line, poison

from effbackbones.errors import UserError
from tasks.classification.task import TASK
from tasks.classify import main
from tasks.engine.announcing import MOST_SCORES, told_of_epoch
from tasks.engine.judging import Judge
from tasks.engine.launch import launch
from tasks.verbs.command import explain

EVERY_OTHER = set(range(0, 100, 2))


def run(folder: Path, *more: str) -> int:
    return main([*TINY, "--run.out", str(folder), *more])


def test_a_high_share_of_skipped_steps_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    poison(monkeypatch, TASK, EVERY_OTHER)
    assert run(tmp_path / "long", "--optim.max_steps", "40", "--run.eval_every", "99") == 3
    assert "12 of the last 23 steps were not finite" in error_of(capsys)
    assert run(tmp_path / "short", "--optim.max_steps", "4") == 3
    assert "2 of 4 steps were not finite, and are skipped" in error_of(capsys)
    assert not json.loads((tmp_path / "short" / "metrics.json").read_text()).get("finished")


def test_a_log_that_cannot_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    poison(monkeypatch, TASK, {1})
    opened = Path.open

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name.startswith("nonfinite"):
            raise OSError(28, os.strerror(28))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    assert run(tmp_path / "run", "--optim.max_steps", "4") == 0
    assert "nonfinite-0.jsonl cannot be written (No space left on device)" in capsys.readouterr().err


def test_early_stopping_says_so(tmp_path: Path, capsys: Any) -> None:
    more = ["--optim.epochs", "30", "--optim.lr", "0", "--run.patience", "1", "--optim.ema", "null"]
    assert run(tmp_path / "early", *more) == 0
    said = r"stops early after step \d+ of 120: 1 evaluation without a better val_top1 than 0\.\d+ at epoch \d+ \(run.patience\)"
    assert re.search(said, capsys.readouterr().err)


def test_the_line_of_an_epoch_is_short() -> None:
    row: dict[str, Any] = {"epoch": 1.0, "step": 4, "lr": 0.1, "train_loss": 0.5, "weights": "ema"}
    row |= {f"val_score_{index}": index / 100 for index in range(40)} | {"val_AP": 0.25, "images_per_second": 100.0}
    line = told_of_epoch(row, "AP")
    assert line.startswith("epoch 1: train_loss 0.5, val_AP 0.25, val_score_0 0, ")
    assert line.endswith(f"images_per_second 100; {40 - MOST_SCORES} more scores in metrics.csv")
    assert "val_score_0" not in told_of_epoch({"epoch": 1, "val_AP": 0.1}, "AP")
    few = {name: value for name, value in row.items() if name.rpartition("_")[2] in map(str, range(MOST_SCORES + 1))}
    assert told_of_epoch({"epoch": 1, **few}, "AP").endswith("; 1 more score in metrics.csv")


def test_a_process_that_nobody_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone() -> None:
        raise torch.distributed.DistStoreError(
            "Timed out after 3 seconds waiting for clients. 1/2 clients joined.\nframe"
        )

    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError) as error:
        launch(SimpleNamespace(launch=alone), 3.0)  # type: ignore[arg-type]
    one_line(error, "run.join_timeout", "node1:29500", "1/2 clients joined", "every node", longest=400)


@pytest.mark.parametrize(
    "error", [RuntimeError("Could not determine home directory."), KeyError("getpwuid(): uid not found: 12345")]
)
def test_an_account_without_name_or_home(error: Exception) -> None:
    assert explain(error) == ("account: this user id has no name or no home folder here; set HOME and USER", 2)


def test_a_report_is_not_lost_for_what_a_model_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> str:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("tasks.engine.judging.told_of_cost", fail)
    told: list[str] = []
    judge: Any = SimpleNamespace(folder=tmp_path, device=torch.device("cpu"), tell=told.append)
    assert Judge._cost(judge, torch.nn.Identity()) == "could not be measured: out of memory"  # type: ignore[arg-type]
    assert told == ["warning: what the model costs could not be measured: out of memory"]
