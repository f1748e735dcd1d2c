"""The verb ``prune``: channels of the backbone that matter least are taken out, and what is left is an ordinary model file."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effbackbones.checkpoint import save_model
from effbackbones.errors import UserError
from effbackbones.model import Model
from effbackbones.pruning import blocks_of, choose, describe, magnitudes, pruned, sensitivities
from tasks.engine import batchnorm, feeding, splits
from tasks.engine.assembly import checkpoint_file
from tasks.engine.cost import multiply_adds, told_of_cost
from tasks.engine.evaluation import monitor, score_model
from tasks.engine.feeding import TrainingFeed
from tasks.engine.hardware import Hardware
from tasks.engine.order import Share
from tasks.engine.resume import seed_step
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.settings.verbs import VERBS
from tasks.spec import TaskSpec
from tasks.telling import Teller
from tasks.verbs.models import as_model, asked_model, open_split

_UNITS = {"M": 1e6, "G": 1e9}


def prune(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Write the model of ``--checkpoint`` with as few multiply-adds as ``--target`` says to ``--out``, and say what both cost and score."""
    tell, hardware, out = Teller(config.run.progress), Hardware.of(config), _out(extras)
    for name in ("multiple", "batches"):
        if extras.own[name] < 1:
            raise UserError(f"--{name}", f"expected at least 1, got {extras.own[name]}", "correct it")
    by_loss = extras.own["by"] == "taylor"
    if not by_loss and extras.own["batches"] != VERBS["prune"].defaults["batches"]:
        tell("--batches changes nothing: --by magnitude looks at no images")
    if extras.own["unscored"] and extras.split_named:
        tell("--split changes nothing: with --unscored nothing is scored")
    model, classes, config = asked_model(task, config, extras, tell, require_classes=True)
    blocks_of(model)  # refuses other backbones, before the work
    config, model = as_model(config, model), model.to(hardware.device)
    work = multiply_adds(model, *model.image_spec.size)
    most = _most(extras.own["target"], work)
    dataset = None
    if not extras.own["unscored"]:
        dataset = open_split(task, config, extras, model, classes)
        splits.same_labels(task, config, dataset, model.provenance, f"data.{extras.split}", "the model")
    steps = extras.own["batches"]
    feed = _training_images(task, config, model, extras, tell) if by_loss else None
    importances = _by_loss(task, config, model, feed, steps, tell) if feed else list(map(magnitudes, blocks_of(model)))
    blocks = describe(model, importances)
    small = pruned(model, choose(blocks, work - most, multiple=extras.own["multiple"], by_work=by_loss))
    if feed:  # the sums that batch norms see are others now; of one image a map of one cell has no variance
        batches = feed.steps(Share(), 0, steps) if config.data.batch_size > 1 else feed.few(2)
        batchnorm.estimate(small, batches, hardware.device)
    small.provenance.pop("operating_point", None)  # thresholds of other scores
    small.provenance["pruned"] = f"{extras.checkpoint} to {extras.own['target']} by {extras.own['by']}"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_model(small, out)
    decides = monitor(task, config, classes)
    for name, one, file in (("before", model, checkpoint_file(str(extras.checkpoint))), ("after", small, out)):
        line = f"{name}: {told_of_cost(one.to(hardware.device), file, hardware.device)}"
        if dataset is not None:
            judged = score_model(
                task, config, one, dataset=dataset, classes=classes, hardware=hardware, tell=tell, observe=False
            )
            score = decides.value(judged.scores)
            line += f"; {extras.split} {decides.name} {'undefined' if score is None else f'{score:.4f}'}"
        print(line)
    again = f"--model.weights null --model.init_from {out}"
    tell(f"pruned model {out}; training brings back what it lost: effbackbones train {task.command} ... {again}")
    return 0


def _out(extras: Extras) -> Path:
    """The file to write; what the line lacks raises :class:`UserError`."""
    if not extras.checkpoint:
        raise UserError("--checkpoint", "no trained model is named", "give --checkpoint FILE|RUN")
    if not extras.out or Path(extras.out).suffix != ".safetensors":
        raise UserError("--out", f"expected the name of a model file, got {extras.out}", "give --out FILE.safetensors")
    out, model = Path(extras.out), checkpoint_file(extras.checkpoint)
    if out.resolve() == model.resolve():
        raise UserError(
            "--out", f"{out} is the model that is to be pruned", "name another file: that one would be lost"
        )
    return out


def _most(target: str | None, work: int) -> float:
    """Multiply-adds of an image at most, of a model that takes ``work`` now."""
    read = re.fullmatch(r"([0-9]*\.?[0-9]+)(x|M|G)", target or "")
    if read is None:
        raise UserError("--target", f"expected 0.5x, 200M or 0.2G multiply-adds, got {target}", "give one of them")
    most = float(read[1]) * (work if read[2] == "x" else _UNITS[read[2]])
    if not 0 < most < work:
        what = f"{target} is not less than what the model takes, {work / 1e6:.4g} M multiply-adds, or nothing"
        raise UserError("--target", what, "ask for less than 1x, and more than 0")
    return most


def _training_images(task: TaskSpec, config: Config, model: Model, extras: Extras, tell: Teller) -> TrainingFeed:
    dataset = open_split(task, config, replace(extras, split="train"), model, model.classes)
    feed, told = feeding.training_feed(config, task, task.view(config, dataset), model)
    for line in told:
        tell(line)
    return feed


def _by_loss(
    task: TaskSpec, config: Config, model: Model, feed: TrainingFeed, steps: int, tell: Teller
) -> list[tuple[Tensor, Tensor]]:
    """Importances from the gradients of the loss on training batches, in eval mode: batch norms stay as they are."""
    device, blocks = next(model.parameters()).device, blocks_of(model)
    model.requires_grad_(True)
    sums: list[tuple[Any, Any]] = [(0.0, 0.0)] * len(blocks)
    for step, batch in enumerate(tell.watch(feed.steps(Share(), 0, steps), "weigh")):
        batch = batch.to(device)
        seed_step(config.run.seed, step)  # augmentation on the device may draw
        images, targets = task.augment(config, batch, model.head.num_classes, step)
        model.zero_grad()
        torch.autograd.backward(torch.stack(list(model.loss(images, targets, batch.sizes).values())).sum())
        found = map(sensitivities, blocks)
        sums = [(all_ + one, gates + gate) for (all_, gates), (one, gate) in zip(sums, found, strict=True)]
    model.zero_grad()
    return sums
