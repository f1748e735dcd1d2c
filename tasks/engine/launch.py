"""Lightning Fabric as a run needs it: it launches processes, places models, wraps them for DDP and holds the arithmetic."""

import logging
import os
import warnings
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision, Precision
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from torch.distributed.distributed_c10d import _set_pg_timeout, default_pg_timeout

from effbackbones.errors import UserError
from tasks.engine import processes
from tasks.engine.hardware import Hardware
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


class _Decided(ClusterEnvironment):
    """The place of this process, as it was decided, so that Lightning does not guess it from what else the environment says."""

    def __init__(self, place: processes.Place) -> None:
        super().__init__()
        self.place, self._free = place, LightningEnvironment()

    @property
    def creates_processes_externally(self) -> bool:
        return self.place.outside

    @property
    def main_address(self) -> str:
        """Where the processes meet."""
        if self.place.launcher == "slurm" and "MASTER_ADDR" not in os.environ:
            nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST")
            return SLURMEnvironment.resolve_root_node_address(nodes) if nodes and self.place.nodes > 1 else "127.0.0.1"
        return self._free.main_address

    @property
    def main_port(self) -> int:
        """Known to all processes without asking: under SLURM it follows from the number of the job."""
        if self.place.launcher == "slurm" and "MASTER_PORT" not in os.environ:
            return (
                15000 + int(os.environ.get("SLURM_JOB_ID", "0")[-4:]) + int(os.environ.get("SLURM_STEP_ID", "0")) % 1000
            )
        return self._free.main_port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.world

    def set_world_size(self, size: int) -> None:
        assert size == self.place.world, f"{size} processes, {self.place}"

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.place.rank, f"rank {rank}, {self.place}"

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node


def make_fabric(config: Config, hardware: Hardware) -> Fabric:
    """Fabric for the processes that the launcher set up, else for those that the config says; :meth:`Fabric.launch` starts
    these. Seeds everything and sets what is deterministic."""
    for part in ("fabric", "pytorch"):  # notices and tips stay off the terminal; the first speak through the second
        logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.fabric\..*")
    torch.use_deterministic_algorithms(config.run.deterministic)
    if config.run.deterministic:
        torch.backends.cudnn.benchmark = False
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS asks for
    place, kind, precision = processes.here(), hardware.device.type, hardware.precision
    plugins: list[Any] = [_Autocast(_MIXED[precision], kind) if precision in _MIXED else Precision()]
    return Fabric(
        accelerator={"cpu": "cpu", "cuda": "gpu"}.get(kind, kind),
        devices=hardware.devices,
        num_nodes=place.nodes,
        strategy=DDPStrategy(timeout=timedelta(seconds=config.run.join_timeout)) if place.world > 1 else "auto",
        plugins=[*plugins, _Decided(place)],
    )


def launch(fabric: Fabric, seconds: float) -> None:
    """Start the other processes of a run, and wait for them. Those that have not come after ``seconds`` raise :class:`UserError`."""
    try:
        fabric.launch()
    except torch.distributed.DistError as error:
        place, name = processes.here(), "run.join_timeout"
        where = f"{os.environ.get('MASTER_ADDR', 'this machine')}:{os.environ.get('MASTER_PORT', '')}"
        what = f"process {place.rank} of {place.world} waited {seconds:g} seconds at {where} for the others"
        text = str(error).splitlines()[0][:120]
        remedy = "start the command on every node, with the same MASTER_ADDR and MASTER_PORT, or raise it"
        raise UserError(name, f"{what} ({text})", remedy) from error
    if processes.here().world > 1:
        _set_pg_timeout(default_pg_timeout)  # a step may wait for longer than that: for a process that saves, say
