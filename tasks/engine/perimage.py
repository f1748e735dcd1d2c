"""The outcomes of each image of an evaluation as files beside its scores."""

from collections.abc import Mapping
from pathlib import Path

from tasks.scoring.outcomes import Outcomes, outcomes_file, write_outcomes
from tasks.spec import TaskSpec


def write_records(folder: Path, found: Outcomes | Mapping[str, Outcomes] | None, task: TaskSpec, split: str) -> None:
    """Write the outcomes of an evaluation on ``split`` into ``folder``, a file for each task of several; of none nothing."""
    if isinstance(found, Outcomes):
        write_outcomes(folder / outcomes_file(split), found, {"task": task.name, "split": split})
    elif found is not None:
        for word, outcomes in found.items():
            write_outcomes(folder / outcomes_file(split, word), outcomes, {"task": word, "split": split})
