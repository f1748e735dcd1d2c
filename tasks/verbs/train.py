"""The verb ``train``: the run itself is the engine's."""

from tasks.engine import training
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec


def train(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Train, evaluate the best weights, write the report; returns the exit code."""
    return training.train(task, config, extras)
