"""The page that a classification run leaves: scores, curves, confusions, calibration, and the most confident mistakes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effbackbones.model import Model
from tasks.classification.examples import ConfidentMistakes, Mistake
from tasks.classification.metrics import SURE
from tasks.data.dataset import Dataset
from tasks.report.page import Report
from tasks.report.records import Summary
from tasks.report.skeleton import (
    add_calibration,
    add_classes,
    add_confusion,
    add_threshold,
    add_training,
    begun,
    finished,
    percent,
)

# One line each, in the order in which they are shown.
_MEANING = {
    "top1": "share of samples whose most probable class is the true one",
    "top5": "share of samples whose true class is among the five most probable",
    "map": "average precision, mean over classes with positives",
    "micro_ap": "average precision of all classes in one ranking",
    "macro_f1": "F1, mean over classes that occur",
    "micro_f1": "F1 of all entries together, at threshold 0.5",
    "ece": "expected calibration error: mean gap between confidence and accuracy; lower is better",
    "non_finite": "predictions that were not finite, counted as wrong",
}

_FIRST = 8
"""Labels of a table; the rest is folded."""


class ClassificationReporter(ConfidentMistakes):
    """Keeps the most confident mistakes of the last evaluation, and writes the report."""

    def write(self, folder: Path, summary: Summary, model: Model, dataset: Dataset) -> Path:
        """Write ``report.html`` into ``folder``; returns its path."""
        return classification_report(folder, summary, self.mistakes())


def classification_report(folder: Path, summary: Summary, mistakes: Sequence[Mistake] = ()) -> Path:
    """Write ``report.html`` into ``folder``; returns its path. ``mistakes`` are shown in falling confidence."""
    scores = summary.results.scores
    report = begun(summary, ("top1", "top5", "map", "macro_f1"), _MEANING)
    add_training(report, summary)
    noun = f"{summary.noun}s"
    _errors(report, scores.get("errors") or {}, noun)
    add_confusion(report, scores, noun)
    add_calibration(report, scores)
    add_classes(report, scores, summary.results.intervals.get(""))
    add_threshold(report, summary.results, f"the classes of {noun}", ranked=False)
    if mistakes:
        worst = sorted(mistakes, key=lambda mistake: -mistake.confidence)
        report.gallery("Most confident mistakes", [(m.image, _mistake_text(m)) for m in worst])
    return finished(report, summary, folder)


def _errors(report: Report, errors: Mapping[str, Any], noun: str) -> None:
    """How near and how sure mistakes are; with several labels which ones are seen wrongly and overlooked."""
    if total := errors.get("wrong"):
        kinds = {
            "all": total,
            "the true class is among the five most probable": errors.get("in_top5"),
            f"more than {100 * SURE:.0f} % sure": errors["confident"],
        }
        rows = [[name, count, percent(count / total)] for name, count in kinds.items() if count is not None]
        report.table("Mistakes", ["which", noun, "share"], rows)
    by_class = [(name, [*row.values()]) for name, row in errors.get("by_class", {}).items()]
    ranked = sorted(((name, row) for name, row in by_class if any(row)), key=lambda item: -sum(item[1]))
    if ranked:
        report.table(
            "Mistakes by label",
            ["label", "seen where there is none", "overlooked"],
            [[name, *row] for name, row in ranked],
            f"In {noun}, at threshold 0.5; most mistakes first.",
            first=_FIRST,
            rest="{} more labels",
        )


def _mistake_text(mistake: Mistake) -> str:
    return f"{mistake.what}\n{percent(mistake.confidence)} sure · {mistake.id}".rstrip(" ·")
