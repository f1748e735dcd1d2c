"""What the command line knows of its verbs: a row for each, and the options that they take. Imports none of them.

A new verb is a file with a function of its name, and a row here. One that works on a config is called with the task, the config
and the :class:`tasks.settings.commandline.Extras`; one whose row says ``config="none"`` with the extras alone, and neither a
task nor torch is loaded for it.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Option:
    """An option of verbs, by the name of its field in ``Extras``: its help, the ``values`` allowed (empty: any), and whether it is
    a ``flag``, which takes none, or names a ``path``."""

    help: str
    values: tuple[str, ...] = ()
    flag: bool = False
    path: bool = False


@dataclass(frozen=True)
class Verb:
    """A row: the function ``name`` in ``module``, what it does in a line, the names of its ``options``, whether it takes ``inputs``
    (words without dashes), whether it works on a ``config``: one that must be named, or one that may be, and the sections of it that
    are ``unread`` where a trained model is given: what a command line says there is told to change nothing."""

    name: str
    module: str
    help: str
    options: tuple[str, ...] = ()
    config: Literal["needed", "optional", "none"] = "optional"
    inputs: bool = False
    unread: tuple[str, ...] = ()

    def takes(self, option: str) -> bool:
        """Whether the option goes with it."""
        return option in self.options or (option in OF_CONFIGS and self.config != "none")


OPTIONS = {
    "config": Option("bundled name or YAML file; a file wins", path=True),
    "checkpoint": Option("model file or run folder; a run's own config is used when --config is not given", path=True),
    "split": Option("train, val or test", ("train", "val", "test")),
    "out": Option("folder for the results", path=True),
    "predictions": Option("file of predictions to score in place of a model", path=True),
    "threshold": Option(
        "boxes of a lower score are neither drawn nor written (default: all are written, from 0.3 drawn); of classes that overlap in "
        "masks those of a higher probability are there (0.5)"
    ),
    "deep": Option("look at what takes minutes too", flag=True),
    "print-config": Option("show each value and where it comes from, and do nothing", flag=True),
}
OF_CONFIGS = ("config", "print-config")
"""Options of every verb that works on a config."""
VERBS = {
    verb.name: verb
    for verb in (
        Verb("train", "tasks.verbs.train", "train, then evaluate the best weights", config="needed"),
        Verb(
            "evaluate",
            "tasks.verbs.evaluate",
            "score a model, or a file of predictions, on a split",
            ("checkpoint", "split", "out", "predictions"),
            unread=("optim",),
        ),
        Verb(
            "predict",
            "tasks.verbs.predict",
            "predict images that have no labels",
            ("checkpoint", "out", "threshold"),
            inputs=True,
            unread=("optim",),
        ),
        Verb(
            "check",
            "tasks.verbs.check",
            "look at data and model before a long run",
            ("checkpoint", "out", "deep"),
            config="needed",
        ),
        Verb("bench", "tasks.verbs.bench", "size, speed and memory of a model, here", ("checkpoint",)),
    )
}
DEFAULT = "train"
"""The verb of a command line that names none."""
