"""Training images that stay on the device: the batches of the loader, bit for bit, and what cannot stay there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_training import digest, stop_at
from tests_support import TINY

from effbackbones.build import build_model
from effbackbones.errors import UserError
from effbackbones.registry import TASKS
from tasks.classify import main
from tasks.data.door.reading import image_spec
from tasks.engine import devicecache, feeding
from tasks.engine.order import Share
from tasks.engine.splits import open_splits
from tasks.settings.commandline import parse

CACHED = ["--data.device_cache", "true"]
PAD = ["--data.crop", "pad"]


def feed(*more: str) -> tuple[feeding.TrainingFeed, list[str]]:
    config = parse("classify", [*TINY, *more]).config
    task = TASKS.get("cls")
    train = open_splits(config, task)["train"]
    model = build_model(backbone="b0", backbone_options={"width": 0.25, "depth": 0.3}, **task.heads(config, train))
    model.use_image_spec(image_spec(config, model.image_spec))
    return feeding.training_feed(config, task, train, model)


@pytest.mark.parametrize(
    ("more", "scale"),
    [
        (PAD, 1.0),
        ([*PAD, "--data.flip_mode", "alternating"], 1.0),
        ([*PAD, "--data.resize", "exact", "--data.flip", "0"], 0.75),
        (["--data.crop", "center"], 1.0),
        (["--data.crop", "whole", "--optim.accumulate", "2", "--data.batch_size", "10"], 1.0),
    ],
)
def test_batches_are_those_of_the_loader(more: Sequence[str], scale: float) -> None:
    (plain, _), (resident, told) = feed(*more), feed(*more, *CACHED)
    assert told == ["data.device_cache: 28 training images stay on cpu, 0 MB"]
    share = Share(rank=1, world=2)
    for kind in (share, Share()):
        batches: list[list[Any]] = [list(one.steps(kind, 2, 9, scale)) for one in (plain, resident)]
        assert len(batches[0]) == len(batches[1]) == 7
        for one, other in zip(*batches, strict=True):
            assert one.images.stride() == other.images.stride()
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)
            assert one.sizes.batch == other.sizes.batch
            assert torch.equal(one.sizes.valid, other.sizes.valid)
            assert [(meta.id, meta.original, meta.label) for meta in one.meta] == [
                (meta.id, meta.original, meta.label) for meta in other.meta
            ]


def test_a_run_on_it_is_the_run_without_it_and_continues_exactly(tmp_path: Path) -> None:
    assert main([*TINY, *PAD, "--run.out", str(tmp_path / "plain")]) == 0
    stop_at(4, tmp_path / "stopped", *PAD, *CACHED)
    assert main([*TINY, *PAD, *CACHED, "--run.out", str(tmp_path / "stopped")]) == 0
    assert digest(tmp_path / "stopped") == digest(tmp_path / "plain")


def test_what_does_not_fit_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devicecache, "free_memory", lambda device: 0.1)
    with pytest.raises(UserError, match=r"86,016 bytes are needed, and 104,858 are free on cpu, of which 80% may be"):
        feed(*PAD, *CACHED)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--data.crop", "resized"], r"data\.crop resized"),
        ([*PAD, "--data.erasing", "0.5"], "RandomErasing"),
        ([*PAD, "--data.augment", "[HorizontalFlip]"], r"data\.augment"),
    ],
)
def test_what_cannot_run_there_is_named(more: Sequence[str], named: str) -> None:
    with pytest.raises(UserError, match=f"data.device_cache: {named} cannot run on the device"):
        feed(*more, *CACHED)


def test_other_tasks_are_told_that_it_is_not_for_them() -> None:
    with pytest.raises(UserError, match=r"data\.device_cache: is for classification; remove it"):
        parse("detect", ["--config", "shapes", *CACHED])
