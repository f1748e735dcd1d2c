"""The command of any task, by its name: those of plug-ins have no other."""

import sys
from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.registry import TASKS
from tasks.settings.verbs import VERBS
from tasks.verbs.command import run_command

USAGE = """python -m tasks.run TASK [VERB] [--config NAME|FILE] [--plugins FILE] [...]

TASK is a built-in task or one that a plug-in registers under @register_task. `python -m tasks.run TASK --help` says more."""


def main(argv: list[str] | None = None) -> int:
    """``python -m tasks.run TASK ...``; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words in ([], ["-h"], ["--help"]):
        print(f"{USAGE} Built in: {', '.join(TASKS.names())}.")
        return 0
    if words[0].startswith("-") and words != ["--version"]:
        print(f"error: {words[0]}: expected a task first; {USAGE.splitlines()[0]}", file=sys.stderr)
        return 2
    if words == ["--version"] or (words[0] in VERBS and VERBS[words[0]].config == "none"):
        return run_command("", words)  # asks for no task
    task, rest = words[0], words[1:]
    if TASKS.canonical(task) not in TASKS.names() and not _may_bring_code(rest):
        try:
            TASKS.get(task)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return run_command(task, rest)


def _may_bring_code(words: list[str]) -> bool:
    """Whether a line names plug-ins, or a file or run that may."""
    return any(word.startswith(("--plugins", "--run.resume")) or Path(word).exists() for word in words)


if __name__ == "__main__":
    sys.exit(main())
