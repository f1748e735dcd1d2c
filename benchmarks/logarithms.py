"""What it gains that a model reads the constants of the logarithms (:func:`effbackbones.logarithms.ready_logarithms`): softplus in fresh
processes, with and without, in turns."""

import statistics

import torch
from torch.nn import functional as F

from benchmarks.peaks import in_process
from benchmarks.row import Found, Ratio, Setting, Side
from benchmarks.turns import Spread, once, ratios
from effbackbones.logarithms import ready_logarithms

WITH, WITHOUT = "constants read", "as usual"
_TIMES = 20


def seconds(setting: Setting, count: int) -> Found:
    """Milliseconds of one call."""
    told = {"count": 1000 if setting.dry else count}
    times: dict[str, list[float]] = {WITH: [], WITHOUT: []}
    for _ in range(2 if setting.dry else max(5, setting.rounds)):
        for name, row in times.items():
            row.append(in_process("benchmarks.logarithms:softplus", setting, {**told, "ready": name == WITH}))
    found = Found("ms", proof="the same call")
    for name, row in times.items():
        one = Spread.of(row)
        found.sides.append(Side(name, name == WITH, one.median, one.low, one.high, one.count))
    one = ratios(times[WITH], times[WITHOUT])
    found.ratios.append(Ratio(WITH, WITHOUT, one.median, one.low, one.high))
    return found


def softplus(device: str, count: int, ready: bool) -> float:
    """The median of several calls."""
    logits = torch.linspace(-10, 5, count)
    if ready:
        ready_logarithms(torch.device(device))
    return 1e3 * statistics.median(once(lambda: F.softplus(logits)) for _ in range(_TIMES))
