"""Training runs with somebody looking on: how long steps take, whether the host waits in one, and a signal at a given step."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tasks.engine.engine import Engine


@dataclass
class Seen:
    """What was seen of a run's steps after the first few, which compile and choose kernels."""

    device: str
    after: int
    times: list[float] = field(default_factory=list)
    peak: int = 0
    checked: int = 0

    def summary(self) -> dict[str, Any]:
        """Steps, steps a second after the first few, bytes on the GPU at most; how many steps were held to not waiting."""
        done = len(self.times) - self.after
        rate = (done - 1) / (self.times[-1] - self.times[self.after]) if done > 1 else None
        return {
            "steps": len(self.times),
            "steps_per_second": rate,
            "peak_bytes": self.peak,
            "checked_for_waits": self.checked,
        }


@contextmanager
def watch(device: str, *, strict: bool = False, signal_at: int | None = None, after: int = 10) -> Iterator[Seen]:
    """Look at every step of the runs inside: with ``strict``, one after the first ``after`` that makes the host wait for the GPU
    raises; after ``signal_at`` steps this process gets SIGTERM."""
    seen, original = Seen(device, after), Engine.training_step
    on_gpu = device == "cuda"

    def step(self: Engine, batch: Any, batch_idx: int) -> None:
        check = strict and on_gpu and len(seen.times) >= after
        if check:
            torch.cuda.set_sync_debug_mode("error")
        try:
            original(self, batch, batch_idx)
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        seen.checked += check
        if on_gpu and len(seen.times) == after:
            torch.cuda.synchronize()
        seen.times.append(time.perf_counter())
        seen.peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        if len(seen.times) == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    Engine.training_step = step  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Engine.training_step = original  # type: ignore[method-assign]
