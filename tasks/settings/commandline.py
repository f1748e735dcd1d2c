"""From the command line to a :class:`Config`: verbs, bundled and own YAML files, overrides.

Values come from the defaults, then ``base:``, then the file, then ``--section.key value``; mappings are merged key by key,
lists are replaced. Every mistake is one :class:`UserError` that names file and line, or the option, where it was made.
"""

import difflib
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from effbackbones.errors import UserError, nearest
from effbackbones.registry import TASKS
from tasks.settings.helping import task_help, verb_help
from tasks.settings.keytypes import hint_of, members_of, nearest_key
from tasks.settings.lent import lent_options
from tasks.settings.paths import expanded
from tasks.settings.recipes import with_recipe
from tasks.settings.sections import Config
from tasks.settings.tree import SEVERAL, branch, build, dump, merge
from tasks.settings.verboptions import OPTIONS
from tasks.settings.verbs import DEFAULT, VERBS, Verb
from tasks.strictyaml import Plain, Tree, read_tree, read_value


@dataclass(frozen=True)
class Extras:
    """What a command line says besides the config: the values of a verb's options. ``config_name`` names run folders."""

    config_name: str = "default"
    inputs: tuple[str, ...] = ()
    config_source: str | None = None
    """The config as the line names it: a bundled name or a file."""
    checkpoint: str | None = None
    out: str | None = None
    split: str = "val"
    split_named: bool = False
    """Whether the line itself says ``split``."""
    predictions: str | None = None
    threshold: str | None = None
    top_k: str | None = None
    tta: str | None = None
    slices: str | None = None
    backend: str | None = None
    dtype: str | None = None
    every: str | None = None
    write: str | None = None
    deep: bool = False
    format: str | None = None
    preprocess: str = "normalize"
    postprocess: str = "predict"
    precision: str = "fp32"
    certify: str | None = None
    bound: str | None = None
    fixed: bool = False
    nearest: str | None = None
    overrides: tuple[str, ...] = ()
    """Dotted keys of the config that the line itself says."""
    told: tuple[str, ...] = ()
    """Lines on what the config came to be by."""
    lent: tuple[str, ...] = ()
    """Options that were written for another backbone or head (:func:`tasks.settings.lent.lent_options`)."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Values of the options that the verb has alone."""


class Request(NamedTuple):
    """A command line, read: ``verb`` is one of :data:`tasks.settings.verbs.VERBS`; ``config`` is the default one where the verb works
    on none."""

    verb: str
    config: Config
    extras: Extras


_PLACEHOLDER = re.compile(r"\A[^\[]*\{[a-z_]+\}[^\]]*\Z")
_SHARE = re.compile(r"[-+]?\d*\.\d+")
_OPTION = re.compile(r"data\.options\.\w+")


def parse(task: str, argv: list[str]) -> Request:
    """Read ``argv`` of the command ``task`` (``classify``, ``detect``, ``segment``; empty for a verb that has none).

    ``--help``, ``--version`` and ``--print-config`` print and raise ``SystemExit(0)``; every mistake raises :class:`UserError`.
    """
    if argv in (["--version"], ["-V"]):
        print(_version())
        sys.exit(0)
    line = _Line.read(argv)
    if line.help:
        print(task_help(task, line.verb, bundled(task)) if task else verb_help(line.verb))
        sys.exit(0)
    source = line.options.pop("config", None) or _resumed(line) or line.verb.assumes.get(task)
    shown = "print-config" in line.flags
    flags = dict.fromkeys(line.flags - {"print-config"}, True)
    options = {name.replace("-", "_"): value for name, value in line.options.items()}
    config, lent, told = _config(task, line, source, shown=shown) if line.verb.config != "none" else (Config(), (), ())
    name = Path(source).stem if source else "default"
    own = line.verb.defaults | line.own
    extras = Extras(name, tuple(line.inputs), config_source=source, lent=lent, told=told, own=own, **options, **flags)  # type: ignore[arg-type]  # flags are its truth values
    keys = tuple(key for key, _ in line.overrides)
    return Request(line.verb.name, config, replace(extras, overrides=keys, split_named="split" in line.options))


def named_plugins(argv: list[str]) -> tuple[str, ...]:
    """The plug-ins that a command line itself names."""
    found: tuple[str, ...] = ()
    for place, word in enumerate(argv):
        name, given, text = word.partition("=")
        if name == "--plugins" and (given or place + 1 < len(argv)):
            value, _ = _override("plugins", text if given else argv[place + 1])
            found = tuple(map(str, value)) if isinstance(value, list) else ()
    return found


def _config(
    task: str, line: "_Line", source: str | None, *, shown: bool
) -> tuple[Config, tuple[str, ...], tuple[str, ...]]:
    """The config that a line says, its lent options, and what to say of it; if it is to be ``shown``, print it and raise
    ``SystemExit(0)``."""
    checkpoint = line.options.get("checkpoint")
    of_run = None if source or not checkpoint else _run_config(Path(checkpoint))
    if not source and not of_run and line.verb.config == "needed":
        raise UserError(
            "--config", f"{line.verb.name} needs a config", f"bundled: {', '.join(bundled(task))}; or name a YAML file"
        )
    tree = _load(task, source or of_run)
    if checkpoint and not tree.values and TASKS.canonical(task) == SEVERAL:
        tree = _tasks_of(checkpoint)
    unread = (
        tree.values.pop("plugins", None) if of_run else None
    )  # a stranger's run names no code to run here; --plugins does
    if unread and not any(key == "plugins" for key, _ in line.overrides):
        named = ", ".join(map(str, unread)) if isinstance(unread, list) else unread
        told = f"the run used plug-ins, which are code and not imported on a run's word: --plugins '[{named}]'"
        print(told, file=sys.stderr)
    # What a run has come to stands in its own file; only a recipe that the line itself names is looked up for it.
    asked = any(key == "recipe" for key, _ in line.overrides)
    tree = merge(tree, _overrides(line.overrides))
    tree, set_by = (tree, ()) if of_run and not asked else with_recipe(task, tree)
    config = build(tree, TASKS.canonical(task))
    if shown:
        print(_with_places(dump(config), tree.places), end="")
        sys.exit(0)
    return config, lent_options(tree), set_by


def bundled(task: str) -> dict[str, Path]:
    """Bundled configs of a command: short name to file."""
    return {path.stem: path for path in sorted((Path(__file__).parent.parent / "configs" / task).glob("*.yaml"))}


def _version() -> str:
    """Versions of this project, PyTorch and Python, none of which is imported for it."""
    known = []
    for package in ("effbackbones", "torch"):
        try:
            known.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # a checkout that runs in place
            known.append(f"{package} of unknown version")
    return ", ".join([*known, f"Python {platform.python_version()}"])


def _verbs_with(option: str) -> str:
    """The verbs that an option goes with."""
    names = [verb.name for verb in VERBS.values() if verb.takes(option)]
    return "all" if len(names) == len(VERBS) else ", ".join(names)


@dataclass
class _Line:
    """A command line in its parts. ``overrides``: dotted key and text."""

    verb: Verb
    help: bool = False
    options: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    own: dict[str, Any] = field(default_factory=dict)
    overrides: list[tuple[str, str]] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, argv: list[str]) -> "_Line":
        """Split ``argv``; unknown verbs and options, and missing values, raise :class:`UserError`."""
        rest = list(argv)
        name = rest.pop(0) if rest and not rest[0].startswith("-") else DEFAULT
        if name not in VERBS:
            raise UserError(f"command {name!r}", "no such verb", nearest(name, VERBS))
        line = cls(VERBS[name])
        while rest:
            word = rest.pop(0)
            if word == "--":
                line.inputs, rest = line.inputs + rest, []
            elif word in ("-h", "--help"):
                line.help = True
            elif word.startswith("-") and word != "-":
                line._option(word, rest)
            else:
                line.inputs.append(expanded(word, word))
        if line.inputs and not line.verb.inputs:
            if TASKS.canonical(line.inputs[0]) in TASKS.names() and line.verb.config == "none":
                raise UserError(
                    f"argument {line.inputs[0]!r}", f"{name} takes no task, which the model says", "leave it out"
                )
            takers = ", ".join(verb.name for verb in VERBS.values() if verb.inputs)
            raise UserError(
                f"argument {line.inputs[0]!r}",
                f"{name} takes none",
                f"options start with --; inputs go with {takers}",
            )
        return line

    def _option(self, word: str, rest: list[str]) -> None:
        name, given, value = word.removeprefix("--").partition("=")
        others = (verb.own[name] for verb in VERBS.values() if name in verb.own)
        option = self.verb.own.get(name) or OPTIONS.get(name) or next(others, None)
        of_config = hint_of(name) is not None
        if not word.startswith("--") or (option is None and not of_config):
            close = difflib.get_close_matches(name, [*self.verb.own, *OPTIONS], n=1)
            raise UserError(
                word.partition("=")[0], "no such option", f"did you mean --{close[0]}?" if close else nearest_key(name)
            )
        if not self.verb.takes(name if option else "config") and name != "plugins":  # a verb may come from one
            fits = _verbs_with(name if option else "config")
            raise UserError(f"--{name}", f"does not go with {self.verb.name}", f"it goes with {fits}")
        if option and option.flag:
            if given:
                raise UserError(f"--{name}", "takes no value", f"write --{name}")
            if name in self.verb.own:
                self.own[name.replace("-", "_")] = True
            else:
                self.flags.add(name)
            return
        if not given:
            if not rest or rest[0].startswith("--"):
                raise UserError(word, "needs a value", f"write {word} VALUE")
            value = rest.pop(0)
        if option is None:
            self.overrides.append((name, value))
            return
        read = option.value(expanded(value, f"--{name}") if option.path else value, f"--{name}")
        if name in self.verb.own:
            self.own[name.replace("-", "_")] = read
        else:
            self.options[name] = read


def _run_config(checkpoint: Path) -> str | None:
    """``config.yaml`` of the run that a checkpoint is, or lies in."""
    for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        if (folder / "checkpoints").is_dir() and (folder / "config.yaml").is_file():
            return str(folder / "config.yaml")
    return None


def _resumed(line: "_Line") -> str | None:
    """``config.yaml`` of the run that is to be continued, where the line names one and says no more: its own plug-ins too. No
    such run raises :class:`UserError`."""
    named = dict(line.overrides).get("run.resume")
    if line.verb.config != "needed" or named in (None, "auto", "never"):
        return None
    path = Path(str(named), "config.yaml")
    if not path.is_file():
        raise UserError(f"--run.resume {named}", f"holds no run ({path.name} is missing)", "name a run folder")
    if not path.stat().st_size:  # which would be a config of nothing but defaults
        raise UserError(
            str(path), "is empty", "restore it, or start anew from the weights of the run: --model.init_from"
        )
    return str(path)


def _tasks_of(named: str) -> Tree:
    """The tasks that a model file lists, as a config that says no more."""
    from effbackbones.export.record import format_of  # these import torch
    from effbackbones.inference.runtimes import open_runtime
    from effbackbones.weights.record import read_metadata
    from effbackbones.weights.repository import fetch_repository, is_repository

    checkpoint = fetch_repository(named) if is_repository(named) else Path(named)
    record = open_runtime(checkpoint).record.model if format_of(checkpoint) else read_metadata(checkpoint)
    told = record["config"].get("task")
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
        tree = merge(
            tree, Tree(branch(key, value), dict.fromkeys((key, *(f"{key}.{name}" for name in inner)), f"--{key}"))
        )
    return tree


def _override(key: str, text: str) -> tuple[Plain, Iterable[str]]:
    """The value that ``text`` is for a key, and the keys inside of it."""
    members = members_of(hint_of(key))
    if str in members and members <= {str, NoneType}:  # text stays text: --run.out 12
        return None if NoneType in members and text in ("null", "None") else text, ()
    if members == {str, float, NoneType} and not _SHARE.fullmatch(text):  # a name, were it 2017
        return None if text in ("null", "None") else text, ()
    if key == "plugins" and not text.startswith("["):
        return [text], ()
    if _PLACEHOLDER.search(text) and _OPTION.fullmatch(key):  # a pattern such as {split}/rgb, no mapping
        return text, ()
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
