"""The verb ``plan``: which member of a family of networks fits into this machine, and how it is trained there."""

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from effbackbones.backbones.scaling import SCALINGS
from effbackbones.errors import UserError
from effbackbones.registry import BACKBONES
from effbackbones.weights.tensorfile import write_atomically
from tasks.engine import hardware, splits
from tasks.engine.cost import free_memory
from tasks.engine.foresight import better, enough
from tasks.engine.order import Share
from tasks.engine.rehearsal import Limits, Trial
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import Teller
from tasks.verbs.candidates import Candidate, Wish
from tasks.verbs.planned import command_line, config_file, final_config, sentences, table, verified
from tasks.verbs.rehearsing import rehearsed

TRIAL_SECONDS = 1.0
"""A trial is not made larger when it would take longer."""
_UNITS = {"M": 1.0, "G": 1024.0, "T": 1024.0**2}


def plan(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Try each candidate at small sizes, foresee the rest, choose the largest that fits, and try that one at its full size: a table, the
    choice, what it takes and the command that trains it, on standard output. Nothing that fits raises :class:`UserError`."""
    tell, own = Teller(config.run.progress), extras.own
    if extras.out and Path(extras.out).suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {extras.out}", "expected the name of a config", "end it in .yaml")
    if extras.out and own["for"] == "predict":
        raise UserError("--out", "gets the config of a training, and --for predict plans none", "leave one of them out")
    config = _asked(config, extras)
    wish = _wish(config, own, sized="data.image_size" in extras.overrides)
    names = _backbones(config, own["backbone"])
    tell(f"planned for the config {extras.config_source}")
    measured, images = _with_data(task, config, own["images"], tell)
    found: list[Candidate] = []
    with tell.bar(len(names), 0, "plan", "backbone"):
        for number, name in enumerate(names):
            found.append(_tried(task, measured, name, wish))
            tell.step(number + 1, 1, {name: found[-1].verdict})
    found.sort(key=lambda one: one.foresight.facts.multiply_adds)
    chosen, trials = _chosen(task, found, wish, tell, verify=not own["no_verify"])
    print(table(found, wish, task.name))
    if chosen is None:
        raise _nothing(found, wish)
    told = [*sentences(chosen, found, wish, task.name, images), *verified(chosen, trials)]
    print("", *told, sep="\n")
    if wish.purpose == "train":
        final = final_config(chosen, config)
        line = command_line(task.command, final, extras)
        if extras.out:
            write_atomically(Path(extras.out), config_file(final, told).encode())
            line = f"effbackbones train {task.command} --config {extras.out}"
        print(f"\n{line}")
    return 0


def _asked(config: Config, extras: Extras) -> Config:
    """The config with what the options of the verb say of it; what is said twice raises :class:`UserError`."""
    own, model, data, run = extras.own, config.model, config.data, config.run
    for option, key in (("device", "run.device"), ("head", "model.head"), ("batch", "data.batch_size")):
        if own[option] is not None and key in extras.overrides:
            raise UserError(f"--{option}", f"says what --{key} says", "keep one of the two")
    if own["backbone"] is not None and "model.backbone" in extras.overrides:
        raise UserError("--backbone", "names those to choose from, and --model.backbone one", "keep one of the two")
    if own["head"]:
        model = replace(model, head=own["head"])
    if own["batch"] is not None:
        if own["batch"] < 1:
            raise UserError("--batch", f"expected 1 or more images, got {own['batch']}", "correct it")
        data = replace(data, batch_size=own["batch"])
    if own["device"]:
        run = replace(run, device=own["device"])
    return replace(config, model=model, data=data, run=run)


def _wish(config: Config, own: Any, *, sized: bool) -> Wish:
    device = hardware.run_device(config)
    free = free_memory(device)
    if own["memory"] is None and free is None:
        raise UserError("--memory", "is needed here: this system does not say what is free", "give it: --memory 12G")
    memory = free if own["memory"] is None else _megabytes(own["memory"])
    assert memory is not None
    world = config.run.processes * config.run.nodes
    return Wish(
        memory,
        None if own["latency"] is None else _seconds(own["latency"]),
        own["for"],
        Share(world=world).split(config.data.batch_size),
        str(device),
        hardware.precision(config, device),
        min(memory, 0.7 * free) if free is not None else memory,
        said=own["memory"] is not None,
        sized_for="" if sized else config.model.backbone,
    )


def _megabytes(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]?)(?:i?B)?", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"--memory {text}", "expected a size such as 12G or 800M", "correct it")
    if not found[2]:
        raise UserError(f"--memory {text}", "has no unit", f"write {text}G or {text}M")
    return float(found[1]) * _UNITS[found[2].upper()]


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text)
    if not found or not float(found[1]):
        raise UserError(f"--latency {text}", "expected a time such as 15ms or 0.5s", "correct it")
    return float(found[1]) / (1e3 if found[2] == "ms" else 1)


def _with_data(task: TaskSpec, config: Config, images: int | None, tell: Teller) -> tuple[Config, int | None]:
    """The config with as many classes as its data have, and how many images there are to train on; without data, as they are said."""
    if images is not None and images < 1:
        raise UserError("--images", f"is {images}", "give how many, 1 or more")
    if config.data.root is None and config.data.name != "shapes":
        tell("data.root is not given: no data are read, classes are as many as config or head say")
        return config, images
    dataset = splits.open_dataset(config, task, "train")
    count = task.heads(config, dataset)["num_classes"]
    if isinstance(count, int):
        config = replace(config, model=replace(config.model, num_classes=count))
    return config, images or len(dataset)


def _backbones(config: Config, said: str | None) -> list[str]:
    """Those that are named, else the family of the config's: the rows of its table."""
    if said is None:
        own = BACKBONES.canonical(config.model.backbone)
        row = SCALINGS.get(own)
        return [name for name, one in SCALINGS.items() if row and one.family == row.family] or [own]
    names = [BACKBONES.canonical(name.strip()) for name in said.split(",")]
    for name in names:
        BACKBONES.get(name)  # unknown ones are refused before minutes of work
    return list(dict.fromkeys(names))


def _tried(task: TaskSpec, config: Config, backbone: str, wish: Wish) -> Candidate:
    """A backbone with what is foreseen of it: with its activations recomputed, where that is better."""
    plain = _candidate(task, config, backbone, wish)
    if wish.purpose == "predict" or plain.too_slow(wish) or enough(plain.step, wish.batch):
        return plain
    options = {**config.model.backbone_options, "checkpointing": True}
    saving = replace(config, model=replace(config.model, backbone_options=options))
    try:
        recomputed = _candidate(task, saving, backbone, wish)
    except UserError:  # not every network can
        return plain
    return recomputed if better(plain.step, recomputed.step, wish.batch) else plain


def _candidate(task: TaskSpec, config: Config, backbone: str, wish: Wish) -> Candidate:
    """A backbone, tried in a process of its own."""
    tried = replace(
        config,
        # The size follows from the backbone, not from weights, and nothing is fetched to plan.
        model=replace(config.model, backbone=backbone, weights=None, init_from=None),
        optim=replace(config.optim, accumulate=1),
        data=replace(config.data, batch_size=wish.batch),
        run=replace(config.run, devices=1, nodes=1),
    )
    kinds = ("predict",) if wish.purpose == "predict" else ("predict", "train")
    limits = Limits(TRIAL_SECONDS, wish.bound, kinds)
    with closing(rehearsed(task.command, tried, wish.sized_for or backbone, limits)) as rows:
        return Candidate.of(rows, wish)


def _chosen(
    task: TaskSpec, found: Sequence[Candidate], wish: Wish, tell: Teller, *, verify: bool
) -> tuple[Candidate | None, list[Trial]]:
    """The largest that fits, also when it is tried at its full size, and what that gave. Those that are trained on too few images at a
    time come last, those on most of them first."""
    fitting = [candidate for candidate in found if candidate.fits]
    for candidate in sorted(fitting, key=lambda one: one.rank(wish), reverse=True):
        if not verify:
            return candidate, []
        tell(f"{candidate.backbone} is tried at its full size")
        trials = _whole(task, candidate, wish)
        takes = max((trial.megabytes for trial in trials), default=None)
        if takes is not None and takes <= wish.memory:
            return candidate, trials
        candidate.refuse("too large when tried", takes)
        tell(f"{candidate.backbone} takes more than was foreseen: the next smaller one")
    return None, []


def _whole(task: TaskSpec, candidate: Candidate, wish: Wish) -> list[Trial]:
    """Prediction and training at full size, each in a process of its own; none, where one of them runs out of memory."""
    trials = []
    for kind in ("predict", "train") if candidate.step else ("predict",):
        limits = Limits(TRIAL_SECONDS, wish.memory, (kind,), whole=True)
        with closing(rehearsed(task.command, candidate.whole(), candidate.backbone, limits)) as rows:
            for row in rows:
                if row["of"] == "memory":
                    return []
                if row["of"] == kind:
                    trials.append(Trial(**row))
    return trials


def _nothing(found: Sequence[Candidate], wish: Wish) -> UserError:
    """What is said where nothing fits: what the smallest needs."""
    least = found[0]
    size = "x".join(map(str, least.foresight.facts.size))
    if least.too_slow(wish):
        takes = f"{1e3 * least.foresight.latency():.1f} ms"
        what = f"nothing is so fast: the smallest, {least.backbone} at {size}, takes {takes} an image"
        return UserError("--latency", what, "allow more, or lower data.image_size")
    needs = f"needs {least.needs / 1024:.2f} GB" if least.needs else "ran out of it in its smallest trial"
    what = f"nothing fits into {wish.memory / 1024:.3g} GB: the smallest, {least.backbone} at {size}, {needs}"
    return UserError("--memory", what, "allow more, lower data.image_size, or see --for predict")
