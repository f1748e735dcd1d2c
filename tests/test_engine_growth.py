"""Images that grow in the course of training, an average that begins late, a rate of its own for the backbone."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_training import digest, stop_at
from tests_support import TINY
from torch import nn

from effbackbones.build import build_model
from effbackbones.errors import UserError
from effbackbones.registry import TASKS
from tasks.classify import main
from tasks.data.batch import Batch
from tasks.data.door.reading import image_spec
from tasks.data.sample import Sample
from tasks.data.transforms.images import share_of
from tasks.engine import feeding
from tasks.engine.ema import Ema
from tasks.engine.optim import lr_factor
from tasks.engine.order import Share
from tasks.engine.plan import Plan
from tasks.engine.splits import open_splits
from tasks.engine.state import begin
from tasks.settings.commandline import parse
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config, OptimConfig

GROWING = ["--data.progressive", "[0.5, 0.75]", "--data.flip_mode", "alternating", "--optim.accumulate", "2"]
GROWING += ["--optim.ema_start", "warmup", "--optim.warmup_epochs", "0.5"]
SMALL = {"width": 0.25, "depth": 0.3}


def test_the_steps_at_each_size() -> None:
    plan = Plan.of(Config(data=DataConfig(progressive=(0.5, 0.75)), optim=OptimConfig(max_steps=8)), 64)
    assert plan.growth == (3, 5)
    assert [plan.share_at(step) for step in range(8)] == [0.5] * 3 + [0.75] * 2 + [1.0] * 3
    assert list(plan.phases(0)) == [(0, 3), (3, 5), (5, 8)]
    assert list(plan.phases(3)) == [(3, 5), (5, 8)]
    assert list(plan.phases(4)) == [(4, 5), (5, 8)]
    short = Plan.of(Config(data=DataConfig(progressive=(0.5, 0.75)), optim=OptimConfig(max_steps=1)), 64)
    assert list(short.phases(0)) == [(0, 1)]
    assert short.share_at(0) in (0.5, 0.75, 1.0)


def test_sizes_are_multiples_of_what_the_head_needs() -> None:
    assert share_of((360, 480), 0.5, 32) == (192, 256)  # 180 is nearer to 192 than to 160
    assert share_of((256, 256), 0.65, 128) == (128, 128)
    assert share_of((32, 32), 0.01) == (1, 1)


@pytest.mark.parametrize(("command", "config"), [("classify", "shapes"), ("detect", "shapes"), ("segment", "shapes")])
def test_batches_are_of_the_size_of_their_steps(command: str, config: str) -> None:
    line = ["--config", config, "--data.image_size", "64", "--data.batch_size", "4", "--data.limit_train", "8"]
    config_ = parse(command, [*line, "--data.workers", "0", "--data.limit_val", "4"]).config
    task = TASKS.get(command)
    train = open_splits(config_, task)["train"]
    model = build_model(backbone="b0", backbone_options=SMALL, **task.heads(config_, train))
    model.use_image_spec(image_spec(config_, model.image_spec))
    divisor = model.head.size_divisor
    side = 32 if divisor <= 32 else 128
    batch = next(iter(feeding.training_feed(config_, task, train, model)[0].steps(Share(), 0, 1, 0.5)))
    assert batch.images.shape[-2:] == (side, side)
    assert batch.sizes.batch == (side, side)
    if command == "segment":
        assert batch.targets.shape[-2:] == (side, side)
    if command == "detect":
        assert batch.targets.boxes.max() <= side
    evaluated = next(iter(feeding.evaluation_loader(config_, task, train, model)))
    assert evaluated.images.shape[-1] in (64, 128)


def test_a_transform_of_the_users_own_is_refused() -> None:
    def own(sample: Sample, rng: object) -> Sample:
        return sample

    with pytest.raises(UserError, match=r"data\.progressive: changes the size of images, which function alone knows"):
        feeding.at_scale(own, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [(1.0,), (0.75, 0.5), (0.5, 0.5), (0.0,)])
def test_shares_that_do_not_grow_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"data\.progressive"):
        DataConfig(progressive=bad)


def test_a_run_that_grows_continues_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides, steps = [], feeding.TrainingFeed.steps

    def seen(*args: Any) -> Iterator[Batch]:
        for batch in steps(*args):
            sides.append(batch.images.shape[-1])
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(feeding.TrainingFeed, "steps", seen)
        assert main([*TINY, *GROWING, "--run.out", str(tmp_path / "whole")]) == 0
    assert sides == [16] * 6 + [24] * 4 + [32] * 6  # two pieces a step
    padded = "(as 32 x 32, padded for the head)"
    told = f"grow: 16 x 16 {padded} from step 1, 24 x 24 {padded} from step 4, 32 x 32 from step 6"
    assert f"data.progressive: training images {told}" in capsys.readouterr().err
    stop_at(4, tmp_path / "stopped", *GROWING)  # within the second part, before the last
    assert main([*TINY, *GROWING, "--run.out", str(tmp_path / "stopped")]) == 0
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


def test_an_average_that_begins_late_has_nothing_of_before() -> None:
    model = nn.Linear(1, 1, bias=False)
    early, late = Ema(model, 0.9), Ema(model, 0.9, start=3)
    values = [5.0, -2.0, 7.0, 1.0, 2.0, 4.0]
    expected = 0.0
    for step, value in enumerate(values, 1):
        nn.init.constant_(model.weight, value)
        early.update(model, step)
        late.update(model, step)
        decay = 0.0 if step <= 3 else min(0.9, (1 + step - 3) / (10 + step - 3))
        expected = decay * expected + (1 - decay) * value
        assert late.state_dict()["weight"].item() == pytest.approx(expected)
        if step <= 3:
            assert torch.equal(late.state_dict()["weight"], model.weight)
    assert not torch.equal(early.state_dict()["weight"], late.state_dict()["weight"])


@pytest.mark.parametrize(("word", "start"), [("first", 0), ("warmup", 5)])
def test_the_average_begins_where_it_is_told_to(word: str, start: int) -> None:
    config = parse("classify", ["--config", "shapes", "--optim.ema", "0.9", "--optim.ema_start", word]).config
    state = begin(config, build_model(task="cls", backbone="b0", backbone_options=SMALL), warmup=5)
    assert state.ema is not None
    assert state.ema.start == start


def test_the_backbone_learns_at_its_own_rate() -> None:
    model = build_model(task="cls", backbone="b0", num_classes=3, backbone_options=SMALL)
    plain = {group["name"]: group["lr"] for group in model.param_groups(1.0, layer_decay=0.5)}
    slow = {group["name"]: group["lr"] for group in model.param_groups(1.0, layer_decay=0.5, backbone_scale=0.1)}
    for name, lr in plain.items():
        assert slow[name] == pytest.approx(lr * (0.1 if name.startswith("backbone.") else 1.0))
    config = parse("classify", ["--config", "shapes", "--optim.backbone_lr", "0.1"]).config
    rates = {group["name"]: group["lr"] for group in begin(config, model).optimizer.param_groups}
    assert rates["backbone.C5/decay"] == pytest.approx(0.1 * rates["head/decay"])
    assert math.isclose(lr_factor(0, total=2, warmup=0, per_epoch=2, config=config.optim), 1.0)
