"""Where the time of a side goes, by kinds of operators: what says why a ratio is as it is."""

import time
from collections.abc import Mapping

from torch.profiler import ProfilerActivity, profile

from benchmarks.turns import Run, wait

RUNS = 3
REST, OUTSIDE = "other operators", "outside of operators"
OPERATORS = ("aten::", "mkldnn::", "torchvision::")
KINDS: Mapping[str, tuple[str, ...]] = {
    "convolutions": ("conv",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "batch norm": ("batch_norm",),
    "activations": ("silu", "sigmoid", "hardtanh", "relu", "threshold", "softplus", "softmax", "aten::exp_"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::clone", "upsample"),
    "elementwise": ("aten::mul", "aten::add", "aten::sub", "aten::div", "aten::sum", "aten::mean", "aten::where"),
}
"""Parts of the names of operators; the first kind that fits counts."""


def shares(run: Run, device: str) -> dict[str, float]:
    """Shares of the time of ``run``, by kind: of an operator what it takes itself, without those that it calls. What is left over is
    Python, autograd's own work, memory that is given back, and on a GPU the time in which it has nothing to do."""
    run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as found:
        wait(device)
        start = time.perf_counter()
        for _ in range(RUNS):
            run()
        wait(device)
        whole = 1e6 * (time.perf_counter() - start)
    spent: dict[str, float] = {}
    for event in found.key_averages():
        # not a node of autograd, an optimiser's step, a kernel, whose time is counted with its operator
        if not event.key.startswith(OPERATORS) or event.device_type.name != "CPU":
            continue
        kind = next((name for name, parts in KINDS.items() if any(part in event.key for part in parts)), REST)
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        spent[kind] = spent.get(kind, 0.0) + own / whole
    return {**spent, OUTSIDE: max(0.0, 1 - sum(spent.values()))}
