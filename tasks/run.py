"""The one command, installed as ``effbackbones``: ``VERB TASK ...``, ``TASK [VERB] ...``, and verbs without a task."""

import sys

from tasks.verbs.command import run_line


def main(argv: list[str] | None = None) -> int:
    """``effbackbones``, ``python -m effbackbones``, ``python -m tasks.run``; returns the exit code."""
    return run_line(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
