"""What the report of every task has in common: how a page begins, its tables of scores, and how it ends."""

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.report.drawings import by_threshold, curves, is_number, reliability
from tasks.report.metricsfile import flatten
from tasks.report.page import Report, Tile, show
from tasks.report.records import EvaluationResults, Results, RunResults, Summary
from tasks.report.words import label
from tasks.scoring.added import is_of
from tasks.scoring.intervals import Interval, Intervals

_LARGEST_MATRIX = 50  # classes; above, the confused pairs alone are readable
_PAIRS = 20
_FIRST_SCORES, _FIRST_CLASSES = 8, 20
"""Rows of a table, of which the rest is folded."""
INTERVAL = "95 % interval"
_SPLITS = {"val": "validation", "train": "training"}


def begun(summary: Summary, headline: Sequence[str], meaning: Mapping[str, str], rates: Container[str] = ()) -> Report:
    """A page with what every task's begins with: the scores named in ``headline`` in large letters, and a table of all, those first
    that ``meaning`` explains, in its order. ``rates``: names of those that are numbers with a fraction but no shares, so
    not told in percent."""
    results = summary.results
    best, sets = results.best, results.sets
    own = [name for name in sets[best] if is_of(name, _added(summary))]
    rates = {*own, *(name for name in {name for scores in sets.values() for name in scores} if name in rates)}
    chosen = [summary.config.get("run", {}).get("monitor")]
    names = dict.fromkeys(name for name in (*chosen, *own, *headline) if name)
    report = Report(summary.title, _subtitle(results, summary.noun), _tiles(results, names, rates))
    caption = f"Best: the {best} weights." if len(sets) > 1 else ""
    rows, notes = _score_rows(results, meaning, rates)
    head = ["", *sets]
    if results.intervals:
        head.append(INTERVAL)
        caption = " ".join(
            [caption, *(_sentence(one.told(summary.noun)) for one in results.intervals.values())]
        ).strip()
    report.table("Scores", head, rows, caption, notes=notes, first=_FIRST_SCORES, rest="{} more scores")
    return report


def add_training(report: Report, summary: Summary, scores: Sequence[str] | None = None) -> None:
    """The curves of a run, of all its scores or of those named and those that the config added, if it was evaluated more than
    once."""
    added, history = _added(summary), summary.history
    own = [name for row in history for name in row if is_of(name.removeprefix("val_"), added)]
    if len(history) > 1 or len(summary.steps) > 1:
        points = "A point for each evaluation" + (
            "; loss and learning rate as they were logged." if summary.steps else "."
        )
        report.figure("Training", curves(history, scores, [*dict.fromkeys(own)], summary.steps), points)


def _added(summary: Summary) -> Sequence[str]:
    """The registered metrics that a run was scored by beside its task's own."""
    added: Sequence[str] = summary.config.get("run", {}).get("metrics", ())
    return added


def add_classes(report: Report, scores: Mapping[str, Any], intervals: Intervals | None = None) -> None:
    """A table of the scores of each class, if there are any; with ``intervals`` of the first of them."""
    if scores.get("per_class"):
        table = _class_table(scores["per_class"], intervals)
        report.table("Classes", *table, "Weakest first.", first=_FIRST_CLASSES, rest="{} more classes")


def add_threshold(report: Report, results: Results, what: str, *, ranked: bool = True) -> None:
    """From which score on ``what`` is found should be taken for one, where that was counted; it is not ``ranked`` where the most probable
    of two classes is the answer."""
    point = results.operating.get("")
    if not point or not point.get("curve"):
        return
    chosen = point.get("thresholds") or {}
    used = "The threshold that is best on the validation split is kept in the model file; predictions are cut there unless told otherwise."
    if not ranked and not chosen:
        used = "Of two classes the more probable one is the answer, whatever the threshold."
    cut, best, precision, recall = (point[name] for name in ("threshold", "f1", "precision", "recall"))
    report.figure(
        "Where to cut",
        [by_threshold(point["curve"], cut)],
        f"What becomes of {what} above a threshold. The best F1, {percent(best)}, is at {cut:.3f}: {percent(precision)} of what is "
        f"taken is right, {percent(recall)} is found. {used}",
    )
    rows = [
        [name, f"{chosen.get(name, row['threshold']):.3f}", percent(row["f1"]), f"{row['threshold']:.3f}"]
        for name, row in point["per_class"].items()
    ]
    if len(rows) > 1:
        head = ["class", "used", "best F1", "at"] if chosen else ["class", "best F1", "at"]
        report.table(
            "Best threshold of each class",
            head,
            rows if chosen else [[name, *rest] for name, _, *rest in rows],
            "Used: a threshold of its own for each class, or where there were few of it that of all."
            if chosen
            else "Boxes are cut at one threshold for all classes.",
            first=_FIRST_CLASSES,
            rest="{} more classes",
        )


def add_confusion(report: Report, scores: Mapping[str, Any], unit: str) -> None:
    """Which classes are taken for which, if that is known: a matrix of the ``unit`` that was counted (of shares, if that is
    pixels: their numbers are too long), and the pairs that are confused most."""
    counts, names = scores.get("confusion"), list(scores.get("per_class") or ())
    if not counts:
        return
    if len(names) <= _LARGEST_MATRIX:
        shares = unit == "pixels"
        what = f"Rows are true classes, columns predictions{', in percent of the row' if shares else ''}"
        report.matrix(
            "Confusion matrix",
            names,
            counts,
            f"{what}; the stronger the colour, the larger the share of the row. Blue: right, red: wrong.",
            shares=shares,
        )
    table = np.asarray(counts)
    support = table.sum(1)
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    shown = _PAIRS if len(names) > _LARGEST_MATRIX else _PAIRS // 2
    order = np.argsort(-wrong, axis=None, kind="stable")[:shown]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    if pairs and len(names) > 2:
        rows = [[names[i], names[j], int(wrong[i, j]), percent(float(wrong[i, j] / support[i]))] for i, j in pairs]
        report.table("Most confused", ["true", "predicted", unit, "share of the true class"], rows)


def add_calibration(report: Report, scores: Mapping[str, Any]) -> None:
    """How far confidence can be believed, if that was counted."""
    if scores.get("reliability"):
        report.figure(
            "Calibration",
            reliability(scores["reliability"]),
            "A bar that reaches the dashed line: of the "
            "predictions made with 70 % confidence, 70 % are right. Lower bars are over-confident, higher ones "
            "under-confident. Grey: share of all predictions.",
        )


def finished(report: Report, summary: Summary, folder: Path) -> Path:
    """Add the facts and the configuration, and write the page."""
    report.facts(summary.facts, "What was run")
    config = {key: value for key, value in flatten(summary.config) if value is not None}
    report.facts(config, "Configuration", "What is not listed is unset.", folded=True)
    return report.write(folder / "report.html")


def _subtitle(results: Results, noun: str) -> str:
    """Of how many images (or what ``noun`` says) of which split the figures are, and of which weights."""
    count = results.scores.get("samples") or results.scores.get("images")
    split = results.split if isinstance(results, (RunResults, EvaluationResults)) else None
    images = f"{count:,} {f'{_SPLITS.get(split, split)} ' if split else ''}{noun}{'s' * (count != 1)}" if count else ""
    return ", ".join(filter(None, [images, f"{results.best} weights" if len(results.sets) > 1 else ""]))


def _tiles(results: Results, names: Iterable[str], rates: Container[str]) -> list[Tile]:
    scores, tiles = results.scores, []
    for name in names:
        if is_number(scores.get(name)):
            interval = results.interval(name)
            value = (show if name in rates else percent)(scores[name])
            tiles.append(Tile(label(name), value, told_of_interval(interval) if interval else ""))
    return tiles


def _score_rows(
    results: Results, meaning: Mapping[str, str], rates: Container[str]
) -> tuple[list[list[str]], list[str]]:
    """A row for each score, and what it means."""
    sets = results.sets
    pairs = [pair for scores in sets.values() for pair in scores.items()]
    # An undefined score is shown, as a dash, where it is one of those that are explained.
    names = dict.fromkeys(name for name, value in pairs if is_number(value) or (value is None and name in meaning))
    ordered = [*(name for name in meaning if name in names), *(name for name in names if name not in meaning)]
    rows = []
    for name in ordered:
        shown = show if name in rates else percent
        row = [label(name), *(shown(scores.get(name)) for scores in sets.values())]
        rows.append([*row, told_of_interval(results.interval(name))] if results.intervals else row)
    return rows, [meaning.get(name, "") for name in ordered]


def _class_table(
    per_class: Mapping[str, Mapping[str, Any]], intervals: Intervals | None
) -> tuple[list[str], list[list[Any]]]:
    keys = list(dict.fromkeys(key for row in per_class.values() for key in row))
    lead = next((key for key in ("ap", "iou") if key in keys), "f1")
    ranked = sorted(per_class.items(), key=lambda item: (item[1].get(lead) is None, item[1].get(lead) or 0.0))
    header = ["class", *map(label, keys)]
    rows = [[name, *(percent(row.get(key)) for key in keys)] for name, row in ranked]
    if intervals is None:
        return header, rows
    lead = lead if lead in keys else keys[0]
    ends = [told_of_interval(intervals.per_class.get(name, {}).get(lead)) for name, _ in ranked]
    return [*header, f"{INTERVAL} of {label(lead)}"], [[*row, end] for row, end in zip(rows, ends, strict=True)]


def told_of_interval(interval: Interval | None) -> str:
    """An interval of shares, in percent."""
    return show(None) if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def percent(value: Any) -> str:
    """A fraction in percent; a count or nothing as it is."""
    return f"{100 * value:.1f} %" if isinstance(value, float) else show(value)
