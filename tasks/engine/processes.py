"""Which of a run's processes this is. Launching them is torchrun's, SLURM's or Lightning's business."""

import os
from typing import Any

import torch

from tasks.settings.sections import Config


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


def layout(config: Config) -> dict[str, Any]:
    """Trainer arguments ``devices``, ``num_nodes`` and ``strategy``: what the launcher set up, else what the config says."""
    devices, nodes = config.run.devices, config.run.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    several = devices * nodes > 1
    environment: dict[str, Any] = {"devices": devices, "num_nodes": nodes, "strategy": "ddp" if several else "auto"}
    if "SLURM_NTASKS" in os.environ and several:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        environment["plugins"] = [SLURMEnvironment(auto_requeue=False)]  # SIGUSR1 is ours: it saves
    return environment
