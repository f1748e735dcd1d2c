"""Batch norm over all processes: the layers stay what they were, and two processes are one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_processes import finished
from tests_support import QUIET, two_processes
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from effbackbones import UserError, build_model, create_backbone
from effbackbones.backbones import syncnorm
from effbackbones.backbones.syncnorm import SyncNorm, SyncNormAct, synchronise_batch_norm
from tasks.engine.batchnorm import live

NARROW = {"width": 0.25, "depth": 0.3, "drop_path": 0.0}


def model_of(task: Any) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"det": {"channels": 16, "repeats": 1}} if not isinstance(task, str) else {}
    classes = 3 if isinstance(task, str) else dict.fromkeys(task, 3)
    return build_model(task=task, backbone="b0", num_classes=classes, backbone_options=NARROW, head_options=options)


def shaken(module: nn.Module) -> None:
    """Statistics and scales of their own for each norm."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
                tensor.add_(torch.rand_like(tensor) * 0.3)
            norm.running_var.mul_(1 + torch.rand_like(norm.running_var))


@pytest.mark.parametrize("task", [("det", "seg"), "cls"])
def test_the_model_stays_what_it_was(task: Any) -> None:
    model, images = model_of(task), torch.rand(1, 3, 64, 64)
    shaken(model)
    model.backbone.freeze("C1")
    before, tensors = model.eval().predict(images), {**model.state_dict(keep_vars=True)}
    left = sum(isinstance(m, _BatchNorm) for m in model.for_inference(backend="eager").modules())
    frozen, norms = len(live(model)), sum(isinstance(m, _BatchNorm) for m in model.modules())
    assert synchronise_batch_norm(model) == norms
    assert all(isinstance(m, SyncNorm) for m in model.modules() if isinstance(m, _BatchNorm))
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(tensors)
    assert all(after[name] is tensors[name] for name in tensors)  # what an optimiser holds stays
    assert len(live(model)) == frozen < norms
    torch.testing.assert_close(model.eval().predict(images), before, rtol=1e-5, atol=1e-4)  # folded in passing
    folded = model.for_inference(backend="eager")
    assert sum(isinstance(m, _BatchNorm) for m in folded.modules()) == left
    torch.testing.assert_close(folded.predict(images), before, rtol=1e-4, atol=1e-4)
    assert synchronise_batch_norm(model) == 0


def test_layers_of_timm_keep_their_activations() -> None:
    backbone, images = create_backbone("timm:test_efficientnet").eval(), torch.rand(1, 3, 64, 64)
    shaken(backbone)
    before = backbone(images)
    synchronise_batch_norm(backbone)
    assert any(isinstance(m, SyncNormAct) for m in backbone.modules())
    torch.testing.assert_close(backbone(images), before, rtol=1e-5, atol=1e-4)  # those are folded in passing
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(create_backbone("timm:test_efficientnet").eval())
    converted.load_state_dict(backbone.state_dict())
    assert not torch.allclose(converted(images)[-1], before[-1])  # what torch's own converter makes of it


def test_a_norm_that_does_more_is_refused() -> None:
    class Doubling(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    with pytest.raises(UserError, match=r"model\.norm: .*Doubling at \.0 is more than a batch norm"):
        synchronise_batch_norm(nn.Sequential(Doubling(3)))


class Together:
    """Stands for torch.distributed among two threads."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []
        self.both = threading.Barrier(2)

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, values: torch.Tensor) -> None:
        self.given.append(values.clone())
        self.both.wait(60)
        values.copy_(self.given[-2] + self.given[-1])
        self.both.wait(60)


def test_two_ranks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients and statistics, where one has three images and the other one."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = trained(layers(), images)
    parts = [layers(), layers()]
    for module in parts:
        synchronise_batch_norm(module)
    monkeypatch.setattr(syncnorm, "dist", Together())
    with ThreadPoolExecutor(2) as pool:
        gradients, buffers = zip(*pool.map(trained, parts, (images[:3], images[3:])), strict=True)
    assert distance([a + b for a, b in zip(*gradients, strict=True)], expected[0]) < 1e-4
    assert max(distance(mine, expected[1]) for mine in buffers) < 1e-5
    alone = trained(layers(), images[:3])[0], trained(layers(), images[3:])[0]
    assert distance([a + b for a, b in zip(*alone, strict=True)], expected[0]) > 0.05
    assert SyncNorm(3).to("meta")(images.to("meta")).shape == images.shape  # torch's own, elsewhere than on processors


def shared(rank: int) -> list[float]:
    """How far gradients and statistics are from those of one process with all images, and statistics that are not shared. For one of two
    processes (:mod:`test_engine_two_processes`)."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = trained(layers(), images)
    module, alone = layers(), layers()
    mine = images[:3] if rank == 0 else images[3:]
    synchronise_batch_norm(module)
    synchronise_batch_norm(alone)
    gradients, buffers = trained(module, mine)
    for gradient in gradients:
        torch.distributed.all_reduce(gradient)
    for norm in alone.modules():
        if isinstance(norm, SyncNorm):
            norm.shared = False
    found = distance(gradients, expected[0]), distance(buffers, expected[1])
    return [*found, distance(trained(alone, mine)[1], expected[1])]


def layers() -> nn.Module:
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(5, momentum=0.3), nn.BatchNorm2d(4, eps=1e-3, momentum=None), nn.BatchNorm2d(4, affine=False)
    first, second = nn.Conv2d(3, 5, 3, 2, bias=False), nn.Conv2d(5, 4, 3, 2, bias=False)
    return nn.Sequential(first, norms[0], nn.SiLU(), second, norms[1], nn.SiLU(), norms[2])


def trained(module: nn.Module, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of a loss that is a sum over images, and statistics, after two steps."""
    weights = torch.rand(4, 15, 15, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        (module(images) * weights).square().sum().backward()
    gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    return gradients, [b.float() for b in module.buffers() if b.ndim]


def distance(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
def test_on_gpus_it_is_that_of_torch() -> None:
    """Alone on a GPU it is a plain batch norm; in bf16 the dtype stays."""
    norm, plain = SyncNorm(4).cuda(), nn.BatchNorm2d(4).cuda()
    images = torch.rand(2, 4, 8, 8, device="cuda")
    torch.testing.assert_close(norm(images), plain(images))
    assert norm(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_run_of_two_processes_keeps_its_files(tmp_path: Path) -> None:
    tiny = [
        "--config",
        "shapes",
        *QUIET,
        "--model.backbone_options",
        "{width: 0.25, depth: 0.3}",
        "--model.weights",
        "null",
    ]
    tiny += ["--data.options", "{train: 16, val: 4, test: 4}", "--data.image_size", "32", "--data.batch_size", "8"]
    line = ["-m", "tasks.classify", *tiny, "--optim.max_steps", "3", "--model.norm", "sync", "--run.device", "cpu"]
    finished([*two_processes(), *line, "--run.out", str(tmp_path / "two")])
    finished([*two_processes()[:1], "-m", "tasks.classify", "evaluate", "--checkpoint", str(tmp_path / "two"), *QUIET])
    one = finished([*two_processes()[:1], *line, "--run.out", str(tmp_path / "one")])
    assert "model.norm sync changes nothing: one process sees all images" in one
