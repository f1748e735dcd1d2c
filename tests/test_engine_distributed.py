"""Two processes on the CPU, started as a user would: torchrun with the command's own line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests_support import ONE_THREAD, ROOT, TINY, two_processes

from effbackbones.weights.tensorfile import read_tensors
from tasks.engine.order import shuffled

PLUGIN = '''
"""A data set that notes which samples it is asked for, by process."""
import os
from pathlib import Path

from tasks.data.door.labels import shapes
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


LONG = """
import tasks.engine.batchnorm

tasks.engine.batchnorm.FEW_STEPS = 0
"""
"""Code of a plug-in with which no run counts as short."""

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


def command(
    folder: Path, *more: str, plugin: str = PLUGIN, start: Sequence[str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Line and environment of the tiny training in two processes (or as ``start`` has it), noting samples in ``folder``."""
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
    return [*(start or two_processes()), "-m", "tasks.classify", *line], ONE_THREAD | {"NOTES": str(folder)}


def launch(
    folder: Path, *more: str, plugin: str = PLUGIN, start: Sequence[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    line, environment = command(folder, *more, plugin=plugin, start=start)
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300, check=False)


def notes(folder: Path, split: str, rank: int) -> list[int]:
    return [int(line) for line in (folder / f"{split}-{rank}").read_text().split()]


def test_two_processes_share_the_batches_and_the_scores_of_one(tmp_path: Path) -> None:
    # What a short run reads once more, for the statistics of its batch norms, is not to be noted.
    done = launch(tmp_path, "--optim.accumulate", "2", plugin=PLUGIN + LONG)
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


@pytest.mark.slow
def test_two_processes_stay_equal_when_the_backbone_thaws_and_images_grow(tmp_path: Path) -> None:
    """And the training loss is the mean over them."""
    more = ["--data.progressive", "[0.5, 0.75]"]  # from the fourth step on, and from the sixth
    more += ["--run.save_minutes", "1e-9"]  # saves agree on the loss so far
    done = launch(tmp_path, "--model.freeze", "all", "--model.unfreeze_epoch", "1", *more, plugin=PLUGIN + WATCH)
    assert done.returncode == 0, done.stderr
    losses = [[float(line) for line in (tmp_path / f"losses-{rank}").read_text().split()] for rank in range(2)]
    assert losses[0] != losses[1]
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    wanted = [sum(losses[0][part] + losses[1][part]) / 8 for part in (slice(0, 4), slice(4, 8))]
    assert [row["train_loss"] for row in history] == pytest.approx(wanted, rel=1e-12)
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


@pytest.mark.slow
def test_processes_that_lightning_starts_wait_for_the_save_when_a_signal_stops_them(tmp_path: Path) -> None:
    """Its launcher looks every 5 seconds whether another process has ended, and then kills the first one."""
    slow = """
import signal
import time
from contextlib import contextmanager

import tasks.engine.keeping as keeping
from tasks.engine.watching import WATCHERS, Watcher


class Stop(Watcher):
    @contextmanager
    def step(self, state):
        yield
        if state.step == 2 and state.share.rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def save(*given, honest=keeping.save_state):
    time.sleep(8)
    honest(*given)


keeping.save_state = save
WATCHERS.append(Stop())
"""
    more = ["--run.devices", "2", "--optim.epochs", "400", "--run.eval_every", "400"]
    done = launch(tmp_path, *more, plugin=PLUGIN + slow, start=[sys.executable])  # Lightning starts the second
    assert done.returncode == 143, done.stderr[-2000:]
    assert "which is saved" in done.stderr
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_state_that_is_not_finite_ends_all_processes(tmp_path: Path) -> None:
    spoil = """
import torch
from contextlib import contextmanager

import tasks.engine.keeping as keeping
from tasks.engine.watching import WATCHERS, Watcher


class Spoiled(Watcher):
    @contextmanager
    def step(self, state):
        yield
        with torch.no_grad():
            next(state.model.head.parameters()).fill_(float("inf"))


def save(self, honest=keeping.Keeper.save):
    try:
        honest(self)
    except keeping.DivergedError as error:
        Path(os.environ["NOTES"], f"diverged-{os.environ['RANK']}").write_text(str(error))
        raise


keeping.Keeper.save = save
WATCHERS.append(Spoiled())
"""
    done = launch(tmp_path, "--optim.max_steps", "1", plugin=PLUGIN + spoil)
    assert done.returncode != 0
    ends = [(tmp_path / f"diverged-{rank}").read_text() for rank in range(2)]
    assert ends[0] == ends[1]
    assert "is not finite after step 1" in ends[0]
