"""Optimisers and whole runs on a GPU."""

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import TINY
from torch import nn

from effbackbones.checkpoint import load_model
from tasks.classification.task import TASK
from tasks.classify import main
from tasks.engine.optim import build_optimizer
from tasks.settings.sections import OptimConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ON_GPU = [word if word != "cpu" else "gpu" for word in TINY]


def interrupt_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process SIGTERM in the step of that number, counted from 1."""
    augment, seen = type(TASK).augment, list[int]()

    def signalled(self: Any, *inputs: Any) -> Any:
        seen.append(1)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return augment(self, *inputs)

    patch.setattr(type(TASK), "augment", signalled)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop_tf", "muon"])
def test_optimisers_step_and_skip_as_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the moments of adamw divide by small gradients
    here, there = network(), network().cuda()
    optimizers = [
        build_optimizer(OptimConfig(name=name), [{"params": list(net.parameters()), "lr": 0.01}])
        for net in (here, there)
    ]
    for number, skipped in enumerate((1.0, 0.0, 0.0, 1.0, 0.0)):
        before = copy.deepcopy(there.state_dict())
        for net, optimizer in zip((here, there), optimizers, strict=True):
            torch.manual_seed(number)
            images = torch.randn(2, 3, 9, 9)
            device = next(net.parameters()).device
            optimizer.zero_grad()
            net.eval()(images.to(device)).square().mean().backward()
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(skipped, device=device), None  # type: ignore[attr-defined]
            optimizer.step()
        for key, value in there.state_dict().items():
            assert not skipped or torch.equal(value, before[key])
            near = 1e-3 if name == "muon" else 1e-5  # muon's directions are in bfloat16 there
            torch.testing.assert_close(value.cpu(), here.state_dict()[key], rtol=1e-4, atol=near)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_in_each_precision(precision: str, tmp_path: Path) -> None:
    assert main([*ON_GPU, "--run.precision", precision, "--run.out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert results["finished"]
    assert all(torch.isfinite(value).all() for value in load_model(tmp_path / "best.safetensors").state_dict().values())


def test_a_run_that_is_stopped_and_continued_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    more = [*ON_GPU, "--run.deterministic", "true", "--run.out"]
    assert main([*more, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert main([*more, str(tmp_path / "halves")]) == 143
    assert main([*more, str(tmp_path / "halves")]) == 0
    whole, halves = (load_model(tmp_path / name / "best.safetensors").state_dict() for name in ("whole", "halves"))
    assert all(torch.equal(value, halves[key]) for key, value in whole.items())
