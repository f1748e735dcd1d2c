"""Which of a run's processes this is. Launching them is torchrun's, SLURM's or Lightning's business (``launch.py``)."""

import os

import torch


def rank() -> int:
    """A number of its own for each process, before the process group exists; 0 for the first, and without a launcher."""
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    # Lightning's own launcher numbers the nodes and the processes of each.
    return int(os.environ.get("NODE_RANK", 0)) * 1000 + local_rank()


def local_rank() -> int:
    """Which of this machine's processes (and GPUs) this is."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def is_first() -> bool:
    """Whether this process is the one that writes and tells."""
    return rank() == 0


def part() -> None:
    """Leave the process group, if there is one: no process waits for another from here on."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
