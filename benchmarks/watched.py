"""Training runs with somebody looking on: how long steps take, whether the host waits in one, and a signal at a given step."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tasks.engine.state import RunState
from tasks.engine.watching import Watcher, watching


@dataclass
class Seen(Watcher):
    """What was seen of a run's steps after the first few, which compile and choose kernels. With ``strict``, a later one that
    makes the host wait for the GPU raises; after ``signal_at`` steps this process gets SIGTERM."""

    device: str
    after: int
    strict: bool = False
    signal_at: int | None = None
    times: list[float] = field(default_factory=list)
    peak: int = 0
    checked: int = 0

    @contextmanager
    def step(self, state: RunState) -> Iterator[None]:
        """Look at a whole step: reading and transfer of its batches, objective, backward, update, report."""
        on_gpu = self.device == "cuda"
        check = self.strict and on_gpu and len(self.times) >= self.after
        if check:
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        self.checked += check
        if on_gpu and len(self.times) == self.after:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        if len(self.times) == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)

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
    """Look at every step of the runs inside, as :class:`Seen` says."""
    seen = Seen(device, after, strict, signal_at)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with watching(seen):
        yield seen
