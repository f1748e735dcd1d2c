"""Weights from a repository of the Hugging Face Hub: ``hf-hub:USER/NAME``, or ``hf-hub:USER/NAME@REVISION``.

One file is fetched, ``model.safetensors``, into that library's own cache; it is read as any file of weights, and nothing of the
repository is run. ``HF_ENDPOINT`` names another server, ``HF_HUB_OFFLINE=1`` keeps to the cache.
"""

import os
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError

PREFIX = "hf-hub:"
FILE = "model.safetensors"


def is_repository(name: object) -> bool:
    """Whether a name of weights or of a checkpoint means a repository."""
    return isinstance(name, str | os.PathLike) and os.fspath(name).startswith(PREFIX)


def fetch_repository(name: str | os.PathLike[str]) -> Path:
    """The file of weights in the repository ``name``, on this machine. Raises :class:`UserError`, one line, where there is no such
    repository, revision or file, where it is gated, and where it can be neither reached nor found in the cache."""
    from huggingface_hub import hf_hub_download  # a second to import, and seldom wanted

    name = os.fspath(name)
    repository, named, revision = name.removeprefix(PREFIX).partition("@")
    if named and not revision:
        raise UserError(name, "names no revision behind the @", "name a branch, tag or commit, or leave the @ out")
    if repository.count("/") != 1:  # the library would ask the server for it, again and again
        raise UserError(name, "is no name of a repository", f"write {PREFIX}USER/NAME")
    try:
        found = hf_hub_download(
            repository, FILE, revision=revision or None, endpoint=endpoint(), library_name="effbackbones"
        )
    except Exception as error:  # of many kinds; what none of them explains goes on
        raise explained(name, error) from None
    return Path(found)


def endpoint() -> str | None:
    """The server that stands in for the Hub, read now: the library reads it once."""
    return os.environ.get("HF_ENDPOINT") or None


def explained(name: str, error: Exception, *, pushing: bool = False) -> Exception:
    """One line for what the library raised about the repository ``name``, when it fetched, or was ``pushing``."""
    from huggingface_hub import constants, errors

    server = endpoint() or "huggingface.co"
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    status: Any = getattr(getattr(cause, "response", None), "status_code", None)
    if constants.HF_HUB_OFFLINE and isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        what = "" if pushing else f"its {FILE} is not in the cache, and "
        return UserError(name, f"{what}HF_HUB_OFFLINE keeps from asking {server}", "unset it")
    access = f"{server} refuses access (status {status})"
    login = "run hf auth login, or set HF_TOKEN to a token that may " + ("write there" if pushing else "read it")
    if pushing and status == 401:  # to whom nobody knows the library says that there is no such repository
        return UserError(name, access, login)
    lines: tuple[tuple[Any, str, str], ...] = (
        (errors.GatedRepoError, "is gated", f"ask for access on its page at {server}, then run hf auth login"),
        (
            errors.RepositoryNotFoundError,
            f"{server} has no such repository, or a private one",
            "check USER/NAME, or run hf auth login",
        ),
        (errors.RevisionNotFoundError, "has no such revision", "name a branch, tag or commit behind the @"),
        (errors.RemoteEntryNotFoundError, f"holds no {FILE}", "name a repository that has one"),
        (
            errors.LocalEntryNotFoundError,
            f"{server} {f'answered with status {status}' if status else 'cannot be reached'}, and {FILE} is not in the cache",
            "check the connection and HF_ENDPOINT",
        ),
        (errors.HFValidationError, "is no name of a repository", f"write {PREFIX}USER/NAME"),
    )
    for kind, what, remedy in lines:
        if isinstance(error, kind):
            return UserError(name, what, remedy)
    if status in (401, 403):
        return UserError(name, access, login)
    if status == 404 and pushing:
        return UserError(name, f"{server} knows no such user or organisation", "check USER/NAME")
    if status:
        return UserError(name, f"{server} answered with status {status}", "try again later")
    # What the library asks servers by has errors of its own, of which some are no OSError: a connection that broke, a timeout.
    if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore")):
        what = f"{server} cannot be reached ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
        return UserError(name, what, "check the connection and HF_ENDPOINT")
    return error
