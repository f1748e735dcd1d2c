"""What is not there: images without a file of labels (refused, left out, or taken to show nothing, and in any case counted), splits."""

from collections.abc import Sequence

from effbackbones.errors import UserError
from tasks.data.files.listing import shown

MISSING = ("stop", "skip", "empty")
"""What becomes of such images: ``data.options.missing``."""
_DONE = {"skip": "are left out", "empty": "count as empty"}


def remedy_for_split(split: str) -> str:
    """What to do where the files of a split are not found; that of the test may be left out."""
    return f"set data.{split}{', or data.test: null where there is none' if split == 'test' else ''}"


def told_of_missing(where: str, kind: str, names: Sequence[str], total: int, missing: str) -> tuple[str, ...]:
    """A line on the images ``names``, of ``total``, that have no ``kind`` of their name: what is done with them, one of
    :data:`MISSING`. With ``stop``, or where no image is left, :class:`UserError` has their number and the first few."""
    if not names:
        return ()
    what = f"{len(names):,} of {total:,} images have no {kind}: {shown(names)}"
    if missing == "stop":
        remedy = "add them, or set data.options.missing: skip to leave such images out, or empty if nothing is in them"
        raise UserError(where, what, remedy)
    if len(names) == total:
        raise UserError(where, what, "correct data.root, or the names of the files")
    return (f"{what}: they {_DONE[missing]} (data.options.missing)",)
