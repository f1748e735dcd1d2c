"""Of several kernels for a layer and the library's own way, the quickest on this device: found out by timing them on what came."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from effbackbones.inference.backends.checking import BOUND_NARROW, are_finite, difference
from effbackbones.inference.backends.tiles import Tile

LOG = logging.getLogger("effbackbones")
LOCK = threading.RLock()
"""Held while something is timed: threads that time together are in each other's way."""
_ROUNDS, _CALLS = 3, 3
_COMPARED = 2**22  # numbers of a map that are compared, for which it takes many times their memory
_FAILED: set[tuple[str, Tile, torch.device]] = set()
"""What is not tried again in this process: it did not run, or was wrong."""

Way = Callable[..., Any]


def quickest(
    kind: str, library: Way, kernel: Way, tiles: Sequence[Tile], inputs: Sequence[Tensor | None]
) -> Tile | None:
    """The tile with which ``kernel(tile, *inputs)`` beats ``library(*inputs)`` by most, None where none does. The first of ``inputs`` is
    the map; of all of them the first axis is that of the images. A tile that fails or differs is told and tried no more."""
    x = inputs[0]
    assert x is not None
    try:
        few = [one if one is None else one[: max(1, _COMPARED // x[:1].numel())] for one in inputs]
        wanted = tensors(library(*few))
        if not are_finite(wanted):  # nothing can be compared
            return None
        good = [tile for tile in tiles if _agrees(kind, partial(kernel, tile, *few), tile, wanted, x)]
        del few, wanted
        taken = {tile: _seconds(partial(kernel, tile, *inputs), x.device) for tile in good}
        best = min(taken, key=lambda tile: taken[tile], default=None)
        return best if best and taken[best] < _seconds(partial(library, *inputs), x.device) else None
    except torch.OutOfMemoryError:  # comparing needs more of it than an answer does, for which there is enough
        return None


def _agrees(kind: str, call: Callable[[], Any], tile: Tile, wanted: Sequence[Tensor], x: Tensor) -> bool:
    if (kind, tile, x.device) in _FAILED:
        return False
    try:
        why = difference(wanted, tensors(call()), len(wanted[0]), BOUND_NARROW)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler or a driver: the library answers
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if why is not None:
        _FAILED.add((kind, tile, x.device))
        LOG.warning("inference: %s of %s is used no more, here with %s: %s", tile, kind, list(x.shape), why)
    return why is None


def tensors(found: Any) -> list[Tensor]:
    """The tensors that a way gives: one, or several of which some may be None."""
    return [one for one in (found if isinstance(found, tuple) else (found,)) if one is not None]


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of a call: the median of some rounds of several, the first of all not counted."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    call()
    for _ in range(_ROUNDS):
        wait()
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        wait()
        times.append((time.perf_counter() - start) / _CALLS)
    return median(times)
