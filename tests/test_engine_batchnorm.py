"""Statistics taken anew: those of the weights in question on training images, for as long as these are judged."""

import json
from pathlib import Path

import pytest
import torch
from tests_support import TINY
from torch import nn

from effbackbones import build_model, load_model
from effbackbones.contracts import ImageSizes
from effbackbones.model import Model
from effbackbones.weights.tensorfile import read_tensors
from tasks.classify import main
from tasks.data.batch import Batch
from tasks.engine import batchnorm
from tasks.engine.batchnorm import FEW_STEPS, Statistics, for_few_steps, live
from tasks.engine.hardware import Hardware
from tasks.engine.plan import Plan
from tasks.settings.sections import Config


def small() -> Model:
    torch.manual_seed(0)
    return build_model("cls", "b0", num_classes=2, backbone_options={"width": 0.25, "depth": 0.3, "drop_path": 0.5})


def batches(count: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(4, 3, 32, 32, generator=generator) * (i + 1) / count for i in range(count)]
    return [Batch(x, ImageSizes.of(x)) for x in images]


def test_the_first_batch_norm_has_the_mean_over_the_batches_and_the_model_gets_its_own_back() -> None:
    model, asked = small().train(), []

    def given() -> list[Batch]:
        asked.append(1)
        return batches()

    statistics = Statistics(given, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    conv, norm = next(
        (a, b)
        for a, b in zip(model.modules(), list(model.modules())[1:], strict=False)
        if isinstance(b, nn.BatchNorm2d)
    )
    with torch.no_grad():
        maps = [conv(model._pad(model.normalize(batch.images))) for batch in batches()]
    for _ in range(2):
        with statistics.applied(model, "one"):
            torch.testing.assert_close(norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
            torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
            inside = {name: value.clone() for name, value in model.state_dict().items()}
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(asked) == 1, "known of the same weights"
    assert {name for name in before if not torch.equal(before[name], inside[name])} == {
        name for name in before if name.endswith(("running_mean", "running_var"))
    }
    with statistics.applied(model, "two"):
        assert all(torch.equal(value, inside[name]) for name, value in model.state_dict().items()), "nothing is drawn"
    assert len(asked) == 2
    assert norm.momentum is not None


def test_frozen_statistics_stay() -> None:
    model = small()
    model.backbone.freeze("C3")
    assert len(live(model)) < len(live(small()))
    frozen = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m not in live(model)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Statistics(batches, torch.device("cpu")).applied(model, 0):
        moved = {
            name.rpartition(".")[0]
            for name, value in model.state_dict().items()
            if not torch.equal(value, before[name])
        }
    assert moved
    assert not moved & frozen


def test_runs_of_ordinary_length_are_left_alone() -> None:
    for steps in (FEW_STEPS - 1, FEW_STEPS):
        found = for_few_steps(lambda size: [], Plan(steps, 1, 0, seen=8), Hardware.of(Config()))
        assert (found is None) == (steps == FEW_STEPS)


def test_a_short_run_keeps_what_it_was_judged_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model file has the statistics taken anew, the state to continue from its own; without them all is as it was."""
    for name, few in (("anew", FEW_STEPS), ("own", 0)):
        monkeypatch.setattr(batchnorm, "FEW_STEPS", few)
        assert main([*TINY, "--run.out", str(tmp_path / name), "--optim.epochs", "1"]) == 0
    said = capsys.readouterr().err
    assert said.count(f"fewer than {FEW_STEPS} steps: batch norms are judged by statistics taken anew") == 1
    anew, own = (load_model(tmp_path / name / "best.safetensors").state_dict() for name in ("anew", "own"))
    changed = {name for name in own if not torch.equal(own[name], anew[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var")) for name in changed)
    files = [sorted((tmp_path / name / "checkpoints").glob("step-*.safetensors"))[-1] for name in ("anew", "own")]
    states = [read_tensors(file)[0] for file in files]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    history = json.loads((tmp_path / "anew" / "metrics.json").read_text())["history"]
    assert len(history) == 1
