"""The page that a classification run leaves: scores, curves, confusions, calibration, and the most confident mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.report.drawings import curves
from tasks.report.metricsfile import score_sets
from tasks.report.skeleton import add_calibration, add_classes, add_confusion, begun, finished, percent

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


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction to show: ``image`` [H, W, C] as :func:`tasks.report.page.picture` takes it, ``what`` is wrong, and the
    ``confidence`` in it, 0..1."""

    image: np.ndarray
    what: str
    confidence: float
    id: str = ""


def classification_report(
    folder: Path,
    *,
    config: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    mistakes: Sequence[Mistake],
    facts: Mapping[str, Any],
) -> Path:
    """Write ``report.html`` into ``folder``; returns its path.

    ``config`` is the resolved config (nested), ``facts`` what else is worth knowing (weights and their origin, what was
    assumed, machine, versions, duration), shown as it comes. ``mistakes`` are shown in falling confidence.
    """
    best, sets = score_sets(results)
    scores = sets[best]
    report = begun("Classification", ("top1", "top5", "map", "macro_f1"), facts, results, _MEANING)
    if len(history) > 1:
        report.figure("Training", curves(history), "One point per evaluation.")
    add_confusion(report, scores)
    add_calibration(report, scores)
    add_classes(report, scores)
    if mistakes:
        worst = sorted(mistakes, key=lambda mistake: -mistake.confidence)
        report.gallery("Most confident mistakes", [(m.image, _mistake_text(m)) for m in worst])
    return finished(report, config, folder)


def _mistake_text(mistake: Mistake) -> str:
    return f"{mistake.what}\n{percent(mistake.confidence)} sure · {mistake.id}".rstrip(" ·")
