"""What a training step costs: loss, backward and a step of SGD, from uint8 images, against the peer from normalised ones."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inference import HALF, LAYOUTS, timed
from benchmarks.limits import counting
from benchmarks.networks import PAIRS, Pair, our_loss, same_losses
from benchmarks.row import Found, Setting
from benchmarks.turns import Run

PLAIN = "model.loss"


def steps(setting: Setting, task: str, network: str, batch: int, side: int, half: bool = False) -> Found:
    """Ours against the peer in its best layout and in the one that it comes in; on a GPU in bfloat16, and with ``half`` on a processor in
    that and in float32."""
    on_gpu = setting.device == "cuda"
    if setting.dry:
        batch, side = 2, {"det": 128}.get(task, 64)
    pair = PAIRS[task](network, setting.device, side=side)
    pair.ours.train()
    pair.peer.train()
    pixels = pair.pictures(batch)
    images, targets = pair.ours.normalize(pixels), pair.targets(batch, side)
    found = Found("ms", proof=same_losses(pair, pixels, targets, pair.loss(pair.peer, targets), images))
    objective = partial(our_loss(pair.ours, targets), pixels)
    with counting() as work:
        step(pair.ours, objective)()
    ends = {HALF: True} if on_gpu else {HALF: True, "": False} if half else {"": False}
    layouts = {"channels_last": torch.channels_last} if half else LAYOUTS
    peer = partial(_peer, pair, images, targets)
    sides = {PLAIN + end: step(pair.ours, objective, half=bf16) for end, bf16 in ends.items()}
    theirs = {
        f"{pair.package} {layout}{end}": peer(kind, half=bf16)
        for layout, kind in layouts.items()
        for end, bf16 in ends.items()
    }
    if on_gpu:
        theirs[f"{pair.package} compiled{HALF}"] = peer(torch.channels_last, half=True, compiled=True)
    return timed(found, sides, theirs, work, setting)


def _peer(
    pair: Pair, images: Tensor, targets: Any, kind: torch.memory_format, *, half: bool = False, compiled: bool = False
) -> Run:
    network = copy.deepcopy(pair.peer).to(memory_format=kind)
    if compiled:
        network.compile()
    return step(network, partial(pair.loss(network, targets), images.contiguous(memory_format=kind)), half=half)


def step(network: nn.Module, loss: Any, *, half: bool = False) -> Run:
    """A training step: ``loss``, backward, one step of SGD; in bfloat16 by autocast if ``half``."""
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    device = next(network.parameters()).device.type

    def run() -> None:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            value = loss()
        torch.autograd.backward(value)
        optimiser.step()

    return run
