"""The verb ``compare``: do runs differ, and how sure is that?"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import write_atomically
from tasks.report.comparison import Compared, Group, comparison_page, comparison_record, table_of_runs
from tasks.report.metricsfile import plain
from tasks.report.outputs import make_folder
from tasks.scoring.pairing import in_points, paired, scored
from tasks.settings.commandline import Extras
from tasks.verbs.compared import Run, common_tasks, on_the_same_images, opened


def compare(extras: Extras) -> int:
    """Compare the first run with each other on the images that all have; prints it, and writes ``compare.html`` and ``compare.json`` into
    ``--out``."""
    if len(extras.inputs) < 2:
        raise UserError("RUN", f"expected two runs or more, got {len(extras.inputs)}", "compare RUN_A RUN_B")
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        print(line, file=sys.stderr)

    split, runs = opened(extras.inputs, extras.split if extras.split_named else None, tell)
    parts = []
    for task in common_tasks(runs):
        results = scored(on_the_same_images(runs, task, tell))
        names = tuple(run.name for run in runs)
        parts.append(Compared(task, names, results, paired(results[0], results[1:]), runs[0].noun))
    for run in runs[1:]:
        if run.folder.resolve() == runs[0].folder.resolve():
            tell(f"{run.name}: is {runs[0].name} itself")
    differing, groups = config_differences(runs), seed_groups(runs, parts)
    costs = {run.name: (run.parameters, run.minutes) for run in runs}
    table = table_of_runs(parts, costs, differing)
    _print(parts, table, groups)
    if extras.out is None:
        print("--out FOLDER writes this as a page and as JSON", file=sys.stderr)
        return 0
    folder = Path(extras.out)
    make_folder(folder)
    record = plain(comparison_record(parts, costs, differing, groups, split, told))
    write_atomically(folder / "compare.json", (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    page = comparison_page(parts, table, groups, split, told, folder / "compare.html")
    print(f"comparison {page}", file=sys.stderr)
    return 0


def config_differences(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Keys of the configs in which runs differ: key -> run -> value, those that most differ in first."""
    known = [run for run in runs if run.config]
    keys = dict.fromkeys(key for run in known for key in run.config)
    found = {key: {run.name: run.config.get(key) for run in known} for key in keys}
    differing = {key: row for key, row in found.items() if len({repr(value) for value in row.values()}) > 1}
    return dict(sorted(differing.items(), key=lambda item: item[0] == "run.seed"))


def seed_groups(runs: Sequence[Run], parts: Sequence[Compared]) -> list[Group]:
    """Runs that differ in the seed alone, by task."""
    recipes: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        if run.config:
            recipes.setdefault(json.dumps(plain(run.recipe), sort_keys=True), []).append(index)
    groups = []
    for part in parts:
        for rows in recipes.values():
            seeds = {runs[row].config.get("run.seed"): row for row in rows}  # a run that is named twice is one
            values = [float(part.scored[row].point[part.lead]) for row in seeds.values()]
            if len(values) > 1:
                names = tuple(runs[row].name for row in seeds.values())
                groups.append(Group(part.task, names, part.lead, float(np.mean(values)), float(np.std(values, ddof=1))))
    return groups


def _print(
    parts: Sequence[Compared], table: tuple[list[str], list[list[tuple[str, Any]]]], groups: Sequence[Group]
) -> None:
    header, rows = table
    shown = [header, *([cell[0] for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(header))]
    for row in shown:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for part in parts:
        print()
        for sentence in part.sentences():
            print(f"{f'{part.task}: ' if part.task else ''}{sentence}")
        for name, pair in zip(part.names[1:], part.pairs, strict=True):
            real = {kind: found for kind, found in pair.per_class.items() if found.real}
            if real:
                listed = ", ".join(f"{kind} {in_points(found.value)}" for kind, found in _largest(real))
                print(f"classes in which {name} differs from {part.names[0]}: {listed}")
        print("; ".join(part.caveats()))
    for group in groups:
        print(group.told())


def _largest(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(found.items(), key=lambda row: -abs(row[1].value))[:10]
