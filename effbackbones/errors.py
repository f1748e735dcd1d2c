"""The one exception for what a user can mend, and the did-you-mean that goes with it. Imports nothing heavy."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: a config, a file, weights, memory. The commands print it as one line, exit code 2.

    Reads ``WHERE: WHAT; REMEDY``. ``where`` names the file or field, ``what`` says what was expected and what came.
    """

    def __init__(self, where: str, what: str = "", remedy: str = "") -> None:
        # Only the first argument is required: a DataLoader rebuilds a worker's exception from its text alone.
        text = f"{where}: {what}" if what else where
        super().__init__(f"{text}; {remedy}" if remedy else text)


def nearest(name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """Remedy for an unknown ``name``: the closest names first, then all of ``known``; ``also`` are accepted, not listed."""
    names = sorted(known)
    if not names:
        return "none is known"
    close = difflib.get_close_matches(name, [*names, *also], n=3, cutoff=0.5)
    did_you_mean = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{did_you_mean}known: {', '.join(names)}"
