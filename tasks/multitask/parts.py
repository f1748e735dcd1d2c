"""The tasks that are trained together, each with the config and the model that it would have alone."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from effbackbones.model import Model
from effbackbones.registry import TASKS
from tasks.settings.sections import Config, HeadConfig
from tasks.spec import TaskSpec


class Part(NamedTuple):
    """One of the tasks, and the config that it would have alone."""

    task: TaskSpec
    config: Config


def parts(config: Config) -> dict[str, Part]:
    """The tasks that ``model.task`` lists, in its order, each with the section of its head."""
    words = config.model.task if isinstance(config.model.task, tuple) else ()
    found = {}
    for word in words:
        section = config.heads.get(word, HeadConfig())
        task: TaskSpec = TASKS.get(word)
        model = replace(config.model, task=word, head=section.name, head_options=section.options)
        own = replace(config, model=model, heads={})
        if "labels" not in task.labels(own):  # what is said of the labels of images is not for it
            own = replace(own, data=replace(own.data, multilabel=False))
        found[word] = Part(task, own)
    return found


def parts_alone(config: Config, model: Model) -> Iterator[tuple[str, Part, Model]]:
    """Each task by its word, with the model that it would be alone: the same backbone, its own head, and its own threshold."""
    for word, part in parts(config).items():
        head: Any = model.head
        named = {key: model.config[key][word] for key in ("head", "num_classes", "head_options")}
        alone = Model(
            model.backbone,
            head.heads[word],
            image_spec=model.image_spec,
            config={**model.config, "task": word, **named},
            classes=model.classes.get(word) if isinstance(model.classes, dict) else None,
        )
        alone.provenance = model.provenance | _point(model, word)  # ids of categories, values of masks
        yield word, part, alone.train(model.training)


def _point(model: Model, word: str) -> dict[str, Any]:
    """Where the scores of a task are cut, as the file of its model alone would keep it."""
    points = model.provenance.get("operating_point") or {}
    return {"operating_point": {"": points[word]} if word in points else {}}
