"""Keys that are set and change nothing are told."""

from pathlib import Path

import pytest
from test_engine_normalising import joint

from tasks.engine.assembly import told_of_resting
from tasks.settings.commandline import bundled, parse
from tasks.settings.idle import told_of_idle
from tasks.settings.sections import Config, HeadConfig


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ("--optim.name adamw --optim.momentum 0.8", "optim.momentum"),
        ("--optim.name sgd --optim.betas [0.8,0.9]", "optim.betas"),
        ("--optim.alpha 0.8", "optim.alpha"),
        ("--optim.name sgd --optim.eps 0.1", "optim.eps"),
        ("--optim.schedule cosine --optim.step_gamma 0.5", "optim.step_gamma"),
        ("--optim.schedule constant --optim.min_lr_fraction 0.1", "optim.min_lr_fraction"),
        ("--optim.warmup_epochs 0 --optim.warmup_start 0.1", "optim.warmup_start"),
        ("--optim.lr_scaling none --optim.base_batch 16", "optim.base_batch"),
        ("--model.freeze C2 --model.unfreeze_epoch 4 --optim.epochs 4", "model.unfreeze_epoch"),
        ("--data.crop pad --data.scale [0.5,1]", "data.scale"),
        ("--data.split_group (.)", "data.split_group"),
        ("--data.keep_empty false", "data.keep_empty"),
    ],
)
def test_a_key_that_rests_is_told(options: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {name: folder}\n")
    config = parse("classify", ["--config", str(tmp_path / "c.yaml"), *options.split()]).config
    assert [line.split()[0] for line in told_of_idle(config)] == [key]


def test_mosaic_and_tiles() -> None:
    said = ["--config", "shapes", "--data.close_mosaic", "1"]
    assert [line.split()[0] for line in told_of_idle(parse("detect", said).config)] == ["data.close_mosaic"]
    assert list(told_of_idle(parse("detect", [*said, "--data.mosaic", "0.5"]).config)) == []
    tiled = parse("segment", ["--config", "shapes", "--data.tile_overlap", "32"]).config
    assert [line.split()[0] for line in told_of_idle(tiled)] == ["data.tile_overlap"]


def test_options_of_one_head_among_several() -> None:
    model, _ = joint()
    heads = {word: HeadConfig(options={"sigma": 0.2} if word == "det" else {}) for word in ("det", "seg", "cls")}
    told = list(told_of_resting(Config(heads=heads), model))
    assert told == ["heads.det.options.sigma is set and changes nothing: nms is not gaussian"]
    alone = Config(heads={"det": heads["det"]})  # the others are as they are by default
    assert list(told_of_resting(alone, model)) == told


@pytest.mark.parametrize("task", ["classify", "detect", "segment", "joint"])
def test_bundled_configs_set_nothing_in_vain(task: str) -> None:
    assert {name: list(told_of_idle(parse(task, ["--config", name]).config)) for name in bundled(task)} == {
        name: [] for name in bundled(task)
    }
