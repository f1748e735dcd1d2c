"""Pointers of Git LFS: a few lines of text that a clone has in the place of a large file which was not fetched."""

from effbackbones.errors import UserError

LONGEST = 1024
"""Bytes that a pointer has at most, by the specification of Git LFS."""


def refuse_pointer(name: object, head: bytes) -> None:
    """Raise :class:`UserError` if the file called ``name``, which begins with ``head``, is one."""
    if head.lstrip().startswith(b"version https://git-lfs"):
        raise UserError(str(name), "is a pointer of Git LFS, not the file that it stands for", "run git lfs pull")
