"""How the verb ``plan`` tells what it found: the table of candidates, the choice in words, and the command or config that trains it."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from effbackbones.errors import UserError
from effbackbones.registry import DEFAULT_HEADS, HEADS
from effbackbones.weights.classifiers import find_source
from tasks.engine.foresight import ENOUGH, enough
from tasks.engine.plan import Plan
from tasks.engine.rehearsal import Trial
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.settings.tree import SEVERAL, dump, to_mapping
from tasks.verbs.candidates import Candidate, Wish

REAL_TIME = (25, 30)
"""Images a second of film, and of most cameras."""
_OWN = ("model.backbone", "data.image_size", "data.crop_size", "data.batch_size", "optim.accumulate")
"""Keys that the plan itself says."""


def table(found: Sequence[Candidate], wish: Wish, task: str) -> str:
    """A line for each candidate: memory in GB, times, and whether it fits."""
    train = wish.purpose == "train"
    head = f"{'backbone':<12}{'image':<12}" + (f"{'batch':<9}{'step GB':>8}{'step s':>8}{'img/s':>8}" if train else "")
    lines = [f"{head}{'predict GB':>11}{'ms':>9}{'img/s':>8}  {'published':<13}verdict"]
    for one in found:
        tried = one.foresight.of("predict")
        row = f"{one.backbone + ('*' if one.checkpointing else ''):<12}{_size(one.foresight.facts.size):<12}"
        if train and one.step:
            step, batch = one.step, wish.batch
            pieces = f"{step.pieces}x{step.images}" if step.pieces > 1 else f"{batch}"
            row += f"{pieces:<9}{step.megabytes / 1024:>8.2f}{step.seconds:>8.2f}{batch / step.seconds:>8.1f}"
        elif train:
            row += f"{'-':<9}" + f"{'-':>8}" * 3
        if tried:
            seconds = one.foresight.latency()
            row += f"{one.foresight.predicting() / 1024:>11.2f}{1e3 * seconds:>9.1f}{1 / seconds:>8.1f}"
        else:
            row += f"{'-':>11}{'-':>9}{'-':>8}"
        needs = f", {one.needs / 1024:.1f} GB at least" if one.needs else ""
        lines.append(f"{row}  {published(task, one) or '-':<13}{one.verdict}{needs}")
    if any(one.checkpointing for one in found):
        lines.append("* with activations recomputed in the backward pass (checkpointing)")
    return "\n".join(lines)


def published(task: str, one: Candidate) -> str:
    """What its publishers reached with it: AP on COCO of the detector that there are weights of, else top-1 on ImageNet of the backbone."""
    on = _published_on(task, one)
    try:
        source = find_source("coco" if on == "COCO" else "imagenet", one.backbone)
    except UserError:
        return ""
    name, score = ("AP", source.ap) if on == "COCO" else ("top-1", source.top1)
    return "" if score is None else f"{name} {score:.1f}"


def _published_on(task: str, one: Candidate) -> str:
    """Other heads on a backbone than the published detector's share nothing with it but the backbone."""
    own = task == "det" and HEADS.canonical(one.config.model.head or DEFAULT_HEADS["det"]) == DEFAULT_HEADS["det"]
    return "COCO" if own else "ImageNet"


def sentences(chosen: Candidate, found: Sequence[Candidate], wish: Wish, task: str, images: int | None) -> list[str]:
    """The choice, what training and predicting take, and what is known of its quality."""
    limit = f"{wish.memory / 1024:.3g} GB" + ("" if wish.said else ", which are free here")
    speed = f" and answers within {1e3 * wish.latency:g} ms" if wish.latency else ""
    name, count, on = (
        f"{chosen.backbone} at {_size(chosen.foresight.facts.size)}",
        len(found),
        f"{wish.precision} on {wish.device}",
    )
    if chosen.step is None or enough(chosen.step, wish.batch):
        lines = [f"{name} is the largest of {count} that fits into {limit}{speed} ({on})"]
    else:
        lines = [f"none of {count} trains on {ENOUGH} images at a time in {limit}{speed} ({on}); {name} does on most"]
    if chosen.step:
        lines += _of_training(chosen, wish, images)
    seconds = chosen.foresight.latency()
    film, camera = REAL_TIME
    real = "real time" if 1 / seconds >= camera else f"real time at {film}, not at {camera}"
    if 1 / seconds < film:
        real = f"not real time, which is {film} to {camera}"
    timed = f"the network {'and its suppression ' if task in ('det', SEVERAL) else ''}alone"
    lines.append(
        f"predicting: {1e3 * seconds:.1f} ms an image (median, {timed}), {1 / seconds:.1f} a second: "
        f"{real}; {chosen.foresight.predicting() / 1024:.2f} GB"
    )
    if said := published(task, chosen):
        place = _published_on(task, chosen)
        lines.append(f"published for {chosen.backbone} on {place}: {said}, of its publishers, not measured here")
    return lines


def _of_training(chosen: Candidate, wish: Wish, images: int | None) -> list[str]:
    step, config = chosen.step, chosen.config
    assert step is not None
    how = f"{wish.batch} images at once"
    if step.pieces > 1:
        how = f"{wish.batch} images in {step.pieces} pieces of {step.images}"
    lines = [
        f"training: a step of {how}: {step.megabytes / 1024:.2f} GB, {step.seconds:.3g} s, {wish.batch / step.seconds:.1f} images/s; "
        "data workers take memory of their own"
    ]
    if chosen.checkpointing:
        lines.append(
            "activations are recomputed in the backward pass: batch norm sees more images at a time, for more time"
        )
    if not enough(step, wish.batch):
        lines.append(
            f"batch norm sees {step.images} at a time, which is few: model.freeze, more memory or a smaller scale help"
        )
    if images is None:
        lines.append("hours: --images N says how many there are to train on, or --data.root where they lie")
        return lines
    steps = Plan.of(replace(config, optim=replace(config.optim, accumulate=1)), images).total
    epochs = f"{config.optim.epochs:g} epochs of {images:,} images" if not config.optim.max_steps else "all"
    hours = steps * step.seconds / 3600
    lines.append(f"{epochs}: {steps:,} steps, {hours:,.1f} hours of computing, without evaluation and waiting for data")
    return lines


def verified(chosen: Candidate, trials: Sequence[Trial]) -> list[str]:
    """What was foreseen, beside what was measured at full size."""
    if not trials:
        return []
    lines = ["", f"{'tried at full size':<26}{'foreseen':>10}{'measured':>10}{'off by':>9}"]
    foresight, step = chosen.foresight, chosen.step
    for trial in trials:
        if trial.of == "train" and step is not None:
            lines.append(_beside("training step, GB", step.megabytes / 1024, trial.megabytes / 1024))
            lines.append(_beside("training step, s", step.seconds, trial.seconds))
        elif trial.of == "predict":
            lines.append(_beside("prediction, GB", foresight.predicting() / 1024, trial.megabytes / 1024))
            lines.append(_beside("prediction, ms", 1e3 * foresight.latency(), 1e3 * trial.seconds))
    return lines


def _beside(name: str, foreseen: float, measured: float) -> str:
    return f"{name:<26}{foreseen:>10.4g}{measured:>10.4g}{(foreseen - measured) / measured:>+9.1%}"


def final_config(chosen: Candidate, config: Config) -> Config:
    """The config that was asked for, with what the plan says in it."""
    planned = chosen.whole()
    model = replace(
        config.model, backbone=chosen.backbone, backbone_options=planned.model.backbone_options, head=planned.model.head
    )
    height, width = chosen.foresight.facts.size
    # One row is a window of recordings, whose length is an option of the backbone.
    size = config.data.image_size if height == 1 else height if height == width else (height, width)
    data = replace(config.data, image_size=size, crop_size=planned.data.crop_size)
    return replace(config, model=model, data=data, optim=replace(config.optim, accumulate=planned.optim.accumulate))


def config_file(final: Config, told: Sequence[str]) -> str:
    """The whole config as YAML, with what is foreseen of it as comments."""
    return "".join(f"# {line}\n" for line in told if line) + dump(final)


def command_line(command: str, final: Config, extras: Extras) -> str:
    """The line that trains it: the config that was named, with what the line and the plan say of it."""
    mapping: Any = to_mapping(final)
    keys = [key for key in extras.overrides if key not in _OWN and not key.startswith("model.backbone_options")]
    keys += ["model.backbone", *(["data.image_size"] if final.data.image_size is not None else [])]
    keys += ["data.crop_size"] if final.data.crop_size is not None else []
    keys += ["data.batch_size"] if extras.own["batch"] is not None or "data.batch_size" in extras.overrides else []
    keys += ["optim.accumulate"]
    keys += ["model.backbone_options"] if final.model.backbone_options.get("checkpointing") else []
    keys += ["run.device"] if extras.own["device"] else []
    keys += ["model.head"] if extras.own["head"] else []
    words = ["effbackbones", "train", command, "--config", extras.config_source or "CONFIG"]
    for key in dict.fromkeys(keys):
        value = mapping
        for name in key.split("."):
            value = value[name]
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    if final.data.root is None and final.data.name != "shapes":
        words += ["--data.root", "ROOT"]
    return shlex.join(words)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
