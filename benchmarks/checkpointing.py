"""What activation checkpointing gains and costs: a training step with it against one without, of the same network."""

import copy
from functools import partial
from typing import Any

import torch

from benchmarks.inference import timed
from benchmarks.networks import our_loss, pictures, without_chance
from benchmarks.peaks import compared, in_process, most
from benchmarks.row import Found, Setting
from benchmarks.training import step
from effbackbones import build_model
from effbackbones.errors import UserError
from effbackbones.model import Model

WITH, WITHOUT = "with checkpointing", "without"


def model_for(backbone: str, checkpointing: bool) -> Model:
    """A classifier in training mode."""
    options = {"checkpointing": checkpointing}
    return build_model("cls", backbone, num_classes=10, backbone_options=options).train()


def seconds(setting: Setting, backbone: str, batch: int, side: int) -> Found:
    """Times of both."""
    side = 64 if setting.dry else side
    plain, thrifty = model_for(backbone, False).to(setting.device), model_for(backbone, True).to(setting.device)
    thrifty.load_state_dict(copy.deepcopy(plain.state_dict()))
    pixels, targets = pictures(batch, side, setting.device), torch.zeros(batch, dtype=torch.long, device=setting.device)
    runs: dict[str, Any] = {
        name: step(model, partial(our_loss(model, targets), pixels))
        for name, model in ((WITH, thrifty), (WITHOUT, plain))
    }
    with without_chance(plain, thrifty), torch.no_grad():
        mine, other = (float(our_loss(model, targets)(pixels)) for model in (thrifty, plain))
    if not abs(mine - other) <= 1e-4 * abs(other):
        raise UserError("loss", f"{mine} with checkpointing, {other} without", "the sides do not do the same work")
    return timed(Found("ms", proof="losses equal"), {WITH: runs[WITH]}, {WITHOUT: runs[WITHOUT]}, None, setting)


def memory(setting: Setting, backbone: str, batch: int, side: int) -> Found:
    """Megabytes of both, each in a process of its own."""
    side = 64 if setting.dry else side
    sides = {}
    for name in (WITH, WITHOUT):
        told = {"backbone": backbone, "batch": batch, "side": side, "checkpointing": name == WITH}
        sides[name] = in_process("benchmarks.checkpointing:training_step", setting, told)
    return compared(sides, [WITH])


def training_step(device: str, backbone: str, batch: int, side: int, checkpointing: bool) -> float:
    """Megabytes of one of them."""
    model = model_for(backbone, checkpointing).to(device)
    targets = torch.zeros(batch, dtype=torch.long, device=device)
    return most(step(model, partial(our_loss(model, targets), pictures(batch, side, device))), device, 2)
