"""The model that a verb is asked for, and the names of its classes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from effbackbones.errors import UserError
from effbackbones.model import Model
from tasks.data.door import read_as
from tasks.engine import assembly
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec


def model_and_classes(task: TaskSpec, config: Config, extras: Extras, *, require_classes: bool) -> tuple[Model, Any]:
    """A model in eval mode, and the names of its classes: its own, those of published weights, or numbers."""
    if extras.checkpoint is None and config.model.weights is None:
        raise UserError(
            "--checkpoint", "no trained model is named", "give --checkpoint FILE|RUN, or --model.weights imagenet"
        )
    model = assembly.load_or_make(config, task, extras.checkpoint)
    if extras.checkpoint is None and model.provenance.get("dialect") == "effbackbones":
        what = f"{config.model.weights} is a whole model, which knows its classes"
        raise UserError("model.weights", what, f"give --checkpoint {config.model.weights} instead")
    if extras.checkpoint is None and model.provenance.get("untrained_head"):
        what = f"{config.model.weights} holds no whole {task.command} head: what it says would be random"
        raise UserError("model.weights", what, "train one, and give --checkpoint FILE|RUN")
    if extras.checkpoint:
        model.use_image_spec(assembly.image_spec(config, model.image_spec))
    counts = model.config["num_classes"]
    several = isinstance(counts, Mapping)
    classes = model.classes or (None if several else task.default_classes(int(counts)))
    if classes is None and require_classes:
        where = extras.checkpoint or "model.weights"
        raise UserError(where, "the names of its classes are not known", "evaluate a model that was saved with them")
    return model, classes or (
        {word: _unnamed(count) for word, count in counts.items()} if several else _unnamed(int(counts))
    )


def read_as_trained(config: Config, extras: Extras, model: Model, tell: Callable[[str], None]) -> Config:
    """The config that reads images as a model file says, but for what the command line says itself; where they differ is told."""
    if model.reading is None or not extras.checkpoint:
        return config
    data, told = read_as(config.data, model.reading, extras.overrides)
    for sentence in told:
        tell(sentence)
    return replace(config, data=data)


def _unnamed(count: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(str(label) for label in range(count))


def data_classes(task: TaskSpec, config: Config, extras: Extras, model: Model, classes: Any) -> tuple[str, ...]:
    """The names that the data set has for the classes of a model: one that was trained here knows them."""
    if model.classes is None:
        return tuple(task.data_names(classes, lambda: assembly.open_dataset(config, task, extras.split).classes))
    return tuple(model.provenance.get("data_classes", classes))
