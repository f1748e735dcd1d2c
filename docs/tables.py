"""What the pages say of catalogue, verbs and configs, asked of the code when the site is built: ``<!-- table: NAME -->`` stands for it.
``<!-- file: PATH -->`` stands for a file of the repository, ``<!-- notebook: PATH -->`` for the cells and outputs of a notebook.

A hook of MkDocs; also for tests, which ask for each table by name.
"""

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks are not installed

from notebooks import as_markdown

from benchmarks.pages import limits_text, machine_text, profile_table, scaling_table, speed_table
from effbackbones.catalogue import backbone_rows, head_rows, weight_rows
from tasks.settings.commandline import bundled
from tasks.settings.verbs import VERBS, Verb

MARK = re.compile(r"^<!-- table: ([\w-]+) -->$", re.MULTILINE)
FILE = re.compile(r"^<!-- file: (\S+) -->$", re.MULTILINE)
NOTEBOOK = re.compile(r"^<!-- notebook: (\S+) -->$", re.MULTILINE)
ROOT = Path(__file__).resolve().parent.parent
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|obj):(?=<code>|<a )")
"""Roles of reStructuredText, which docstrings have and Markdown does not know."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page with its tables in it; an unknown name raises KeyError, which ends the build."""
    return with_files(MARK.sub(lambda found: TABLES[found[1]](), markdown))


def with_files(markdown: str) -> str:
    """A page with the files in it, as blocks, and with notebooks; one that is not there raises FileNotFoundError."""
    with_cells = NOTEBOOK.sub(lambda found: as_markdown(ROOT / found[1]), markdown)
    return FILE.sub(lambda found: _fenced(ROOT / found[1]), with_cells)


def _fenced(path: Path) -> str:
    language = {".py": "python"}.get(path.suffix, path.suffix[1:])
    return f"```{language}\n{path.read_text(encoding='utf-8').rstrip()}\n```"


def on_page_content(html: str, **_: Any) -> str:
    """A page without the roles of its docstrings."""
    return ROLE.sub("", html)


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *([_cell(value) for value in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _millions(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:,.2f}"


def weights() -> str:
    """All published weights, as ``effbackbones list weights --json`` has them."""
    head = ("backbone", "`weights=`", "short name", "top-1", "AP", "image", "numerics", "licence", "comes as")
    return _table(
        head,
        (
            (
                row["backbone"],
                f"`{row['name']}`",
                row["default"] and f"`{row['default']}`",
                row["top1"],
                row["ap"],
                " x ".join(map(str, row["image_size"])),
                f"`{row['numerics']}`",
                row["licence"],
                f"package `{row['package']}`" if row["package"] else "download",
            )
            for row in weight_rows()
        ),
    )


def backbones() -> str:
    """Bundled backbones: parameters and multiply-adds in millions, of the features alone."""
    head = ("name", "parameters (M)", "multiply-adds (M)", "image", "channels C1 to C5")
    return _table(
        head,
        (
            (
                f"`{row['name']}`",
                _millions(row["parameters"]),
                _millions(row["multiply_adds"]),
                " x ".join(map(str, row["image_size"])),
                ", ".join(map(str, row["channels"])),
            )
            for row in backbone_rows()
        ),
    )


def heads() -> str:
    """Bundled heads by task."""
    rows = (
        (row["task"], f"`{row['name']}`{' (default)' if row['default'] else ''}", row["aliases"]) for row in head_rows()
    )
    return _table(
        ("task", "head", "also called"), ((task, name, ", ".join(f"`{a}`" for a in also)) for task, name, also in rows)
    )


def verbs() -> str:
    """A row for each verb."""
    return _table(
        ("verb", "what it does", "works on"),
        ((f"[`{verb.name}`](#{verb.name})", verb.help, _works_on(verb)) for verb in VERBS.values()),
    )


def _works_on(verb: Verb) -> str:
    words = {"needed": "a task and a config", "optional": "a task; a config or a model", "none": "no task"}[verb.config]
    return f"{words}; `{verb.words}`" if verb.inputs else words


def options() -> str:
    """A section for each verb, with its options."""
    return "\n\n".join(_section(verb) for verb in VERBS.values())


def _section(verb: Verb) -> str:
    rows = ((f"`--{name}`", text) for name, (_, text) in verb.shown.items())
    about = f"### {verb.name}\n\n{verb.help[0].upper()}{verb.help[1:]}.\n\n"
    return about + _table(("option", "what it says"), rows) if verb.shown else about


def recipes() -> str:
    """A row for each bundled config, with the comment that it begins with."""
    return _table(
        ("command", "config", "what it is"),
        (
            (f"`{command}`", f"`{name}`", _comment(path))
            for command in ("classify", "detect", "segment", "joint")
            for name, path in bundled(command).items()
        ),
    )


def _comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    said = [line.removeprefix("#").strip() for line in lines[:first]]
    return " ".join(f"`{line}`" if line.startswith(("--", "python ")) else line for line in said)


TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function for function in (weights, backbones, heads, verbs, options, recipes)
} | {
    "speed": speed_table,
    "limits": limits_text,
    "machine": machine_text,
    "scaling": scaling_table,
    "profile": profile_table,
}
