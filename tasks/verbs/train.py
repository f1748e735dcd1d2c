"""The verb ``train``: the run itself is the engine's; several are a sweep."""

from tasks.engine import training
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.verbs.sweep import sweep


def train(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Train, evaluate the best weights, write the report; returns the exit code. With ``--seeds`` or ``--grid``, several times."""
    if any(extras.own.get(name) is not None for name in ("seeds", "grid")):
        return sweep(task, config, extras)
    return training.train(task, config, extras)
