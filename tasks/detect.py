"""The command ``detect``: object detection."""

import sys

from tasks.verbs.command import run_command


def main(argv: list[str] | None = None) -> int:
    """``python -m tasks.detect``; returns the exit code."""
    return run_command("detect", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
