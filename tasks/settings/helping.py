"""What ``--help`` prints behind a verb: what it does, the options that go with it, and each key of the config that it reads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields
from textwrap import wrap
from typing import Any, get_type_hints

from effbackbones.registry import BACKBONES, DEFAULT_HEADS, HEADS, ROOMS_OF_HEADS, TASKS
from tasks.settings.keytypes import ANY, describe, family_of, field_docs, leaves, section_of
from tasks.settings.onecommand import NAME, WIDTH, row, task_words
from tasks.settings.sections import Config
from tasks.settings.verbs import DEFAULT, VERBS, Verb

COLUMN = 24
"""Where the text of an option begins."""
_SPACE = "\N{NO-BREAK SPACE}"


def verb_help(verb: Verb) -> str:
    """The help of a verb, whatever the task."""
    tasked = verb.config != "none"
    lines = [
        *_usage(verb, "TASK" if tasked else ""),
        *([f"Tasks: {', '.join(task_words())}.", ""] if tasked else []),
        *_options(verb),
        *([f"{NAME} {verb.name} TASK --help shows every key of the config too."] if tasked else []),
    ]
    return "\n".join(lines).rstrip()


def task_help(task: str, verb: Verb, configs: Iterable[str]) -> str:
    """The help of a verb with a task, for which the bundled ``configs`` are."""
    default = DEFAULT_HEADS.get(TASKS.canonical(task))
    others = ", ".join(name for name in VERBS if name != verb.name)
    told = [
        f"Configs: {', '.join(configs) or 'none'}; or a YAML file.",
        f"Heads: {', '.join(heads_of(task))}{f'; default here: {default}' if default else ''}.",
        f"Backbones: {', '.join(BACKBONES.names())}, timm:NAME, sound:NAME.",
        f"Other verbs: {others}; {NAME} --help says what each does, without a verb it is {DEFAULT}.",
    ]
    left_out = ", but for those that are for training alone" if verb.unread else ""
    keys = f"Keys of the config{left_out}. The defaults hold where the config says nothing; --print-config shows each value and its origin."
    lines = [
        *_usage(verb, task),
        *(line for text in told for line in wrap(text, WIDTH, subsequent_indent="  ")),
        "",
        *_options(verb),
        *wrap(keys, WIDTH),
        "",
        *_keys(verb),
    ]
    return "\n".join(lines).rstrip()


def heads_of(task: str) -> list[str]:
    """Names of the heads for a task, those of a joint one for any. Of plug-ins' heads nobody knows the task without asking them,
    which would load what they need: all are among them."""
    word = TASKS.canonical(task)
    rooms = ROOMS_OF_HEADS.get(word)
    return [name for name in HEADS.names() if rooms is None or HEADS.room(name) in (*rooms, None)]


def _usage(verb: Verb, task: str) -> list[str]:
    config = f"--config{_SPACE}NAME|FILE"
    words = (
        *(NAME, verb.name, task, verb.words if verb.inputs else ""),
        *(
            (config if verb.config == "needed" else f"[{config}]", f"[--section.key{_SPACE}VALUE{_SPACE}...]")
            if task
            else ()
        ),
        f"[--option{_SPACE}VALUE{_SPACE}...]",
    )
    usage = wrap(f"usage: {' '.join(filter(None, words))}", WIDTH, subsequent_indent=" " * 7)
    return [*(line.replace(_SPACE, " ") for line in usage), "", *wrap(verb.help, WIDTH), ""]


def _options(verb: Verb) -> Iterator[str]:
    if verb.shown:
        yield "Options:"
    for name, (option, text) in verb.shown.items():
        value = "" if option.flag else f" {name.rpartition('-')[2].upper()}"
        yield from _entry(name + value, text)
    yield ""


def _entry(head: str, text: str) -> list[str]:
    """A row, of two lines where the name is long."""
    text = " ".join(text.split())  # of docstrings of several lines
    if len(head) + 6 <= COLUMN:
        return row(f"--{head}", text, COLUMN - 4)
    return [f"  --{head}", *wrap(text, WIDTH, initial_indent=" " * COLUMN, subsequent_indent=" " * COLUMN)]


def _keys(verb: Verb) -> Iterator[str]:
    """Every key that the verb reads, section by section."""
    for owner, prefix, items in _sections():
        docs, limits = field_docs(owner), getattr(owner, "LIMITS", {})
        rows = [
            line
            for key, hint, item in items
            if verb.reads(key, split=True)
            for line in _entry(key, f"{docs[item.name]} ({_told(hint, item, limits)})")
        ]
        if rows:
            about = " ".join((owner.__doc__ or "").split())
            yield from wrap(f"{prefix.rstrip('.')}: {about}" if prefix else "Of the whole config:", WIDTH)
            yield from (*rows, "")


def _told(hint: Any, item: Field[Any], limits: Mapping[str, object]) -> str:
    bounds = f"range {limits[item.name]}" if item.name in limits else ""
    return "; ".join(filter(None, (describe(hint), bounds, f"default {_shown_default(item)}")))


def _sections() -> Iterator[tuple[type, str, list[tuple[str, Any, Field[Any]]]]]:
    """Each section with the prefix of its keys, and those that lie in it itself; last those that lie in none."""
    hints = get_type_hints(Config)
    for top in fields(Config):
        inner, family = section_of(hints[top.name]), family_of(hints[top.name])
        for owner, prefix in (
            _owners(inner, f"{top.name}.") if inner else [(family, f"{top.name}.{ANY}.")] if family else []
        ):
            yield owner, prefix, [leaf for leaf in leaves(owner, prefix) if leaf[0] == prefix + leaf[2].name]
    yield Config, "", [leaf for leaf in leaves() if leaf[0] == leaf[2].name]


def _owners(section: type, prefix: str) -> Iterator[tuple[type, str]]:
    """A section and the sections inside of it, with their prefixes."""
    yield section, prefix
    for name, hint in get_type_hints(section).items():
        inner = section_of(hint)
        if inner is not None:
            yield from _owners(inner, f"{prefix}{name}.")


def _shown_default(item: Field[Any]) -> str:
    """A default as a config writes it."""
    default = item.default_factory() if callable(item.default_factory) else item.default
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    if isinstance(default, bool):
        return str(default).lower()
    return "null" if default is None else str(default)
