"""From a config to a model: built or loaded."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from effbackbones.build import build_model
from effbackbones.checkpoint import load_model
from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from effbackbones.export.record import format_of
from effbackbones.inference.exported import ExportedModel
from effbackbones.model import Model
from effbackbones.multihead import MultiHead
from effbackbones.weights.record import plain
from effbackbones.weights.repository import fetch_repository, is_repository
from tasks.data.dataset import Dataset
from tasks.data.door.reading import image_spec, reading_spec
from tasks.data.pixels import mean_and_std
from tasks.engine.rundir import BEST
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import say


def make_model(config: Config, task: TaskSpec, dataset: Dataset | None, tell: Callable[[str], None] = say) -> Model:
    """The configured model, with its weights; the training data, if there are any, decide which classes it has."""
    return begin_model(config, task, dataset, tell)[0]


def begin_model(
    config: Config,
    task: TaskSpec,
    dataset: Dataset | None,
    tell: Callable[[str], None],
    begun: Mapping[str, Any] | None = None,
) -> tuple[Model, Mapping[str, Any]]:
    """As :func:`make_model`, and what its weights made of what it was asked to be, JSON-like. ``begun``: that of a run that continues,
    whose own weights follow; where the same is asked, no others are read, which may be gone."""
    wanted = config.model
    backbone_options = dict(wanted.backbone_options)
    if wanted.numerics:
        backbone_options["numerics"] = wanted.numerics
    channels = config.data.options.get("channels", 3)
    if channels != 3 and backbone_options.setdefault("in_channels", channels) != channels:
        what = f"is {backbone_options['in_channels']}, and data.options.channels {channels}"
        raise UserError("model.backbone_options.in_channels", what, "remove it: it follows from the data")
    asked = {"backbone": wanted.backbone, "backbone_options": backbone_options, **task.heads(config, dataset)}
    if begun is not None and begun["asked"] == str(asked):
        model = build_model(weights=None, **begun["config"])
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in begun["image_spec"].items()
        }
        model.use_image_spec(ImageSpec(**values))
        model.provenance = dict(begun["provenance"])
    else:
        weights = wanted.weights or (checkpoint_file(wanted.init_from) if wanted.init_from else None)
        with _unlogged():
            model = build_model(weights=weights, **asked)
        begun = _beginning(asked, model)
    model.classes = (
        model.classes if dataset is None else task.classes(config, dataset)
    )  # published detectors know theirs
    model.reading = reading_spec(config.data)
    spec = image_spec(config, model.image_spec)
    if wanted.normalization == "data" and dataset is not None:
        mean, std = mean_and_std(dataset, tell)
        spec = replace(spec.for_channels(len(mean)), mean=mean, std=std)
    model.use_image_spec(spec)
    if wanted.freeze:
        model.backbone.freeze(None if wanted.freeze == "all" else wanted.freeze)
    return model, begun


def _beginning(asked: Mapping[str, Any], model: Model) -> Mapping[str, Any]:
    found = {"config": model.config, "image_spec": model.image_spec, "provenance": model.provenance}
    return {"asked": str(asked), "model": str(model.config), **plain(found, "model")}


@contextmanager
def _unlogged() -> Iterator[None]:
    """Within, the core logs nothing: a command tells where its weights came from itself, once for all processes."""
    logger = logging.getLogger("effbackbones")

    def none(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(none)
    try:
        yield
    finally:
        logger.removeFilter(none)


def told_of_resting(config: Config, model: Model) -> Iterator[str]:
    """A line for each option of a head that ``config`` sets and that changes nothing."""
    head: Any = model.head
    if isinstance(head, MultiHead):
        given = {word: config.heads[word].options if word in config.heads else {} for word in head.heads}
        heads: Any = [(f"heads.{word}.options", given[word], head.heads[word]) for word in head.heads]
    else:
        heads = [("model.head_options", config.model.head_options, head)]
    for where, options, one in heads:
        for name, why in one.resting().items():
            if name in options:
                yield f"{where}.{name} is set and changes nothing: {why}"


def checkpoint_file(name: str) -> Path:
    """The model file that ``name`` says: itself, the best one of a run folder, or that of a repository (``hf-hub:USER/NAME``)."""
    if is_repository(name):
        return fetch_repository(name)
    path = Path(name)
    return path / BEST if path.is_dir() else path


def load_or_make(config: Config, task: TaskSpec, checkpoint: str | None) -> Model:
    """A trained model from its file, or the configured one with its published weights. In eval mode."""
    if checkpoint is None:
        made = make_model(config, task, None).eval()
        for sentence in made.provenance.get("assumed", ()):
            say(sentence)
        return made
    file = checkpoint_file(checkpoint)
    model = load_model(file) if format_of(file) is None else ExportedModel.open(file)
    told, wanted = model.config["task"], config.model.task
    if (sorted(told) if isinstance(told, list) else told) != (sorted(wanted) if isinstance(wanted, tuple) else wanted):
        remedy = f"use that task's command, not {task.command}" if isinstance(wanted, str) else "set model.task to that"
        raise UserError(checkpoint, f"holds a model for task {told!r}", remedy)
    return model
