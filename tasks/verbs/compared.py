"""Runs that are to be compared: where their outcomes lie, and whether they can be compared."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.registry import TASKS
from tasks.engine.rundir import CONFIG, METRICS, config_of
from tasks.scoring.outcomefile import read_outcomes
from tasks.scoring.outcomes import Outcomes, places
from tasks.settings.tree import lasting
from tasks.verbs.unscored import record_of, refused

_FILE = re.compile(r"per-image-(train|val|test)(?:-(\w+))?\.npz")
_SPLITS = ("test", "val", "train")
"""From the one that says most."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run or evaluation: ``name`` as it is told, ``outcomes`` on the common split by task ("" where there is one), the ``config``'s
    keys that made it what it is, and the ``parameters`` and ``minutes`` that its file of scores tells.
    ``noun``: what a sample is called."""

    name: str
    folder: Path
    outcomes: Mapping[str, Outcomes]
    config: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    minutes: float | None = None
    noun: str = "image"

    @property
    def recipe(self) -> dict[str, Any]:
        """The config but for the seed."""
        return {key: value for key, value in self.config.items() if key != "run.seed"}


def opened(names: Sequence[str], split: str | None, tell: Tell) -> tuple[str, list[Run]]:
    """The split that all have (``split``, or of those that all have the one that says most), and the runs. :class:`UserError` for
    what is no run, has no outcomes, or none on the same split."""
    found = [_files(name) for name in names]
    common = [one for one in _SPLITS if all(one in files for files in found)]
    if split is not None and split not in common:
        lacking = next(name for name, files in zip(names, found, strict=True) if split not in files)
        raise UserError(lacking, f"has no outcomes on {split}", f"evaluate --checkpoint {lacking} --split {split}")
    if not common:
        told = "; ".join(f"{name} has {', '.join(files)}" for name, files in zip(names, found, strict=True))
        raise UserError("compare", f"no split was scored by all: {told}", "evaluate --checkpoint RUN --split SPLIT")
    chosen = split or common[0]
    shown = _names(names)
    return chosen, [_run(name, shown[i], found[i][chosen], tell) for i, name in enumerate(names)]


def _files(name: str) -> dict[str, dict[str, Path]]:
    """Files of outcomes by split and task: of a run, of an evaluation's folder, or the file itself. A run's own come before those of
    evaluations within it. The folder of one task of several (RUN/detect) is that task alone, which can be compared with a run of it."""
    path = Path(name)
    found: dict[str, dict[str, Path]] = {}
    for folder in [path] if path.is_file() else [path, *sorted(path.glob("evaluate-*"))]:
        mine: dict[str, dict[str, Path]] = {}
        for file in [folder] if folder.is_file() else sorted(folder.glob("per-image-*.npz")):
            if known := _FILE.fullmatch(file.name):
                mine.setdefault(known[1], {})[known[2] or ""] = file
        found = mine | found
    if not found and path.is_dir() and not (path / CONFIG).is_file():
        word = TASKS.canonical(path.resolve().name)
        for file in sorted(path.resolve().parent.glob(f"per-image-*-{word}.npz")):
            if (known := _FILE.fullmatch(file.name)) and known[2] == word:
                found[known[1]] = {"": file}
    if not found:
        raise refused(path)
    return found


def _names(names: Sequence[str]) -> list[str]:
    """Names as short as they can be told apart by."""
    parts = [Path(name).resolve().parts for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        shown = ["/".join(part[-length:]) for part in parts]
        if len(set(shown)) == len(set(parts)):
            break
    return [f"{name} (again)" if name in shown[:i] else name for i, name in enumerate(shown)]


def _run(name: str, shown: str, files: Mapping[str, Path], tell: Tell) -> Run:
    read = {task: read_outcomes(path) for task, path in files.items()}
    outcomes = {task: one.outcomes for task, one in read.items()}
    noun = str(next(iter(read.values())).about.get("noun", "image"))
    scored = next(iter(files.values())).resolve().parent
    record = record_of(scored)
    home = _trained_in(scored, record)
    config: Mapping[str, Any] = {}
    if home:
        try:
            config = lasting(config_of(home))
        except UserError as error:  # of another version, or of a plug-in's data
            tell(f"{shown}: its config cannot be read, so that it is not among the differences ({error})")
    else:
        model = record.get("checkpoint") or "one of published or random weights"
        tell(f"{shown}: no run of its model ({model}) is here, so that config and minutes of training are not known")
    whole = (record_of(home) if home else {}) | record
    if not whole:
        tell(f"{shown}: has no {METRICS} that can be read, so that parameters and minutes are not known")
    return Run(shown, scored, outcomes, config, whole.get("parameters"), whole.get("minutes"), noun)


def _trained_in(scored: Path, record: Mapping[str, Any]) -> Path | None:
    """The run that made the model whose outcomes are in ``scored``: that folder, the one around it, or the one that its file of scores
    names; None where none of them is a run."""
    named = record.get("checkpoint")
    model = Path(named) if isinstance(named, str) else scored
    return next((one for one in (scored, scored.parent, model, model.parent) if (one / CONFIG).is_file()), None)


def common_tasks(runs: Sequence[Run]) -> list[str]:
    """Tasks that all have outcomes of; none raises :class:`UserError`."""
    found = [task for task in runs[0].outcomes if all(task in run.outcomes for run in runs)]
    if not found:
        told = "; ".join(f"{run.name} has {', '.join(filter(None, run.outcomes)) or 'one task'}" for run in runs)
        remedy = "compare runs of the same tasks; one task of several is named by its folder: RUN/detect"
        raise UserError("compare", f"the runs have no task in common: {told}", remedy)
    return found


def on_the_same_images(runs: Sequence[Run], task: str, tell: Tell) -> list[Outcomes]:
    """The outcomes of ``task`` on the images that all have, in one order; how many others there are is told. Other kinds of scores,
    other classes, or other data raise :class:`UserError`."""
    found = [run.outcomes[task] for run in runs]
    first = found[0]
    for run, one in zip(runs, found, strict=True):
        _refuse_other_classes(runs[0].name, first, run.name, one)
    rows = [places(one.ids) for one in found]
    common = [key for key in rows[0] if all(key in other for other in rows)]
    if not common:
        example = (
            f"such as {first.ids[0]!r} and {next(one.ids[0] for one in found[1:] if one.ids)!r}" if first.ids else ""
        )
        raise UserError(
            "compare", f"the runs were scored on other {runs[0].noun}s ({example})", "evaluate all on the same data"
        )
    for run, one in zip(runs, found, strict=True):
        if len(one.ids) > len(common):
            told = f"{len(one.ids) - len(common):,} of its {len(one.ids):,} {run.noun}s are not in all runs and are left out"
            tell(f"{run.name}: {told}")
    orders = [np.array([place[key] for key in common], np.int64) for place in rows]
    for run, one, order in zip(runs[1:], found[1:], orders[1:], strict=True):
        _refuse_other_truth(runs[0].name, run.name, first.truth[orders[0]] != one.truth[order], common)
    return [one.take(order) for one, order in zip(found, orders, strict=True)]


def _refuse_other_classes(name: str, first: Outcomes, other: str, second: Outcomes) -> None:
    if first.kind != second.kind:
        what = f"has outcomes of kind {second.kind!r}, {name} of {first.kind!r}: they have no scores in common"
        raise UserError(other, what, "compare runs of one task")
    if first.classes == second.classes:
        return
    missing = [label for label in first.classes if label not in second.classes]
    added = [label for label in second.classes if label not in first.classes]
    parts = [f"lacks {', '.join(missing[:3])}" if missing else "", f"has {', '.join(added[:3])} more" if added else ""]
    what = " and ".join(filter(None, parts)) or "has them in another order"
    raise UserError(other, f"its classes are not those of {name}: it {what}", "compare runs with the same classes")


def _refuse_other_truth(name: str, other: str, differ: NDArray[np.bool_], keys: Sequence[tuple[str, int]]) -> None:
    if differ.any():
        which = keys[int(np.flatnonzero(differ)[0])][0]
        what = f"{int(differ.sum()):,} of {len(differ):,} samples have other labels than for {name}, such as {which!r}"
        raise UserError(other, what, "evaluate both on the same data")
