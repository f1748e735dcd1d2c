"""Two processes on the CPU, started as a user would: torchrun with the command's own line."""

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests_support import ONE_THREAD, ROOT, TINY, two_processes

from effbackbones.weights.tensorfile import read_tensors
from tasks.engine.resume import shuffled

PLUGIN = '''
"""A data set that notes which samples it is asked for, by process."""
import os
from pathlib import Path

from tasks.data.door import shapes
from tasks.spec import register_dataset


class Noted:
    def __init__(self, inner, file):
        self.inner, self.file, self.classes, self.mask_classes = inner, file, inner.classes, inner.mask_classes

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        with open(self.file, "a") as file:
            print(index, file=file)
        return self.inner[index]


@register_dataset("noted")
def noted(data, split, classes):
    folder = Path(os.environ["NOTES"])
    return Noted(shapes(data, split, classes), folder / f"{split}-{os.environ.get('RANK', 0)}")
'''


WATCH = """
import hashlib
from contextlib import contextmanager

from tasks.engine.watching import WATCHERS, Watcher

rank = os.environ.get("RANK", 0)
Path(os.environ["NOTES"], f"pid-{rank}").write_text(str(os.getpid()))


def digest(module):
    found = hashlib.sha256()
    for parameter in module.parameters():
        found.update(parameter.detach().numpy().tobytes())
    return found.hexdigest()


class Notes(Watcher):
    @contextmanager
    def step(self, state):
        yield
        with open(Path(os.environ["NOTES"], f"weights-{rank}"), "a") as file:
            print(digest(state.model.backbone), digest(state.model.head), file=file)

    def log(self, state, log):
        with open(Path(os.environ["NOTES"], f"losses-{rank}"), "a") as file:
            print(sum(log.losses.values()), file=file)


WATCHERS.append(Notes())
"""
"""Code of a plug-in that notes the weights of each process after each step, and its loss."""


def command(folder: Path, *more: str, plugin: str = PLUGIN) -> tuple[list[str], dict[str, str]]:
    """Line and environment of the tiny training in two processes, noting samples in ``folder``."""
    (folder / "noted.py").write_text(plugin)
    line = [
        *TINY,
        "--data.name",
        "noted",
        "--data.options",
        "{train: 28, val: 12}",
        "--plugins",
        str(folder / "noted.py"),
        "--run.out",
        str(folder / "run"),
        *more,
    ]
    return [*two_processes(), "-m", "tasks.classify", *line], ONE_THREAD | {"NOTES": str(folder)}


def launch(folder: Path, *more: str, plugin: str = PLUGIN) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    line, environment = command(folder, *more, plugin=plugin)
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300, check=False)


def notes(folder: Path, split: str, rank: int) -> list[int]:
    return [int(line) for line in (folder / f"{split}-{rank}").read_text().split()]


def test_two_processes_share_the_batches_and_the_scores_of_one(tmp_path: Path) -> None:
    done = launch(tmp_path, "--optim.accumulate", "2")
    assert done.returncode == 0, done.stderr
    order = shuffled(28, 0)
    wanted = np.concatenate([np.append(order(epoch), order(epoch)[:4]) for epoch in range(2)]).reshape(8, 2, 2, 2)
    for rank in range(2):
        # check_dataset looks at the first ones before the training.
        assert notes(tmp_path, "train", rank)[-32:] == wanted[:, :, rank].flatten().tolist()
    seen = [notes(tmp_path, "val", rank) for rank in range(2)]
    assert set(seen[1]) >= {1, 3, 5, 7, 9, 11}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["finished"]
    # The evaluation during training, on two processes, and the one after it, on the first, agree to the last bit.
    best = max(metrics["history"], key=lambda row: row["val_top1"])
    assert metrics[metrics["best"]]["top1"] == best["val_top1"]
    tensors, record = read_tensors(sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))[-1])
    assert json.loads(record["record"])["step"] == 8
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())


def test_the_training_loss_is_the_mean_over_the_processes(tmp_path: Path) -> None:
    done = launch(tmp_path, "--run.save_minutes", "1e-9", plugin=PLUGIN + WATCH)  # saves agree on the loss so far
    assert done.returncode == 0, done.stderr
    losses = [[float(line) for line in (tmp_path / f"losses-{rank}").read_text().split()] for rank in range(2)]
    assert losses[0] != losses[1]
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    wanted = [sum(losses[0][part] + losses[1][part]) / 8 for part in (slice(0, 4), slice(4, 8))]
    assert [row["train_loss"] for row in history] == pytest.approx(wanted, rel=1e-12)


def test_two_processes_stay_equal_when_the_backbone_thaws(tmp_path: Path) -> None:
    done = launch(tmp_path, "--model.freeze", "all", "--model.unfreeze_epoch", "1", plugin=PLUGIN + WATCH)
    assert done.returncode == 0, done.stderr
    first, second = (
        [line.split() for line in (tmp_path / f"weights-{rank}").read_text().splitlines()] for rank in range(2)
    )
    assert first == second
    backbones, heads = zip(*first, strict=True)
    assert len(set(heads)) == 8
    assert len(set(backbones[:4])) == 1  # frozen in the first epoch
    assert len(set(backbones[3:])) == 5


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    more = ["--optim.epochs", "400", "--run.log_every", "1", "--run.eval_every", "400"]
    line, environment = command(tmp_path, *more, plugin=PLUGIN + WATCH)
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert process.stderr is not None
    for text in process.stderr:
        if text.startswith("step 3/"):
            os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGTERM)
            break
    try:
        rest = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode != 0
    (stopped,) = [text for text in rest.splitlines() if text.startswith("stopped by SIGTERM")]
    steps = [len((tmp_path / f"weights-{rank}").read_text().splitlines()) for rank in range(2)]
    assert f"after step {steps[0]}," in stopped
    assert steps[0] == steps[1]
    (state,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert state.name == f"step-{steps[0]:08}.safetensors"
