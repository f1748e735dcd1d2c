"""The command ``joint``: several tasks on one backbone, trained together."""

import sys

from tasks.verbs.command import run_command


def main(argv: list[str] | None = None) -> int:
    """``python -m tasks.joint``; returns the exit code."""
    return run_command("joint", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
