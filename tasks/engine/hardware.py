"""From a config to the device of a process and its arithmetic."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch

from effbackbones.errors import UserError
from effbackbones.inference.backends.plan import computes_bfloat16
from tasks.engine import processes
from tasks.settings.sections import Config


@dataclass(frozen=True)
class Hardware:
    """What a process computes on: its ``device``, the ``precision`` there (``fp32``, ``bf16`` or ``fp16``), and the ``devices`` of all
    processes of this machine: numbers of GPUs, or how many."""

    device: torch.device
    precision: str
    devices: list[int] | int

    @classmethod
    def of(cls, config: Config) -> Self:
        """What was asked for. What is not there raises :class:`UserError`."""
        device = run_device(config)
        return cls(device, precision(config, device), device_indices(config, processes.here().local_world))

    @property
    def remark(self) -> str:
        """What should be known of this arithmetic on this processor, if anything."""
        if self.device.type == "cpu" and self.precision == "bf16" and not computes_bfloat16():
            return "run.precision bf16: this processor does not multiply bfloat16; fp32 takes it less time"
        return ""

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of an evaluation: as in training."""
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


def run_device(config: Config) -> torch.device:
    """The device of this process. One that was asked for and is not there raises :class:`UserError`."""
    asked, listed = config.run.device, config.run.devices
    if asked == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("run.device", "mps was asked for, and PyTorch sees none here", "set run.device auto")
        return torch.device("mps")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and not there and isinstance(listed, int)):
        return torch.device("cpu")
    where, wanted = ("run.device", asked) if isinstance(listed, int) else ("run.devices", str(list(listed)))
    if not there:
        what = f"{wanted} was asked for, and PyTorch sees no GPU here"
        raise UserError(where, what, "check the driver, or set run.device cpu and run.devices to a count")
    indices = device_indices(config, processes.here().local_world)
    chosen = indices if isinstance(indices, list) else list(range(indices))
    if max(chosen) >= there:
        what = f"GPU {max(chosen)} was asked for, and PyTorch sees {there} (0 to {there - 1})"
        raise UserError(where, what, "correct the number, or CUDA_VISIBLE_DEVICES")
    return torch.device("cuda", chosen[processes.local_rank() % len(chosen)])


def device_indices(config: Config, count: int) -> list[int] | int:
    """The GPUs of this machine's ``count`` processes, by number; ``count`` where nobody names them."""
    asked, listed = config.run.device, config.run.devices
    if isinstance(listed, tuple):
        return list(listed[:count])
    return [int(asked.partition(":")[2])] if ":" in asked else count


def precision(config: Config, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``: what was asked for, or what suits the device."""
    asked = config.run.precision
    if asked == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise UserError("run.precision", "fp16 needs a GPU", "set it to fp32 or bf16")
    return asked
