"""The one command: verbs, and tasks below them (``effbackbones train detect ...``); which words mean what, and its help."""

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from effbackbones.errors import UserError, nearest
from effbackbones.registry import TASKS
from tasks.settings.verbs import DEFAULT, VERBS, Verb

NAME = "effbackbones"
WIDTH = 100


def task_words() -> list[str]:
    """The words for tasks that users write, sorted: ``detect`` and not ``det``."""
    return sorted(map(TASKS.spoken, TASKS.names()))


def is_ordered(words: Sequence[str]) -> bool:
    """Whether the first words of a line are known verbs and tasks, so that no plug-in need be imported to tell what they are."""
    if not words or words[0].startswith("-"):
        return True
    if words[0] in VERBS:
        alone = VERBS[words[0]].config == "none" or len(words) == 1 or words[1].startswith("-")
        return alone or _is_task(words[1])
    return _is_task(words[0]) and (len(words) == 1 or words[1].startswith("-") or words[1] in VERBS)


def ordered(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command, and what follows it, of the words ``VERB TASK ...``, ``TASK [VERB] ...``, or ``VERB ...`` of a verb that has no
    task (the command is empty then). Unknown words, and a task that is missing, raise :class:`UserError`.

    A task that plug-ins may bring is let through: whoever looks it up refuses it.
    """
    first, rest = words[0], list(words[1:])
    if first.startswith("-"):
        raise UserError(first, "expected a verb first", f"write {NAME} VERB TASK [...]; {NAME} --help lists both")
    if first not in VERBS:
        if not _may_be_task(first, rest):
            raise UserError(f"verb or task {first!r}", "no such name", _remedy(first, [*VERBS, *task_words()]))
        return _command(first), rest
    if VERBS[first].config == "none":
        return "", list(words)
    if not rest or rest[0].startswith("-"):
        if {"-h", "--help"} & set(rest):
            return next((_command(word) for word in rest if _is_task(word)), ""), [first, "--help"]
        remedy = f"write {NAME} {first} TASK [...]; known: {', '.join(task_words())}"
        raise UserError(f"command {first!r}", "which task?", remedy)
    if not _may_be_task(rest[0], rest[1:]):
        raise UserError(f"task {rest[0]!r}", f"no such name behind {first}", _remedy(rest[0], task_words()))
    return _command(rest[0]), [first, *rest[1:]]


def _is_task(word: str) -> bool:
    return TASKS.canonical(word) in TASKS.names()


def _command(task: str) -> str:
    return TASKS.spoken(TASKS.canonical(task)) if _is_task(task) else task


def _remedy(word: str, known: Sequence[str]) -> str:
    return f"{nearest(word, known)}; your own must be imported first (--plugins FILE)"


def _may_be_task(word: str, line: Sequence[str]) -> bool:
    """Whether ``word`` is a task, or may become one by the plug-ins that the rest of the line brings or names: a config, or a run, whose
    own are told then."""
    if _is_task(word) or not re.fullmatch(r"[\w-]+", word):
        return _is_task(word)
    named: dict[str, str] = {}
    for place, each in enumerate(line):
        option, given, value = each.partition("=")
        named[option] = value if given else next(iter(line[place + 1 : place + 2]), "")
    files = [named[option] for option in ("--config", "--checkpoint") if option in named]
    return bool({"--plugins", "--run.resume"} & named.keys()) or any(Path(file).exists() for file in files)


def overview() -> str:
    """The help of the whole command."""
    with_task, without = (
        [verb for verb in VERBS.values() if (verb.config == "none") == alone] for alone in (False, True)
    )
    tasks = ", ".join(task_words())
    lines = [
        f"usage: {NAME} VERB TASK [--config NAME|FILE] [--section.key VALUE ...]",
        f"       {NAME} VERB [...]",
        "",
        f"Verbs with a task ({tasks}):",
        *_rows(with_task),
        "",
        "Verbs without a task:",
        *_rows(without),
        "",
        f"{NAME} VERB TASK --help shows every option and key, {NAME} VERB --help the options of the verb.",
        f"{NAME} TASK is {NAME} {DEFAULT} TASK. --plugins FILE brings tasks and verbs of your own.",
        f"{NAME} --version: the versions of this project, PyTorch and Python. python -m {NAME} is the same command.",
    ]
    return "\n".join(lines)


def _rows(verbs: Sequence[Verb]) -> list[str]:
    width = max((len(verb.name) for verb in verbs), default=0)
    return [line for verb in verbs for line in row(verb.name, verb.help, width)]


def row(name: str, text: str, width: int) -> list[str]:
    """A name, and what it means beside it."""
    return wrap(text, WIDTH, initial_indent=f"  {name:{width}}  ", subsequent_indent=" " * (width + 4))
