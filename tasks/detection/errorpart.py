"""The part of a detection report that tells what the errors are, and what each kind costs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tasks.detection.anatomy import BACKGROUND, FOREGROUND, KINDS
from tasks.report.drawings import COCO_BORDERS, class_shares
from tasks.report.page import Report
from tasks.report.skeleton import percent

_WHAT = {
    "classification": "boxes that are on an object but name another class",
    "localisation": "boxes that name the right class but are too far off",
    "both": "boxes that are too far off and name another class",
    "duplicate": "further boxes on an object that has a better one",
    "background": "boxes where there is no object",
    "missed": "objects that no box is meant for",
    "false_positives": "all boxes that are wrong",
    "false_negatives": "all objects that were not found",
}
_WORDS = {"false_positives": "all wrong boxes", "false_negatives": "all objects not found"}
_FIRST = 8
"""Classes; the rest is folded."""


def add_errors(report: Report, errors: Mapping[str, Any]) -> None:
    """What :func:`tasks.detection.anatomy.anatomy` found: a drawing and tables, of what was scored at all."""
    costs = errors.get("costs") or {}
    if not costs or all(row["cost"] is None for row in costs.values()):
        return
    bars = np.array([max(0.0, costs[kind]["cost"]) for kind in KINDS])
    report.figure(
        "Errors",
        class_shares(KINDS, {"AP50 that each kind of error costs": bars}),
        f"By how much AP50, now {percent(errors['ap50'])}, would rise if errors of one kind alone were mended; the gains do not "
        "add up.",
    )
    rows = [[_WORDS.get(kind, kind), row["count"], percent(row["cost"])] for kind, row in costs.items()]
    report.table(
        "Kinds of errors",
        ["kind", "how many", "AP50 it costs"],
        rows,
        f"Boxes of any score, as AP50 counts them. On an object: an IoU of {FOREGROUND:g} or more; too far off: {BACKGROUND:g} to "
        f"{FOREGROUND:g}; less is background. The kinds of Bolya et al. 2020 (TIDE).",
        notes=[_WHAT[kind] for kind in costs],
    )
    _by_size(report, errors["by_size"])
    _by_class(report, errors["by_class"])


def _by_size(report: Report, by_size: Mapping[str, Mapping[str, int]]) -> None:
    rows = [
        [name, row["objects"], row["not_found"], percent(row["not_found"] / row["objects"]), row["missed"]]
        for name, row in by_size.items()
        if row["objects"]
    ]
    small, large = COCO_BORDERS
    report.table(
        "Objects not found, by size",
        ["size", "objects", "not found", "share", "missed"],
        rows,
        f"Small: up to {small} x {small} pixels of the file; large: over {large} x {large}. Missed: of those not found the ones "
        "that no box with a wrong class or place is meant for.",
    )


def _by_class(report: Report, by_class: Mapping[str, Mapping[str, int]]) -> None:
    """Of several classes those with errors, most first."""
    wrong = [(name, row) for name, row in by_class.items() if any(row.values())]
    if len(by_class) < 2 or not wrong:
        return
    ordered = sorted(wrong, key=lambda item: -sum(item[1].values()))
    report.table(
        "Errors by class",
        ["class", *KINDS],
        [[name, *row.values()] for name, row in ordered],
        "Boxes by the class that they name, missed objects by their own; most errors first.",
        first=_FIRST,
        rest="{} more classes",
    )
