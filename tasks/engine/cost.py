"""What a model costs, here: multiply-adds, time, memory, and the machine that says so."""

import ctypes
import gc
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from effbackbones.contracts import ImageSizes
from effbackbones.model import Model

WARM_UP, ROUNDS = 2, 10
"""Calls of a model that are not measured, and that are."""
_A_MOMENT = 2.0  # seconds


def multiply_adds(model: Model, height: int, width: int) -> int:
    """Multiply-adds of convolutions and matrix products for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    images = torch.zeros(1, len(model.image_spec.mean), height, width, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images, ImageSizes.of(images))
    return int(counter.get_total_flops()) // 2


def latency(
    call: Callable[[], None],
    device: torch.device,
    told: Callable[[], None] = lambda: None,
    seconds: float = math.inf,
    rounds: int = ROUNDS,
) -> float:
    """Median milliseconds of so many ``rounds`` of a call, after a warm-up; ``told`` is called after each, outside of the time. Once so
    many ``seconds`` have passed there is one more call at most."""
    times: list[float] = []
    begun = time.perf_counter()
    for index in range(WARM_UP + rounds):
        if index > WARM_UP and time.perf_counter() - begun > seconds:
            break
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if index >= WARM_UP:
            times.append(1e3 * (time.perf_counter() - start))
        told()
    return statistics.median(times)


def peak_memory(device: torch.device) -> tuple[float, str]:
    """Megabytes at most in use, and of what: on a GPU allocated by PyTorch since the start, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20, "allocated on the GPU"
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        status = ""
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    if found:
        return int(found[1]) / 1024, "of the process"
    # On Linux this would start at the peak of the process that started this one.
    import resource  # Windows has none

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, "of the process; may be that of what started it"


def restart_peak(device: torch.device) -> None:
    """Let :func:`peak_memory` begin anew, from what is in use now. Where the system does not offer that, it stays that of all so far."""
    gc.collect()
    with suppress(OSError, AttributeError):  # what is free goes back to the system, which only glibc offers
        ctypes.CDLL(None).malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux, of its own processes
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def free_memory(device: torch.device) -> float | None:
    """Megabytes that are free for a process now: on a GPU there, else in this machine or its container. None: the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    try:
        said = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB", said, re.MULTILINE)
    free = int(found[1]) / 1024 if found else math.inf
    with suppress(OSError, ValueError):  # version 2 of control groups, as a container sees its own; "max" is no number
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{word}").read_text("ascii")) for word in ("max", "current"))
        free = min(free, (limit - used) / 2**20)
    return free if free < math.inf else None


def told_of_cost(model: Model, file: Path, device: torch.device) -> str:
    """Parameters, multiply-adds and milliseconds of one image of the model's size, and megabytes of its file."""
    height, width = model.image_spec.size
    images = torch.zeros(1, len(model.image_spec.mean), height, width, dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    count, work = sum(p.numel() for p in model.parameters()), multiply_adds(model, height, width)
    milliseconds = latency(lambda: model.predict(images), device, seconds=_A_MOMENT)
    each = "an image" if model.image_spec.rate is None else "a window"
    size = f"{count / 1e6:.2f} M parameters, {work / 1e9:.3g} G multiply-adds at {height} x {width}"
    return (
        f"{size}, file of {file.stat().st_size / 1e6:.1f} MB, {milliseconds:.3g} ms {each} on {device} (fp32, no batch)"
    )
