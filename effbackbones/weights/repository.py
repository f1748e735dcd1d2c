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
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
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


def explained(name: str, error: Exception) -> Exception:
    """One line for what the library raised about the repository ``name``."""
    from huggingface_hub import errors

    server = endpoint() or "huggingface.co"
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    status: Any = getattr(getattr(cause, "response", None), "status_code", None)
    lines: tuple[tuple[Any, str, str], ...] = (
        (errors.GatedRepoError, "is gated", f"ask for access on its page at {server}, then run hf auth login"),
        (
            errors.RepositoryNotFoundError,
            f"{server} has no such repository, or a private one",
            "check USER/NAME, or run hf auth login",
        ),
        (errors.RevisionNotFoundError, "has no such revision", "name a branch, tag or commit behind the @"),
        (errors.RemoteEntryNotFoundError, f"holds no {FILE}", "name a repository that has one"),
        (errors.OfflineModeIsEnabled, "is not in the cache, and HF_HUB_OFFLINE keeps from asking", "unset it"),
        (
            errors.LocalEntryNotFoundError,
            f"{server} {f'answered with status {status}' if status else 'cannot be reached'}, and {FILE} is not in the cache",
            "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE",
        ),
        (errors.HFValidationError, "is no name of a repository", f"write {PREFIX}USER/NAME"),
    )
    for kind, what, remedy in lines:
        if isinstance(error, kind):
            return UserError(name, what, remedy)
    if status in (401, 403):
        return UserError(name, f"{server} refuses access (status {status})", "run hf auth login, or set HF_TOKEN")
    if status:
        return UserError(name, f"{server} answered with status {status}", "try again later")
    if (
        isinstance(error, OSError)
        or "connect" in type(error).__name__.lower()
        or "timeout" in type(error).__name__.lower()
    ):
        what = f"{server} cannot be reached ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
        return UserError(name, what, "check the connection and HF_ENDPOINT")
    return error
