"""What this machine can do at most, and how near to it some work comes: arithmetic, and traffic between processor and memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.turns import once

_COPIED = {"cpu": 1 << 26, "cuda": 1 << 29}  # float32 values: beyond any cache
_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Limits:
    """Rates measured here: operations a second in float32 and in bfloat16 (the better of a product of matrices and a 1x1 convolution),
    and bytes a second, read and written, of a copy."""

    flops: float
    flops_bf16: float
    bytes_per_second: float

    def record(self) -> dict[str, float]:
        """As JSON has it."""
        return asdict(self)


def measure(device: str) -> Limits:
    """The limits of ``device``, in about two seconds."""
    single, half = (_arithmetic(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    source = torch.zeros(_COPIED[device], device=device)
    target = torch.zeros_like(source)
    seconds = _best(lambda: target.copy_(source), device)
    return Limits(single, half, 2 * source.nbytes / seconds)


def _arithmetic(device: str, dtype: torch.dtype) -> float:
    side = _SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    maps = torch.randn(8, 512, 56, 56, device=device).to(dtype).to(memory_format=torch.channels_last)
    kernels = torch.randn(512, 512, 1, 1, device=device).to(dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        product = 2 * side**3 / _best(lambda: a @ b, device)
        convolution = 2 * 512 * maps.numel() / _best(lambda: F.conv2d(maps, kernels), device)
    return max(product, convolution)


def _best(run: Callable[[], object], device: str) -> float:
    """Seconds of the quickest of several runs: a limit is what can be reached."""
    run()
    times, begun = [once(run, device)], time.perf_counter()
    while len(times) < 5 or (len(times) < 20 and time.perf_counter() - begun < 0.3):
        times.append(once(run, device))
    return min(times)


@dataclass
class Work:
    """What something has to do whoever does it: operations of its convolutions and products (a multiply-add is two), and the bytes that
    these read and write when nothing else passes through memory: batch norm, activations and gates fused into them, and none of
    them into another."""

    flops: float = 0.0
    bytes: float = 0.0

    def share(self, seconds: float, limits: Limits, *, half: bool = False) -> dict[str, float]:
        """Of each limit, the share that work done in so many seconds reaches. ``half``: in bfloat16, with half the bytes."""
        rate = limits.flops_bf16 if half else limits.flops
        moved = self.bytes / 2 if half else self.bytes
        return {
            "arithmetic": self.flops / seconds / rate,
            "traffic": moved / seconds / limits.bytes_per_second,
        }


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            backward = func._overloadpacket is torch.ops.aten.convolution_backward
            self.work.flops += _of_gradients(args) if backward else count(*args, **(kwargs or {}), out_val=out)
            tensors = [one for one in tree_leaves((args, out)) if isinstance(one, Tensor)]
            self.work.bytes += sum(one.nbytes for one in tensors)
        return out


def _of_gradients(args: Any) -> float:
    """Operations of the gradients of a convolution; torch counts those of depthwise ones as if they were dense."""
    gradient, _, kernel, wanted = args[0], args[1], args[2], args[-1]
    return float(2 * gradient.numel() * kernel[0].numel() * sum(wanted[:2]))


@contextmanager
def counting() -> Iterator[Work]:
    """What is done inside: ``with counting() as work: model(images)``."""
    with _Counting() as mode:
        yield mode.work
