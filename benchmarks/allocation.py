"""What it gains that the commands keep freed memory (:func:`effbackbones.inference.allocating.memory_kept`): the same calls with and
without, in turns."""

from functools import partial

import torch

from benchmarks.inference import timed
from benchmarks.networks import our_loss, pictures
from benchmarks.row import Found, Ratio, Setting
from benchmarks.training import step
from benchmarks.turns import Run
from effbackbones import build_model
from effbackbones.inference.allocating import memory_kept

TIMES = 2


def kept(run: Run) -> Run:
    """Several times, with memory kept; the first of them, which asks for it, is part of it."""

    def inside() -> None:
        with memory_kept():
            for _ in range(TIMES):
                run()

    return inside


def usual(run: Run) -> Run:
    """As often, without."""

    def outside() -> None:
        for _ in range(TIMES):
            run()

    return outside


def seconds(setting: Setting, batch: int, side: int) -> Found:
    """An answer and a training step of B0."""
    batch, side = (2, 64) if setting.dry else (batch, side)
    model, images = build_model("cls", "b0").to(setting.device), pictures(batch, side, setting.device)
    targets = torch.zeros(batch, dtype=torch.long, device=setting.device)
    found = Found("ms", proof="the same calls")
    trained = step(model, partial(our_loss(model, targets), images))
    for name, run in (("predict", partial(model.predict, images)), ("step", trained)):
        model.train(name == "step")
        part = timed(Found("ms"), {f"{name}, memory kept": kept(run)}, {f"{name}, as usual": usual(run)}, None, setting)
        found.sides += part.sides
        found.ratios += [Ratio(one.ours, one.peer, one.median, one.low, one.high) for one in part.ratios]
    for one in found.sides:
        one.median, one.low, one.high = (value / TIMES for value in (one.median, one.low, one.high))
    return found
