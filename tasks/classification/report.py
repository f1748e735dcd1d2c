"""The page that a classification run leaves: scores, curves, confusions, calibration, and the most confident mistakes."""

from collections.abc import Sequence
from pathlib import Path

from effbackbones.model import Model
from tasks.classification.examples import ConfidentMistakes, Mistake
from tasks.data.dataset import Dataset
from tasks.report.records import Summary
from tasks.report.skeleton import add_calibration, add_classes, add_confusion, add_training, begun, finished, percent

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
    add_confusion(report, scores)
    add_calibration(report, scores)
    add_classes(report, scores, summary.results.intervals.get(""))
    if mistakes:
        worst = sorted(mistakes, key=lambda mistake: -mistake.confidence)
        report.gallery("Most confident mistakes", [(m.image, _mistake_text(m)) for m in worst])
    return finished(report, summary, folder)


def _mistake_text(mistake: Mistake) -> str:
    return f"{mistake.what}\n{percent(mistake.confidence)} sure · {mistake.id}".rstrip(" ·")
