"""Paths as people write them: ``~`` and ``$VARIABLES``, which a shell leaves alone in YAML files and behind ``=``."""

import os
import re

from effbackbones.errors import UserError
from effbackbones.weights.repository import is_repository


def expanded(path: str, where: str) -> str:
    """``path`` with ``~`` and ``$VARIABLES`` filled in, unless there is a file or folder of that very name.

    What has no value raises :class:`UserError` with ``where`` it stands.
    """
    if (not path.startswith("~") and "$" not in path) or os.path.lexists(path):
        return path
    found = os.path.expandvars(os.path.expanduser(path))
    unset = re.search(r"\$(\w+|\{[^}]*\})", found)
    if unset:
        raise UserError(where, f"{unset[0]} in {path!r} has no value", "set that variable, or write the path out")
    if found.startswith("~"):
        raise UserError(where, f"the home folder in {path!r} is not known", "set HOME, or write the path out")
    return found


def absolute_path(path: str, where: str) -> str:
    """The same place from any working folder; an address (``scheme://``), where a registered data set reads from, and the name of a
    repository as they are."""
    return path if "://" in path or is_repository(path) else os.path.abspath(expanded(path, where))
