"""The pages that a run of several tasks leaves: one with the scores and curves of all, and each task's own beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.multitask.parts import parts
from tasks.report.drawings import curves
from tasks.report.metricsfile import score_sets
from tasks.report.skeleton import begun, finished
from tasks.settings.tree import from_mapping
from tasks.spec import Observer

_MEANING = {"mean": "mean of the scores by which each task is judged; chooses the best weights"}


def joint_report(folder: Path, summary: Mapping[str, Any], observers: Mapping[str, Observer | None]) -> Path:
    """Write ``report.html`` into ``folder``, and below it ``COMMAND/report.html`` of each task; returns the path of the first.

    ``summary`` as for every task, ``statistics`` a dict by task; ``observers`` by task.
    """
    config, history, results = summary["config"], summary["history"], summary["results"]
    found, monitors = parts(from_mapping(config)), {}
    for word, (task, own) in found.items():
        monitors[f"{word}/{task.monitor(own)}"] = f"by which {task.command} is judged"
        facts = {**summary["facts"], "title": f"{task.command}, trained jointly: {summary['facts'].get('title', '')}"}
        alone = {
            "config": config,
            "history": [_own(row, word, "val_") for row in history],
            "results": _own_sets(results, word),
            "facts": facts,
            "statistics": (summary.get("statistics") or {}).get(word),
        }
        task.report(folder / task.command, alone, observers.get(word))
    facts = {**summary["facts"], "reports of each task": [f"{task.command}/report.html" for task, _ in found.values()]}
    report = begun("Joint training", ("mean", *monitors), facts, results, _MEANING | monitors)
    if len(history) > 1:
        report.figure(
            "Training",
            curves(history, ["val_mean", *(f"val_{name}" for name in monitors)]),
            "One point per evaluation.",
        )
    return finished(report, config, folder)


def _own_sets(results: Mapping[str, Any], word: str) -> dict[str, Any]:
    """The results with the scores of one task, under their own names."""
    best, sets = score_sets(results)
    return {**{key: value for key, value in results.items() if key not in sets}, "best": best} | {
        name: _own(scores, word) for name, scores in sets.items()
    }


def _own(row: Mapping[str, Any], word: str, before: str = "") -> dict[str, Any]:
    """What belongs to one task or to none, the task's word taken off."""
    prefix = f"{before}{word}/"
    own = {before + key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
    return {key: value for key, value in row.items() if "/" not in key and key != f"{before}mean"} | own
