"""The command ``classify``: image classification, one label or several per image."""

import sys

from tasks.verbs.command import run_command


def main(argv: list[str] | None = None) -> int:
    """``python -m tasks.classify``; returns the exit code."""
    return run_command("classify", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
