"""Two processes on the CPU, started as a user would: torchrun with the command's own line."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from tests_support import TINY

from effbackbones.tensorfile import read_tensors
from tasks.resume import shuffled

PLUGIN = '''
"""A data set that notes which samples it is asked for, by process."""
import os
from pathlib import Path

from tasks.data.shapes import shapes
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


def launch(processes: int, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the tiny training, noting samples in ``folder``."""
    (folder / "noted.py").write_text(PLUGIN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runner = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)] if processes > 1 else []
    line = [*TINY, "--data.name", "noted", "--data.options", "{train: 28, val: 12}", "--plugins", str(folder / "noted.py"), "--run.out",
            str(folder / "run"), *more]  # fmt: skip
    environment = {**os.environ, "NOTES": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *runner, "-m", "tasks.classify", *line]
    root = Path(__file__).parent.parent
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=300, check=False)


def notes(folder: Path, split: str, rank: int) -> list[int]:
    return [int(line) for line in (folder / f"{split}-{rank}").read_text().split()]


def test_two_processes_share_the_batches_and_the_scores_of_one(tmp_path: Path) -> None:
    done = launch(2, tmp_path, "--optim.accumulate", "2")
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
