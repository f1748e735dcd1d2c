"""What an answer costs: ``Model.predict`` from uint8 images, as a user types it, against the peer from normalised ones."""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.limits import counting, measure
from benchmarks.networks import PAIRS, Pair, same_answers
from benchmarks.profiles import shares
from benchmarks.row import Found, Ratio, Setting, Side
from benchmarks.turns import Run, Spread, in_turns, ratios
from effbackbones.backbones import passes
from effbackbones.errors import UserError
from effbackbones.model import Model

HALF = ", bf16"
LIBRARY = ", no kernels of ours"
PLAIN = "model.predict"
RUNTIMES = ("onnxruntime", "openvino")  # whose operators are not torch's
LAYOUTS = {"channels_last": torch.channels_last, "as shipped": torch.contiguous_format}


def answers(setting: Setting, task: str, network: str, batch: int, side: int) -> Found:
    """Ours, plain and by ``for_inference`` in each backend that is installed, against the peer."""
    if setting.dry:
        side = {"det": 128}.get(task, 64)
    device = setting.device
    pair = PAIRS[task](network, device, side=side)
    pair.ours.eval()
    pair.peer.eval()
    pixels = pair.pictures(batch)
    images = pair.ours.normalize(pixels)
    found = Found("ms")
    with torch.inference_mode():
        wanted = pair.answer(pair.peer)(images)
        found.proof = same_answers(pair.ours.predict(pixels), wanted, "answers")
    ours: dict[str, Run] = {PLAIN: partial(pair.ours.predict, pixels)}
    for name, model, dtype in variants(pair.ours, setting, found.notes):
        try:
            with told() as lines:
                same_answers(model.predict(pixels), wanted, name, dtype)
            warnings = [line for line in lines if "is not used" in line]
        except (UserError, RuntimeError) as error:
            warnings = [str(error).splitlines()[0]]
        found.notes += [f"{name}: {warning}" for warning in warnings]
        if not warnings:  # one that fell back would be timed under a wrong name
            ours[name] = partial(model.predict, pixels)
    with torch.no_grad(), counting() as work:
        pair.ours.predict(pixels)
    return timed(found, ours, peers(pair, images, setting), work, setting)


def variants(model: Model, setting: Setting, notes: list[str]) -> Iterator[tuple[str, Model, torch.dtype]]:
    """``model.for_inference`` in each way that this machine has; why one could not be had goes to ``notes``."""
    takes = inspect.signature(model.for_inference).parameters
    if "backend" not in takes:
        yield "for_inference", model.for_inference(), torch.float32
        return
    for backend in setting.backends:
        for dtype in (torch.float32, torch.bfloat16):
            half = dtype == torch.bfloat16
            if backend == "compile" and setting.device == "cuda" and not half:
                continue  # minutes, for what nobody uses there
            name = f"for_inference, {backend}{HALF if half else ''}"
            options: dict[str, Any] = {"backend": backend} | ({"dtype": dtype} if half else {})
            try:
                yield name, model.for_inference(**options), dtype
                if setting.device == "cuda" and half and backend == "eager":
                    yield name + LIBRARY, _by_the_library(model, options), dtype
            except (UserError, RuntimeError, ImportError) as error:
                notes.append(f"{name}: {str(error).splitlines()[0]}")


def _by_the_library(model: Model, options: Mapping[str, Any]) -> Model:
    """A copy for inference without kernels of ours: what these are compared with."""
    before, passes.ENABLED = passes.ENABLED, False
    try:
        return model.for_inference(**options)
    finally:
        passes.ENABLED = before


class _Kept(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def told() -> Iterator[list[str]]:
    """The warnings that the package gives inside."""
    lines: list[str] = []
    handler, log = _Kept(lines), logging.getLogger("effbackbones")
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def peers(pair: Pair, images: Tensor, setting: Setting) -> dict[str, Run]:
    """The peer in its best layout and in the one that it comes in; each has weights of its own. On a GPU in bfloat16, and compiled."""
    found: dict[str, Run] = {}
    for layout, kind in LAYOUTS.items():
        network = copy.deepcopy(pair.peer).to(memory_format=kind)
        arranged = images.contiguous(memory_format=kind)
        found[f"{pair.package} {layout}"] = _without_gradients(pair.answer(network), arranged)
    if setting.device == "cuda":
        network = copy.deepcopy(pair.peer).to(memory_format=torch.channels_last).bfloat16()
        network.compile()
        arranged = images.bfloat16().contiguous(memory_format=torch.channels_last)
        found[f"{pair.package} compiled{HALF}"] = _without_gradients(pair.answer(network), arranged)
    return found


def _without_gradients(answer: Callable[[Tensor], Any], images: Tensor) -> Run:
    def run() -> None:
        with torch.inference_mode():
            answer(images)

    return run


def timed(found: Found, ours: Mapping[str, Run], theirs: Mapping[str, Run], work: Any, setting: Setting) -> Found:
    """Times of all sides in turns, the ratios of each of ours to each peer, and the shares of the limits that they reach."""
    limits = measure(setting.device)
    times = in_turns({**ours, **theirs}, 2 if setting.dry else setting.rounds, setting.device)
    for name, seconds in times.items():
        spread = Spread.of(seconds)
        share = work.share(spread.median, limits, half=HALF in name) if work else {}
        median, low, high = (1e3 * value for value in (spread.median, spread.low, spread.high))
        run = {**ours, **theirs}[name]
        spent = {} if any(runtime in name for runtime in RUNTIMES) else shares(run, setting.device)
        found.sides.append(Side(name, name in ours, median, low, high, spread.count, share, spent))
    for mine in ours:
        for peer in theirs:
            ratio = ratios(times[mine], times[peer])
            found.ratios.append(Ratio(mine, peer, ratio.median, ratio.low, ratio.high))
    if work:
        found.work = {"gflop": work.flops / 1e9, "megabytes": work.bytes / 1e6}
    found.limits = limits.record()
    return found
