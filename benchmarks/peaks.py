"""Memory of a training step: what the process of a side, its own, has at most beyond what it had before the step."""

import ctypes
import gc
import importlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.inference import LAYOUTS
from benchmarks.networks import PAIRS, our_loss
from benchmarks.row import Found, Ratio, Setting, Side
from benchmarks.training import step
from effbackbones.errors import UserError

STEPS = 3
MINE = "model.loss"
PACKAGE = {"cls": "timm", "det": "effdet", "seg": "smp"}


def steps(setting: Setting, task: str, network: str, batch: int, side: int) -> Found:
    """Megabytes of a training step of ours and of the peer's."""
    if setting.dry:
        batch, side = 2, {"det": 128}.get(task, 64)
    sides: dict[str, float] = {}
    for who in (MINE, *LAYOUTS):
        told = {"task": task, "network": network, "batch": batch, "side": side, "who": who}
        sides[who if who == MINE else f"{PACKAGE[task]} {who}"] = in_process(
            "benchmarks.peaks:training_step", setting, told
        )
    return compared(sides, [MINE])


def compared(sides: Mapping[str, float], mine: Sequence[str]) -> Found:
    """Megabytes of each side, and each of ours as part of each other."""
    found = Found("MB", proof="equal work is shown by the row of the times")
    for name, megabytes in sides.items():
        found.sides.append(Side(name, name in mine, megabytes, megabytes, megabytes, 1))
    for name in mine:
        for peer in sides.keys() - set(mine):
            value = sides[name] / sides[peer]
            found.ratios.append(Ratio(name, peer, value, value, value))
    return found


def in_process(function: str, setting: Setting, arguments: Mapping[str, Any]) -> float:
    """What ``function`` (``module:name``) prints in a fresh process: a figure in JSON on its last line."""
    told = json.dumps({"device": setting.device, "threads": setting.threads, **arguments})
    line = [sys.executable, "-m", "benchmarks.peaks", function, told]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        what = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise UserError(function, f"its process failed: {what[0]}", "run it by itself to see where")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def training_step(device: str, task: str, network: str, batch: int, side: int, who: str) -> float:
    """Megabytes of one side: activations, gradients, the state of the optimiser, and what its layers need to work."""
    pair = PAIRS[task](network, device, side=side)
    targets, pixels = pair.targets(batch, side), pair.pictures(batch)
    images = pair.ours.normalize(pixels)
    if who == MINE:
        run = step(pair.ours.train(), partial(our_loss(pair.ours, targets), pixels))
        pair.peer = nn.Identity()
    else:
        peer = pair.peer.train().to(memory_format=LAYOUTS[who])
        run = step(peer, partial(pair.loss(peer, targets), images.contiguous(memory_format=LAYOUTS[who])))
        pair.ours = None  # type: ignore[assignment]  # its memory is not to be counted
    return most(run, device)


def most(run: Callable[[], object], device: str, times: int = STEPS) -> float:
    """Megabytes that this process, or its GPU, has at most while it does something so many times, beyond what it had before."""
    if device == "cpu" and platform.system() != "Linux":
        raise UserError("memory on a CPU", "is read from /proc, which Linux alone has", "leave the row out")
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what has been freed is the system's again
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak (proc(5))
    for _ in range(times):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return ((torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")) - before) / 1e6


def _resident(what: str) -> int:
    """Bytes in memory, of this process."""
    found = re.search(rf"^{what}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    """``FUNCTION ARGUMENTS``, for :func:`in_process`."""
    module, _, name = sys.argv[1].partition(":")
    told = json.loads(sys.argv[2])
    torch.set_num_threads(told.pop("threads"))
    torch.manual_seed(0)
    print(json.dumps(getattr(importlib.import_module(module), name)(**told)))


if __name__ == "__main__":
    main()
