"""Lightning Fabric as a run needs it: it launches processes, places models, wraps them for DDP and holds the arithmetic."""

import logging
import os
import warnings
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision, Precision
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from tasks.engine import assembly
from tasks.settings.sections import Config

_MIXED: dict[str, Literal["bf16-mixed", "16-mixed"]] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}


class _Autocast(MixedPrecision):
    """Mixed precision that leaves what goes into a model and comes out of it alone: images are normalised before they are cast,
    and losses are computed under autocast from what the head gave."""

    def forward_context(self) -> AbstractContextManager[Any]:
        # With the cache, the gradients of a weight that serves several levels would be summed in the lower precision.
        dtype = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
        return torch.autocast(self.device, dtype, cache_enabled=False)

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_output(self, data: Any) -> Any:
        return data


def make_fabric(config: Config, device: torch.device) -> Fabric:
    """Fabric for the processes that the launcher set up, else for those that the config says; :meth:`Fabric.launch` starts
    these. Seeds everything and sets what is deterministic."""
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # notices and tips stay off the terminal
    warnings.filterwarnings("ignore", module=r"lightning\.fabric\..*")
    torch.use_deterministic_algorithms(config.run.deterministic)
    if config.run.deterministic:
        torch.backends.cudnn.benchmark = False
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS asks for
    devices, nodes = config.run.devices, config.run.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    several = devices * nodes > 1
    precision = assembly.precision(config, device)
    plugins: list[Any] = [_Autocast(_MIXED[precision], device.type) if precision in _MIXED else Precision()]
    if several and "SLURM_NTASKS" in os.environ:
        plugins.append(SLURMEnvironment(auto_requeue=False))  # SIGUSR1 is ours: it saves
    return Fabric(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if several else "auto",
        plugins=plugins,
    )
