"""The scores of a run as files: ``metrics.json`` and ``metrics.csv``.

Each set of scores in the :class:`tasks.report.records.Results` is what a metric's ``compute()`` gave. ``history`` has one dict of
numbers per evaluation: ``epoch``, ``lr``, losses (names that contain ``loss``), scores (``val...``) and whatever else.
"""

import csv
import io
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from effbackbones.weights.tensorfile import write_atomically
from tasks.report.drawings import is_number
from tasks.report.records import EvaluationResults, Results, RunResults


def write_metrics(folder: Path, results: Results, history: Sequence[Mapping[str, Any]]) -> None:
    """Write into ``folder``, which is made: ``metrics.json`` (all of it; what is not finite becomes null) and
    ``metrics.csv`` (a row for each figure: weights, epoch, class, metric, value)."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = plain({**_head(results), **_size(results), **results.sets, **_intervals(results), "history": history})
    write_atomically(folder / "metrics.json", (_json(whole) + "\n").encode())
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["weights", "epoch", "class", "metric", "value"])
    for weights in results.sets:
        scores = whole[weights]
        writer.writerows([weights, "", "", name, value] for name, value in scores.items() if is_number(value))
        for key, classes in scores.items():
            task, slash, last = key.rpartition("/")  # "det/per_class" where several tasks are scored
            for label, row in (classes or {}).items() if last == "per_class" else ():
                writer.writerows(
                    [weights, "", label, task + slash + name, value] for name, value in row.items() if is_number(value)
                )
    for row in whole["history"]:
        writer.writerows(
            ["", row.get("epoch"), "", name, value]
            for name, value in row.items()
            if name != "epoch" and is_number(value)
        )
    write_atomically(folder / "metrics.csv", out.getvalue().encode("utf-8", "backslashreplace"))


def _size(results: Results) -> dict[str, Any]:
    """What the model and its training cost, as far as it is known."""
    minutes = results.minutes if isinstance(results, RunResults) else None
    known = {"parameters": results.parameters, "minutes": None if minutes is None else round(minutes, 2)}
    return {name: value for name, value in known.items() if value is not None}


def _intervals(results: Results) -> dict[str, Any]:
    """Intervals of the best set's scores and thresholds of the best F1, by task where there are several."""
    found = {task: intervals.record() for task, intervals in results.intervals.items()}
    points = results.operating.get("", results.operating)
    return ({"intervals": found.get("", found)} if found else {}) | ({"operating_point": points} if points else {})


def _head(results: Results) -> dict[str, Any]:
    """What the file says before the scores; a run that is ``finished`` is never continued."""
    match results:
        case RunResults(split=None):
            return {"best": results.best}
        case RunResults(monitor=monitor):
            told = {"monitor": monitor._asdict()} if monitor else {}
            return {"finished": True, "split": results.split, "best": results.best, **told}
        case EvaluationResults(predictions=None):
            return {"split": results.split, "checkpoint": results.checkpoint}
        case EvaluationResults():
            return {"split": results.split, "predictions": results.predictions}
        case _:
            return {"best": results.best}


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # a checkout that runs in place has no metadata
        return f"{package} of unknown version"


def commit() -> str:
    """The commit of the git repository in which a command runs, and whether files differ from it; "" where there is none."""

    def ask(*words: str) -> str:
        try:
            said = subprocess.run(
                ["git", "--no-optional-locks", *words], capture_output=True, text=True, timeout=5, check=False
            )
        except (OSError, subprocess.SubprocessError):  # no git, or a file system that hangs
            return ""
        return said.stdout.strip() if said.returncode == 0 else ""

    found = ask("rev-parse", "--short=12", "HEAD")
    changed = bool(found) and bool(ask("status", "--porcelain", "--untracked-files=no"))
    return f"commit {found}{', with changes' if changed else ''}" if found else ""


def command(argv: Sequence[str], module: ModuleSpec | None) -> str:
    """What was typed, as it can be typed again: ``module`` is that of ``python -m``."""
    program = [Path(argv[0]).name] if module is None else ["python", "-m", module.name.removesuffix(".__main__")]
    return shlex.join([*program, *argv[1:]])


def environment() -> dict[str, Any]:
    """When, by which command, with which code and on which machine, for ``facts``."""
    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
    )
    packages = ("effbackbones", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy")
    return {
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "command": command(sys.argv, getattr(sys.modules["__main__"], "__spec__", None)),
        "code": commit() or "in no git repository",
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}; {device}",
        "versions": f"Python {platform.python_version()}, " + ", ".join(map(_version, packages)),
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


def _json(value: Any, indent: str = "") -> str:
    """JSON with one line for each entry of a dict and one for each list, so that a matrix does not fill a screen per row."""
    if isinstance(value, Mapping) and value:
        inner = ",\n".join(f"{indent}  {json.dumps(key)}: {_json(item, indent + '  ')}" for key, item in value.items())
        return f"{{\n{inner}\n{indent}}}"
    return json.dumps(value, allow_nan=False)
