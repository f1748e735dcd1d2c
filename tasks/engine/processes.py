"""Which of a run's processes this is. Launching them is torchrun's, SLURM's or Lightning's business (``launch.py``).

Environments are inherited: a shell in a SLURM allocation, a container of Kubernetes or a notebook that once trained on two GPUs
leave ranks behind that no launcher of this run wrote. So a rank counts only together with a world size, torchrun's variables come
before SLURM's, and SLURM's count only if it started as many tasks as the run has processes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from effbackbones.errors import UserError

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
_PLACES = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """This process among those of its run: ``rank`` of ``world``, ``local_rank`` of ``local_world`` on its machine. ``launcher``:
    who starts them; ``outside``: all of them were started already. ``told``: what was decided and is not the ordinary case."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launcher: Literal["torchrun", "slurm", "lightning"] = "lightning"
    outside: bool = True
    told: tuple[str, ...] = ()

    @property
    def node(self) -> int:
        """Which machine this is, counted from 0."""
        return self.rank // self.local_world

    @property
    def nodes(self) -> int:
        """How many machines there are."""
        return self.world // self.local_world


def place(variables: Mapping[str, str], devices: int = 1, nodes: int = 1) -> Place:
    """What the environment ``variables`` say to a run that is configured for so many ``devices`` on each of ``nodes``.

    What contradicts itself raises :class:`UserError`; what only looks like a rank is passed over, and told.
    """
    number = {name: int(value) for name, value in variables.items() if value.isdecimal()}
    if "RANK" in number and "WORLD_SIZE" in number:
        return _by_torchrun(variables, number, devices * nodes)
    # The script of sbatch is one process, however many tasks srun may start from it.
    allotted = 1 if variables.get("ENVIRONMENT") == "BATCH" else number.get("SLURM_NTASKS", 1)
    tasks = number.get("SLURM_STEP_NUM_TASKS", allotted)
    if "SLURM_PROCID" in number and tasks > 1:
        if number["SLURM_PROCID"] >= tasks:
            what = f"is {number['SLURM_PROCID']} where SLURM started {tasks} tasks"
            raise UserError("SLURM_PROCID", what, "unset what is left over from another job")
        if tasks == devices * nodes:
            found = Place(number["SLURM_PROCID"], tasks, 0, devices, "slurm")
            found = replace(found, local_rank=number.get("SLURM_LOCALID", found.rank % devices))
            return replace(found, told=(f"process {found.rank} of {tasks} that SLURM started",))
        started = "SLURM_STEP_NUM_TASKS" in number or number["SLURM_PROCID"] > 0  # by srun
        if started and devices * nodes > 1:
            what = f"SLURM started {tasks} tasks, and the run has {devices * nodes} processes (devices x nodes)"
            raise UserError("run.devices", what, f"start it by srun -n {devices * nodes}, or correct the config")
        if started:
            text = f"SLURM started {tasks} tasks, and this run has one process: each task is a run of its own"
            return Place(told=(f"{text} (for one run of all set run.devices and run.nodes)",))
    if devices * nodes > 1:
        return _by_lightning(variables, number, devices, nodes)
    return Place(told=_left_over(variables, _RANKS, "this run is one process"))


def _left_over(variables: Mapping[str, str], names: tuple[str, ...], decided: str) -> tuple[str, ...]:
    """A line on ranks that no launcher of this run wrote, if there are any."""
    left = [f"{name}={variables[name]}" for name in names if variables.get(name, "0") not in ("0", "")]
    return (f"{', '.join(left)} without the world size of this run says nothing: {decided}",) if left else ()


def _by_torchrun(variables: Mapping[str, str], number: Mapping[str, int], configured: int) -> Place:
    """By ``RANK`` and ``WORLD_SIZE``, which torchrun and operators of Kubernetes set."""
    rank, world = number["RANK"], number["WORLD_SIZE"]
    if rank >= world:
        raise UserError("RANK", f"is {rank} where WORLD_SIZE is {world}", "correct the launcher, or unset the two")
    if world == 1:
        return Place(local_rank=number.get("LOCAL_RANK", 0))
    missing = [name for name in _PLACES if not variables.get(name)]
    if missing:
        what = f"this is process {rank} of {world} by RANK and WORLD_SIZE, and {' and '.join(missing)} is not set"
        raise UserError(
            "RANK", what, "start the processes by torchrun; to train in one process unset RANK and WORLD_SIZE"
        )
    local_world = number.get("LOCAL_WORLD_SIZE", 1)
    if number.get("LOCAL_RANK", 0) >= local_world or world % local_world:
        what = f"is {number.get('LOCAL_RANK', 0)} where LOCAL_WORLD_SIZE is {local_world} and WORLD_SIZE {world}"
        raise UserError("LOCAL_RANK", what, "correct the launcher: each machine has as many processes")
    told = () if "LOCAL_WORLD_SIZE" in number else (f"process {rank} of {world} by RANK and WORLD_SIZE, one a machine",)
    if configured not in (1, world):
        told = (*told, f"the launcher started {world} processes: run.devices and run.nodes ({configured}) are not used")
    return Place(rank, world, number.get("LOCAL_RANK", 0), local_world, "torchrun", True, told)


def _by_lightning(variables: Mapping[str, str], number: Mapping[str, int], devices: int, nodes: int) -> Place:
    """Lightning starts ``devices`` processes on each machine, and says to those it started which they are."""
    node, left = number.get("NODE_RANK", 0), ["RANK", "SLURM_PROCID"]
    if nodes > 1 and ("NODE_RANK" not in number or not all(variables.get(name) for name in _PLACES)):
        what = f"is {nodes}, and nothing says which machine this is"
        raise UserError("run.nodes", what, "start by torchrun or srun, or set NODE_RANK, MASTER_ADDR and MASTER_PORT")
    if node >= nodes:
        node, left = 0, [*left, "NODE_RANK"]
    started = number.get("WORLD_SIZE") == devices * nodes and number.get("LOCAL_RANK", devices) < devices
    local_rank = number["LOCAL_RANK"] if started else 0
    told = _left_over(variables, (*left, *(() if started else ("LOCAL_RANK",))), f"this run starts {devices} processes")
    return Place(node * devices + local_rank, devices * nodes, local_rank, devices, "lightning", started, told)


_settled: list[Place] = []
"""The place of this process, once a run has said how many processes it has."""


def settle(devices: int, nodes: int) -> Place:
    """Decide which process this is, for a run of so many ``devices`` and ``nodes``; what the functions here say from then on."""
    _settled[:] = [place(os.environ, devices, nodes)]
    return _settled[0]


def refuse_to_start(devices: int, nodes: int) -> None:
    """Raise :class:`UserError` if a run of so many processes would have to start some, which would run the program that called
    the command, a notebook's kernel say, from its beginning."""
    if not place(os.environ, devices, nodes).outside:
        what = f"is {devices}, and a command that is called by another program cannot start processes"
        raise UserError("run.devices", what, "start the command in a shell, or the program by torchrun; or set it to 1")


def here() -> Place:
    """The place of this process."""
    return _settled[0] if _settled else place(os.environ)


def forget() -> None:
    """Undo :func:`settle`, when the run is over."""
    _settled.clear()


def rank() -> int:
    """A number of its own for each process, before the process group exists; 0 for the first, and without a launcher."""
    return here().rank


def local_rank() -> int:
    """Which of this machine's processes (and GPUs) this is."""
    return here().local_rank


def is_first() -> bool:
    """Whether this process is the one that writes and tells."""
    return rank() == 0


def part() -> None:
    """Leave the process group, if there is one: no process waits for another from here on."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
