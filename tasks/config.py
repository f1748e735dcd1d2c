"""From the command line to a :class:`Config`: verbs, bundled and own YAML files, overrides; and back to YAML.

Values come from the defaults, then ``base:``, then the file, then ``--section.key value``; mappings are merged key by key,
lists are replaced. Every mistake is one :class:`UserError` that names file and line, or the option, where it was made.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_type_hints

from effbackbones.errors import UserError, nearest
from effbackbones.registry import TASKS
from tasks.configfile import Plain, Tree, read_tree, read_value, write_value
from tasks.configtypes import convert, describe, help_page, hint_of, leaves, members_of, section_of
from tasks.settings import Config, DataConfig, ModelConfig, OptimConfig, RandAugmentConfig, RunConfig

__all__ = [
    "VERBS", "Command", "Config", "DataConfig", "Extras", "ModelConfig", "OptimConfig", "RandAugmentConfig", "RunConfig", "bundled",
    "changed_keys", "dump", "from_mapping", "parse", "to_mapping",
]  # fmt: skip

VERBS = ("train", "evaluate", "predict", "export", "check", "bench")
_OPTIONS = {  # options of the command itself: the verbs that take them, help
    "config": (VERBS, "bundled name or YAML file; a file wins"),
    "checkpoint": (VERBS[1:], "model file or run folder; its config is used when --config is not given"),
    "split": (("evaluate",), "train, val or test (default: val)"),
    "out": (("predict", "export"), "folder or file for the results"),
}


@dataclass(frozen=True)
class Extras:
    """What a command line says besides the config. ``config_name`` names run folders."""

    config_name: str = "default"
    checkpoint: str | None = None
    inputs: tuple[str, ...] = ()
    out: str | None = None
    split: str = "val"


class Command(NamedTuple):
    """A command line, read: ``verb`` is one of :data:`VERBS`."""

    verb: str
    config: Config
    extras: Extras


def parse(task: str, argv: list[str]) -> Command:
    """Read ``argv`` of the command ``task`` (``classify``, ``detect``, ``segment``).

    ``--help`` and ``--print-config`` print and raise ``SystemExit(0)``; every mistake raises :class:`UserError`.
    """
    verb, options, overrides, inputs = _split(argv)
    if "help" in options:
        print(_help(task))
        sys.exit(0)
    source = options.get("config")
    run_folder = None if source else _run_config(options.get("checkpoint"))
    if source is None and run_folder is None and verb in ("train", "check"):
        raise UserError("--config", f"{verb} needs a config", f"bundled: {', '.join(bundled(task))}; or name a YAML file")
    tree = _load(task, source or run_folder)
    if run_folder is not None:
        tree.values.pop("plugins", None)  # a stranger's checkpoint names no code to run; --plugins does
    config = _config(_merge(tree, _overrides(overrides)), TASKS.canonical(task))
    if "print-config" in options:
        print(dump(config), end="")
        sys.exit(0)
    name = Path(source).stem if source else "default"
    return Command(verb, config, Extras(name, options.get("checkpoint"), tuple(inputs), options.get("out"), options.get("split", "val")))


def _help(task: str) -> str:
    usage = f"python -m tasks.{task} [{'|'.join(VERBS)}] --config NAME|FILE [--section.key VALUE ...] (predict: INPUT ...)"
    options = {name: f"{text} ({', '.join(verbs)})" for name, (verbs, text) in _OPTIONS.items()}
    epilog = f"Without a verb: train. Bundled configs: {', '.join(bundled(task))}. --print-config shows the resolved config."
    return help_page(usage, options, epilog)


def bundled(task: str) -> dict[str, Path]:
    """Bundled configs of a command: short name to file."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "configs" / task).glob("*.yaml"))}


def dump(config: Config) -> str:
    """The config as YAML that reads back to an equal one."""
    return write_value(to_mapping(config))


def to_mapping(config: Config) -> dict[str, Plain]:
    """The config as nested plain values, JSON-like."""
    mapping = _listed(asdict(config))
    assert isinstance(mapping, dict)
    return mapping


def from_mapping(mapping: Mapping[str, Plain], source: str = "config") -> Config:
    """Inverse of :func:`to_mapping`, with every check."""
    return _config(Tree(dict(mapping), {}), None, source)


def changed_keys(old: Config, new: Config) -> list[str]:
    """Dotted keys that differ between two configs, ``run.*`` aside, sorted."""
    before, after = (dict(_flat(to_mapping(config))) for config in (old, new))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key, MISSING) != after.get(key, MISSING))
    return [key for key in keys if not key.startswith("run.")]


def _listed(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value


def _flat(mapping: Mapping[str, Plain], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _split(argv: list[str]) -> tuple[str, dict[str, str], list[tuple[str, str]], list[str]]:
    """Verb, the command's own options, overrides (dotted key, text) and inputs."""
    rest = list(argv)
    verb = rest.pop(0) if rest and not rest[0].startswith("-") else "train"
    if verb not in VERBS:
        raise UserError(f"command {verb!r}", "no such verb", nearest(verb, VERBS))
    options: dict[str, str] = {}
    overrides: list[tuple[str, str]] = []
    inputs: list[str] = []
    while rest:
        word = rest.pop(0)
        name, has_value, value = word[2:].partition("=")
        if word == "--":
            inputs, rest = inputs + rest, []
        elif word in ("-h", "--help", "--print-config"):
            options[word.lstrip("-").replace("h", "help") if word == "-h" else word[2:]] = ""
        elif not word.startswith("-"):
            inputs.append(word)
        else:
            if not word.startswith("--"):
                raise UserError(word, "no such option", "write options with two dashes; `--` ends them")
            _known_option(name, verb)
            if not has_value:
                if not rest or rest[0].startswith("--"):
                    raise UserError(word, "needs a value", f"write {word} VALUE")
                value = rest.pop(0)
            if name in _OPTIONS:
                options[name] = value
            else:
                overrides.append((name, value))
    if inputs and verb != "predict":
        raise UserError(f"argument {inputs[0]!r}", f"{verb} takes none", "options start with --; inputs go with predict")
    return verb, options, overrides, inputs


def _known_option(name: str, verb: str) -> None:
    if name in _OPTIONS and verb not in _OPTIONS[name][0]:
        raise UserError(f"--{name}", f"does not go with {verb}", f"it goes with {', '.join(_OPTIONS[name][0])}")
    if name not in _OPTIONS and hint_of(name) is None:
        raise UserError(f"--{name}", "no such option", _nearest_key(name, {*_OPTIONS, *(key for key, _, _ in leaves())}))


def _nearest_key(name: str, known: Iterable[str]) -> str:
    """Nearest known key; the whole list only when nothing is near, and never the hundred of all sections."""
    close = nearest(name, known)
    return close.partition("?")[0] + "?" if close.startswith("did you mean") else "see --help for all keys"


def _run_config(checkpoint: str | None) -> str | None:
    """``config.yaml`` of the run that a checkpoint lies in."""
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    found = [str(folder / "config.yaml") for folder in (path, *path.parents[:2]) if (folder / "config.yaml").is_file()]
    return found[0] if found else None


def _load(task: str, name: str | None) -> Tree:
    """The tree of a config with its ``base:`` under it."""
    if name is None:
        return Tree({}, {})
    tree = _read(task, name, "--config", Path())
    base = tree.values.pop("base", None)
    if base is None:
        return tree
    where = tree.places["base"]
    if not isinstance(base, str):
        raise UserError(where, f"base: expected a bundled name or a file, got {base!r}", "write base: NAME")
    below = _read(task, base, where, Path(name).parent)
    if "base" in below.values:
        raise UserError(below.places["base"], "a base may not have a base itself", "put both in one file")
    return _merge(below, tree)


def _read(task: str, name: str, where: str, folder: Path) -> Tree:
    """A file (relative to ``folder``), else a bundled config of that name."""
    path = folder / name
    if path.is_file():
        return read_tree(path, str(path))
    known = bundled(task)
    if name in known:
        return read_tree(known[name], f"bundled {name}.yaml")
    raise UserError(where, f"no file and no bundled config is called {name!r}", nearest(name, known))


def _merge(below: Tree, above: Tree) -> Tree:
    def merged(low: Mapping[str, Plain], high: Mapping[str, Plain]) -> dict[str, Plain]:
        result = dict(low)
        for key, value in high.items():
            under = result.get(key)
            result[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
        return result

    return Tree(merged(below.values, above.values), below.places | above.places)


def _overrides(given: list[tuple[str, str]]) -> Tree:
    tree = Tree({}, {})
    for key, text in given:
        value, places = _override_value(key, text)
        *parents, last = key.split(".")
        branch: dict[str, Plain] = {last: value}
        for parent in reversed(parents):
            branch = {parent: branch}
        tree = _merge(tree, Tree(branch, {f"{key}.{inner}": f"--{key}" for inner in places} | {key: f"--{key}"}))
    return tree


def _override_value(key: str, text: str) -> tuple[Plain, dict[str, str]]:
    hint = hint_of(key)
    members = members_of(hint)
    if str in members and not members & {int, float, bool, list}:  # text stays text: --run.out 12
        return (None if NoneType in members and text in ("null", "None") else text), {}
    if key == "plugins" and not text.startswith("["):
        return [text], {}
    value, places = read_value(text, f"--{key}")
    return value, places


def _config(tree: Tree, task: str | None, source: str = "config") -> Config:
    """The checked config of a tree; ``task`` is set, and refused if the tree says otherwise."""
    if task is not None:
        model = tree.values.setdefault("model", {})
        if isinstance(model, dict) and TASKS.canonical(str(model.setdefault("task", task))) != task:
            place = tree.places.get("model.task", source)
            raise UserError(place, f"model.task is {model['task']!r}, the command's {task!r}", "use that task's command")
        if isinstance(model, dict):
            model["task"] = task
    try:
        built = _section(Config, tree, tree.values, "")
    except _PlacedError as error:
        raise UserError(str(error)) from None
    assert isinstance(built, Config)
    return built


class _PlacedError(Exception):
    """A mistake with its place already in the text."""


def _section(cls: type, tree: Tree, values: Plain, path: str) -> object:
    if not isinstance(values, dict):
        raise _misplaced(tree, path, f"expected a section of keys, got {values!r}", "write its keys below it")
    hints = get_type_hints(cls)
    known = [item.name for item in fields(cls)]
    arguments: dict[str, object] = {}
    for key, value in values.items():
        where = f"{path}.{key}" if path else key
        if key not in known:
            raise _misplaced(tree, where, "no such key", nearest(key, known))
        inner = section_of(hints[key])
        if inner is not None and not (value is None and NoneType in members_of(hints[key])):
            arguments[key] = _section(inner, tree, value, where)
        else:
            arguments[key] = _typed(tree, where, hints[key], value)
    try:
        return cls(**arguments)
    except UserError as error:
        field = str(error).partition(":")[0]
        raise _misplaced(tree, field, str(error).removeprefix(f"{field}: "), "") from None


def _misplaced(tree: Tree, key: str, what: str, remedy: str) -> _PlacedError:
    place = tree.places.get(key, "")
    where = place if place == f"--{key}" else f"{place}: {key}" if place else key
    return _PlacedError(str(UserError(where, what[:400], remedy)))


def _typed(tree: Tree, where: str, hint: Any, value: Plain) -> object:
    """``value`` as the type of its key."""
    try:
        return convert(where, hint, value)
    except ValueError:
        raise _misplaced(tree, where, f"expected {describe(hint)}, got {value!r}"[:300], "correct the value") from None
