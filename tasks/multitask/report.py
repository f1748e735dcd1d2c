"""The pages that a run of several tasks leaves: one with the scores and curves of all, and each task's own beside it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from effbackbones.model import Model
from tasks.data.batch import Batch
from tasks.data.dataset import Dataset
from tasks.multitask.parts import parts, parts_alone
from tasks.report.page import Link
from tasks.report.records import Summary
from tasks.report.skeleton import add_training, begun, finished
from tasks.settings.sections import Config
from tasks.spec import Reporter

_MEANING = {"mean": "mean of the scores by which each task is judged; chooses the best weights"}


class JointReporter:
    """Lets the reporter of each task see its task's predictions, and write its report below that of all."""

    def __init__(self, config: Config, parts: Mapping[str, Reporter]) -> None:
        self.config, self.parts = config, parts

    def update(self, batch: Batch, predictions: Mapping[str, Any]) -> None:
        """``predictions`` by task."""
        for word, part in self.parts.items():
            part.update(batch, predictions[word])

    def write(self, folder: Path, summary: Summary, model: Model, dataset: Dataset) -> Path:
        """Write ``report.html`` into ``folder``, and below it ``COMMAND/report.html`` of each task; returns the path of the first."""
        spans, points = summary.results.intervals, summary.results.operating
        for word, part, alone in parts_alone(self.config, model):
            own = replace(
                summary,
                title=f"{part.task.command}, trained jointly: {summary.title}",
                history=[_own(row, word, "val_") for row in summary.history],
                results=replace(
                    summary.results.each(partial(_own, word=word)),
                    intervals={"": spans[word]} if word in spans else {},
                    operating={"": points[word]} if word in points else {},
                ),
            )
            self.parts[word].write(folder / part.task.command, own, alone, dataset)
        return _overview(folder, summary, self.config)


def _overview(folder: Path, summary: Summary, config: Config) -> Path:
    """The page of all tasks."""
    found = parts(config)
    monitors = {
        f"{word}/{task.monitor(own)}": f"by which {task.command} is judged" for word, (task, own) in found.items()
    }
    report = begun(summary, ("mean", *monitors), _MEANING | monitors)
    pages = {
        task.command: Link(f"report of {task.command}", f"{task.command}/report.html") for task, _ in found.values()
    }
    report.facts(pages, "Each task")
    add_training(report, summary, ["val_mean", *(f"val_{name}" for name in monitors)])
    return finished(report, summary, folder)


def _own(row: Mapping[str, Any], word: str, before: str = "") -> dict[str, Any]:
    """What belongs to one task or to none, the task's word taken off."""
    prefix = f"{before}{word}/"
    own = {before + key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
    return {key: value for key, value in row.items() if "/" not in key and key != f"{before}mean"} | own
