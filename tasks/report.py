"""What a run leaves to read: ``metrics.json``, ``metrics.csv`` and ``report.html``.

``results`` holds the scores of each set of weights and which of them is best::

    {"best": "ema", "raw": {"top1": 0.71, "per_class": {...}, ...}, "ema": {...}}

where each set is what a metric's ``compute()`` gave; with one set, ``best`` may be left out. ``history`` has one dict of
numbers per evaluation: ``epoch``, ``lr``, losses (names that contain ``loss``), scores (``val...``) and whatever else.
"""

import csv
import io
import json
import math
import os
import platform
from collections.abc import Container, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from effbackbones.tensorfile import write_atomically
from tasks.drawings import is_number, reliability
from tasks.page import Report, show

_LARGEST_MATRIX = 50  # classes; above, the confused pairs alone are readable
_PAIRS = 20


def begun(
    title: str, headline: Sequence[str], facts: Mapping[str, Any], results: Mapping[str, Any], meaning: Mapping[str, str],
    rates: Container[str] = (),
) -> Report:  # fmt: skip
    """A page with what every task's begins with: the scores named in ``headline``, ``facts`` (whose ``title`` replaces ``title``)
    and a table of all scores, those first that ``meaning`` explains, in its order. ``rates``: names of those that are numbers
    with a fraction but no shares, so not told in percent."""
    best, sets = score_sets(results)
    report = Report(str(facts.get("title", title)), _headline(sets[best], headline, best if len(sets) > 1 else ""))
    report.facts({name: value for name, value in facts.items() if name != "title"}, "What was run")
    caption = f"Best: the {best} weights." if len(sets) > 1 else ""
    report.table("Scores", ["", *sets, "what it is"], _score_rows(sets, meaning, rates), caption)
    return report


def add_classes(report: Report, scores: Mapping[str, Any]) -> None:
    """A table of the scores of each class, if there are any."""
    if scores.get("per_class"):
        report.table("Classes", *_class_table(scores["per_class"]), "Weakest first.")


def add_confusion(report: Report, scores: Mapping[str, Any], unit: str = "images") -> None:
    """Which classes are taken for which, if that is known: a matrix of the ``unit`` that was counted (of shares, if that is
    pixels: their numbers are too long), and the pairs that are confused most."""
    counts, names = scores.get("confusion"), list(scores.get("per_class") or ())
    if not counts:
        return
    if len(names) <= _LARGEST_MATRIX:
        shares = unit == "pixels"
        what = f"Rows are true classes, columns predictions{', in percent of the row' if shares else ''}"
        report.matrix("Confusion matrix", names, counts, f"{what}; the darker, the larger the share of the row. Blue: right, "
                      "red: wrong.", shares=shares)  # fmt: skip
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
        report.figure("Calibration", reliability(scores["reliability"]), "A bar that reaches the dashed line: of the "
                      "predictions made with 70 % confidence, 70 % are right. Lower bars are over-confident, higher ones "
                      "under-confident. Grey: share of all predictions.")  # fmt: skip


def finished(report: Report, config: Mapping[str, Any], folder: Path) -> Path:
    """Add the configuration and write the page."""
    report.facts({key: value for key, value in flatten(config) if value is not None}, "Configuration", "What is not listed is unset.")
    return report.write(folder / "report.html")


def write_metrics(folder: Path, results: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
    """Write into ``folder``, which is made: ``metrics.json`` (all of it; what is not finite becomes null) and
    ``metrics.csv`` (a row for each figure: weights, epoch, class, metric, value)."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = plain({**results, "history": list(history)})
    write_atomically(folder / "metrics.json", (_json(whole) + "\n").encode())
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["weights", "epoch", "class", "metric", "value"])
    for weights, scores in score_sets({name: value for name, value in whole.items() if name != "history"})[1].items():
        writer.writerows([weights, "", "", name, value] for name, value in scores.items() if is_number(value))
        for key, classes in scores.items():
            task, slash, last = key.rpartition("/")  # "det/per_class" where several tasks are scored
            for label, row in (classes or {}).items() if last == "per_class" else ():
                writer.writerows([weights, "", label, task + slash + name, value] for name, value in row.items() if is_number(value))
    for row in whole["history"]:
        writer.writerows(["", row.get("epoch"), "", name, value] for name, value in row.items() if name != "epoch" and is_number(value))
    write_atomically(folder / "metrics.csv", out.getvalue().encode("utf-8", "backslashreplace"))


def score_sets(results: Mapping[str, Any]) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """The best set's name, and the scores by set; bare scores of one set are the set ``model``."""
    sets = {name: scores for name, scores in results.items() if isinstance(scores, Mapping) and name != "per_class"}
    if not sets:
        return "model", {"model": results}
    return str(results.get("best", next(iter(sets)))), sets


def environment() -> dict[str, Any]:
    """Machine and versions, for ``facts``."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
    packages = ("effbackbones", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy")
    return {
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}; {device}",
        "versions": f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages),
    }


def plain(value: Any) -> Any:
    """``value`` as JSON can say it: tuples become lists, numpy and torch numbers Python's, what is not finite None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy, torch
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested config as (``section.key``, value)."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, list | tuple | Mapping) else value


def _headline(scores: Mapping[str, Any], names: Sequence[str], best: str) -> str:
    shown = [f"{name} {percent(scores[name])}" for name in names if scores.get(name) is not None]
    count = scores.get("samples") or scores.get("images")
    samples = f" of {count:,} images" if count else ""
    return f"{', '.join(shown)}{samples}{f' ({best} weights)' if best else ''}"


def _score_rows(sets: Mapping[str, Mapping[str, Any]], meaning: Mapping[str, str], rates: Container[str]) -> list[list[str]]:
    pairs = [pair for scores in sets.values() for pair in scores.items()]
    # An undefined score is shown, as a dash, where it is one of those that are explained.
    names = dict.fromkeys(name for name, value in pairs if is_number(value) or (value is None and name in meaning))
    ordered = [*(name for name in meaning if name in names), *(name for name in names if name not in meaning)]
    rows = []
    for name in ordered:
        shown = show if name in rates else percent
        rows.append([name, *(shown(scores.get(name)) for scores in sets.values()), meaning.get(name, "")])
    return rows


def _class_table(per_class: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    keys = list(dict.fromkeys(key for row in per_class.values() for key in row))
    lead = next((key for key in ("ap", "iou") if key in keys), "f1")
    ranked = sorted(per_class.items(), key=lambda item: (item[1].get(lead) is None, item[1].get(lead) or 0.0))
    return ["class", *keys], [[name, *(percent(row.get(key)) for key in keys)] for name, row in ranked]


def percent(value: Any) -> str:
    """A fraction in percent; a count or nothing as it is."""
    return f"{100 * value:.1f} %" if isinstance(value, float) else show(value)


def _json(value: Any, indent: str = "") -> str:
    """JSON with one line for each entry of a dict and one for each list, so that a matrix does not fill a screen per row."""
    if isinstance(value, Mapping) and value:
        inner = ",\n".join(f"{indent}  {json.dumps(key)}: {_json(item, indent + '  ')}" for key, item in value.items())
        return f"{{\n{inner}\n{indent}}}"
    return json.dumps(value, allow_nan=False)
