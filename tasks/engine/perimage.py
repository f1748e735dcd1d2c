"""The outcomes of each image of an evaluation as files beside its scores, and the intervals that they give these."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.scoring.intervals import Intervals, intervals
from tasks.scoring.operating import operating_points
from tasks.scoring.outcomefile import outcomes_file, write_outcomes
from tasks.scoring.outcomes import Outcomes
from tasks.spec import TaskSpec


def keep_outcomes(
    folder: Path,
    found: Outcomes | Mapping[str, Outcomes] | None,
    task: TaskSpec,
    split: str,
    tell: Callable[[str], None],
    noun: str = "image",
) -> dict[str, Intervals]:
    """Write the outcomes of an evaluation on ``split`` into ``folder``, a file for each task of several; returns the intervals of
    the scores, as :class:`tasks.report.records.Results` has them, and tells the first of each. ``noun``: what a sample is called."""
    by_task: Mapping[str, Outcomes] = {"": found} if isinstance(found, Outcomes) else found or {}
    made: dict[str, Intervals] = {}
    for word, outcomes in by_task.items():
        about = {"task": word or task.name, "split": split, "noun": noun}
        write_outcomes(folder / outcomes_file(split, word), outcomes, about)
        known = intervals(outcomes)
        if known is not None:
            made[word] = known
            name = outcomes.lead[0]
            if name in known.scores:
                low, high = known.scores[name]
                tell(f"{f'{word}/' if word else ''}{name} [{low:.4f}, {high:.4f}]: {known.told(noun)}")
    return made


def kept_points(found: Outcomes | Mapping[str, Outcomes] | None) -> dict[str, Any]:
    """The thresholds of the best F1 on the validation split, with and by class, as a model file keeps them: by task, "" where there
    is one."""
    return {
        word: {name: value for name, value in point.items() if name != "curve"}
        for word, point in operating_points(found).items()
    }
