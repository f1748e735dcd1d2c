"""What there is, of ours and of plug-ins: rows of each kind, and tables of them for the eye."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from effbackbones.catalogue import Row, backbone_rows, head_rows, weight_rows
from effbackbones.errors import UserError, nearest
from effbackbones.registry import BACKBONES, DEFAULT_HEADS, HEADS, TASKS
from effbackbones.weights.hub import cache_folder
from tasks.data.dataset import ABOUT, DATASETS
from tasks.settings.commandline import bundled, parse
from tasks.settings.onecommand import task_words

WIDTH = 100
_LONGEST = 90
"""Characters of a text in a table; JSON has all of it."""


@dataclass(frozen=True)
class Kind:
    """A kind of things: its ``rows`` (of the words that follow, or all), what these ``words`` mean (empty: none may follow), the
    ``columns`` of its table (title, and text of a row), and a line ``below`` it."""

    rows: Callable[[Sequence[str]], list[Row]]
    words: str
    columns: dict[str, Callable[[Row], str]]
    below: str = ""


def config_rows(tasks: Sequence[str] = ()) -> list[Row]:
    """Bundled configs: ``task``, ``name``, ``backbone``, ``weights``, ``image_size`` (None: the backbone's), data set (``data``),
    ``about`` and ``file``."""
    return [_config(task, name, path) for task in _tasks(tasks) for name, path in bundled(task).items()]


def _config(task: str, name: str, path: Path) -> Row:
    config = parse(task, ["bench", "--config", name]).config
    size = config.data.image_size
    return {
        "task": task,
        "name": name,
        "backbone": config.model.backbone,
        "weights": config.model.weights,
        "image_size": [size, size] if isinstance(size, int) else None if size is None else [*size],
        "data": config.data.name,
        "about": _first_sentence(path.read_text(encoding="utf-8")),
        "file": str(path),
    }


def _first_sentence(text: str) -> str:
    lines = re.match(r"(?:#.*\n)*", text)
    said = " ".join(line.lstrip("# ") for line in lines[0].splitlines()) if lines else ""
    return re.split(r"(?<=[^.]\.) ", said, maxsplit=1)[0]


def dataset_rows() -> list[Row]:
    """Data sets: ``name``, ``about``, ``owner`` (empty: built in)."""
    return [
        {"name": name, "about": ABOUT.get(name) or _doc(DATASETS.get(name)), "owner": DATASETS.owner(name)}
        for name in DATASETS.names()
    ]


def task_rows() -> list[Row]:
    """Tasks: ``name`` as it is written, the ``word`` that heads carry, their ``default`` head, ``owner`` (empty: built in)."""
    return [
        {"name": TASKS.spoken(word), "word": word, "default": DEFAULT_HEADS.get(word), "owner": TASKS.owner(word)}
        for word in sorted(TASKS.names(), key=TASKS.spoken)
    ]


def _doc(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _tasks(words: Sequence[str]) -> list[str]:
    """Tasks as they are written; unknown words raise :class:`UserError`."""
    for word in words:
        if TASKS.canonical(word) not in TASKS.names():
            raise UserError(f"task {word!r}", "no such name", nearest(word, task_words()))
    return [TASKS.spoken(TASKS.canonical(word)) for word in words] or task_words()


def _heads(words: Sequence[str], on: str | None = None) -> list[Row]:
    return head_rows([TASKS.canonical(word) for word in _tasks(words)] if words else (), on)


def _text(key: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = row[key]
        if isinstance(value, bool):
            return "yes" if value else ""
        shown = (
            "" if value is None else " ".join(map(str, value)) if isinstance(value, (tuple, type([]))) else str(value)
        )
        return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."

    return text


def _millions(key: str, unit: float) -> Callable[[Row], str]:
    return lambda row: "" if key not in row else "?" if row[key] is None else f"{row[key] / unit:.2f}"


def _size(row: Row) -> str:
    return "x".join(map(str, row["image_size"])) if row.get("image_size") else ""


def _score(row: Row) -> str:
    name, value = ("AP", row["ap"]) if row["ap"] is not None else ("top-1", row["top1"])
    return "" if value is None else f"{name} {value:.2f}"


def _kept(row: Row) -> str:
    return "" if not row["here"] else "package" if row["package"] else f"{row['bytes'] / 2**20:.1f} MB"


def _task_of(row: Row) -> str:
    return TASKS.spoken(row["task"])


KINDS: dict[str, Kind] = {
    "backbones": Kind(
        backbone_rows,
        "backbones",
        {
            "name": _text("name"),
            "parameters, M": _millions("parameters", 1e6),
            "multiply-adds, G": _millions("multiply_adds", 1e9),
            "image": _size,
            "channels of its levels": _text("channels"),
            "of": _text("owner"),
        },
        "Features alone, without a classifier; work for one image of that size. In between too (b2.5), timm:NAME, sound:NAME: "
        "list backbones b2.5 timm:resnet50.",
    ),
    "heads": Kind(
        _heads,
        "tasks",
        {
            "name": _text("name"),
            "task": _task_of,
            "default": _text("default"),
            "also": _text("aliases"),
            "parameters, M": _millions("parameters", 1e6),
            "multiply-adds, G": _millions("multiply_adds", 1e9),
            "image": _size,
            "of": _text("owner"),
        },
        "--on b0 counts parameters of each head on a backbone, and the work of both for one image.",
    ),
    "weights": Kind(
        weight_rows,
        "backbones",
        {
            "name": _text("name"),
            "backbone": _text("backbone"),
            "default of": _text("default"),
            "score": _score,
            "image": _size,
            "numerics": _text("numerics"),
            "sha256": _text("sha256"),
            "here": _kept,
            "licence": _text("licence"),
        },
        "Scores in percent as published: top-1 on ImageNet, AP on COCO. weights fetch NAME downloads.",
    ),
    "configs": Kind(
        config_rows,
        "tasks",
        {
            "task": _text("task"),
            "name": _text("name"),
            "backbone": _text("backbone"),
            "image": _size,
            "data": _text("data"),
            "about": _text("about"),
        },
    ),
    "datasets": Kind(
        lambda words: dataset_rows(), "", {"name": _text("name"), "about": _text("about"), "of": _text("owner")}
    ),
    "tasks": Kind(
        lambda words: task_rows(),
        "",
        {"name": _text("name"), "word": _text("word"), "default head": _text("default"), "of": _text("owner")},
    ),
}


def rows_of(kind: str, names: Sequence[str] = (), on: str | None = None) -> list[Row]:
    """The rows of a kind, of heads ``on`` a backbone; unknown kinds and names raise :class:`UserError`."""
    if kind not in KINDS:
        raise UserError(f"list {kind!r}", "no such kind", nearest(kind, KINDS))
    if names and not KINDS[kind].words:
        raise UserError(f"list {kind} {names[0]!r}", "takes no names", f"write list {kind}")
    return _heads(names, on) if on else KINDS[kind].rows(names)


def table_of(kind: str, rows: Sequence[Row]) -> str:
    """The table of a kind: columns that are empty everywhere are left out."""
    columns = {title: [text(row) for row in rows] for title, text in KINDS[kind].columns.items()}
    columns = {title: texts for title, texts in columns.items() if any(texts)}
    widths = {title: max(map(len, (title, *texts))) for title, texts in columns.items()}
    lines = ["  ".join(f"{title:{widths[title]}}" for title in columns)]
    for place in range(len(rows)):
        lines.append("  ".join(f"{texts[place]:{widths[title]}}" for title, texts in columns.items()))
    lines += [f"{row['name']}: {row['error']}" for row in rows if row.get("error")]
    lines += ["", *wrap(KINDS[kind].below, WIDTH)] if KINDS[kind].below else []
    return "\n".join(line.rstrip() for line in lines)


def overview() -> str:
    """How much there is of each kind, and where it is listed."""
    configs = {task: ", ".join(bundled(task)) for task in task_words()}
    known = {
        "backbones": f"{', '.join(BACKBONES.names())}, timm:NAME, sound:NAME",
        "heads": ", ".join(HEADS.names()),
        "weights": f"{len(weight_rows())} published files; cache: {cache_folder()}",
        "configs": "; ".join(f"{task}: {names}" for task, names in configs.items() if names),
        "datasets": ", ".join(DATASETS.names()),
        "tasks": ", ".join(task_words()),
    }
    lines = [
        line
        for kind, text in known.items()
        for line in wrap(text, WIDTH, initial_indent=f"{kind:9}  ", subsequent_indent=" " * 11)
    ]
    return "\n".join([*lines, "", "list KIND shows more of each, list KIND NAME of some, --json all that is known."])
