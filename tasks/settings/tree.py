"""Trees of plain values to a checked :class:`Config`, and back. Every mistake names the place where it was made."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, replace
from types import NoneType
from typing import Any, get_origin, get_type_hints

from effbackbones.errors import UserError, nearest
from effbackbones.registry import TASKS
from tasks.settings.keytypes import convert, describe, family_of, is_option, members_of, nearest_key, section_of
from tasks.settings.paths import absolute_path, expanded
from tasks.settings.sections import Config, HeadConfig
from tasks.strictyaml import Plain, Tree, write_value

SEVERAL = "multi"
"""The word of the command that trains several tasks at once."""
_NAMES = {"cls": "classification", "det": "detection", "seg": "segmentation", SEVERAL: "joint training"}


def build(tree: Tree, task: str | None = None, source: str = "") -> Config:
    """The config that ``tree`` says; what it leaves out has its default.

    ``task`` is the command's, in its short form: filled in, and refused if the tree says another. ``source`` stands in
    messages for keys without a place. Unknown keys, wrong types and values out of range raise :class:`UserError`.
    """
    built = _section(Config, tree, tree.values, "", source)
    assert isinstance(built, Config)
    if task is None:
        return built
    said = tree.values.get("model")
    told = built.model.task if isinstance(said, dict) and "task" in said else task
    told = _task(told, task, place_of(tree, "model.task", source))
    _refuse_foreign(built, task, tree, source)
    return replace(built, model=replace(built.model, task=told), heads=_heads(built, task, tree, source))


def _refuse_foreign(config: Config, task: str, tree: Tree, source: str) -> None:
    """Refuse what is set and would mean nothing to the command: ``MEANT_FOR`` of the sections. Users' own tasks may mean anything."""
    for section in (config.model, config.data, config.optim) if task in _NAMES else ():
        defaults = type(section)()
        for name, tasks in section.MEANT_FOR.items():
            if task not in tasks and getattr(section, name) != getattr(defaults, name):
                key = f"{section.SECTION}.{name}"
                raise UserError(
                    place_of(tree, key, source), f"is for {' and '.join(_NAMES[word] for word in tasks)}", "remove it"
                )


def _heads(config: Config, task: str, tree: Tree, source: str) -> dict[str, HeadConfig]:
    """The sections ``heads.TASK`` by the short forms of their tasks."""
    found: dict[str, HeadConfig] = {}
    for key, section in config.heads.items():
        where, word = place_of(tree, f"heads.{key}", source), TASKS.canonical(key)
        if task != SEVERAL:
            raise UserError(where, "no such key", "use the command joint, or model.head_options")
        if word == SEVERAL or word not in TASKS.names():
            raise UserError(where, "no such key", nearest(key, [name for name in TASKS.names() if name != SEVERAL]))
        if word in found:
            raise UserError(where, f"there is another section for {word}", "write both below one name")
        found[word] = section
    return found


def _task(told: str | tuple[str, ...], task: str, where: str) -> str | tuple[str, ...]:
    """What a config says of ``model.task``, held against the command's; several for the command joint, in their short forms."""
    if task == SEVERAL:
        words = tuple(TASKS.canonical(word) for word in told) if isinstance(told, tuple) else ()
        if len(words) < 2 or len(set(words)) < len(words) or SEVERAL in words:
            got = "none" if told == task else _shown(list(told) if isinstance(told, tuple) else told)
            what = f"expected a list of different tasks, at least two, got {got}"
            raise UserError(where, what, "write task: [det, seg], or name the config or the run folder")
        return words
    if isinstance(told, tuple):
        raise UserError(where, f"is a list, the command's is {task!r}", "use the command joint")
    if TASKS.canonical(told) != task:
        raise UserError(where, f"is {told!r}, the command's is {task!r}", "use that task's command")
    return task


def merge(below: Tree, above: Tree) -> Tree:
    """``above`` over ``below``: mappings key by key, everything else (also lists) replaced."""

    def merged(low: Mapping[str, Plain], high: Mapping[str, Plain]) -> dict[str, Plain]:
        result = dict(low)
        for key, value in high.items():
            under = result.get(key)
            result[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
        return result

    return Tree(merged(below.values, above.values), below.places | above.places)


def branch(key: str, value: Plain) -> dict[str, Plain]:
    """Nested mappings with ``value`` at a dotted key."""
    first, _, rest = key.partition(".")
    return {first: branch(rest, value) if rest else value}


def dump(config: Config) -> str:
    """The config as YAML, one line per key, that reads back to an equal one."""
    return write_value(to_mapping(config))


def to_mapping(config: Config) -> dict[str, Plain]:
    """The config as nested plain values, JSON-like."""
    return {key: _listed(value) for key, value in asdict(config).items()}


def from_mapping(mapping: Mapping[str, Plain], source: str = "") -> Config:
    """Inverse of :func:`to_mapping`, with every check; ``source`` names its origin in messages."""
    return build(Tree(dict(mapping), {}), None, source)


def _before_part(weights: str) -> str:
    """``FILE`` of ``FILE#NAME``, as :func:`effbackbones.weights.reading.read_weights` divides it; else the whole."""
    folder, name = os.path.split(weights)
    return os.path.join(folder, name.partition("#")[0])


def absolute(config: Config) -> Config:
    """The config with paths that mean the same in any working directory: of data, files of weights, run folders, plug-ins."""
    model, data, run = config.model, config.data, config.run
    weights = model.weights and expanded(model.weights, "model.weights")
    # A file of several networks stands before the name of one: FILE#NAME.
    if weights and any(os.path.isfile(name) for name in (weights, _before_part(weights))):
        weights = absolute_path(weights, "model.weights")
    plugins = tuple(absolute_path(name, "plugins") if name.endswith(".py") else name for name in config.plugins)
    model = replace(
        model, weights=weights, init_from=model.init_from and absolute_path(model.init_from, "model.init_from")
    )
    root, division = data.root and absolute_path(data.root, "data.root"), data.division
    cache = data.cache and absolute_path(data.cache, "data.cache")
    data = replace(data, root=root, cache=cache, division=division and absolute_path(division, "data.division"))
    resume = run.resume if run.resume in ("auto", "never") else absolute_path(run.resume, "run.resume")
    run = replace(run, out=run.out and absolute_path(run.out, "run.out"), resume=resume)
    distill = config.optim.distill
    distill = replace(distill, teacher=distill.teacher and absolute_path(distill.teacher, "optim.distill.teacher"))
    optim = replace(config.optim, distill=distill)
    return replace(config, model=model, data=data, optim=optim, run=run, plugins=plugins)


FREE = (
    "data.workers",
    "data.timeout",
    "data.eval_batch_size",
    "data.on_error",
    "data.max_pixels",
    "data.allow_bad_boxes",
    "data.root",
    "optim.accumulate",
)
"""Keys beside ``run.*`` that may change while a run rests: what a step sees and how it learns does not follow from them. That
``data.root`` still holds the same samples is looked at when the run continues."""


def differences(old: Config, new: Config) -> dict[str, str]:
    """Dotted keys that differ between two configs, in order, with both values in words."""
    before, after = (dict(flat(to_mapping(absolute(config)))) for config in (old, new))
    for one, other in ((before, after), (after, before)):  # an empty mapping is no key beside what the other has in it
        for key in [key for key, value in one.items() if value == {} and any(k.startswith(f"{key}.") for k in other)]:
            del one[key]
    return {
        key: f"{_brief(before.get(key))} -> {_brief(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, MISSING) != after.get(key, MISSING)
    }


def is_free(key: str) -> bool:
    """Whether a key may change while a run rests: :data:`FREE`, and of ``run.*`` all but the seed."""
    return key in FREE or (key.startswith("run.") and key not in ("run.seed", "run.monitor", "run.metrics"))


def changed_keys(old: Config, new: Config) -> list[str]:
    """Dotted keys that differ between two configs and make them different runs, sorted."""
    return [key for key in differences(old, new) if not is_free(key)]


def lasting(config: Config) -> dict[str, Plain]:
    """The dotted keys that make a run what it is, and their values, JSON-like."""
    return {key: value for key, value in flat(to_mapping(absolute(config))) if not is_free(key)}


def _brief(value: object) -> str:
    """A value on one line, short."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"


def _listed(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value


def flat(mapping: Mapping[str, Plain], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """The dotted keys of nested mappings, in order, and their values; an empty mapping is a value."""
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _section(cls: type, tree: Tree, values: Plain, path: str, source: str) -> object:
    """A dataclass from a mapping, its sections included."""
    if values is None:  # `optim:` with nothing below it
        values = {}
    if not isinstance(values, dict):
        raise UserError(
            place_of(tree, path, source), f"expected a section of keys, got {_shown(values)}", "write its keys below it"
        )
    hints = get_type_hints(cls)
    known = {item.name for item in fields(cls)}
    arguments: dict[str, object] = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if name not in known:
            raise UserError(place_of(tree, where, source), "no such key", nearest_key(where))
        inner = section_of(hints[name])
        family = family_of(hints[name])
        if family is not None:
            named = _named(tree, value, where, source)
            arguments[name] = {key: _section(family, tree, item, f"{where}.{key}", source) for key, item in named}
        elif inner is not None and not (value is None and NoneType in members_of(hints[name])):
            arguments[name] = _section(inner, tree, value, where, source)
        else:
            arguments[name] = _leaf(tree, where, hints[name], value, source)
    try:
        return cls(**arguments)
    except UserError as error:  # out of range: add the place
        key, _, rest = str(error).partition(": ")
        if path.startswith(f"{key.partition('.')[0]}."):  # one section of several
            key = f"{path}.{key.rpartition('.')[2]}"
        raise UserError(place_of(tree, key, source), rest) from None


def _named(tree: Tree, values: Plain, path: str, source: str) -> list[tuple[str, Plain]]:
    """The sections of one kind below ``path``, by name."""
    if not isinstance(values, dict | None):
        raise UserError(
            place_of(tree, path, source), f"expected a section of keys, got {_shown(values)}", "write its keys below it"
        )
    return list((values or {}).items())


def _leaf(tree: Tree, where: str, hint: Any, value: Plain, source: str) -> object:
    if isinstance(value, dict) and get_origin(hint) is dict:
        for name, item in value.items():
            if not is_option(item):
                what = f"expected a number, text, truth value or list, got {_shown(item)}"
                raise UserError(place_of(tree, f"{where}.{name}", source), what, "correct the value")
    try:
        return convert(hint, value)
    except ValueError:
        raise UserError(
            place_of(tree, where, source), f"expected {describe(hint)}, got {_shown(value)}", "correct the value"
        ) from None


def _shown(value: Plain) -> str:
    """A value for a message, cut to a readable length."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def place_of(tree: Tree, key: str, source: str) -> str:
    """``file:line: key``, or the option, for a message; the place of a key that has none is that of what it is in."""
    known = key
    while known not in tree.places and "." in known:
        known = known.rpartition(".")[0]
    place = tree.places.get(known, source)
    return place if place == f"--{key}" else f"{place}: {key}" if place else key
