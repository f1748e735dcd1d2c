"""From the command line to a :class:`Config`: verbs, bundled and own YAML files, overrides.

Values come from the defaults, then ``base:``, then the file, then ``--section.key value``; mappings are merged key by key,
lists are replaced. Every mistake is one :class:`UserError` that names file and line, or the option, where it was made.
"""

import difflib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import NamedTuple

from effbackbones.errors import UserError, nearest
from effbackbones.registry import TASKS
from tasks.settings.keytypes import help_page, hint_of, members_of, nearest_key
from tasks.settings.lent import lent_options
from tasks.settings.sections import Config
from tasks.settings.tree import SEVERAL, build, dump, merge
from tasks.strictyaml import Plain, Tree, read_tree, read_value

VERBS = ("train", "evaluate", "predict", "check", "bench")
_OPTIONS = {  # options of the command itself: the verbs that take them, help
    "config": (VERBS, "bundled name or YAML file; a file wins"),
    "checkpoint": (VERBS[1:], "model file or run folder; a run's own config is used when --config is not given"),
    "split": (("evaluate",), "train, val or test"),
    "out": (("evaluate", "predict", "check"), "folder for the results"),
    "predictions": (("evaluate",), "file of predictions to score in place of a model"),
}
_FLAGS = {"-h": "help", "--help": "help", "--print-config": "print-config", "--deep": "deep"}


@dataclass(frozen=True)
class Extras:
    """What a command line says besides the config. ``config_name`` names run folders."""

    config_name: str = "default"
    checkpoint: str | None = None
    inputs: tuple[str, ...] = ()
    out: str | None = None
    split: str = "val"
    predictions: str | None = None
    deep: bool = False
    lent: tuple[str, ...] = ()
    """Options that were written for another backbone or head (:func:`tasks.settings.lent.lent_options`)."""


class Command(NamedTuple):
    """A command line, read: ``verb`` is one of :data:`VERBS`."""

    verb: str
    config: Config
    extras: Extras


def parse(task: str, argv: list[str]) -> Command:
    """Read ``argv`` of the command ``task`` (``classify``, ``detect``, ``segment``).

    ``--help`` and ``--print-config`` print and raise ``SystemExit(0)``; every mistake raises :class:`UserError`.
    """
    line = _Line.read(argv)
    if "help" in line.flags:
        print(_help(task))
        sys.exit(0)
    source, checkpoint = line.options.get("config"), line.options.get("checkpoint")
    of_run = None if source or not checkpoint else _run_config(Path(checkpoint))
    if not source and not of_run and line.verb in ("train", "check"):
        raise UserError(
            "--config", f"{line.verb} needs a config", f"bundled: {', '.join(bundled(task))}; or name a YAML file"
        )
    tree = _load(task, source or of_run)
    if checkpoint and not tree.values and TASKS.canonical(task) == SEVERAL:
        tree = _tasks_of(Path(checkpoint))
    if of_run:
        tree.values.pop("plugins", None)  # a stranger's run names no code to run here; --plugins does
    tree = merge(tree, _overrides(line.overrides))
    config = build(tree, TASKS.canonical(task))
    if "print-config" in line.flags:
        print(_with_places(dump(config), tree.places), end="")
        sys.exit(0)
    split = line.options.get("split", "val")
    if split not in ("train", "val", "test"):
        raise UserError("--split", f"unknown split {split!r}", nearest(split, ("train", "val", "test")))
    name = Path(source).stem if source else "default"
    if "deep" in line.flags and line.verb != "check":
        raise UserError("--deep", f"does not go with {line.verb}", "it goes with check")
    out, predictions = line.options.get("out"), line.options.get("predictions")
    extras = Extras(
        name, checkpoint, tuple(line.inputs), out, split, predictions, "deep" in line.flags, lent_options(tree)
    )
    return Command(line.verb, config, extras)


def bundled(task: str) -> dict[str, Path]:
    """Bundled configs of a command: short name to file."""
    return {path.stem: path for path in sorted((Path(__file__).parent.parent / "configs" / task).glob("*.yaml"))}


def _help(task: str) -> str:
    usage = (
        f"python -m tasks.{task} [{'|'.join(VERBS)}] --config NAME|FILE [--section.key VALUE ...] (predict: INPUT ...)"
    )
    options = {
        name: f"{text} ({', '.join(verbs) if verbs != VERBS else 'all'})" for name, (verbs, text) in _OPTIONS.items()
    }
    flags = "--print-config shows each value and where it comes from; check --deep also looks at what takes minutes"
    epilog = f"Without a verb: train. Bundled configs: {', '.join(bundled(task))}. {flags}."
    return help_page(usage, options, epilog)


@dataclass
class _Line:
    """A command line in its parts. ``overrides``: dotted key and text."""

    verb: str
    options: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    overrides: list[tuple[str, str]] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, argv: list[str]) -> "_Line":
        """Split ``argv``; unknown verbs and options, and missing values, raise :class:`UserError`."""
        rest = list(argv)
        line = cls(rest.pop(0) if rest and not rest[0].startswith("-") else "train")
        if line.verb not in VERBS:
            raise UserError(f"command {line.verb!r}", "no such verb", nearest(line.verb, VERBS))
        while rest:
            word = rest.pop(0)
            if word == "--":
                line.inputs, rest = line.inputs + rest, []
            elif word in _FLAGS:
                line.flags.add(_FLAGS[word])
            elif word.startswith("-") and word != "-":
                line._option(word, rest)
            else:
                line.inputs.append(word)
        if line.inputs and line.verb != "predict":
            raise UserError(
                f"argument {line.inputs[0]!r}",
                f"{line.verb} takes none",
                "options start with --; inputs go with predict",
            )
        return line

    def _option(self, word: str, rest: list[str]) -> None:
        name, given, value = word.removeprefix("--").partition("=")
        if name in _OPTIONS and self.verb not in _OPTIONS[name][0]:
            raise UserError(
                f"--{name}", f"does not go with {self.verb}", f"it goes with {', '.join(_OPTIONS[name][0])}"
            )
        if not word.startswith("--") or (name not in _OPTIONS and hint_of(name) is None):
            close = difflib.get_close_matches(name, _OPTIONS, n=1)
            raise UserError(
                word.partition("=")[0], "no such option", f"did you mean --{close[0]}?" if close else nearest_key(name)
            )
        if not given:
            if not rest or rest[0].startswith("--"):
                raise UserError(word, "needs a value", f"write {word} VALUE")
            value = rest.pop(0)
        if name in _OPTIONS:
            self.options[name] = value
        else:
            self.overrides.append((name, value))


def _run_config(checkpoint: Path) -> str | None:
    """``config.yaml`` of the run that a checkpoint is, or lies in."""
    for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        if (folder / "checkpoints").is_dir() and (folder / "config.yaml").is_file():
            return str(folder / "config.yaml")
    return None


def _tasks_of(checkpoint: Path) -> Tree:
    """The tasks that a model file lists, as a config that says no more."""
    from effbackbones.weights.record import read_metadata  # it imports torch

    told = read_metadata(checkpoint)["config"].get("task")
    return Tree({"model": {"task": told}}, {"model.task": str(checkpoint)})


def _load(task: str, name: str | None) -> Tree:
    """The tree of a config, with its ``base:`` below it."""
    if name is None:
        return Tree({}, {})
    tree = _read(task, name, "--config", Path())
    base = tree.values.pop("base", None)
    if base is None:
        return tree
    where = tree.places["base"]
    if not isinstance(base, str):
        raise UserError(f"{where}: base", f"expected a bundled name or a file, got {base!r}", "write base: NAME")
    below = _read(task, base, f"{where}: base", Path(name).parent)
    if "base" in below.values:
        raise UserError(f"{below.places['base']}: base", "a base may not have a base itself", "put both in one file")
    return merge(below, tree)


def _read(task: str, name: str, where: str, folder: Path) -> Tree:
    """A file (relative to ``folder``), else a bundled config of that name."""
    path, known = folder / name, bundled(task)
    if path.is_file():
        return read_tree(path, str(path))
    if name in known:
        return read_tree(known[name], f"bundled {name}.yaml")
    raise UserError(where, f"no file and no bundled config is called {name!r}", nearest(name, known))


def _overrides(given: list[tuple[str, str]]) -> Tree:
    """Overrides as a tree; later ones win."""
    tree = Tree({}, {})
    for key, text in given:
        value, inner = _override(key, text)
        *parents, last = key.split(".")
        branch: dict[str, Plain] = {last: value}
        for parent in reversed(parents):
            branch = {parent: branch}
        tree = merge(tree, Tree(branch, dict.fromkeys((key, *(f"{key}.{name}" for name in inner)), f"--{key}")))
    return tree


def _override(key: str, text: str) -> tuple[Plain, Iterable[str]]:
    """The value that ``text`` is for a key, and the keys inside of it."""
    members = members_of(hint_of(key))
    if str in members and members <= {str, NoneType}:  # text stays text: --run.out 12
        return None if NoneType in members and text in ("null", "None") else text, ()
    if key == "plugins" and not text.startswith("["):
        return [text], ()
    return read_value(text, f"--{key}")


def _with_places(text: str, places: dict[str, str]) -> str:
    """A dump with a comment on each line of where its value comes from."""
    lines, path = [], [""]
    for line in text.splitlines():
        indent, key = re.fullmatch(r"( *)(.+?):(?: .*)?", line, re.DOTALL).groups()  # type: ignore[union-attr]  # dumps are such lines
        path[len(indent) // 2 :] = [key.strip("'\"")]
        place = places.get(".".join(path), "default")
        lines.append(line if line.endswith(":") else f"{line}  # {place}")
    return "\n".join(lines) + "\n"
