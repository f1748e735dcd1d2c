"""The model that a verb is asked for, and the names of its classes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from effbackbones.checkpoint import with_head_options
from effbackbones.contracts import head_options
from effbackbones.errors import UserError, nearest
from effbackbones.inference.exported import ExportedHead
from effbackbones.inference.predictor import faster
from effbackbones.model import Model
from effbackbones.multihead import MultiHead
from effbackbones.registry import TASKS
from effbackbones.weights.repository import is_repository
from tasks.data.dataset import Dataset
from tasks.data.door.reading import image_spec, read_as
from tasks.engine import assembly, splits
from tasks.engine.hardware import Hardware
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config, HeadConfig
from tasks.settings.tree import to_mapping
from tasks.spec import TaskSpec


class Asked(NamedTuple):
    """What a verb is asked to work with: a ``model`` in eval mode; the names of its ``classes``: its own, those of published weights,
    or numbers; and the ``config`` that reads images as the model file says, but for what the command line says itself."""

    model: Model
    classes: Any
    config: Config


def asked_model(
    task: TaskSpec, config: Config, extras: Extras, tell: Callable[[str], None], *, require_classes: bool
) -> Asked:
    """The model that a command line names. Where images are read otherwise than the model was made with is told."""
    if extras.checkpoint is None and config.model.weights is None:
        raise UserError(
            "--checkpoint", "no trained model is named", "give --checkpoint FILE|RUN, or --model.weights imagenet"
        )
    model = assembly.load_or_make(config, task, extras.checkpoint)
    if extras.checkpoint:
        model = as_asked(config, extras, model)
    if extras.checkpoint is None and model.provenance.get("dialect") == "effbackbones":
        what = f"{config.model.weights} is a whole model, which knows its classes"
        raise UserError("model.weights", what, f"give --checkpoint {config.model.weights} instead")
    if extras.checkpoint is None and model.provenance.get("untrained_head"):
        what = f"{config.model.weights} holds no whole {task.command} head: what it says would be random"
        raise UserError("model.weights", what, "train one, and give --checkpoint FILE|RUN")
    if extras.checkpoint:
        model.use_image_spec(image_spec(config, model.image_spec))
    counts = model.config["num_classes"]
    several = isinstance(counts, Mapping)
    classes = model.classes or (None if several else task.default_classes(int(counts)))
    if classes is None and require_classes:
        where = extras.checkpoint or "model.weights"
        raise UserError(where, "the names of its classes are not known", "evaluate a model that was saved with them")
    if model.reading is not None and extras.checkpoint:
        data, told = read_as(config.data, model.reading, extras.overrides, model.image_spec.rate)
        for sentence in told:
            tell(sentence)
        config = replace(config, data=data)
    if not classes:
        classes = {word: _unnamed(count) for word, count in counts.items()} if several else _unnamed(int(counts))
    return Asked(model, classes, config)


def answering(hardware: Hardware, extras: Extras, model: Model) -> tuple[Hardware, Model]:
    """The model on its device, or the copy for inference that the line asks for, and the hardware with its arithmetic."""
    model = model.to(hardware.device)
    if extras.backend is None and extras.dtype is None:
        return hardware, model
    fast = faster(model, extras.backend, extras.dtype, hardware.precision)
    # A dtype that is asked for stands in the place of autocast.
    return hardware if extras.dtype is None else replace(hardware, precision="fp32"), fast


def as_asked(config: Config, extras: Extras, model: Model) -> Model:
    """A trained model with the prediction options of its heads that the command line itself says. What the line says of the model
    beside them, and differs, raises :class:`UserError`: a trained model does not change by being asked for another."""
    told: dict[str, Any] = dict(model.config.get("head_options") or {})
    several, changed = isinstance(model.head, MultiHead), False
    for key, value in _said_of_model(config, extras):
        section, _, name = key.rpartition(".")
        word = TASKS.canonical(key.split(".")[1]) if key.startswith("heads.") else ""
        if section != "model.head_options" and section != f"heads.{key.split('.')[1]}.options":
            _refuse_other(model, key, word, value)
            continue
        head: Any = model.head.heads[word] if several and word in model.head.heads else model.head  # type: ignore[operator, index]  # heads by task
        own = dict(told.get(word) or {}) if several else told
        exported = isinstance(head, ExportedHead)
        known = head.built_with if exported else head_options(type(head))
        if name not in head.prediction_options and own.get(name, known.get(name, ...)) != value:
            what = f"is no option of {type(head).__name__}"
            if exported:
                what = "is part of the exported graph, which stays as it is"
            elif name in known:
                what = "is part of the trained model, which stays as it is"
            options = head.prediction_options
            remedy = nearest(name, options) if options else "leave it out: nothing of it can be changed for predictions"
            raise UserError(f"--{key}", f"with --checkpoint: {what}", remedy)
        if name in head.prediction_options:
            own[name], changed = value, True
            told = {**told, word: own} if several else own
    return with_head_options(model, told) if changed else model


def _said_of_model(config: Config, extras: Extras) -> Iterator[tuple[str, Any]]:
    """What the command line itself says of the model: dotted keys, mappings of options opened, and values."""
    mapping = to_mapping(config)
    for key in extras.overrides:
        if key.partition(".")[0] not in ("model", "heads"):
            continue
        value: Any = mapping
        for part in key.split("."):
            value = value.get(part, value.get(_canonical(part))) if isinstance(value, dict) else None
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in _leaves(value))
        else:
            yield key, value


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", one) for inner, one in _leaves(value))
        else:
            yield name, value


def _canonical(word: str) -> str:
    return str(TASKS.canonical(word))


def _refuse_other(model: Model, key: str, word: str, value: Any) -> None:
    """Refuse a key that would make another model, unless it says what the model is."""
    name = key.rpartition(".")[2]
    if key in OF_IMAGES or key == "model.task":  # looked at elsewhere
        return
    known = model.config.get("head" if key.startswith("heads.") else name, ...)
    if key.startswith("model.backbone_options."):
        known = (model.config.get("backbone_options") or {}).get(name, ...)
    if isinstance(known, Mapping):
        known = known.get(word, ...)
    if known != value and not (key == "model.weights" and value is None):  # nothing is asked for
        is_told = f"; it has {known}" if isinstance(known, str | int) else ""
        what = f"does not go with --checkpoint: the model is made{is_told}"
        raise UserError(f"--{key}", what, "leave it out, or train another model")


OF_IMAGES = frozenset(f"model.{name}" for name in ("mean", "std", "interpolation", "crop_fraction", "crop_mode"))
"""Keys that say how images are prepared, which may be tried on a trained model."""


def as_model(config: Config, model: Model) -> Config:
    """The config with the options that the heads of a trained model have, by which its scores are limited."""
    options: Any = model.config.get("head_options") or {}
    if isinstance(config.model.task, str):
        return replace(config, model=replace(config.model, head_options=dict(options)))
    heads = {
        word: replace(config.heads.get(word, HeadConfig()), options=dict(options.get(word) or {}))
        for word in config.model.task or ()
    }
    return replace(config, heads=heads)


def _unnamed(count: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(str(label) for label in range(count))


def data_classes(task: TaskSpec, config: Config, extras: Extras, model: Model, classes: Any) -> tuple[str, ...]:
    """The names that the data set has for the classes of a model: one that was trained here knows them."""
    if model.classes is None:
        return tuple(task.data_names(classes, lambda: splits.open_dataset(config, task, extras.split).classes))
    kept = model.provenance.get("data_classes")
    if kept is None and isinstance(classes, Mapping):  # of several heads, saved without training
        kept = task.data_names(classes, lambda: splits.open_dataset(config, task, extras.split).classes)
    return tuple(classes if kept is None else kept)


def open_split(task: TaskSpec, config: Config, extras: Extras, model: Model, classes: Any) -> Dataset:
    """The split that the line names, divided as the model's run divided the data, with the classes that the model knows."""
    config, run = as_model(config, model), beside(extras.checkpoint)
    names = data_classes(task, config, extras, model, classes)
    return splits.open_dataset(splits.with_division(config, run), task, extras.split, names)


def beside(checkpoint: str | None) -> Path:
    """The folder of a run, or that of a model file; the working folder without either, and for a repository of the Hub."""
    if is_repository(checkpoint):
        return Path()
    path = Path(checkpoint or ".")
    return path if path.is_dir() else path.parent
