"""Predictions for the loggers: a few images, of every task, and no training that ends because of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import QUIET

from effbackbones import UserError
from effbackbones.registry import TASKS
from tasks.classify import main
from tasks.engine import assembly, pictures, splits
from tasks.engine.loggers import Loggers
from tasks.engine.state import begin
from tasks.settings.commandline import parse

SMALL = ["--model.backbone", "b0", "--model.weights", "null", "--model.backbone_options", "{width: 0.25, depth: 0.3}"]
SMALL += ["--data.image_size", "64", "--data.options", "{train: 12, val: 12, test: 2}"]
WORDS = {"classify": "cls", "detect": "det", "segment": "seg", "joint": "multi"}


def made(command: str, *words: str) -> tuple[Any, ...]:
    """Task, config, model and validation images."""
    config = parse(command, ["--config", "shapes", *SMALL, *words]).config
    task: Any = TASKS.get(WORDS[command])
    train = splits.open_dataset(config, task, "train")
    torch.manual_seed(0)
    model = assembly.make_model(config, task, train)
    return task, config, model, splits.open_dataset(config, task, "val", train.classes)


@pytest.mark.parametrize("command", WORDS)
def test_a_sheet_shows_eight_images(command: str) -> None:
    task, config, model, val = made(command)
    model.train()
    before, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    sheets = pictures.drawn_predictions(task, config, model, val, torch.device("cpu"))
    words = config.model.task
    assert [*sheets] == (["predictions"] if isinstance(words, str) else [f"predictions_{word}" for word in words])
    for title, sheet in sheets.items():
        side = 64 if "seg" in title or command == "segment" else 320  # under boxes and words tiny images are enlarged
        assert sheet.shape == (2 * side + 6, 4 * side + 18, 3)
    assert model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_large_images_are_reduced_and_unreadable_ones_left_out() -> None:
    task, config, model, val = made("classify")

    class Large:
        classes = val.classes

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            if index == 1:
                raise UserError("a.png", "is broken", "replace it")
            return SimpleNamespace(image=np.full((900, 1200, 3), 9, np.uint8))

    large: Any = Large()
    sheets = pictures.drawn_predictions(task, config, model, large, torch.device("cpu"))
    assert sheets["predictions"].shape == (300, 2 * 400 + 6, 3)


def test_no_training_ends_because_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, config, model, val = made("classify", "--run.loggers", "[tensorboard]")
    seen: list[str] = []
    loggers: Any = SimpleNamespace(show_pictures=True, picture=lambda step, title, pixels: seen.append(title))
    state = begin(config, model)
    told: list[str] = []
    pictures.show_predictions(task, config, state, "raw", val, loggers, told.append)
    assert (seen, told) == (["predictions"], [])
    monkeypatch.setattr(pictures, "drawn_predictions", lambda *_: 1 / 0)
    pictures.show_predictions(task, config, state, "raw", val, loggers, told.append)
    assert told == ["warning: predictions cannot be drawn for the loggers: division by zero"]
    pictures.show_predictions(task, config, state, "raw", val, Loggers(tmp_path, ["csv"], {}, told.append), told.append)
    assert len(told) == 1  # nobody who takes pictures


@pytest.mark.slow
def test_each_evaluation_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    line = [
        "--config",
        "shapes",
        *SMALL,
        *QUIET,
        "--optim.epochs",
        "2",
        "--data.batch_size",
        "4",
        "--data.image_size",
        "32",
    ]
    assert main([*line, "--run.loggers", "[tensorboard]", "--run.out", str(tmp_path / "run")]) == 0
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()  # type: ignore[no-untyped-call]
    assert [event.step for event in events.Images("predictions")] == [3, 6]  # type: ignore[no-untyped-call]
