"""What several test files share."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from effbackbones.errors import UserError
from tasks.report.records import Results

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""The environment of a process that leaves the other cores alone."""
TINY = [
    "--config",
    "shapes",
    "--model.backbone",
    "b0",
    "--model.backbone_options",
    "{width: 0.25, depth: 0.3, drop_path: 0.2}",
    "--data.image_size",
    "32",
    "--data.batch_size",
    "8",
    "--data.limit_train",
    "28",
    "--data.limit_val",
    "12",
    "--data.workers",
    "0",
    "--optim.epochs",
    "2",
    "--run.progress",
    "false",
    "--run.device",
    "cpu",
]
"""The smallest run of the command: four steps an epoch, the last of each filled up; dropout, drop path, augmentation and EMA are on."""


QUIET = ["--run.progress", "false", "--run.device", "cpu", "--data.workers", "0"]
STILL = "{width: 0.25, depth: 0.3, drop_path: 0.0}"
"""Options of a narrow backbone that drops no path."""
COCO_SCORES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""The twelve lines, in COCO's order."""


def small_line(*head: str, backbone: str = "{width: 0.25, depth: 0.3}") -> list[str]:
    """A quiet run on the CPU in batches of four: a narrow B0 with random weights, under a head that the words ``head`` make small."""
    model = ["--model.backbone", "b0", "--model.weights", "null", "--model.backbone_options", backbone, *head]
    return [*QUIET, *model, "--data.batch_size", "4", "--data.eval_batch_size", "4"]


def shapes_line(small: list[str]) -> list[str]:
    """An epoch of ``small`` on a dozen shapes of 64 x 64."""
    shapes = ["--data.image_size", "64", "--data.options", "{train: 12, val: 8, test: 8}"]
    return ["--config", "shapes", *small, *shapes, "--optim.epochs", "1"]


def class_names(k: int) -> list[str]:
    return [f"class {i}" for i in range(k)]


def results_of(scores: dict[str, Any]) -> Results:
    """Results of sets of scores, ``best`` being the name of one of them; or of bare scores."""
    best = scores.get("best")
    return (
        Results({"model": scores}) if best is None else Results({k: v for k, v in scores.items() if k != "best"}, best)
    )


def one_line(error: pytest.ExceptionInfo[UserError], *words: str, longest: int = 300) -> None:
    """The error is one short line that says ``words``."""
    text = str(error.value)
    assert "\n" not in text, text
    assert len(text) <= longest, text
    for word in words:
        assert word in text, text


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on standard error, which must be the one line of the error."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in "\n".join(lines)
    assert len(lines[-1]) <= 600
    return lines[-1]


class Synchronisations(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a scalar, shapes that depend on values, copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in (
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::masked_select",
            "aten::is_nonzero",
            "aten::equal",
            "aten::unique",
        ):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def guarded_step(model: Any, optimizer: torch.optim.Optimizer, images: Tensor, targets: Any, sizes: Any) -> Tensor:
    """Forward, loss, backward, clipping and the guarded update of one training step, as the engine does them; returns the loss."""
    from tasks.engine.optim import clip_grad_norm, found_inf

    loss = torch.stack(list(model.loss(images, targets, sizes).values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    parameters = [p for p in model.parameters() if p.grad is not None]
    optimizer.found_inf = found_inf(parameters, loss.detach())  # type: ignore[attr-defined]
    clip_grad_norm(parameters, 10.0)
    optimizer.step()
    return loss.detach()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def two_processes() -> list[str]:
    """What a line begins with that runs a script, or ``-m`` a module, in two processes."""
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    return [sys.executable, "-m", *launcher]


def printed_by(code: str, *arguments: str, timeout: float = 300) -> str:
    """What Python prints that runs ``code`` in a fresh process, in the folder of the project."""
    line = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def on_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``work(rank)``, a function of a module, gives in each of two processes under gloo, JSON-like."""
    mp.spawn(_one_of_two, args=(work, free_port(), str(folder)), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def _one_of_two(rank: int, work: Callable[[int], Any], port: int, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    Path(out, f"{rank}.json").write_text(json.dumps(work(rank)), encoding="utf-8")
    torch.distributed.destroy_process_group()


PEAK_MEMORY = """
def peak_memory():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
"""
"""Code for a process of its own: bytes that it had in memory at most. Not ``ru_maxrss``: Linux starts that at the parent's."""


def poison(patch: pytest.MonkeyPatch, task: Any, steps: set[int]) -> None:
    """Make the images of some steps NaN, after the loader and before the network."""
    augment = type(task).augment

    def poisoned(self: Any, config: Any, batch: Any, num_classes: int, step: int) -> Any:
        images, targets = augment(self, config, batch, num_classes, step)
        return (images.float() * float("nan") if step in steps else images), targets

    patch.setattr(type(task), "augment", poisoned)


def calibrated(model: Any, images: Any) -> Any:
    """The model in eval mode, its batch norms with the statistics of ``images`` [H, W, C] (uint8, brought to its size). With those that
    it was made with a deep network of random weights says of every image the same to the fifth place, and so does one that is wrong."""
    size = model.image_spec.size[::-1]
    batch = torch.from_numpy(np.stack([np.asarray(Image.fromarray(image).resize(size)) for image in images]))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over what it sees
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(batch.permute(0, 3, 1, 2).contiguous())
        for module in model.modules():
            if isinstance(
                module, torch.nn.modules.batchnorm._BatchNorm
            ):  # channels that hardly change would make rounding large
                module.running_var.clamp_(min=0.5 * float(module.running_var.mean()))
    return model.eval()
