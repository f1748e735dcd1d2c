"""In which forms ``predict`` writes what it finds: those of the task, or what ``--write`` asks for."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError, nearest
from effbackbones.model import Model
from tasks.data.dataset import Dataset
from tasks.settings.sections import Config
from tasks.spec import TaskSpec, Writer

DEFAULT = "default"
"""The word for what the task writes where nothing is asked for."""


class Several:
    """Writers that get the same results."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.writers = writers
        self.draws = any(writer.draws for writer in writers)

    def update(self, results: Sequence[Any]) -> None:
        for writer in self.writers:
            writer.update(results)

    def close(self) -> None:
        with ExitStack() as stack:  # what one cannot write is no reason for another to write nothing
            for writer in self.writers:
                stack.callback(writer.close)

    def number_as(self, dataset: Dataset) -> None:
        """Of those that write ids: take them from the files of ``dataset``."""
        for writer in self.writers:
            if hasattr(writer, "number_as"):
                writer.number_as(dataset)

    def below(self, files: Sequence[str]) -> None:
        """Of those that name their files by the folders of the images: the paths of all of these."""
        for writer in self.writers:
            if hasattr(writer, "below"):
                writer.below(files)


def writers_for(
    task: TaskSpec,
    config: Config,
    asked: str | None,
    out: Path,
    model: Model,
    classes: Any,
    tell: Callable[[str], None],
) -> Several:
    """What writes the forms ``asked`` for, words with commas between them; a word that the task has no form for raises
    :class:`UserError`."""
    words = list(dict.fromkeys(word.strip() for word in (DEFAULT if asked is None else asked).split(",")))
    forms = task.forms(config)
    for word in words:
        if word not in (DEFAULT, *forms):
            known = nearest(word, (DEFAULT, *forms))
            reason = task.no_form.get(word, f"{task.command} writes no {word!r}")
            raise UserError("--write", reason, known)
    writers = [task.writer(config, out, model, classes, tell)] if DEFAULT in words else []
    rest = [word for word in words if word != DEFAULT]
    return Several([*writers, *(task.writers(rest, config, out, model, classes, tell) if rest else [])])
